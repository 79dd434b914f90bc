import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.priors.embedded import WEIGHTS, EmbeddedPrior, load_network
from densemble.priors.segment_network import NetworkConfig, SegmentNetwork
from densemble.priors.weights import save_network
from densemble.testing import check_prior

SMALL = NetworkConfig(
    width=16, heads=2, hidden=24, context_layers=1, stages=(1, 1), pair=8, pair_value=4, condition=12
)
STRETCH = list(range(10, 16))


@pytest.fixture(scope="module")
def network():
    """A small untrained network whose output is far from nothing."""
    torch.manual_seed(3)
    network = SegmentNetwork(SMALL).double().eval()
    for stage in network.stages:
        torch.nn.init.normal_(stage.head.weight, std=0.2)
    return network.requires_grad_(False)


def helix(n, names="ACDEFGHIKLMNPQRSTVWY"):
    """A right-handed helix: 1.5 Å and 100 degrees a residue, cylinder radii of N, CA, C, O."""
    radius, turn, rise = (
        np.array([1.56, 2.29, 1.67, 2.0]),
        np.array([-28.0, 0.0, 26.0, 22.0]),
        [-0.9, 0, 1.1, 2.3],
    )
    angle = np.deg2rad(100.0 * np.arange(n)[:, None] + turn)
    z = 1.5 * np.arange(n)[:, None] + np.array(rise)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z + 0 * angle], axis=-1)


def model(n=30, order=("N", "CA", "C", "O"), names=("ALA", "GLY", "PRO", "MSE", "TRP"), chain="A"):
    atoms = helix(n)
    pick = [("N", "CA", "C", "O").index(name) for name in order]
    topology = Topology(
        names=tuple(order) * n,
        elements=tuple(name[0] for name in order) * n,
        residue_index=np.repeat(np.arange(n), 4),
        residues=tuple(Residue(ResidueId(chain, i + 1), names[i % len(names)]) for i in range(n)),
    )
    return topology, atoms[:, pick].reshape(-1, 3)


