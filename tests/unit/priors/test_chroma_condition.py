"""Known places under Chroma's noise: against the released SubstructureConditioner, and in closed form."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from chain_models import complex_of
from small_chroma import small_backbone

from densemble.priors.chroma.prior import ChromaPrior
from densemble.priors.held import Substructure
from densemble.sampler import sample
from densemble.testing import check_prior

T = 0.45


@pytest.fixture(scope="module")
def network():
    return small_backbone(num_neighbors=30)


class Setting:
    """Two chains of which residues 3-6 of the first are free, in our words and in Chroma's."""

    def __init__(self, network):
        from chroma.data.protein import Protein
        from chroma.layers.structure.conditioners import SubstructureConditioner

        topology, coords = complex_of(9, 5)
        generator = torch.Generator().manual_seed(0)
        coords = coords + torch.randn(len(coords), 3, generator=generator, dtype=torch.float64).numpy()
        self.known = torch.as_tensor(coords - coords.mean(axis=0), dtype=torch.float32)
        self.free = torch.tensor([3 <= a // 4 <= 6 for a in range(56)])
        self.prior = ChromaPrior(topology, self.known.double().numpy(), network)
        self.ours = Substructure(self.prior, self.known, self.free)
        self.chains = torch.tensor([[1] * 9 + [2] * 5])
        x = self.known.reshape(1, 14, 4, 3)
        protein = Protein.from_XCS(x, self.chains, torch.zeros(1, 14, dtype=torch.long))
        held = [i for i in range(14) if not 3 <= i <= 6]
        protein.sys.save_selection(gti=held, selname="held")
        self.conditioner = SubstructureConditioner(protein, network, "namesel held")


@pytest.fixture(scope="module")
def setting(network):
    return Setting(network)


def test_noise_left_free_is_that_of_the_released_conditioner(setting):
    theirs, free = setting.conditioner.conditional_distribution, setting.free
    process = setting.ours.process
    left = theirs.RRt_clamp[free][:, free]
    assert torch.allclose(process.factor @ process.factor.T, left, rtol=1e-3, atol=1e-3)
    assert torch.allclose(process.center, theirs.mu_sample.reshape(-1, 3)[free], atol=1e-3)
    assert torch.allclose(theirs.mu_sample.reshape(-1, 3)[~free], setting.known[~free], atol=1e-4)


def test_gradient_is_that_of_the_released_conditioner_but_for_its_centre_of_mass(setting, network):
    """The score of the free atoms, by Chroma's chain of energies and by ours.

    Chroma takes x_t to shrink about the mean of all atoms, of which the free ones are part; ours is shrunk
    about the mean of the held atoms, as Chroma's own conditional distribution is.
    """
    noise, free = network.noise_perturb, setting.free
    gaussian = noise.base_gaussian
    x = 3 * torch.randn(1, 14, 4, 3, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(round(1e6 * T))
        score = noise.score(x, network.denoise, setting.chains, torch.tensor([T]), setting.conditioner)
    moved = gaussian._multiply_R_inverse(gaussian.multiply_covariance(score, setting.chains), setting.chains)
    theirs = (setting.conditioner.conditional_distribution.R_clamp @ moved.reshape(56, 3))[free]
    z = gaussian._multiply_R_inverse(x, setting.chains)
    seen = setting.conditioner.conditional_distribution.sample(Z=z).reshape(1, 56, 3)
    assert torch.allclose(seen[:, ~free], setting.known[~free], atol=1e-4)
    process = setting.ours.process
    alpha, sigma = process.schedule.alpha_sigma(T)
    estimate = setting.ours.denoise(seen[:, free], T)
    away = seen[0, free] - process.center - alpha * (estimate[0] - process.center)
    foretold = setting.prior.process.gain(~free).sum(1, keepdim=True)
    middle, mean = setting.known[~free].mean(0), seen[0].mean(0)
    away = away + (1 - alpha) * (1 - foretold) * (middle - mean)
    assert float((theirs + away / sigma**2).norm() / theirs.norm()) < 1e-3
    assert float(((1 - alpha) * (1 - foretold) * (middle - mean)).norm() / away.norm()) < 0.1


def test_free_atoms_follow_the_conditional_of_chroma_s_covariance(setting, generator):
    """With the linear-Gaussian stand-in x0 ~ N(c, L L^T), for which x_t has the same law at all levels.

    The mean within 5 and the covariance within 5 standard errors of 3 x 3000 draws, beside the 1 % by which
    steps of 1/200 are off.
    """
    members, free = 3000, setting.free

    class StandIn:
        topology = setting.prior.topology
        process = setting.prior.process

        def denoise(self, x_t, t):
            alpha, _ = self.process.schedule.alpha_sigma(t)
            return middle + alpha * (x_t - middle)

    middle = setting.known[~free].mean(0)
    conditioned = Substructure(StandIn(), setting.known, free)
    x = sample(conditioned, steps=200, members=members, generator=generator)
    s = (setting.prior.process.factor.double() @ setting.prior.process.factor.double().T).numpy()
    f, h = free.numpy(), ~free.numpy()
    gain = s[f][:, h] @ np.linalg.inv(s[h][:, h])
    left = s[f][:, f] - gain @ s[h][:, f]
    mean = middle.numpy() + gain @ (setting.known[~free] - middle).numpy()
    z = np.linalg.solve(np.linalg.cholesky(left), x.numpy() - mean)
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(members)
    error = np.einsum("kid,kjd->ij", z, z) / (3 * members) - np.eye(len(left))
    assert np.abs(error).max() < 5 * math.sqrt(2 / (3 * members)) + 0.01
    assert torch.equal(conditioned.whole(x)[:, ~free], setting.known[~free].expand(members, -1, -1))


def test_keeps_the_contract(setting):
    check_prior(setting.ours)
