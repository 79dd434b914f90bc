"""Side chains from internal coordinates: against gemmi, against deposited structures, derivatives."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.geometry import targets
from densemble.io.models import Model, read_model
from densemble.sidechains.build import SideChainBuilder, place
from densemble.sidechains.residues import SYMMETRIC_CHI, chi_atoms, complete_topology, placements
from densemble.sidechains.rotamers import fine_rotamers, nearest, rotamers

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"
KINDS = sorted(targets.known_residues())


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(DEPOSITED, altloc="B")


def protein(model: Model) -> tuple[Topology, torch.Tensor]:
    """The protein and its coordinates, shape=(1, n, 3)."""
    residues = [i for i, r in enumerate(model.topology.residues) if r.kind == "protein"]
    atoms = model.topology.atoms_of(residues)
    return model.topology.subset(atoms), torch.tensor(model.coords[atoms])[None]


def one(name: str, *, terminal: bool = False) -> Topology:
    """A single residue, complete."""
    names = ("N", "CA", "C", "O", *(p.atom for p in placements(name)), *(["OXT"] if terminal else []))
    elements = tuple("Se" if n == "SE" else n[0] for n in names)
    index = np.zeros(len(names), dtype=np.int64)
    return Topology(names, elements, index, (Residue(ResidueId("A", 1), name),))


BACKBONE = torch.tensor(
    [[[[0.0, 0.0, 0.0], [1.459, 0.0, 0.0], [2.006, 1.424, 0.0], [1.25, 2.39, 0.1]]]], dtype=torch.float64
)


def test_place_gives_the_internal_coordinates_asked_for(generator: torch.Generator) -> None:
    a, b, c = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    length = torch.rand(7, generator=generator, dtype=torch.float64) + 1
    angle = torch.rand(7, generator=generator, dtype=torch.float64) * 2 + 0.5
    dihedral = torch.rand(7, generator=generator, dtype=torch.float64) * 6 - 3
    d = place(a, b, c, length, angle, dihedral)
    for i in range(7):
        p = [gemmi.Position(*x[i].tolist()) for x in (a, b, c, d)]
        assert p[2].dist(p[3]) == pytest.approx(length[i].item(), abs=1e-9)
        assert gemmi.calculate_angle(*p[1:]) == pytest.approx(angle[i].item(), abs=1e-9)
        assert gemmi.calculate_dihedral(*p) == pytest.approx(dihedral[i].item(), abs=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_built_residue_has_ideal_geometry(name: str) -> None:
    """Every bond, angle and chiral volume, also those that close a ring and did not build it."""
    topology = one(name, terminal=True)
    builder = SideChainBuilder(topology, dtype=torch.float64)
    chi = rotamers(name).chi[:1][None]
    x = builder.build(BACKBONE, chi)[0].numpy()
    at = {n: x[i] for i, n in enumerate(topology.names)}
    for bond in targets.residue_bonds(name):
        tolerance = 0.12 if name == "PRO" and bond.atoms == ("CD", "N") else 0.03
        if not set(bond.atoms) <= {"N", "CA", "C", "O"}:
            length = np.linalg.norm(at[bond.atoms[0]] - at[bond.atoms[1]])
            assert length == pytest.approx(bond.mean, abs=tolerance), bond
    for angle in targets.residue_angles(name):
        if set(angle.atoms) <= {"N", "CA", "C", "O"} or name == "PRO":
            continue
        points = [gemmi.Position(*at[n]) for n in angle.atoms]
        found = np.degrees(gemmi.calculate_angle(*points))
        assert found == pytest.approx(angle.mean, abs=2.1), angle
    for centre in targets.chiral_centres(name):
        arms = np.array([at[n] - at[centre.atoms[0]] for n in centre.atoms[1:]])
        arms /= np.linalg.norm(arms, axis=1, keepdims=True)
        assert np.linalg.det(arms) == pytest.approx(centre.mean, abs=0.03)
    if name in targets.PLANES:
        points = np.array([at[n] for n in targets.PLANES[name]])
        assert np.linalg.svd(points - points.mean(0))[1][-1] < 1e-6


@pytest.mark.parametrize("name", [k for k in KINDS if chi_atoms(k)])
def test_chi_is_what_was_asked_for(name: str, generator: torch.Generator) -> None:
    topology = one(name)
    builder = SideChainBuilder(topology, dtype=torch.float64)
    chi = (torch.rand(5, 1, 4, generator=generator, dtype=torch.float64) * 6 - 3) * torch.tensor(
        builder.chi_mask
    )
    x = builder.build(BACKBONE.repeat(5, 1, 1, 1), chi)
    assert torch.allclose(builder.chi_from_coords(x), chi, atol=1e-9)
    names = [n for n in topology.names]
    for i, atoms in enumerate(chi_atoms(name)):
        points = [gemmi.Position(*x[0, names.index(a)].tolist()) for a in atoms]
        assert gemmi.calculate_dihedral(*points) == pytest.approx(chi[0, 0, i].item(), abs=1e-9)


def test_deposited_structure_is_rebuilt_from_its_chi(model: Model) -> None:
    topology, x = protein(model)
    builder = SideChainBuilder(topology, dtype=torch.float64)
    chi = builder.chi_from_coords(x)
    assert int(chi.isnan().any(-1).sum()) == 1  # one truncated side chain
    built = builder.build(builder.backbone_of(x), chi.nan_to_num())
    deviation = (built - x).norm(dim=-1)[0].numpy()
    backbone = np.isin(topology.names, ("N", "CA", "C", "O"))
    assert deviation[backbone].max() < 1e-9
    assert np.sqrt(np.mean(deviation[np.array(topology.names) == "CB"] ** 2)) < 0.06
    assert np.sqrt(np.mean(deviation[builder.follows_chi] ** 2)) < 0.21
    assert np.quantile(deviation[builder.follows_chi], 0.95) < 0.45


def test_build_is_differentiable(generator: torch.Generator) -> None:
    names = ("ARG", "GLY", "TRP", "ALA", "ILE")
    parts = [one(name) for name in names]
    topology = Topology(
        names=tuple(n for p in parts for n in p.names),
        elements=tuple(e for p in parts for e in p.elements),
        residue_index=np.repeat(np.arange(5), [len(p) for p in parts]),
        residues=tuple(Residue(ResidueId("A", i), n) for i, n in enumerate(names)),
    )
    builder = SideChainBuilder(topology, dtype=torch.float64)
    shift = 0.1 * torch.randn(2, 5, 4, 3, generator=generator, dtype=torch.float64)
    backbone = (BACKBONE + shift).requires_grad_()
    chi = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    assert builder.build(backbone, chi).shape == (2, len(topology), 3)
    weights = torch.randn(len(topology), 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda b, c: (builder.build(b, c) * weights).sum(-1), (backbone, chi))


def test_missing_atoms_are_completed() -> None:
    whole = one("LYS")
    truncated = whole.subset(np.array([i for i, n in enumerate(whole.names) if n not in ("CE", "NZ")]))
    completed, source = complete_topology(truncated)
    assert completed.names == whole.names
    assert completed.elements == whole.elements
    assert source.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1]
    builder = SideChainBuilder(truncated, dtype=torch.float64)
    x = builder.build(BACKBONE, torch.ones(1, 1, 4, dtype=torch.float64))
    assert x.shape == (1, 7, 3)
    assert builder.chi_from_coords(x).isnan()[0, 0].tolist() == [False, False, True, True]


def test_completing_a_structure_adds_only_what_lacks(model: Model) -> None:
    topology, _ = protein(model)
    completed, source = complete_topology(topology)
    new = [completed.names[i] for i in np.flatnonzero(source < 0)]
    assert len(completed) == len(topology) + len(new)
    assert [completed.names[i] for i in np.flatnonzero(source >= 0)] == list(topology.names)
    assert np.array_equal(source[source >= 0], np.arange(len(topology)))
    SideChainBuilder(completed)


def test_what_cannot_be_built_is_named() -> None:
    ligand = Topology(("C1",), ("C",), np.array([0]), (Residue(ResidueId("A", 301), "TRS", "ligand"),))
    with pytest.raises(InputError, match="residue A:301 is TRS, whose side chain cannot be built"):
        SideChainBuilder(ligand)
    with pytest.raises(InputError, match=r"A:1 \(SER\) lacks the backbone atom O"):
        SideChainBuilder(one("SER").subset(np.array([0, 1, 2, 4, 5])))
    odd = one("ALA")
    with pytest.raises(InputError, match="has an atom XX that does not belong"):
        SideChainBuilder(Topology((*odd.names[:4], "XX"), odd.elements, odd.residue_index, odd.residues))


@pytest.mark.parametrize("name", [k for k in KINDS if chi_atoms(k)])
def test_library_is_complete(name: str) -> None:
    library = rotamers(name)
    assert library.log_probability.exp().sum().item() == pytest.approx(1)
    assert (library.chi[:, len(chi_atoms(name)) :] == 0).all()
    assert library.chi.abs().max() <= np.pi + 1e-9
    assert len({tuple(c) for c in library.chi.tolist()}) == len(library.names)
    for i, chi in enumerate(library.chi):
        assert nearest(name, chi.tolist()) == i


@pytest.mark.parametrize("name", [k for k in KINDS if chi_atoms(k)])
def test_fine_choices_hold_the_library_and_weigh_as_it_does(name: str) -> None:
    """Choices fall to the nearest rotamer; of each they have about its share, and of what is far some."""
    coarse, fine = rotamers(name), fine_rotamers(name)
    assert fine.log_probability.exp().sum().item() == pytest.approx(1)
    assert len({tuple(c) for c in fine.chi.tolist()}) == len(fine.names)
    if name == "PRO":
        assert torch.equal(fine.chi, coarse.chi)
        return
    assert len(fine.names) >= 3 * len(coarse.names)
    period = torch.ones(4, dtype=torch.float64)
    if name in SYMMETRIC_CHI:
        period[SYMMETRIC_CHI[name] - 1] = 2
    off = (1 - (period * (coarse.chi[:, None] - fine.chi)).cos()).max(-1).values.min(1).values
    step = 2 if name in ("PHE", "TYR", "ASP") else 1  # chi2 of flat groups is not the library's but each 30°
    assert float((1 - off).acos().max()) <= step * np.radians(15) + 1e-6
    best = fine.chi[int(fine.log_probability.argmax())]
    likely = int(coarse.log_probability.argmax())
    assert (
        float((1 - (period * (best - coarse.chi[likely])).cos()).max())
        <= 1 - np.cos(step * np.radians(15)) + 1e-6
    )
    assert float(fine.log_probability.exp().min()) > 0


def test_a_ring_between_rotamers_is_found_by_density(model: Model) -> None:
    """Trp 179 of altloc A of 7RIN stands far from all rotamers in chi2; a fine choice is near it."""
    chi = torch.tensor([-171.0, -17.0, 0.0, 0.0], dtype=torch.float64).deg2rad()

    def furthest(library: torch.Tensor) -> float:
        return float((1 - (library - chi).cos()).max(-1).values.min().mul(-1).add(1).acos().rad2deg())

    assert furthest(rotamers("TRP").chi) > 70
    assert furthest(fine_rotamers("TRP").chi) < 20


def test_deposited_side_chains_are_near_the_library(model: Model) -> None:
    topology, x = protein(model)
    chi = SideChainBuilder(topology, dtype=torch.float64).chi_from_coords(x)[0]
    off = []
    for residue, own in zip(topology.residues, chi, strict=True):
        if chi_atoms(residue.name) and not own.isnan().any():
            library = rotamers(residue.name).chi[nearest(residue.name, own.tolist())]
            off.append(float((1 - (own - library).cos()).max().mul(-1).add(1).acos()))
    assert np.median(np.degrees(off)) < 12
    assert np.mean(np.degrees(off) < 40) > 0.85
