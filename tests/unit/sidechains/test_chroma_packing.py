"""Chroma's packer on our side chains, against the released package (untrained weights)."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from small_chroma import small_design

import densemble
from densemble.atoms import Region
from densemble.io.models import read_model
from densemble.priors.chroma.layout import ChainLayout
from densemble.sidechains.build import SideChainBuilder
from densemble.sidechains.chroma import ChromaPacker, chi_shift
from densemble.sidechains.completion import Packer, SideChainCompletion
from densemble.sidechains.packing import SideChains
from densemble.sidechains.residues import chi_atoms

START = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"
WINDOW = 5


@pytest.fixture(scope="module")
def network():
    return small_design()


@pytest.fixture(scope="module")
def piece():
    """Residues A:165-200 of the example: topology and coordinates."""
    model = read_model(START)
    (residues,) = Region.parse("A:165-200").resolve(model.topology)
    atoms = model.topology.atoms_of(residues)
    return model.topology.subset(atoms), model.coords[atoms]


class Setting:
    """A region with its window in the piece, and its backbone for K members."""

    def __init__(self, piece, text="A:180-184", window=WINDOW, members=2):
        self.topology, self.coords = piece
        (self.residues,) = Region.parse(text).resolve(self.topology)
        self.chains = SideChains(*piece, self.residues, members=members, window=window)
        rows = self.topology.backbone(self.residues)
        start = torch.tensor(self.coords[rows], dtype=torch.float32).repeat(members, 1, 1, 1)
        generator = torch.Generator().manual_seed(9)
        self.backbone = start + 0.3 * torch.randn(start.shape, generator=generator)


def deposited_chi(piece, residues) -> torch.Tensor:
    topology, coords = piece
    atoms = topology.atoms_of(residues)
    builder = SideChainBuilder(topology.subset(atoms))
    return builder.chi_from_coords(torch.tensor(coords[atoms], dtype=torch.float32)[None])[0]


def test_chi_angles_are_measured_alike():
    """By the atoms of both definitions; tryptophan's chi2 is the one that differs."""
    from chroma.constants import AA20_3, AA_GEOMETRY

    for kind in AA20_3:
        geometry = AA_GEOMETRY[kind]
        theirs = [(*geometry["parents"][i], geometry["atoms"][i]) for i in geometry["chi_indices"]]
        assert [q[:3] for q in theirs] == [q[:3] for q in chi_atoms(kind)], kind
        same = [a == b for a, b in zip(theirs, chi_atoms(kind), strict=True)]
        shift = chi_shift(kind)
        assert (shift[: len(same)] == 0).tolist() == same, kind
        assert float(shift[len(same) :].abs().sum()) == 0
    assert chi_shift("TRP")[1].abs() == pytest.approx(math.pi)


def test_chi_of_chroma_s_own_atoms_is_ours(piece, network):
    """Atoms that Chroma builds from its angles have, measured by us, those angles with the shift."""
    from chroma.constants import AA_GEOMETRY

    topology, coords = piece
    packer = ChromaPacker(topology, coords, network)
    layout = packer.layout
    chi = 2 * math.pi * torch.rand(1, len(layout.residues), 4, generator=torch.Generator().manual_seed(0)) - 3
    built, _ = network.chi_to_X(packer._atoms[:, :, :4], layout.chains, layout.sequence, chi)
    placed = coords.copy()
    for place, r in enumerate(layout.residues):
        for i, name in enumerate(AA_GEOMETRY[topology.residues[r].name]["atoms"]):
            placed[topology.atom_index[r, name]] = built[0, place, 4 + i].numpy()
    found = deposited_chi((topology, placed), list(layout.residues))
    for place, r in enumerate(layout.residues):
        n = len(chi_atoms(topology.residues[r].name))
        off = found[place, :n] - chi[0, place, :n] - chi_shift(topology.residues[r].name)[:n]
        bent = topology.residues[r].name == "TRP"  # by 7 degrees, CD1 in Chroma's indole
        assert float((1 - off.cos()).abs().sum()) < (0.01 if bent else 1e-3), topology.residues[r]
    kinds = {residue.name for residue in topology.residues}
    assert {"TRP", "ARG"} <= kinds


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint", "ignore:None of the inputs")
def test_packing_everything_is_chroma_s_own_pack(piece, network):
    """The same seed, all residues free: the chi angles of ``GraphDesign.pack``."""
    topology, coords = piece
    residues = list(range(len(topology.residues)))
    chains = SideChains(topology, coords, residues, members=1)
    packer = ChromaPacker(topology, coords, network)
    assert isinstance(packer, Packer)
    backbone = torch.tensor(coords[topology.backbone(residues)], dtype=torch.float32)[None]
    packer(chains, backbone, torch.Generator().manual_seed(3))
    layout = ChainLayout.of(topology, coords)
    torch.manual_seed(int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3))))
    order = network.traversal(backbone, layout.chains, priority=torch.ones(1, 36))
    packed, _ = network.pack(backbone, layout.chains, layout.sequence, permute_idx=order)
    expected, mask = network.X_to_chi(packed, layout.chains, layout.sequence)
    expected = expected + torch.stack([chi_shift(r.name) for r in topology.residues])
    off = (1 - (chains.chi - expected).cos()) * mask
    assert float(off.abs().max()) < 1e-4
    assert float(chains.chi.abs().max()) > 1


