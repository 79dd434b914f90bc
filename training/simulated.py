"""Simulated density of a hidden segment, and the likelihood that guides towards it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.density import DensityLikelihood, effective_sigma
from densemble.likelihood.mask import reach_mask
from densemble.metrics.maps import voxels_near
from hidden import ELEMENTS, Hidden
from noise import LEVEL, NEAR, band_limited_noise

B_ISO = 25.0
"""Å^2, of the atoms that made the map and of those that are to explain it."""
SPACING = 0.7
"""Å, as in the package's recipe; below half of the finest resolution, 1.5 Å."""
WIDTHS = 2.8
"""Reach of the segment in standard deviations per coordinate: 95 % of a Gaussian in three dimensions."""
ATOM = 2.0
"""Å, reach of an atom's density."""


@dataclass(frozen=True, eq=False)
class Where:
    """Box and voxel weights, from the anchors and the fixed atoms alone: the answer has no part in them."""

    grid: Grid
    mask: Tensor

    @classmethod
    def of(cls, hidden: Hidden) -> Where:
        """Everything within reach of the expected course that is not taken by fixed atoms."""
        mean, width = hidden.course
        reach = WIDTHS * float(width.max()) + ATOM
        course = mean.reshape(-1, 3)
        grid = Grid.around(course, margin=reach, spacing=SPACING)
        return cls(grid, reach_mask(grid, course, reach, exclude=hidden.fixed))

    @property
    def inside(self) -> Tensor:
        """The voxels that count when weights are fitted."""
        return self.mask > 0.5


@dataclass(frozen=True, eq=False)
class Simulated:
    """A noisy map and what is known of it.

    Attributes:
        likelihood: of the map.
        noise: its r.m.s., e/Å^3.
        covered: fraction of the states' atoms at which the mask is above one half.
    """

    likelihood: DensityLikelihood
    noise: float
    covered: float


@torch.no_grad()
def simulate(
    where: Where,
    states: list[np.ndarray],
    weights: list[float],
    d_min: float,
    *,
    level: float = LEVEL,
    generator: torch.Generator,
) -> Simulated:
    """The map of N, CA, C, O of one or several conformations, at a resolution, with noise.

    The noise does not depend on how many states there are: it is ``level`` times the standard deviation of
    the first state's density at full occupancy, over the voxels within 2 Å of its atoms.

    Args:
        where: box and mask.
        states: Å, each shape=(L, 4, 3).
        weights: occupancies.
        d_min: Å.
        level: see ``noise.LEVEL``.
        generator: of the noise.
    """
    coords = torch.from_numpy(np.stack(states)).float().flatten(1, 2)
    forward = XrayDensity(where.grid, ELEMENTS * len(states[0]), d_min=d_min)
    b_iso = torch.tensor(B_ISO)
    alone = forward(coords[:1], torch.ones(1), b_iso)
    noise = level * float(alone[voxels_near(where.grid, coords[0], NEAR)].std())
    clean = forward(coords, torch.tensor(weights), b_iso)
    values = clean + band_limited_noise(where.grid, d_min, noise, generator)
    sigma = effective_sigma(where.grid, noise, d_min) if noise > 0 else 1.0
    likelihood = DensityLikelihood(forward, DensityMap(where.grid, values), where.mask, b_iso, sigma=sigma)
    return Simulated(likelihood, noise, _covered(where, coords.flatten(0, 1)))


def _covered(where: Where, atoms: Tensor) -> float:
    origin, spacing = (torch.tensor(v) for v in (where.grid.origin, where.grid.spacing))
    place = ((atoms - origin) / spacing).round().long()
    size = torch.tensor(where.grid.shape)
    there = ((place >= 0) & (place < size)).all(-1)
    x, y, z = place[there].T
    return float((where.mask[x, y, z] > 0.5).sum()) / len(atoms)
