"""Packing: rotamers chosen by density and contacts, refinement of chi, state, window."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Region
from densemble.errors import InputError
from densemble.io.models import Model, read_model
from densemble.sidechains.packing import SideChains, window_of

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(DEPOSITED, altloc="B")


def setting(
    model: Model, text: str, members: int, **options
) -> tuple[SideChains, torch.Tensor, torch.Tensor]:
    """Side chains of a region, its deposited backbone per member, and its deposited atoms."""
    topology = model.topology
    residues = Region.parse(text).residues(topology)
    water = [i for i, r in enumerate(topology.residue_index) if topology.residues[r].kind == "water"]
    chains = SideChains(topology, model.coords, residues, members=members, absent=water, **options)
    backbone = torch.tensor(model.coords[topology.backbone(residues)], dtype=torch.float32)
    atoms = torch.tensor(model.coords[topology.atoms_of(chains.residues)], dtype=torch.float32)
    return chains, backbone.repeat(members, 1, 1, 1), atoms


def rmsd(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x - reference).square().sum(-1).mean().sqrt())


def density_of(atoms: torch.Tensor, height: float = 0.3):
    """Gain per electron of a synthetic map: a Gaussian of 0.6 Å at each atom."""

    def at(points: torch.Tensor) -> torch.Tensor:
        squares = torch.cdist(points.flatten(0, -2), atoms).square()
        return height * (-squares / (2 * 0.6**2)).exp().sum(-1).reshape(points.shape[:-1])

    return at


def test_starts_as_the_model_and_keeps_its_order(model: Model) -> None:
    chains, backbone, atoms = setting(model, "A:176-191", 3)
    x = chains.complete(backbone)
    assert x.shape == (3, len(chains.topology), 3)
    assert rmsd(x, atoms) < 0.15
    backbone_atoms = np.isin(chains.topology.names, ("N", "CA", "C", "O"))
    assert torch.equal(x[0, backbone_atoms], atoms[backbone_atoms])


def test_density_and_contacts_recover_the_side_chains(model: Model, generator: torch.Generator) -> None:
    """A buried stretch: contacts and frequencies alone get most of chi1 right, density nearly all."""
    chains, backbone, atoms = setting(model, "A:100-125", 4)
    truth, mask = chains.chi.clone(), torch.tensor(chains._builder.chi_mask[:, 0])

    def right() -> float:
        return float(((chains.chi - truth)[:, mask, 0].cos() > np.cos(np.radians(40))).float().mean())

    chains.chi = torch.zeros_like(chains.chi)
    chains.pack(backbone, generator=generator, temperature=0.0)
    assert right() > 0.65
    chains.pack(backbone, generator=generator, density_at=density_of(atoms), temperature=0.0)
    assert right() > 0.92
    deviation = (chains.complete(backbone) - atoms).norm(dim=-1)[:, chains._builder.follows_chi]
    assert deviation.median() < 0.5  # rings and amides may be flipped: the map knows no elements


def test_fine_choices_come_nearer_in_density(model: Model, generator: torch.Generator) -> None:
    chains, backbone, atoms = setting(model, "A:100-125", 2)
    moved, far = chains._builder.follows_chi, []
    for fine in (False, True):
        chains.chi = torch.zeros_like(chains.chi)
        at = density_of(atoms)
        chains.pack(backbone, generator=generator, density_at=at, temperature=0.0, fine=fine)
        far.append(float((chains.complete(backbone) - atoms).norm(dim=-1)[:, moved].mean()))
    assert far[1] < 0.8 * far[0]


def test_members_are_drawn_on_their_own(model: Model) -> None:
    chains, backbone, _ = setting(model, "A:176-191", 6)
    state = chains.state_dict()
    chains.pack(backbone, generator=torch.Generator().manual_seed(3), temperature=2.0)
    first = chains.chi.clone()
    assert len({tuple(c) for c in first.flatten(1).tolist()}) == 6
    assert not torch.equal(first, state["chi"])
    chains.load_state_dict(state)
    chains.pack(backbone, generator=torch.Generator().manual_seed(3), temperature=2.0)
    assert torch.equal(chains.chi, first)  # same state, same seed, same draw


def test_two_members_follow_two_densities(model: Model, generator: torch.Generator) -> None:
    """ASP 181 turned to another rotamer: density at the other place brings it there."""
    chains, backbone, _ = setting(model, "A:181", 2)
    chains.chi[:, 0, 0] = torch.tensor([-1.2, 3.1])
    target = chains.complete(backbone)
    chains.pack(backbone, generator=generator, density_at=density_of(target[1], 2.0), temperature=0.0)
    assert torch.cos(chains.chi[:, 0, 0] - 3.1).min() > 0.85


def test_draw_follows_the_library_where_nothing_else_speaks(model: Model) -> None:
    """A residue alone in space: 2,000 draws of SER against the published frequencies."""
    topology = model.topology
    serine = next(i for i, r in enumerate(topology.residues) if r.name == "SER")
    atoms = topology.atoms_of([serine])
    alone = np.setdiff1d(np.arange(len(topology)), atoms)
    chains = SideChains(topology, model.coords, [serine], members=2000, absent=alone)
    backbone = torch.tensor(model.coords[topology.backbone([serine])], dtype=torch.float32)
    chains.pack(backbone.repeat(2000, 1, 1, 1), generator=torch.Generator().manual_seed(5), sweeps=1)
    degrees = torch.rad2deg(chains.chi[:, 0, 0]).round()
    for angle, percent in ((-65, 29), (-177, 22), (62, 48)):
        assert float((degrees == angle).float().mean()) == pytest.approx(percent / 99, abs=0.04)


def test_clash_is_avoided(model: Model, generator: torch.Generator) -> None:
    chains, backbone, _ = setting(model, "A:187", 1)
    chains.pack(backbone, generator=generator, temperature=0.0)
    taken = chains.complete(backbone)[0, chains._builder.follows_chi]
    best = chains.chi.clone()
    again, _, _ = setting(model, "A:187", 1, copies=taken.double().numpy(), copy_elements=["C"] * len(taken))
    again.pack(backbone, generator=generator, temperature=0.0)
    assert not torch.allclose(again.chi, best)


def test_refinement_climbs_and_leaves_prolines(model: Model) -> None:
    chains, backbone, atoms = setting(model, "A:176-191", 2)
    chains.chi = chains.chi + 0.3
    before = chains.chi.clone()
    trace = chains.refine(backbone, lambda x: -(x - atoms).square().sum(), steps=25, step_size=0.002)
    assert len(trace) == 25
    assert trace[-1] > trace[0] / 3
    assert all(b > a for a, b in pairwise(trace))
    proline = [r.name == "PRO" for r in chains.topology.residues]
    assert torch.equal(chains.chi[:, proline], before[:, proline])
    assert not chains.chi.requires_grad


def test_backbone_gradient_holds_chi(model: Model) -> None:
    chains, backbone, atoms = setting(model, "A:180-182", 2)
    backbone = backbone.requires_grad_()
    (chains.complete(backbone) - atoms).square().sum().backward()
    assert backbone.grad is not None
    assert backbone.grad.abs().sum() > 0


def test_window_moves_only_its_side_chains(model: Model, generator: torch.Generator) -> None:
    narrow, backbone, _ = setting(model, "A:180-184", 2)
    wide, _, atoms = setting(model, "A:180-184", 2, window=3)
    numbers = [r.id.number for r in wide.topology.residues]
    assert numbers == list(range(177, 188))
    wide.pack(backbone + 0.1, generator=generator)
    x = wide.complete(backbone + 0.1)
    inside = np.isin(wide.topology.residue_index, np.arange(3, 8))
    spine = np.isin(wide.topology.names, ("N", "CA", "C", "O"))
    assert torch.equal(x[0, ~inside & spine], atoms[~inside & spine])
    assert torch.allclose(x[0, inside & spine], atoms[inside & spine] + 0.1)
    assert x.shape[1] > len(narrow.topology)


def test_window_stops_at_the_chain_end(model: Model) -> None:
    first = next(i for i, r in enumerate(model.topology.residues) if r.kind == "protein")
    assert window_of(model.topology, model.coords, [first], 2) == [first + 1, first + 2]
    assert window_of(model.topology, model.coords, [first, first + 1], 0) == []


def test_window_stops_at_a_residue_without_a_complete_backbone(model: Model) -> None:
    topology = model.topology
    (residues,) = Region.parse("A:180-184").resolve(topology)
    kept = np.delete(np.arange(len(topology)), topology.atom_index[residues[-1] + 3, "O"])
    found = window_of(topology.subset(kept), model.coords[kept], residues, 5)
    assert found == [*range(residues[0] - 5, residues[0]), residues[-1] + 1, residues[-1] + 2]


def test_state_of_another_region_is_refused(model: Model) -> None:
    chains, _, _ = setting(model, "A:180-182", 2)
    other, _, _ = setting(model, "A:180-183", 2)
    with pytest.raises(ValueError, match="SideChains: chi"):
        chains.load_state_dict(other.state_dict())


def test_a_region_with_a_ligand_is_refused(model: Model) -> None:
    ligand = next(i for i, r in enumerate(model.topology.residues) if r.kind == "ligand")
    with pytest.raises(InputError, match="whose side chain cannot be built"):
        SideChains(model.topology, model.coords, [ligand], members=1)