def test_region_and_window_are_packed_and_the_context_is_the_file_s(piece, network, monkeypatch):
    setting = Setting(piece)
    before = setting.chains.chi.clone()
    seen = []
    decode = network.decoder_chi.decode

    def spy(atoms, chains, sequence, *graph, **options):
        found = decode(atoms, chains, sequence, *graph, **options)
        seen.append((atoms, found[1], graph[-1], options["mask_sample"]))
        return found

    monkeypatch.setattr(network.decoder_chi, "decode", spy)
    packer = ChromaPacker(*piece, network)
    packer(setting.chains, setting.backbone, torch.Generator().manual_seed(1))
    numbers = [setting.topology.residues[r].id.number for r in setting.chains.residues]
    assert numbers == list(range(180 - WINDOW, 185 + WINDOW))
    places = packer.layout.places_of(setting.chains.residues)
    atoms, given, order, mask = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert mask[0].nonzero()[:, 0].tolist() == places.tolist()
    context = np.setdiff1d(np.arange(36), places.numpy())
    deposited = deposited_chi(piece, list(range(36)))
    given = given[:, context] + torch.stack([chi_shift(r.name) for r in piece[0].residues])[context]
    for k in range(2):
        assert float((1 - (given[k] - deposited[context]).cos()).abs().max()) < 1e-3
        assert set(order[k, : len(context)].tolist()) == set(context.tolist()), "context comes first"
    rows = packer.layout.places_of(setting.residues)
    assert torch.allclose(atoms[:, rows, :4], setting.backbone)
    held = np.setdiff1d(np.arange(36), rows.numpy())
    file = torch.tensor(piece[1][piece[0].backbone(held.tolist())], dtype=torch.float32)
    assert torch.equal(atoms[:, held, :4], file.expand(2, -1, -1, -1))
    turned = (1 - (setting.chains.chi - before).cos()).sum(-1)
    has_chi = torch.tensor(
        [len(chi_atoms(setting.topology.residues[r].name)) > 0 for r in setting.chains.residues]
    )
    assert bool((turned[:, has_chi] > 0).all())
    assert float(turned[:, ~has_chi].abs().sum()) == 0
    atoms = setting.chains.complete(setting.backbone)
    window = np.isin(setting.chains.topology.residue_index, np.arange(WINDOW))
    main = np.isin(setting.chains.topology.names, ("N", "CA", "C", "O"))
    start = torch.tensor(piece[1][piece[0].atoms_of(setting.chains.residues)], dtype=torch.float32)
    assert torch.equal(atoms[0, window & main], start[window & main])
    assert not torch.allclose(atoms[0, window & ~main], start[window & ~main], atol=0.1)


def test_context_side_chains_and_backbone_are_seen(piece, network):
    def packed(piece, shift=0.0):
        setting = Setting(piece)
        packer = ChromaPacker(*piece, network, temperature=1.0)
        packer(setting.chains, setting.backbone + shift, torch.Generator().manual_seed(1))
        return setting.chains.chi

    topology, coords = piece
    turned = coords.copy()
    (near,) = Region.parse("A:174").resolve(topology)
    turned[topology.atoms_of(near)[5:]] += np.array([1.0, -2.0, 1.0])
    usual = packed(piece)
    assert torch.equal(packed(piece), usual)
    assert not torch.equal(packed((topology, turned)), usual)
    assert not torch.equal(packed(piece, 0.3 * torch.arange(5.0)[:, None, None]), usual)