def noisy(prior, k=2, sigma=1.0, seed=0):
    z = torch.randn(
        k, len(prior.topology), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return prior.process.center.double() + sigma * z


def test_keeps_the_contract(network):
    topology, coords = model()
    check_prior(EmbeddedPrior(topology, coords, [STRETCH], network=network))
    check_prior(EmbeddedPrior(topology, coords, [STRETCH, [20, 21, 22]], network=network))


@pytest.mark.parametrize("stretch", [STRETCH, [0, 1, 2, 3], [26, 27, 28, 29]], ids=["inside", "start", "end"])
def test_turns_and_moves_with_the_model(network, stretch):
    topology, coords = model()
    turn, shift = Rotation.random(random_state=5).as_matrix(), np.array([11.0, -40.0, 3.0])
    prior = EmbeddedPrior(topology, coords, [stretch], network=network)
    moved = EmbeddedPrior(topology, coords @ turn.T + shift, [stretch], network=network)
    x = noisy(prior)
    expected = prior.denoise(x, 0.8) @ torch.from_numpy(turn).T + torch.from_numpy(shift)
    found = moved.denoise(x @ torch.from_numpy(turn).T + torch.from_numpy(shift), 0.8)
    assert torch.allclose(found, expected, atol=1e-4)  # the frames are kept in single precision
    assert not torch.allclose(prior.denoise(x, 0.8), x, atol=0.1)


def test_gradient(network):
    topology, coords = model()
    prior = EmbeddedPrior(topology, coords, [[10, 11]], network=network)
    x = noisy(prior, k=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prior.denoise(x, 0.7), x, atol=1e-6)


def test_does_not_look_at_the_answer(network):
    topology, coords = model()
    prior = EmbeddedPrior(topology, coords, [STRETCH], network=network)
    changed = coords.copy()
    # everything but the atoms that bond the stretch to its neighbours and within itself
    inner = topology.backbone(STRETCH)[:, (1, 3)].ravel()
    changed[inner] += 3.0
    other = EmbeddedPrior(topology, changed, [STRETCH], network=network)
    x = noisy(prior)
    assert torch.equal(prior.denoise(x, 0.8), other.denoise(x, 0.8))


def test_context_and_sequence_count(network):
    topology, coords = model()
    prior = EmbeddedPrior(topology, coords, [STRETCH], network=network)
    x = noisy(prior)
    elsewhere = coords.copy()
    elsewhere[:20] += 1.0
    moved = EmbeddedPrior(topology, elsewhere, [STRETCH], network=network)
    renamed, _ = model(names=("LEU",))
    assert not torch.allclose(prior.denoise(x, 0.8), moved.denoise(x, 0.8), atol=1e-3)
    assert not torch.allclose(
        prior.denoise(x, 0.8),
        EmbeddedPrior(renamed, coords, [STRETCH], network=network).denoise(x, 0.8),
        atol=1e-3,
    )


def test_modified_residue_is_its_parent(network):
    coords = model()[1]
    x = noisy(EmbeddedPrior(*model(names=("MET",)), [STRETCH], network=network))
    met = EmbeddedPrior(model(names=("MET",))[0], coords, [STRETCH], network=network).denoise(x, 0.8)
    mse = EmbeddedPrior(model(names=("MSE",))[0], coords, [STRETCH], network=network).denoise(x, 0.8)
    leu = EmbeddedPrior(model(names=("LEU",))[0], coords, [STRETCH], network=network).denoise(x, 0.8)
    assert torch.equal(met, mse)
    assert not torch.allclose(met, leu, atol=1e-3)


def test_order_of_atoms_is_the_file_s(network):
    usual = EmbeddedPrior(*model(), [STRETCH], network=network)
    other = EmbeddedPrior(*model(order=("O", "CA", "N", "C")), [STRETCH], network=network)
    assert other.topology.names[:4] == ("O", "CA", "N", "C")
    x = noisy(usual)
    pick = (4 * torch.arange(len(STRETCH))[:, None] + torch.tensor([3, 1, 0, 2])).ravel()
    assert torch.allclose(other.denoise(x[:, pick], 0.8), usual.denoise(x, 0.8)[:, pick], atol=1e-12)


def test_stretches_do_not_see_each_other(network):
    topology, coords = model()
    both = EmbeddedPrior(topology, coords, [STRETCH, [20, 21, 22]], network=network)
    x = noisy(both)
    first = both.denoise(x, 0.8)[:, : 4 * len(STRETCH)]
    other = x.clone()
    other[:, 4 * len(STRETCH) :] += 2.0
    assert torch.equal(both.denoise(other, 0.8)[:, : 4 * len(STRETCH)], first)
    alone = EmbeddedPrior(topology, coords, [STRETCH], network=network)
    assert not torch.equal(alone.denoise(x[:, : 4 * len(STRETCH)], 0.8), first)


def test_noise_reaches_beyond_the_prior():
    topology, coords = model()
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).eval()
    short = EmbeddedPrior(topology, coords, [[10, 11]], network=network).process.sigma_max
    long = EmbeddedPrior(topology, coords, [list(range(3, 27))], network=network).process.sigma_max
    assert 2.0 < short < long < 30.0


