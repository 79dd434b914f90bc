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

_ROUNDS = 12  # of the curved denoiser
_STEP = 0.7  # the first, of the full one
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
      posterior density, found by a dozen steps, which stand for their mean; what they leave is kept to the
      share that ``residual`` and the noise allow, and residues are then made rigid and their bonds closed.
      Its derivative is that of a last step from where the search ended. Both agree with the linear denoiser
      where displacements are small and rigid in every residue.

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
        shrink = self.variances / (self.variances + noise)
        found = self._amplitudes(x_t.detach(), noise)
        with torch.enable_grad():
            leaf = found.requires_grad_()
            moved, rotations = self.blocks.move(leaf)
            (slope,) = torch.autograd.grad(moved, leaf, x_t - moved.detach(), create_graph=x_t.requires_grad)
        # Where the search ended the step is about zero: it is there for its derivative by x_t.
        q = found.detach() + shrink * slope - (1 - shrink) * found.detach()
        moved, rotations = self.blocks.move(q)
        local = self.residual**2 / noise
        return self.blocks.restore(moved + local * (x_t - moved), rotations)

    def _amplitudes(self, x: Float[Tensor, "k n 3"], noise: float) -> Float[Tensor, "k m"]:
        """Those of largest posterior density, by preconditioned ascent with a step of each member's own.

        The steps are those that solve the linear problem at once; one that does not lower the misfit is
        taken back and shortened.
        """
        shrink = self.variances / (self.variances + noise)
        tightness = noise / self.variances.clamp_min(1e-12)
        q, step = x.new_zeros(len(x), len(self.variances)), x.new_full((len(x), 1), _STEP)
        misfit, ahead = x.new_full((len(x), 1), float("inf")), torch.zeros_like(q)
        for _ in range(_ROUNDS):
            tried = q + step * ahead
            with torch.enable_grad():
                leaf = tried.requires_grad_()
                moved = self.blocks.move(leaf)[0]
                left = x - moved.detach()
                (slope,) = torch.autograd.grad(moved, leaf, left)
            tried = tried.detach()
            value = left.square().sum((1, 2))[:, None] + (tightness * tried.square()).sum(1, keepdim=True)
            better = value <= misfit
            q, misfit = torch.where(better, tried, q), torch.where(better, value, misfit)
            ahead = torch.where(better, shrink * slope - (1 - shrink) * tried, ahead)
            step = torch.where(better, (1.3 * step).clamp(max=1), 0.4 * step)
        return q

    def _along(self, displaced: Tensor) -> Float[Tensor, "k m"]:
        """Amplitudes of displacements along the modes."""
        return torch.einsum("knc,mnc->km", displaced, self.vectors)
