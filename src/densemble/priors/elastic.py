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

_ROUNDS = 5  # of the curved denoiser; see tests
_WIDTHS = 10.0  # first noise level over the largest deviation along a mode


class ElasticPrior:
    """Motions of a starting model along its softest modes, as ``N(coords, U diag(v) U^T + residual^2)``.

    ``U`` holds the six motions of the whole and the internal modes of lowest energy, orthonormal over all
    atoms. Internal variances are as one over the eigenvalue (equipartition), scaled so that an atom moves by
    ``amplitude`` (root mean square over atoms and draws); those of the whole are equal, and move it by ``pose``.

    Two denoisers:

    - ``linear``: exactly ``E[x0 | x_t]`` of that Gaussian, in closed form (Woodbury). Motions are straight
      lines, so that domains that turn by tens of degrees swell and their bonds stretch.
    - ``curved``: not exact. The same amplitudes turn residues as rigid bodies, so that the model stays in
      one piece in large motions (``densemble.priors.articulated``). The amplitudes are those of largest
      posterior density, found by fixed-point steps in the co-rotated modes, which stands for their mean;
      what they leave is kept to the share that ``residual`` and the noise allow, and residues are then made
      rigid and their bonds closed. It agrees with the linear one to first order in displacements that are
      rigid in every residue.

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
        q = x_t.new_zeros(len(x_t), len(self.variances))
        for _ in range(_ROUNDS):
            moved, rotations = self.blocks.move(q)
            q = shrink * (q + self._along(self.blocks.turn_back(x_t - moved, rotations)))
        moved, rotations = self.blocks.move(q)
        local = self.residual**2 / noise
        return self.blocks.restore(moved + local * (x_t - moved), rotations)

    def _along(self, displaced: Tensor) -> Float[Tensor, "k m"]:
        """Amplitudes of displacements along the modes."""
        return torch.einsum("knc,mnc->km", displaced, self.vectors)
