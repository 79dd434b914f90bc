"""Chroma's backbone network behind the contract of ``densemble.priors.protocol``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densemble.atoms import Topology
from densemble.errors import InputError
from densemble.priors.chroma.layout import ChainLayout
from densemble.priors.chroma.networks import seeded
from densemble.priors.rigid import nearest_rotation
from densemble.priors.variance_preserving import VariancePreserving

_RESIDUES = 2000  # residues x members in one call of the network: bounds memory


class ReleasedSchedule:
    """The noise schedule as the released package computes it, in single precision.

    Near t = 0 that is a few per cent from the exact sigma (``1 - alpha^2`` cancels), and part of how Chroma
    samples.

    Args:
        schedule: a ``chroma.layers.structure.diffusion.GaussianNoiseSchedule``.
    """

    def __init__(self, schedule: Any) -> None:  # noqa: ANN401
        self._schedule = schedule

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Factors of the structure and of the noise at label ``t``."""
        at = torch.tensor([t])
        return float(self._schedule.alpha(at)), float(self._schedule.sigma(at))

    def beta(self, t: float) -> float:
        """The rate at which alpha^2 falls, per unit of t and of alpha^2."""
        return float(self._schedule.beta(torch.tensor([t])))


class ChromaPrior:
    """Diffusion model of the backbone of all protein residues of a model.

    Chroma's own units are Å and its estimate turns and moves with what it is given, so that only the layout
    has to be translated. The network sees coordinates about the middle of the model, for single precision.

    Args:
        topology: all atoms of the model.
        coords: their coordinates, Å, shape=(n, 3), by which chains are seen to go on, and for their middle.
        network: see ``densemble.priors.chroma.networks.load_backbone``.
        align: superpose the estimate onto x_t, as Chroma does before it computes the score.
        seed: of the long-range edges that the network draws; they are the same whenever the same noise level
            is denoised, so that the estimate is a function of x_t.
        options: of ``densemble.priors.variance_preserving.VariancePreserving``.

    Attributes:
        layout: where each residue is for Chroma.
        topology: N, CA, C, O of these residues, in file order.
        atoms: their indices in the model's topology, shape=(N,).
        process: Chroma's, with its covariance.

    Raises:
        InputError: the model has no protein, or the network's noise does not preserve the variance.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        network: Any,  # noqa: ANN401
        *,
        align: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.network = network
        self.layout = ChainLayout.of(topology, coords)
        rows = topology.backbone(self.layout.residues)
        self.atoms = np.sort(rows.ravel())
        self.topology = topology.subset(self.atoms)
        self._rows = torch.as_tensor(np.searchsorted(self.atoms, rows))
        self._origin = torch.as_tensor(coords[self.atoms].mean(axis=0))
        self._align = align
        self._seed = seed
        self._parameter = next(network.parameters())
        schedule = network.noise_perturb.noise_schedule
        if schedule.kind != "log_snr":
            raise InputError(
                f"Chroma's backbone network has the noise schedule {schedule.kind}, and only the "
                "variance-preserving log_snr can be sampled; give the public weights or the like"
            )
        self.process = VariancePreserving(
            factor=self._factor(), schedule=ReleasedSchedule(schedule), **options
        )

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t] as the network has it, differentiable in ``x_t``."""
        count = max(1, _RESIDUES // self.layout.chains.shape[1])
        parts = x_t.split(count)
        if len(parts) == 1:
            return self._estimate(x_t, t)
        if not x_t.requires_grad:
            return torch.cat([self._estimate(part, t) for part in parts])
        # the graph of one part at a time: it is computed anew when the gradient comes
        return torch.cat([checkpoint(self._estimate, part, t, use_reentrant=False) for part in parts])

    def _estimate(self, x_t: Tensor, t: float) -> Tensor:
        from chroma.layers.structure.backbone import impute_masked_X

        x = (x_t - self._origin.to(x_t)).to(self._parameter.dtype)
        chains = self.layout.chains.expand(len(x), -1)
        given = impute_masked_X(self.layout.spread(x[:, self._rows]), chains)
        device = self._parameter.device
        with seeded(self._seed + round(1e6 * t), device):
            level = torch.full((len(x),), t, dtype=x.dtype, device=device)
            found = self.network.denoise(given.to(device), chains.to(device), level)
        found = found.to(x)
        estimate = self._in_order(found[:, self.layout.places])
        if self._align:
            here, there = estimate.mean(1, keepdim=True), x.mean(1, keepdim=True)
            turn = nearest_rotation((x - there).mT @ (estimate - here))
            estimate = (estimate - here) @ turn.mT + there
        return estimate.to(x_t) + self._origin.to(x_t)

    def _in_order(self, backbone: Float[Tensor, "k r 4 3"]) -> Float[Tensor, "k n 3"]:
        """N, CA, C and O of the residues, in file order."""
        flat = backbone.flatten(1, 2)
        return flat[:, self._rows.flatten().argsort()]

    def _factor(self) -> Float[Tensor, "n n"]:
        """Chroma's square root R of the covariance of its noise, of the atoms that are there.

        R is that of the released package column by column, or where residues are missing a Cholesky factor
        with the same covariance.
        """
        length = self.layout.chains.shape[1]
        columns = torch.eye(4 * length).reshape(-1, 4 * length).split(96)
        gaussian, device = self.network.noise_perturb.base_gaussian, self._parameter.device
        chains = self.layout.chains.to(device)
        rows = []
        for part in columns:
            z = torch.nn.functional.pad(part, (0, 0, 0, -len(part) % 3))
            z = z.reshape(-1, 3, 4 * length).mT.contiguous()  # three columns of R at once, as x, y and z
            with torch.no_grad():
                made = gaussian._multiply_R(z.to(device), chains.expand(len(z), -1)).to(z)
            rows.append(made.reshape(len(z), 4 * length, 3).mT.flatten(0, 1)[: len(part)])
        whole = torch.cat(rows).T
        present = whole.reshape(length, 4, -1)[self.layout.places].flatten(0, 1)
        present = present[self._rows.flatten().argsort()]
        if len(present) == 4 * length:
            return present[:, self._rows.flatten().argsort()]
        wide = present.double()
        return torch.linalg.cholesky(wide @ wide.T).float()
