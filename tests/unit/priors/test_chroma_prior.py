"""Chroma behind our contract, against the released package itself (its classes, random weights)."""

import contextlib
import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from chain_models import complex_of, extended
from small_chroma import small_backbone

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.priors.chroma.layout import AMINO_ACIDS, ChainLayout
from densemble.priors.chroma.prior import ChromaPrior
from densemble.priors.variance_preserving import LinearLogSnr
from densemble.sampler import sample
from densemble.testing import check_prior

OPTIONS = {
    "plain": {},
    "cold": {"inverse_temperature": 3.0},
    "langevin": {"langevin_factor": 1.0, "inverse_temperature": 2.0},
    "langevin at lambda_t": {
        "langevin_factor": 1.0,
        "inverse_temperature": 2.0,
        "langevin_isothermal": False,
    },
}
RANDOM_GRAPH = {"graph_criterion": "random_log", "num_neighbors": 6, "graph_random_min_local": 3}


@pytest.fixture(scope="module")
def network():
    network = small_backbone(num_neighbors=30)  # all of each other: no edge comes and goes by rounding
    network.noise_perturb.loss_rmsd.rmsd.dither = False  # 1e-5 of noise that would shift the random stream
    return network


@pytest.mark.parametrize(
    ("options", "lengths", "align"),
    [
        *((name, (14,), True) for name in OPTIONS),
        ("plain", (8, 6), True),
        ("langevin", (8, 6), True),
        ("plain", (14,), False),
        ("langevin", (8, 6), False),
    ],
)
def test_unguided_sampling_is_chroma_s_own_step_by_step(network, options, lengths, align):
    """The same random numbers: each step from Chroma's own state; and our own run from noise.

    Rounding grows in a run, for an untrained network is no attractor, so our own run is followed for a third
    of its steps (and in the next test to the end).
    """
    members, steps, options = 2, 60, OPTIONS[options]
    topology, coords = complex_of(*lengths)
    prior = ChromaPrior(topology, coords, network, align=align, **options)
    chains = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)]).expand(members, -1)
    torch.manual_seed(7)
    theirs = network.noise_perturb.sample_sde(
        partial(apart, network), chains, N=steps, align_X0=align, **options
    )["Xunc_trajectory"]
    theirs = [x.flatten(1, 2) for x in theirs]
    generator = torch.Generator().manual_seed(7)
    x = prior.process.initial(members, generator)
    assert relative(x, theirs[0]) < 1e-5
    times = prior.process.times(steps)
    for i in range(steps):
        x = prior.process.step(prior.denoise, theirs[i], times[i], times[i + 1], generator)
        moved = (theirs[i + 1] - theirs[i]).norm()
        assert float((x - theirs[i + 1]).norm() / moved) < 1e-4, f"step {i}"
    generator = torch.Generator().manual_seed(7)
    x = prior.process.initial(members, generator)
    for i in range(steps // 3):
        x = prior.process.step(prior.denoise, x, times[i], times[i + 1], generator)
    assert relative(x, theirs[steps // 3]) < 1e-4


def test_unguided_sampling_ends_where_chroma_s_own_does():
    """With the kind of network whose estimate stays near what it is given, so that rounding does not grow."""
    network = small_backbone(num_neighbors=30, prediction_type="scale")
    network.noise_perturb.loss_rmsd.rmsd.dither = False
    prior = ChromaPrior(*complex_of(10), network)
    torch.manual_seed(8)
    theirs = network.noise_perturb.sample_sde(
        partial(apart, network), torch.ones(2, 10, dtype=torch.long), N=50
    )["Xunc_trajectory"][-1]
    ours = sample(prior, steps=50, members=2, generator=torch.Generator().manual_seed(8))
    assert relative(ours, theirs.flatten(1, 2)) < 1e-4


def apart(network, X, C, t):
    """``network.denoise``, whose own draws (first vectors of power iterations) leave the stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(round(1e6 * float(t)))
        return network.denoise(X, C, t)


def relative(x, reference) -> float:
    return float((x - reference).norm() / (reference - reference.mean(1, keepdim=True)).norm())


def test_schedule_is_chroma_s(network):
    """To the bit that of the package, and the exact one within what single precision cancels."""
    found = ChromaPrior(*complex_of(5), network).process.schedule
    theirs, exact = network.noise_perturb.noise_schedule, LinearLogSnr()
    for t in (1.0, 0.75, 0.5, 0.25):
        at = torch.tensor([t])
        assert found.alpha_sigma(t) == (float(theirs.alpha(at)), float(theirs.sigma(at)))
        assert found.alpha_sigma(t) == pytest.approx(exact.alpha_sigma(t), rel=1e-3)
        assert found.beta(t) == float(theirs.beta(at)) == pytest.approx(exact.beta(t), rel=1e-3)


@pytest.mark.parametrize("model", ["globular", "brownian", "residue_gas"])
def test_covariance_is_chroma_s(model):
    network = small_backbone(noise_covariance_model=model)
    process = ChromaPrior(*complex_of(6, 4), network).process
    gaussian = network.noise_perturb.base_gaussian
    chains = torch.tensor([[1] * 6 + [2] * 4])
    v = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0))
    layout = v.reshape(1, 10, 4, 3)
    factor = process.factor
    assert relative(factor @ v, gaussian._multiply_R(v, chains).reshape(v.shape)) < 1e-5
    white = torch.linalg.solve(factor, v)
    assert relative(white, gaussian._multiply_R_inverse(v, chains).reshape(v.shape)) < 1e-4
    product = factor @ (factor.T @ v)
    assert relative(product, gaussian.multiply_covariance(layout, chains).reshape(v.shape)) < 1e-5


def test_keeps_the_contract(network):
    check_prior(ChromaPrior(*complex_of(14), network))
    check_prior(ChromaPrior(*complex_of(14), small_backbone(**RANDOM_GRAPH)))


def test_random_graphs_do_not_touch_the_random_numbers_of_others():
    network = small_backbone(**RANDOM_GRAPH)
    prior = ChromaPrior(*complex_of(20), network)
    x = prior.process.initial(2, torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first, drawn = prior.denoise(x, 0.5), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(prior.denoise(x, 0.5), first)
    other = ChromaPrior(*complex_of(20), network, seed=1).denoise(x, 0.5)
    assert not torch.allclose(other, first, atol=1e-3)


def test_turns_and_moves_with_what_it_is_given(network):
    topology, coords = complex_of(14)
    prior = ChromaPrior(topology, coords, network)
    x = prior.process.initial(2, torch.Generator().manual_seed(1))
    turn = torch.tensor(Rotation.random(random_state=3).as_matrix(), dtype=torch.float32)
    shift = torch.tensor([70.0, -30.0, 12.0])
    moved = ChromaPrior(topology, coords @ turn.double().numpy().T + shift.double().numpy(), network)
    found = moved.denoise(x @ turn.T + shift, 0.4)
    assert relative(found, prior.denoise(x, 0.4) @ turn.T + shift) < 1e-3  # single precision
    assert relative(found, x @ turn.T + shift) > 0.05


def test_gradient_in_double_precision():
    network = small_backbone().double()
    prior = ChromaPrior(*complex_of(6), network)
    x = prior.process.initial(1, torch.Generator().manual_seed(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prior.denoise(x, 0.3), x, atol=1e-5, rtol=1e-4)


def test_members_in_parts_are_the_same_members_and_gradients(network, monkeypatch):
    """Two at a time: what each two give alone, and no more of the graph is kept."""
    prior = ChromaPrior(*complex_of(15), network)
    x = prior.process.initial(5, torch.Generator().manual_seed(3)).requires_grad_()
    parts = [prior.denoise(part, 0.5) for part in x.split(2)]
    expected = torch.cat(parts)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    monkeypatch.setattr("densemble.priors.chroma.prior._RESIDUES", 31)
    calls = []
    monkeypatch.setattr(network, "denoise", lambda *a, f=network.denoise: calls.append(len(a[0])) or f(*a))
    assert torch.equal(prior.denoise(x.detach(), 0.5), expected)
    found = prior.denoise(x, 0.5)
    assert torch.equal(found, expected)
    assert calls == [2, 2, 1] * 2
    assert torch.equal(torch.autograd.grad(found.square().sum(), x)[0], gradient)
    assert sorted(calls[6:]) == [1, 2, 2]  # computed anew for the gradient


class Elsewhere:
    """A network on another device, that sees to what it is given; ``meta`` stands for a GPU."""

    def __init__(self, network):
        self.noise_perturb, self.where = network.noise_perturb, torch.device("meta")

    def parameters(self):
        yield torch.zeros(1, device=self.where)

    def denoise(self, X, C, t):
        assert {given.device for given in (X, C, t)} == {self.where}
        return torch.ones(X.shape)


def test_what_the_network_is_given_is_where_the_network_is(network, monkeypatch):
    gaussian, seen = network.noise_perturb.base_gaussian, []
    multiply = gaussian._multiply_R

    def elsewhere(z, chains):
        seen.append({z.device.type, chains.device.type})
        return multiply(torch.zeros(z.shape), torch.ones(chains.shape, dtype=torch.long))

    monkeypatch.setattr(gaussian, "_multiply_R", elsewhere)
    monkeypatch.setattr("densemble.priors.chroma.prior.seeded", lambda *args: contextlib.nullcontext())
    prior = ChromaPrior(*complex_of(14), Elsewhere(network), align=False)
    assert seen
    assert all(devices == {"meta"} for devices in seen)
    assert prior.process.factor.device.type == "cpu"
    x0 = prior.denoise(torch.zeros(2, 56, 3), 0.5)
    assert x0.device.type == "cpu"
    assert torch.allclose(x0, 1 + torch.as_tensor(prior._origin, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_estimates_of_a_gpu_are_those_of_the_cpu(network):
    here = ChromaPrior(*complex_of(14), network)
    x = here.process.initial(2, torch.Generator().manual_seed(1))
    there = ChromaPrior(*complex_of(14), copy.deepcopy(network).cuda())
    assert relative(there.denoise(x, 0.5), here.denoise(x, 0.5)) < 1e-3
    assert relative(there.process.factor[None], here.process.factor[None]) < 1e-4


def test_order_of_atoms_is_the_file_s(network):
    topology, coords = complex_of(10)
    pick = (4 * np.arange(10)[:, None] + np.array([3, 1, 0, 2])).ravel()
    names = tuple(topology.names[i] for i in pick)
    other = Topology(names, tuple(n[0] for n in names), topology.residue_index, topology.residues)
    usual, odd = ChromaPrior(topology, coords, network), ChromaPrior(other, coords[pick], network)
    assert odd.topology.names[:4] == ("O", "CA", "N", "C")
    x = usual.process.initial(2, torch.Generator().manual_seed(4))
    assert torch.allclose(odd.denoise(x[:, pick], 0.5), usual.denoise(x, 0.5)[:, pick], atol=1e-4)
    assert torch.allclose(odd.process.factor @ x[:, pick], (usual.process.factor @ x)[:, pick], atol=1e-4)


def test_missing_residues_and_side_chains_and_waters_have_their_place(network):
    """Residue 4 lacks its O, 5 is not there; a water and a selenomethionine are what they are."""
    names = ("ALA", "GLY", "MSE", "SER", "TRP", "XYZ", "VAL")
    numbers = (1, 2, 3, 4, 6, 7, 8)
    atoms, index, places = [], [], []
    for i, r in enumerate(numbers):
        for j, name in enumerate(("N", "CA", "C", "O", "CB")):
            if not (r == 4 and name == "O"):
                atoms.append(name)
                index.append(i)
                places.append(extended(9).reshape(9, 4, 3)[r, min(j, 3)] + (j == 4))
    atoms.append("O")
    index.append(7)
    places.append(np.array([0.0, 30.0, 0.0]))
    residues = [Residue(ResidueId("A", r), name) for r, name in zip(numbers, names, strict=True)]
    residues.append(Residue(ResidueId("A", 300), "HOH", "water"))
    elements = tuple(a[0] for a in atoms)
    topology = Topology(tuple(atoms), elements, np.array(index), tuple(residues))
    layout = ChainLayout.of(topology, np.stack(places))
    assert layout.residues == (0, 1, 2, 4, 5, 6)
    assert layout.chains.tolist() == [[1, 1, 1, -1, -1, 1, 1, 1]]
    assert layout.places.tolist() == [0, 1, 2, 5, 6, 7]
    letters = "".join(AMINO_ACIDS[i] for i in layout.sequence[0, layout.places])
    assert letters == "AGMWAV"
    prior = ChromaPrior(topology, np.stack(places), network)
    assert len(prior.topology) == 24
    check_prior(prior)
    whole = ChromaPrior(*complex_of(8), network).process.factor.double()
    kept = np.flatnonzero(np.isin(np.arange(32) // 4, layout.places.numpy()))
    factor = prior.process.factor.double()
    assert torch.allclose(factor @ factor.T, (whole @ whole.T)[kept][:, kept], rtol=1e-4, atol=1e-3)


def test_alphabet_is_chroma_s():
    from chroma.constants import AA20

    assert "".join(AA20) == AMINO_ACIDS


def test_what_cannot_be_sampled_is_refused(network):
    topology, coords = complex_of(3)
    other = Topology(
        topology.names,
        topology.elements,
        topology.residue_index,
        tuple(Residue(r.id, "DA", "nucleic") for r in topology.residues),
    )
    with pytest.raises(InputError, match="no protein residue"):
        ChromaPrior(other, coords, network)
    with pytest.raises(InputError, match="noise schedule ot_linear"):
        ChromaPrior(topology, coords, small_backbone(noise_schedule="ot_linear"))