def test_weights_survive_a_file(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(network, path, facts={"steps": "0"})
    read = load_network(path).double()
    assert read.config == SMALL
    topology, coords = model()
    x = noisy(EmbeddedPrior(topology, coords, [STRETCH], network=network))
    a = EmbeddedPrior(topology, coords, [STRETCH], network=network).denoise(x, 0.8)
    b = EmbeddedPrior(topology, coords, [STRETCH], network=read).denoise(x, 0.8)
    assert torch.allclose(a, b, atol=0.02)


def test_missing_or_wrong_weights(tmp_path):
    with pytest.raises(InputError, match=r"none\.safetensors: the weights .* are missing; reinstall"):
        load_network(tmp_path / "none.safetensors")
    (tmp_path / "wrong.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"wrong\.safetensors: not weights"):
        load_network(tmp_path / "wrong.safetensors")


def test_unusable_stretches(network):
    topology, coords = model()
    with pytest.raises(InputError, match=r"A:2-A:26: 25 residues, .* at most 24"):
        EmbeddedPrior(topology, coords, [list(range(1, 26))], network=network)
    with pytest.raises(InputError, match="overlap"):
        EmbeddedPrior(topology, coords, [[10, 11], [11, 12]], network=network)
    with pytest.raises(InputError, match="no fixed residue"):
        EmbeddedPrior(topology, coords, [list(range(12)), [12]], network=network)
    lacking = topology.subset(np.delete(np.arange(120), 43))
    with pytest.raises(InputError, match="residue A:11 lacks one of N, CA, C, O"):
        EmbeddedPrior(lacking, np.delete(coords, 43, axis=0), [STRETCH], network=network)


def test_gap_is_no_anchor(network):
    topology, coords = model()
    apart = coords.copy()
    apart[:40] += 30.0  # residues 1-10 are no longer bonded to 11
    prior = EmbeddedPrior(topology, apart, [STRETCH], network=network)
    assert prior._parts[0].segment.anchored.tolist() == [[False, True]]


def windows(prior, *residues):
    """True for the prior's atoms outside some of its residues, a row for each member."""
    residue = torch.as_tensor(prior.topology.residue_index)
    return torch.stack([~torch.isin(residue, torch.tensor(free)) for free in residues])


def test_residues_sampled_anew_are_a_stretch_of_their_own(network):
    """The others are told to the network as any fixed residue is, of each member where it has them."""
    topology, coords = model()
    prior = EmbeddedPrior(topology, coords, [STRETCH, [20, 21, 22]], network=network)
    known = noisy(prior, k=3, sigma=0.3)
    held = windows(prior, [1, 2, 3], [3, 4, 5, 6], [7])  # residues of the prior: 6, 7, 8 are 20, 21, 22
    anew = prior.anew(known, held)
    x = noisy(prior, k=3)
    found = anew.denoise(x, 0.8)
    assert torch.allclose(found[held], known[held])
    runs = [[[11, 12, 13]], [[13, 14, 15], [20]], [[21]]]
    for k, run in enumerate(runs):
        own = coords.copy()
        own[prior.atoms] = known[k].numpy()
        alone = EmbeddedPrior(topology, own, run, network=network)
        expected = alone.denoise(x[k : k + 1, ~held[k]], 0.8)
        assert torch.allclose(found[k : k + 1, ~held[k]], expected, atol=1e-6)
        assert torch.allclose(anew.start[k, ~held[k]].float(), alone.process.center, atol=1e-4)
    assert torch.equal(anew.start[held], known[held])
    longest = EmbeddedPrior(topology, coords, [[11, 12, 13]], network=network)
    assert anew.process.sigma_max == pytest.approx(longest.process.sigma_max, rel=0.05)
    assert anew.process.sigma_max < 0.8 * prior.process.sigma_max


def test_held_residues_keep_gradients_from_the_free_ones_alone(network):
    topology, coords = model()
    prior = EmbeddedPrior(topology, coords, [STRETCH], network=network)
    held = windows(prior, [1, 2])
    anew = prior.anew(noisy(prior, k=1, sigma=0.3), held)
    x = noisy(prior, k=1).requires_grad_()
    (gradient,) = torch.autograd.grad(anew.denoise(x, 0.7).square().sum(), x)
    assert (gradient[held] == 0).all()
    assert (gradient[~held].abs() > 0).any()
    assert torch.autograd.gradcheck(lambda x: anew.denoise(x, 0.7), x.detach().requires_grad_(), atol=1e-6)


def test_all_weights_that_are_shipped_are_at_most_20_megabytes():
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.parent.glob("*.safetensors")}
    assert set(sizes) == {"segments.safetensors", "chains.safetensors"}
    assert sum(sizes.values()) <= 20e6
