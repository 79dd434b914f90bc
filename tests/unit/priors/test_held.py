"""Known places under independent and correlated noise, members with places of their own."""

import pytest
import torch

from densemble.priors.correlated import conditional, regression
from densemble.priors.edm import EDM
from densemble.priors.gaussian import GaussianPrior
from densemble.priors.held import Held, Substructure
from densemble.sampler import sample
from densemble.testing import chain_topology, check_prior

DOUBLE = {"dtype": torch.float64}


def factor_of(atoms: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(atoms, atoms, generator=torch.Generator().manual_seed(seed), **DOUBLE)
    return torch.tril(made) + 2 * torch.eye(atoms, **DOUBLE)


class LikeNoise:
    """x0 ~ N(mean, L L^T) under EDM noise t L z."""

    def __init__(self, factor: torch.Tensor) -> None:
        self.topology = chain_topology(len(factor) // 4)
        self.mean = torch.zeros(len(factor), 3, **DOUBLE)
        self.process = EDM(center=self.mean, sigma_max=40.0, factor=factor, heun=True)

    def denoise(self, x_t, t):
        return self.mean + (x_t - self.mean) / (1 + t**2)


def test_regression_and_rest_are_those_of_the_joint_covariance():
    factor, held = factor_of(10), torch.arange(10) % 3 == 0
    s = factor @ factor.T
    gain, left = conditional(factor, held)
    assert torch.equal(gain, regression(factor, held))
    precision = torch.linalg.inv(s)[~held][:, ~held]  # the independent route
    assert torch.allclose(left @ left.T, torch.linalg.inv(precision))
    assert torch.allclose(gain, -torch.linalg.inv(precision) @ torch.linalg.inv(s)[~held][:, held])


@pytest.mark.parametrize("wrapped", ["held", "substructure"])
def test_free_atoms_follow_the_conditional_of_the_covariance(wrapped, generator):
    """Both ways of showing the network held atoms: with their noise, and without."""
    members, factor = 4000, factor_of(8, 3)
    prior, known = LikeNoise(factor), 3 * torch.ones(8, 3, **DOUBLE)
    held = torch.tensor([True, True, False, False, True, False, False, True])
    s = factor @ factor.T
    gain = s[~held][:, held] @ torch.linalg.inv(s[held][:, held])
    left = s[~held][:, ~held] - gain @ s[held][:, ~held]
    if wrapped == "held":
        conditioned = Held(prior, known.expand(members, -1, -1), held.expand(members, -1))
        x = sample(conditioned, steps=60, members=members, generator=generator)
        assert torch.allclose(x[:, held], known[held].expand(members, -1, -1), atol=1e-6)
        x = x[:, ~held]
    else:
        x = sample(Substructure(prior, known, ~held), steps=60, members=members, generator=generator)
    z = torch.linalg.solve(torch.linalg.cholesky(left), x - gain @ known[held])
    assert float(z.mean(0).abs().max()) < 5 / members**0.5
    covariance = torch.einsum("kid,kjd->ij", z, z) / (3 * members)
    off = covariance - torch.diag(covariance.diagonal())
    assert float(off.abs().max()) < 5 / (3 * members) ** 0.5
    assert torch.allclose(covariance.diagonal(), torch.ones(4, **DOUBLE), rtol=0.04)


def test_members_hold_atoms_of_their_own(generator):
    prior = LikeNoise(factor_of(8))
    known = torch.randn(2, 8, 3, generator=generator, **DOUBLE)
    held = torch.tensor([[True] * 3 + [False] * 5, [False] * 6 + [True] * 2])
    x = torch.randn(2, 8, 3, generator=generator, **DOUBLE)
    found = Held(prior, known, held).denoise(x, 1.0)
    for k in range(2):
        alone = Held(prior, known[k : k + 1], held[k : k + 1]).denoise(x[k : k + 1], 1.0)
        assert torch.allclose(found[k], alone[0])
        assert torch.equal(found[k, held[k]], known[k, held[k]])
        assert not torch.allclose(found[k, ~held[k]], prior.denoise(x, 1.0)[k, ~held[k]])


def test_independent_noise_foretells_nothing():
    mean = torch.zeros(8, 3)
    covariance = torch.eye(8) + 0.5
    prior = GaussianPrior(chain_topology(2), mean, covariance)
    free = torch.arange(8) < 4
    known = torch.full((8, 3), 2.0)
    conditioned = Substructure(prior, known, free)
    assert conditioned.process.factor is None
    assert torch.equal(conditioned.process.center, mean[:4])
    x = torch.randn(3, 4, 3)
    assert torch.equal(conditioned.denoise(x, 0.7), prior.denoise(conditioned.whole(x), 0.7)[:, :4])
    check_prior(conditioned)
