"""A contract kit: check a prior of your own, and problems whose answers are known in closed form."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Residue, ResidueId, Topology
from densemble.priors.gaussian import GaussianPrior
from densemble.priors.protocol import Prior


def chain_topology(residues: int) -> Topology:
    """A chain of glycine backbones, named A:1, A:2, ..."""
    names = ("N", "CA", "C", "O")
    return Topology(
        names=names * residues,
        elements=("N", "C", "C", "O") * residues,
        residue_index=np.repeat(np.arange(residues), 4),
        residues=tuple(Residue(ResidueId("A", i + 1), "GLY") for i in range(residues)),
    )


class EnsembleMeasurement:
    """The linear, Gaussian analogue of a crystal: y = mean_k (A x_k) + noise, with exact answers.

    Args:
        prior: members are drawn from it independently.
        operator: A, shape=(M, N).
        measured: y, Å, shape=(M, 3).
        noise: s.d. of the measurement, Å.
    """

    def __init__(
        self,
        prior: GaussianPrior,
        operator: Float[Tensor, "m n"],
        measured: Float[Tensor, "m 3"],
        noise: float,
    ) -> None:
        self.prior = prior
        self.operator = operator
        self.measured = measured
        self.noise = noise

    def log_probability(self, x0_hat: Float[Tensor, "k n 3"], sigma: float) -> Float[Tensor, ""]:
        """Exact log p(y | x_t of all members), up to a constant, from the members' x0_hat."""
        spread = self.operator @ self.prior.denoised_covariance(sigma) @ self.operator.T / len(x0_hat)
        spread = spread + self.noise**2 * torch.eye(len(spread)).to(spread)
        residual = self.measured - self.operator @ x0_hat.mean(dim=0)
        return -0.5 * (residual * torch.linalg.solve(spread, residual)).sum()

    def posterior(self, members: int) -> tuple[Tensor, Tensor]:
        """Exact joint posterior of all members: mean, shape=(K, N, 3), and covariance, shape=(K N, K N)."""
        n = len(self.prior.topology)
        covariance = torch.block_diag(*[self.prior.covariance] * members)
        operator = self.operator.repeat(1, members) / members
        gain = covariance @ operator.T
        innovation = operator @ gain + self.noise**2 * torch.eye(len(operator)).to(gain)
        weights = torch.linalg.solve(innovation, gain.T).T
        mean = self.prior.mean.repeat(members, 1)
        mean = mean + weights @ (self.measured - operator @ mean)
        return mean.reshape(members, n, 3), covariance - weights @ gain.T


def check_prior(prior: Prior, *, members: int = 2, seed: int = 0) -> None:
    """Check that an implementation keeps the contract of ``densemble.priors.protocol``.

    Raises:
        AssertionError: says which clause is broken.
    """
    generator = torch.Generator().manual_seed(seed)
    times = prior.process.times(8)
    assert len(times) == 9, "times(steps) must give steps + 1 levels"
    assert all(a > b for a, b in itertools.pairwise(times)), "times must decrease"
    sigmas = [prior.process.sigma(t) for t in times]
    assert sigmas[-1] <= 1e-3 * sigmas[0], "the last level must be noise-free"
    level = prior.process.level(sigmas[4])
    assert abs(prior.process.sigma(level) - sigmas[4]) < 1e-3 * sigmas[4], "level must undo sigma"
    x = prior.process.initial(members, generator)
    n = len(prior.topology)
    assert x.shape == (members, n, 3), f"initial must give shape {(members, n, 3)}, got {tuple(x.shape)}"
    again = prior.process.initial(members, torch.Generator().manual_seed(seed))
    assert torch.equal(x, again), "the generator must be the only source of randomness"
    x = x.requires_grad_()
    x0 = prior.denoise(x, times[4])
    assert x0.shape == x.shape, f"denoise changed the shape: {tuple(x0.shape)}"
    assert bool(torch.isfinite(x0).all()), "denoise gave NaN or infinity"
    (gradient,) = torch.autograd.grad(x0[0].sum(), x)
    assert bool(gradient[0].abs().sum() > 0), "denoise is not differentiable in x_t"
    assert float(gradient[1:].abs().max()) == 0.0, "denoise mixes members"
    stepped = prior.process.step(prior.denoise, x.detach(), times[4], times[5], generator)
    assert stepped.shape == x.shape, "step changed the shape"
