import itertools

import numpy as np
import pytest
import torch
from peptides import backbone, hinged, two_helices
from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.priors.edm import EDM
from densemble.priors.elastic import ElasticPrior
from densemble.priors.gaussian import GaussianPrior
from densemble.testing import chain_topology, check_prior

F64 = torch.float64


def small(residues=5, **options):
    settings = {"amplitude": 2.0, "modes": 8, "dtype": F64} | options
    return ElasticPrior(chain_topology(residues), backbone([(-62, -42)] * residues), **settings)


def dense(prior):
    """The same Gaussian over 3 N single coordinates."""
    flat = prior.vectors.flatten(1)
    covariance = flat.T @ (prior.variances[:, None] * flat)
    covariance = covariance + prior.residual**2 * torch.eye(flat.shape[1], dtype=F64)
    mean = prior.mean.reshape(-1, 1).repeat(1, 3)
    return GaussianPrior(prior.topology, mean, covariance)


@pytest.mark.parametrize("motion", ["linear", "curved"])
def test_keeps_the_contract(motion):
    check_prior(small(motion=motion, dtype=torch.float32))
    check_prior(small(motion=motion, dtype=F64))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 2.0, 50.0])
def test_linear_denoiser_is_that_of_the_dense_gaussian(sigma):
    prior = small()
    x = prior.mean + 3 * torch.randn(4, len(prior.mean), 3, dtype=F64, generator=torch.manual_seed(1))
    flat = x.flatten(1)[..., None].repeat(1, 1, 3)
    expected = dense(prior).denoise(flat, sigma)[..., 0].reshape(x.shape)
    assert torch.allclose(prior.linear(x, sigma), expected, atol=1e-8)


def test_variances_are_what_was_asked_for():
    prior = small(amplitude=3.0, pose=2.0)
    n = len(prior.mean)
    assert float(prior.variances[:6].sum() / n) == pytest.approx(4.0)
    assert float(prior.variances[6:].sum() / n) == pytest.approx(9.0)
    flat = prior.vectors.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(14, dtype=F64), atol=1e-10)


def test_sampling_gives_the_covariance():
    # The reverse ODE of a linear denoiser is a linear map of the noise: its matrix, not a sample, is checked.
    prior = small(3, modes=4, motion="linear")
    n = prior.mean.numel()
    process = EDM(prior.mean, sigma_max=30 * float(prior.variances.max() ** 0.5), sigma_min=1e-3, heun=True)
    x = prior.mean + process.sigma_max * torch.eye(n, dtype=F64).reshape(n, -1, 3)
    times = process.times(120)
    for t, after in itertools.pairwise(times):
        x = process.step(prior.denoise, x, t, after, torch.Generator())
    found = (x - prior.mean).flatten(1)
    expected = dense(prior).covariance
    assert float((found.T @ found - expected).norm() / expected.norm()) < 5e-3


def test_linear_gradient():
    prior = small(3)
    x = torch.randn(2, len(prior.mean), 3, dtype=F64, requires_grad=True, generator=torch.manual_seed(2))
    assert torch.autograd.gradcheck(lambda x: prior.linear(x, 0.8), x)


def test_curved_modes_begin_along_the_linear_ones():
    topology, coords, _ = two_helices(8)
    prior = ElasticPrior(topology, coords, amplitude=5.0, dtype=F64)
    q = 1e-3 * torch.randn(3, len(prior.variances), dtype=F64, generator=torch.manual_seed(3))
    displaced = torch.einsum("km,mnc->knc", q, prior.vectors)
    assert torch.allclose(prior.blocks.move(q)[0] - prior.mean, displaced, atol=1e-6)


def test_both_denoisers_agree_on_small_displacements():
    topology, coords, _ = two_helices(8)
    prior = ElasticPrior(topology, coords, amplitude=5.0, dtype=F64)
    q = torch.randn(3, len(prior.variances), dtype=F64, generator=torch.manual_seed(3))
    displaced = 0.01 * torch.einsum("km,mnc->knc", q * prior.variances.sqrt(), prior.vectors)
    x = prior.mean + displaced
    assert float((prior.curved(x, 1.0) - prior.linear(x, 1.0)).norm() / displaced.norm()) < 0.15


def alpha_steps(x):
    return (x[5::4] - x[1:-4:4]).norm(dim=-1)


def peptide_bonds(x):
    return (x[4::4] - x[2:-4:4]).norm(dim=-1)


def test_a_hinge_of_forty_degrees_keeps_bonds_only_when_curved():
    topology, coords, middle = two_helices()
    target = torch.from_numpy(hinged(coords, middle, 40.0))
    start = torch.from_numpy(coords)
    prior = ElasticPrior(topology, coords, amplitude=6.0, pose=5.0, dtype=F64)
    linear, curved = (denoise(target[None], 2.0)[0] for denoise in (prior.linear, prior.curved))
    assert float((alpha_steps(curved) - 3.8).abs().max()) < 0.2
    assert float((peptide_bonds(curved) - 1.329).abs().max()) < 0.1
    assert float((alpha_steps(linear) - 3.8).abs().max()) > 0.3
    inside = [(0, 1), (1, 2), (2, 3)]  # N-CA, CA-C, C-O
    for a, b in inside:
        lengths = (curved[a::4] - curved[b::4]).norm(dim=-1)
        assert torch.allclose(lengths, (start[a::4] - start[b::4]).norm(dim=-1), atol=1e-9)
    off = [float((x - target).square().sum(-1).mean().sqrt()) for x in (start, linear, curved)]
    assert off[0] > 8
    assert off[2] < off[1] < off[0]
    assert off[2] < 1


