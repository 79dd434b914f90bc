"""A map as judge of states: its voxels are fitted, those of another half map, if there is one, held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap
from densemble.metrics.maps import blocks_of
from densemble.selection.intervals import Blocks


@dataclass(frozen=True, eq=False)
class MapJudge:
    """The density of a region in one map, and in another whose noise is independent.

    Neighbouring voxels say the same twice, so that the noise is that of an independent datum
    (``effective_sigma``), and blocks with edges of about the resolution are what is counted and drawn.

    Attributes:
        forward: density of the region's atoms.
        target: the map that is fitted: what the region adds.
        other: the same of the map held out; None if there is none.
        inside: voxels that are compared, shape=(nx, ny, nz).
        sigma: noise of a voxel such that the log-likelihood counts independent data.
        edge: Å, of the blocks.
    """

    forward: XrayDensity
    target: DensityMap
    other: DensityMap | None
    inside: Bool[Tensor, "nx ny nz"]
    sigma: float
    edge: float

    @property
    def rule(self) -> str:
        """What is compared, in words."""
        if self.other is None:
            return "log-likelihood of the map that was fitted, less parameters (AIC), by independent voxels"
        return f"log-likelihood of the other half map in blocks of {self.edge:.1f} Å"

    @property
    def holds_out(self) -> bool:
        """There is another map."""
        return self.other is not None

    def signals(
        self,
        atoms: Int[np.ndarray, " n"],
        coords: Float[np.ndarray, "k n 3"],
        b_iso: Float[np.ndarray, "k n"],
    ) -> Float[np.ndarray, "k d"]:
        """Density of each conformation at the voxels compared."""
        x, b = (torch.as_tensor(values, dtype=torch.float32) for values in (coords, b_iso))
        with torch.no_grad():
            density = self.forward.of_atoms(atoms).members(x, b.clamp(min=self.forward.b_min))
        return density[:, self.inside].double().numpy()

    def blocks(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Blocks:
        """Voxels are linear in the weights once scale and offset are known: those of the weights given."""
        scale, offset = self._scale(weights @ signals)
        information = np.full(signals.shape[1], 1 / self.sigma**2)
        return Blocks.of(scale * signals, self._target - offset, information, self._block)

    def fitted(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> float:
        """Log-likelihood of the map that is fitted, its constant left out."""
        return float(self._by_block(self._target, weights @ signals).sum())

    def held_out(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, " m"]:
        """Log-likelihood of each block of the other map; scale and offset are those of the fitted one."""
        if self.other is None:
            raise ValueError("MapJudge: there is no map that was held out")
        return self._by_block(self._values(self.other), weights @ signals)

    def _values(self, density: DensityMap) -> np.ndarray:
        return density.values[self.inside].double().numpy()

    @cached_property
    def _target(self) -> np.ndarray:
        """The map that is fitted, where voxels are compared."""
        return self._values(self.target)

    def _scale(self, model: np.ndarray) -> tuple[float, float]:
        """Scale and offset of least squares, model to the map that is fitted."""
        target = self._target
        centred = model - model.mean()
        scale = max(float(centred @ target / max(centred @ centred, 1e-300)), 0.0)
        return scale, float(target.mean() - scale * model.mean())

    def _by_block(self, values: np.ndarray, model: np.ndarray) -> np.ndarray:
        scale, offset = self._scale(model)
        square = (values - scale * model - offset) ** 2
        return -np.bincount(self._block, square) / (2 * self.sigma**2)

    @cached_property
    def _block(self) -> Int[np.ndarray, " d"]:
        """The block that each voxel is in."""
        return blocks_of(self.target.grid, self.inside, self.edge)
