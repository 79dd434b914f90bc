import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.demo import example
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.priors.chain_graph import Trust, build_graph
from densemble.priors.chain_network import ChainNetwork, ChainNetworkConfig, RigidPyramid
from densemble.priors.weights import save_network
from densemble.priors.whole_chain import WholeChainPrior, load_chain_network
from densemble.testing import check_prior

SMALL = ChainNetworkConfig(
    width=16,
    heads=2,
    key=4,
    value=4,
    hidden=16,
    stages=(1, 1),
    pair=8,
    pair_value=4,
    condition=12,
    rigid=8,
)


@pytest.fixture(scope="module")
def network():
    """A small untrained network whose output is far from nothing."""
    torch.manual_seed(3)
    network = ChainNetwork(SMALL).double().eval()
    for stage in network.stages:
        torch.nn.init.normal_(stage.head.weight, std=0.2)
    return network.requires_grad_(False)


def helices(n):
    """Two right-handed helices side by side, N, CA, C, O, shape=(n, 4, 3)."""
    angle = np.deg2rad(100.0 * np.arange(n)[:, None] + np.array([-28.0, 0.0, 26.0, 22.0]))
    radius = np.array([1.56, 2.29, 1.67, 2.0])
    z = 1.5 * np.arange(n)[:, None] + np.array([-0.9, 0.0, 1.1, 2.3])
    atoms = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
    atoms[n // 2 :] += np.array([9.0, 3.0, -1.5 * (n // 2)])
    return atoms


def model(n=24, order=("N", "CA", "C", "O"), chains="AB", names=("ALA", "GLY", "PRO", "MSE", "TRP")):
    atoms = helices(n)
    pick = [("N", "CA", "C", "O").index(name) for name in order]
    residues = tuple(Residue(ResidueId(chains[2 * i // n], i + 1), names[i % len(names)]) for i in range(n))
    topology = Topology(
        names=tuple(order) * n,
        elements=tuple(name[0] for name in order) * n,
        residue_index=np.repeat(np.arange(n), 4),
        residues=residues,
    )
    return topology, atoms[:, pick].reshape(-1, 3)


def noisy(prior, k=2, sigma=1.0, seed=0):
    z = torch.randn(
        k, len(prior.topology), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return prior.process.center.double() + sigma * z


def test_keeps_the_contract(network):
    check_prior(WholeChainPrior(*model(), network=network))


@pytest.mark.parametrize("sigma", [0.1, 3.0, 60.0])
def test_turns_and_moves_with_the_model(network, sigma):
    topology, coords = model()
    turn, shift = Rotation.random(random_state=5).as_matrix(), np.array([11.0, -40.0, 3.0])
    prior = WholeChainPrior(topology, coords, network=network)
    moved = WholeChainPrior(topology, coords @ turn.T + shift, network=network)
    x = noisy(prior, sigma=sigma)
    expected = prior.denoise(x, sigma) @ torch.from_numpy(turn).T + torch.from_numpy(shift)
    found = moved.denoise(x @ torch.from_numpy(turn).T + torch.from_numpy(shift), sigma)
    assert torch.allclose(found, expected, atol=2e-3)  # the reference is kept in single precision
    assert not torch.allclose(prior.denoise(x, sigma), x, atol=0.05)


@pytest.mark.parametrize("sigma", [0.3, 10.0])
def test_gradient(network, sigma):
    prior = WholeChainPrior(*model(8), network=network)
    x = noisy(prior, k=1, sigma=sigma).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prior.denoise(x, sigma), x, atol=1e-6)


def test_reference_sequence_and_trust_count(network):
    topology, coords = model()
    prior = WholeChainPrior(topology, coords, network=network)
    x = noisy(prior)
    found = prior.denoise(x, 1.0)
    bent = coords.copy()
    bent[48:] += np.array([3.0, 0.0, 0.0])
    renamed, _ = model(names=("LEU",))
    for other in (
        WholeChainPrior(topology, bent, network=network),
        WholeChainPrior(renamed, coords, network=network),
        WholeChainPrior(topology, coords, trust=Trust(domains=1.0, local=0.1), network=network),
    ):
        assert not torch.allclose(other.denoise(x, 1.0), found, atol=1e-3)


def test_order_of_atoms_is_the_file_s(network):
    usual = WholeChainPrior(*model(), network=network)
    other = WholeChainPrior(*model(order=("O", "CA", "N", "C")), network=network)
    assert other.topology.names[:4] == ("O", "CA", "N", "C")
    pick = (4 * torch.arange(24)[:, None] + torch.tensor([3, 1, 0, 2])).ravel()
    x = noisy(usual)
    assert torch.allclose(other.denoise(x[:, pick], 1.0), usual.denoise(x, 1.0)[:, pick], atol=1e-9)


def test_chains_are_told_apart(network):
    x = noisy(WholeChainPrior(*model(), network=network))
    two = WholeChainPrior(*model(chains="AB"), network=network)
    one = WholeChainPrior(*model(chains="AA"), network=network)
    assert two.graph.linked.tolist() == one.graph.linked.tolist()  # they do not touch in either
    assert not torch.equal(two.denoise(x, 1.0), one.denoise(x, 1.0))


def test_residues_without_a_backbone_are_left_out(network):
    topology, coords = model()
    keep = np.delete(np.arange(96), 41)  # CA of residue 11
    prior = WholeChainPrior(topology.subset(keep), coords[keep], network=network)
    assert len(prior.topology) == 92
    assert not bool(prior.graph.linked[10])
    none = topology.subset(np.flatnonzero(np.array(topology.names) != "CA"))
    with pytest.raises(InputError, match="no protein residue with N, CA, C and O"):
        WholeChainPrior(none, coords[np.array(topology.names) != "CA"], network=network)


def test_members_in_parts_are_members_together(network, monkeypatch):
    prior = WholeChainPrior(*model(), network=network)
    x = noisy(prior, k=5)
    together = prior.denoise(x, 1.0)
    monkeypatch.setattr("densemble.priors.whole_chain._TOKENS", 48)
    assert torch.allclose(prior.denoise(x, 1.0), together, atol=1e-12)


def two_domains(angle):
    """A chain of 160 residues as a ball, one half of it turned about a point between the halves."""
    rng = np.random.default_rng(0)
    alpha = np.cumsum(rng.normal(size=(160, 3)) * 1.5, axis=0)
    atoms = alpha[:, None] + rng.normal(size=(160, 4, 3))
    turn = Rotation.from_rotvec([0.0, 0.0, angle]).as_matrix()
    moved = atoms.copy()
    moved[80:] = (atoms[80:] - atoms[79:81].mean((0, 1))) @ turn.T + atoms[79:81].mean((0, 1))
    return atoms, moved


def test_closed_form_finds_turned_domains_through_noise():
    reference, truth = two_domains(1.2)
    graph = build_graph(reference, np.zeros(160, dtype=np.int64), np.arange(160) > 0, Trust(8.0, 0.2))
    origin = reference.mean((0, 1))
    truth = torch.from_numpy(truth - origin).float()
    torch.manual_seed(0)
    pyramid = RigidPyramid(ChainNetworkConfig())
    generator = torch.Generator().manual_seed(0)

    def error(sigma):
        x = truth + sigma * torch.randn(4, *truth.shape, generator=generator)
        with torch.no_grad():
            levels, fits = pyramid(x, torch.full((4,), sigma), graph)
        assert fits.shape == (4, 160, 16)
        return float((levels[-1] - truth).square().sum(-1).mean().sqrt())

    apart = float((graph.reference - truth).square().sum(-1).mean().sqrt())
    assert apart > 4.0
    # 640 atoms: the noise of a place is far below sigma, and far below what the domains moved
    assert error(5.0) < 0.35 * apart
    assert error(1.0) < 0.15 * apart
    assert error(0.01) < 0.02


def test_closed_form_is_the_posterior_mean_of_a_place_where_nothing_turns():
    """At the top level: (n tau^2 x + sigma^2 m) / (n tau^2 + sigma^2), x the mean of n atoms."""
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(30, 4, 3)) * 10
    graph = build_graph(reference, np.zeros(30, dtype=np.int64), np.arange(30) > 0, Trust()).to(torch.float64)
    pyramid = RigidPyramid(ChainNetworkConfig()).double()
    for layer in pyramid.outer:
        torch.nn.init.zeros_(layer.weight)
    x = graph.reference + torch.tensor([4.0, 0.0, 0.0])
    levels, _ = pyramid(x[None], torch.tensor([20.0], dtype=torch.float64), graph)
    moved = levels[0][0] - graph.reference
    expected = 4.0 * 120 * 1.5**2 / (120 * 1.5**2 + 20.0**2)
    assert torch.allclose(moved[..., 0], torch.full((30, 4), expected, dtype=torch.float64), atol=1e-6)
    assert float(moved[..., 1:].detach().abs().max()) < 1e-6


def test_weights_survive_a_file(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(network, path, facts={"steps": "0"})
    read = load_chain_network(path).double()
    assert read.config == SMALL
    x = noisy(WholeChainPrior(*model(), network=network))
    a = WholeChainPrior(*model(), network=network).denoise(x, 1.0)
    b = WholeChainPrior(*model(), network=read).denoise(x, 1.0)
    assert torch.allclose(a, b, atol=0.05)


def test_shipped_network_does_better_than_its_closed_form():
    start = read_model(example("model.cif"))
    prior = WholeChainPrior(start.topology, start.coords, trust=Trust(domains=1.0, local=0.3))
    truth = prior.process.center
    generator = torch.Generator().manual_seed(0)
    for sigma, bound in ((0.2, 0.7), (1.0, 0.8)):
        x = truth + sigma * torch.randn(1, *truth.shape, generator=generator)
        with torch.no_grad():
            local = x[:, prior._rows].unflatten(1, (-1, 4)) - prior._origin
            closed, *_, best = prior.network(local, torch.tensor([sigma]), prior.graph, prior._encoded)
        goal = truth[prior._rows].unflatten(0, (-1, 4)) - prior._origin
        errors = [float((estimate - goal).square().mean().sqrt()) for estimate in (closed, best)]
        assert errors[1] < bound * errors[0] < bound * sigma