def test_context_without_side_chain_atoms_is_packed_along(piece, network, monkeypatch):
    topology, coords = piece
    r = next(i for i, x in enumerate(topology.residues) if x.id.number == 190)
    lost = [a for a in topology.atoms_of([r]) if topology.names[a] not in ("N", "CA", "C", "O", "CB")]
    kept = np.setdiff1d(np.arange(len(topology)), lost)
    lacking = (topology.subset(kept), coords[kept])
    setting, masks = Setting(lacking, window=1), []
    decode = network.decoder_chi.decode
    monkeypatch.setattr(
        network.decoder_chi, "decode", lambda *a, **o: masks.append(o["mask_sample"]) or decode(*a, **o)
    )
    packer = ChromaPacker(*lacking, network)
    packer(setting.chains, setting.backbone, torch.Generator().manual_seed(1))
    assert set(masks[0][0].nonzero()[:, 0].tolist()) == {*setting.chains.residues, r}
    assert setting.chains.chi.shape == (2, 7, 4)


def test_what_the_network_is_given_is_where_the_network_is(piece, monkeypatch):
    """``meta`` stands for a GPU; what comes back is on the CPU again."""

    class Elsewhere:
        where = torch.device("meta")
        given = ()

        def parameters(self):
            yield torch.zeros(1, device=self.where)

        def take(self, *tensors):
            self.given = (*self.given, *tensors)
            return torch.zeros(1, 36, 8, device=self.where)

        def encode(self, *tensors):
            node_h = self.take(*tensors)
            return node_h, node_h, node_h, node_h[..., 0], node_h

        def traversal(self, *tensors, priority):
            return self.take(*tensors, priority)

        def embed_S(self, sequence):  # noqa: N802
            return self.take(sequence)

        def encoder_S_gnn(self, *tensors):  # noqa: N802
            return self.take(*tensors), self.take()

        @property
        def decoder_chi(self):
            return self

        def decode(self, *tensors, mask_sample, **options):
            self.take(*tensors, mask_sample)
            return None, torch.full((1, 36, 4), 0.5), None, None, None

    network, setting = Elsewhere(), Setting(piece)
    monkeypatch.setattr("densemble.sidechains.chroma.seeded", lambda *args: contextlib.nullcontext())
    ChromaPacker(*piece, network)(setting.chains, setting.backbone, torch.Generator().manual_seed(1))
    assert len(network.given) > 2 * 10
    assert {tensor.device.type for tensor in network.given} == {"meta"}
    assert setting.chains.chi.device.type == "cpu"
    assert float(setting.chains.chi[0, 0, 0]) == pytest.approx(0.5)


def test_random_numbers_are_the_generator_s_alone(piece, network):
    setting = Setting(piece)
    packer = ChromaPacker(*piece, network, temperature=1.0)
    found = []
    for global_seed, seed in ((0, 1), (5, 1), (5, 2)):
        torch.manual_seed(global_seed)
        packer(setting.chains, setting.backbone, torch.Generator().manual_seed(seed))
        found.append((setting.chains.chi, torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[1][0], found[2][0])
    assert torch.equal(found[1][1], found[2][1]), "the global stream is left as it was"


def test_algorithm_a1_draws_every_t_steps_and_climbs_s_steps_between(piece, network, monkeypatch):
    """The packer at n = N, N - T, ...; between, chi moves by S steps of lambda_chi along the gradient."""
    every, steps, step_size, calls = 4, 3, 0.002, 10
    setting = Setting(piece, window=1)
    backbone = setting.topology.subset(np.sort(setting.topology.backbone(setting.residues).ravel()))
    packed, packer = [], ChromaPacker(*piece, network)

    def counted(chains, given, generator):
        packed.append(call)
        packer(chains, given, generator)

    def log_likelihood(atoms, sigma):
        return -0.01 * (atoms - 1).square().sum()

    completion = SideChainCompletion(
        setting.chains,
        backbone,
        resample_every=every,
        gradient_steps=steps,
        step_size=step_size,
        high=math.inf,
        seed=0,
        packer=counted,
        log_likelihood=log_likelihood,
    )
    builder = SideChainBuilder(setting.chains.topology)
    generator = torch.Generator().manual_seed(2)
    turns = torch.as_tensor(builder.chi_mask.copy())
    turns[[r.name == "PRO" for r in setting.chains.topology.residues]] = False  # rings do not turn
    for call in range(calls):
        given = setting.backbone + 0.1 * torch.randn(setting.backbone.shape, generator=generator)
        before = setting.chains.chi.clone()
        completion.update(given.flatten(1, 2), 1.0)
        if call % every == 0:
            assert packed[-1] == call
            continue
        chi = before
        for _ in range(steps):
            leaf = chi.clone().requires_grad_()
            value = log_likelihood(builder.build(setting.chains.whole_backbone(given), leaf), 1.0)
            (gradient,) = torch.autograd.grad(value, leaf)
            chi = chi + step_size * gradient * turns
        assert torch.allclose(setting.chains.chi, chi, atol=1e-5)
        assert float((chi - before).abs().max()) > 1e-3
    assert packed == [0, 4, 8]