@pytest.mark.parametrize("motion", ["linear", "curved"])
def test_turning_model_and_noise_turns_the_answer(motion):
    topology, coords, _ = two_helices(8)
    turn, shift = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix(), np.array([30.0, -20.0, 5.0])
    options = {"amplitude": 4.0, "modes": 12, "motion": motion, "dtype": F64}
    prior = ElasticPrior(topology, coords, **options)
    turned = ElasticPrior(topology, coords @ turn.T + shift, **options)
    x = prior.mean + 2 * torch.randn(2, len(coords), 3, dtype=F64, generator=torch.manual_seed(4))
    rotation, offset = torch.from_numpy(turn), torch.from_numpy(shift)
    expected = prior.denoise(x, 2.0) @ rotation.T + offset
    assert torch.allclose(turned.denoise(x @ rotation.T + offset, 2.0), expected, atol=1e-5)


def test_a_turn_of_the_whole_is_followed_rigidly():
    topology, coords, _ = two_helices(8)
    prior = ElasticPrior(topology, coords, amplitude=2.0, pose=30.0, dtype=F64)
    turn = Rotation.from_rotvec([0.0, 0.4, 0.2]).as_matrix()
    target = torch.from_numpy((coords - coords.mean(0)) @ turn.T + coords.mean(0) + [5.0, 0.0, 0.0])
    found = prior.curved(target[None], 0.5)[0]
    assert float((found - target).norm(dim=-1).max()) < 0.05


def test_what_fits_the_blocks_is_kept_without_noise():
    topology, coords, _ = two_helices()
    prior = ElasticPrior(topology, coords, amplitude=6.0, dtype=F64)
    bent = prior.blocks.move(3 * torch.randn(2, 36, dtype=F64, generator=torch.manual_seed(5)))
    closed = prior.blocks.restore(*bent)
    moved = (closed - prior.mean).norm(dim=-1).mean()
    # joints are weighted, not exact, so closing them again moves a little: up to 0.12 Å in twenty draws
    # (which draw this is depends on the signs of the modes, and they on rounding)
    assert float(moved) > 0.5
    assert torch.allclose(prior.blocks.restore(closed, bent[1]), closed, atol=0.2)
    assert torch.allclose(prior.curved(closed, 0.0), closed, atol=0.2)


@pytest.mark.parametrize("degrees", [5.0, 40.0])
def test_the_curved_denoiser_has_a_useful_derivative(degrees):
    topology, coords, middle = two_helices(12)
    prior = ElasticPrior(topology, coords, amplitude=5.0, pose=4.0, dtype=F64)
    x = torch.from_numpy(hinged(coords, middle, degrees))[None].requires_grad_()
    probe = torch.from_numpy(hinged(coords, middle, degrees + 1.0)) - x[0].detach()
    (slope,) = torch.autograd.grad((prior.curved(x, 2.0) * probe).sum(), x)
    step = 1e-2
    with torch.no_grad():
        ends = [prior.curved(x + sign * step * probe, 2.0) for sign in (1, -1)]
    expected = float(((ends[0] - ends[1]) * probe).sum() / (2 * step))
    assert float((slope * probe).sum()) == pytest.approx(expected, rel=0.15)


def test_ligands_and_waters_are_carried():
    chain, coords, middle = two_helices(10)
    ring = np.array([[np.cos(k), np.sin(k), 0.0] for k in np.arange(6) * np.pi / 3])
    ligand, water = 1.4 * ring + coords[-20] + np.array([0, 5, 0]), coords[-12:-11] + np.array([0, 0, 4])
    topology = Topology(
        (*chain.names, "C1", "C2", "C3", "C4", "C5", "C6", "O"),
        (*chain.elements, *"CCCCCC", "O"),
        np.concatenate([chain.residue_index, [24] * 6, [25]]),
        (
            *chain.residues,
            Residue(ResidueId("B", 1), "BNZ", "ligand"),
            Residue(ResidueId("W", 1), "HOH", "water"),
        ),
    )
    whole = np.concatenate([coords, ligand, water])
    prior = ElasticPrior(topology, whole, amplitude=5.0, pose=5.0, dtype=F64)
    bent = hinged(coords, middle, 25.0)
    x = torch.from_numpy(np.concatenate([bent, ligand, water]))[None]
    x[0, -7:] += torch.from_numpy(bent[-20] - coords[-20])
    found = prior.curved(x, 2.0)[0]
    lengths = torch.cdist(found[-7:-1], found[-7:-1])
    assert torch.allclose(lengths, torch.cdist(*[torch.from_numpy(ligand)] * 2), atol=1e-6)
    contact = np.linalg.norm(ligand.mean(0) - coords[-20])
    assert float((found[-7:-1].mean(0) - found[-27]).norm()) == pytest.approx(contact, abs=1.5)
    assert float((found[-7:] - prior.mean[-7:]).norm(dim=-1).min()) > 2


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="two residues"):
        ElasticPrior(chain_topology(1), backbone([(-60, -40)]), amplitude=1.0)
    with pytest.raises(ValueError, match="residual > 0"):
        small(residual=0.0)
