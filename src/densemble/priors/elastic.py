"""A closed-form prior around a starting model: its elastic network, all atoms carried by their residues."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.errors import InputError
from densemble.priors.articulated import ArticulatedBlocks
from densemble.priors.edm import EDM
from densemble.priors.elastic_network import ElasticNetwork

_ROUNDS = 20  # of the curved denoiser
_STEP = 0.7  # the first, of the full one
_TINY = 1e-9  # Å^2, stands for no variance at all
_WIDTHS = 10.0  # first noise level over the largest deviation along a mode


class ElasticPrior:
    """Motions of a starting model along its softest modes, as ``N(coords, U diag(v) U^T + residual^2)``.

    ``U`` holds the six motions of the whole and the internal modes of lowest energy, orthonormal over all
    atoms. Internal variances are as one over the eigenvalue (equipartition), scaled so that an atom moves by
    ``amplitude`` (root mean square over atoms and draws); those of the whole are equal, and move it by
    ``pose``.

    Two denoisers:

    - ``linear``: exactly ``E[x0 | x_t]`` of that Gaussian, in closed form (Woodbury). Motions are straight
      lines, so that domains that turn by tens of degrees swell and their bonds stretch.
    - ``curved``: not exact. The same amplitudes turn residues as rigid bodies, so that the model stays in
      one piece in large motions (``densemble.priors.articulated``). The amplitudes are those of largest
      posterior density, found by BFGS, which stand for their mean; what they leave is kept to the share that
      ``residual`` and the noise allow, and residues are then made rigid and their bonds closed. The
      derivative is that of one more step from where the search ended, with its curvature. For small
      displacements that keep residues rigid and bonds closed it agrees with the linear denoiser.

    Measured on one core of a shared x86-64 machine: built in 1.4 s for 4,579 atoms in 602 residues and in 5 s
    for 32,053 atoms in 4,214; ``curved`` takes 0.3 s and 2.1 s a member, ``linear`` some milliseconds.
    Between the two conformations of eight proteins (3.4 to 7.1 Å apart) the ten softest modes of the first
    hold 0.80 to 0.98 of the displacement (cumulative overlap), thirty 0.87 to 0.99. The rest, which no
    amplitude brings, is left to ``residual`` and to other priors.

    Args:
        topology: the N atoms: protein, nucleic acid, ligands, ions, waters. Amino acids of a single atom (a
            trace of alpha carbons) have no orientation, and move as points.
        coords: Å, shape=(N, 3): the starting model.
        amplitude: Å, expected root mean square displacement of an atom by internal modes.
        pose: Å, the same by motions of the whole.
        residual: Å, standard deviation of each coordinate about the modes.
        modes: internal modes, at most.
        cutoff: Å, reach of the springs.
        motion: which denoiser ``denoise`` is.
        process: the noise; isotropic EDM reaching ten times the largest deviation along a mode if None.
        dtype: of the tensors.

    Attributes:
        topology: as given.
        mean: the starting model, Å, shape=(N, 3).
        vectors: U, shape=(m, N, 3): the whole first.
        variances: v in Å^2, shape=(m,).
        blocks: residues as rigid, jointed blocks.
        process: see above.

    Raises:
        InputError: the model has fewer than two residues.
        ValueError: an amplitude is negative, or the residual not positive.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        *,
        amplitude: float,
        pose: float = 1.0,
        residual: float = 0.2,
        modes: int = 30,
        cutoff: float = 8.0,
        motion: Literal["linear", "curved"] = "curved",
        process: EDM | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if amplitude < 0 or pose < 0 or residual <= 0:
            raise ValueError(
                f"ElasticPrior: needs amplitude >= 0, pose >= 0 and residual > 0, got {amplitude}, {pose} "
                f"and {residual}"
            )
        if len(np.unique(topology.residue_index)) < 2:
            raise InputError("the model has fewer than two residues, which is too few for an elastic network")
        network = ElasticNetwork(topology, coords, cutoff=cutoff)
        energies, internal = network.modes(modes)
        vectors = np.concatenate([network.rigid, internal])
        whole = np.full(len(network.rigid), pose**2 / len(network.rigid))
        soft = 1 / energies
        variances = len(topology) * np.concatenate([whole, amplitude**2 * soft / max(soft.sum(), 1e-300)])
        self.topology = topology
        self.residual, self.motion = residual, motion
        self.mean = torch.from_numpy(coords).to(dtype)
        self.vectors = torch.from_numpy(vectors).to(dtype)
        self.variances = torch.from_numpy(variances).to(dtype)
        self.blocks = ArticulatedBlocks(network, vectors)
        largest = float(variances.max() + residual**2) ** 0.5
        self.process = process or EDM(center=self.mean, sigma_max=_WIDTHS * largest)

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """``linear`` or ``curved``, as ``motion`` says; differentiable in ``x_t``."""
        return self.linear(x_t, t) if self.motion == "linear" else self.curved(x_t, t)

    def linear(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t] of the Gaussian, exactly."""
        noise = t**2
        local = self.residual**2 / (self.residual**2 + noise)
        spread = self.variances + self.residual**2
        displaced = x_t - self.mean
        along = self._along(displaced) * (spread / (spread + noise) - local)
        return self.mean + local * displaced + torch.einsum("km,mnc->knc", along, self.vectors)

    def curved(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """The most probable amplitudes along curved modes, with rigid residues and closed joints."""
        noise = t**2 + self.residual**2
        found, inverse = self._amplitudes(x_t.detach(), noise)
        with torch.enable_grad():
            leaf = found.requires_grad_()
            moved = self.blocks.move(leaf)[0]
            (slope,) = torch.autograd.grad(moved, leaf, x_t - moved.detach(), create_graph=x_t.requires_grad)
        # Where the search ended the step is about zero: it is there for its derivative by x_t.
        found = found.detach()
        ahead = slope - found * noise / self.variances.clamp_min(_TINY)
        q = found + (inverse @ ahead[..., None])[..., 0]
        moved, rotations = self.blocks.move(q)
        local = self.residual**2 / noise
        return self.blocks.restore(moved + local * (x_t - moved), rotations)

    def _amplitudes(
        self, x: Float[Tensor, "k n 3"], noise: float
    ) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k m m"]]:
        """Those of largest posterior density, and the inverse curvature there, by BFGS.

        It starts with the curvature of the linear problem, and every member has its own step: one that does
        not lower the misfit is taken back and shortened.
        """
        tightness = noise / self.variances.clamp_min(_TINY)
        q = torch.zeros(len(x), len(self.variances)).to(x)
        inverse = torch.diag(1 / (1 + tightness)).repeat(len(x), 1, 1)
        value, slope = self._misfit(x, q, tightness)
        step = torch.full_like(value, _STEP)
        for _ in range(_ROUNDS):
            tried = q - step * (inverse @ slope[..., None])[..., 0]
            lower, steeper = self._misfit(x, tried, tightness)
            better = lower < value
            updated = _secant(inverse, tried - q, steeper - slope)
            inverse = torch.where(better[..., None], updated, inverse)
            q, slope = torch.where(better, tried, q), torch.where(better, steeper, slope)
            value = torch.where(better, lower, value)
            step = torch.where(better, torch.ones_like(step), 0.4 * step)
        return q, inverse

    def _misfit(self, x: Tensor, q: Tensor, tightness: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log posterior in units of the noise, shape=(k, 1), and its gradient by the amplitudes."""
        with torch.enable_grad():
            leaf = q.detach().requires_grad_()
            moved = self.blocks.move(leaf)[0]
            left = (x - moved).detach()
            (slope,) = torch.autograd.grad(moved, leaf, -left)
        value = left.square().sum((1, 2))[:, None] + (tightness * q.square()).sum(1, keepdim=True)
        return value / 2, slope + tightness * q

    def _along(self, displaced: Tensor) -> Float[Tensor, "k m"]:
        """Amplitudes of displacements along the modes."""
        return torch.einsum("knc,mnc->km", displaced, self.vectors)


def _secant(inverse: Float[Tensor, "k m m"], moved: Tensor, changed: Tensor) -> Float[Tensor, "k m m"]:
    """BFGS's inverse curvature after a step and the change of gradient along it; kept where not convex."""
    product = (moved * changed).sum(1)[:, None, None]
    convex = product > 1e-10 * changed.square().sum(1)[:, None, None]
    scale = 1 / torch.where(convex, product, torch.ones_like(product))
    s, y = moved[..., None], changed[..., None]
    left = torch.eye(s.shape[1]).to(s) - scale * (s @ y.mT)
    return torch.where(convex, left @ inverse @ left.mT + scale * (s @ s.mT), inverse)
