"""Closed-form priors: Gaussians, whose denoiser, score and posterior are exact.

They are the reference that proves samplers right, and a prior in their own right where no
network is at hand: smooth deformations of the starting model.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.priors.edm import EDM


class GaussianPrior:
    """x0 ~ N(mean, covariance), the same covariance along x, y and z and none between them.

    Args:
        topology: N atoms.
        mean: Å, shape=(N, 3).
        covariance: Å^2, symmetric positive definite, shape=(N, N).
        process: the noise; isotropic EDM reaching ten times the largest prior deviation if None.
    """

    def __init__(
        self,
        topology: Topology,
        mean: Float[Tensor, "n 3"],
        covariance: Float[Tensor, "n n"],
        process: EDM | None = None,
    ) -> None:
        self.topology = topology
        self.mean = mean
        self.covariance = covariance
        largest = float(self._spectrum[0].max().sqrt())
        self.process = process or EDM(center=mean, sigma_max=10 * largest)
        if self.process.factor is not None:
            raise ValueError("GaussianPrior: the exact denoiser is written for isotropic noise")

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance.double())
        if float(values.min()) <= 0:
            raise ValueError("GaussianPrior: the covariance is not positive definite")
        return values.to(self.mean), vectors.to(self.mean)

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t] = mean + C (C + t^2)^-1 (x_t - mean)."""
        values, vectors = self._spectrum
        shrink = values / (values + t**2)
        return self.mean + vectors @ (shrink[:, None] * (vectors.T @ (x_t - self.mean)))

    def denoised_covariance(self, t: float) -> Float[Tensor, "n n"]:
        """Cov[x0 | x_t] = C t^2 (C + t^2)^-1, per axis."""
        values, vectors = self._spectrum
        return (vectors * (values * t**2 / (values + t**2))) @ vectors.T

    def condition(
        self, operator: Float[Tensor, "m n"], measured: Float[Tensor, "m 3"], noise: float
    ) -> GaussianPrior:
        """The exact posterior after measuring ``operator @ x0`` with white noise of s.d. ``noise`` Å."""
        gain = self.covariance @ operator.T
        innovation = operator @ gain + noise**2 * torch.eye(len(operator)).to(gain)
        weights = torch.linalg.solve(innovation, gain.T).T
        return GaussianPrior(
            topology=self.topology,
            mean=self.mean + weights @ (measured - operator @ self.mean),
            covariance=self.covariance - weights @ gain.T,
            process=self.process,
        )


def anchored_chain(
    topology: Topology,
    start: Float[Tensor, "n 3"],
    stretches: list[list[int]],
    *,
    anchored: list[tuple[bool, bool]],
    amplitude: float,
    smoothness: float,
    jitter: float,
    process: EDM | None = None,
) -> GaussianPrior:
    """A Gaussian over stretches of backbone: smooth displacements of the start that vanish at the anchors.

    Along one stretch the displacement of an atom is a Gaussian process of its position s along
    the chain (in residues), with covariance ``amplitude^2 exp(-(s - s')^2 / (2 smoothness^2))``,
    conditioned on being zero where the chain is anchored, plus independent noise ``jitter``.

    Args:
        topology: the backbone atoms of the stretches, residue by residue.
        start: their coordinates in the starting model, Å, shape=(N, 3).
        stretches: residue indices (into ``topology.residues``) of each stretch.
        anchored: for each stretch, whether the residues before and after it are held.
        amplitude: s.d. of the displacement far from anchors, Å.
        smoothness: correlation length along the chain, residues.
        jitter: s.d. of each atom about the smooth displacement, Å.
        process: see ``GaussianPrior``.
    """
    n = len(topology)
    covariance = np.zeros((n, n))
    offset = {"N": -1 / 3, "CA": 0.0, "C": 1 / 3, "O": 1 / 3}
    for residues, (before, after) in zip(stretches, anchored, strict=True):
        atoms = topology.atoms_of(residues)
        rank = {r: i for i, r in enumerate(residues)}
        s = np.array([rank[int(topology.residue_index[a])] + offset[topology.names[a]] for a in atoms])
        ends = np.array([end for end, held in ((-2 / 3, before), (len(residues) - 1 / 3, after)) if held])
        kernel = _squared_exponential(s, s, amplitude, smoothness)
        if len(ends):
            cross = _squared_exponential(s, ends, amplitude, smoothness)
            gram = _squared_exponential(ends, ends, amplitude, smoothness)
            kernel = kernel - cross @ np.linalg.solve(gram, cross.T)
        covariance[np.ix_(atoms, atoms)] = kernel
    covariance += jitter**2 * np.eye(n)
    return GaussianPrior(topology, start, torch.as_tensor(covariance).to(start), process)


def _squared_exponential(s: np.ndarray, t: np.ndarray, amplitude: float, length: float) -> np.ndarray:
    return amplitude**2 * np.exp(-((s[:, None] - t[None, :]) ** 2) / (2 * length**2))
