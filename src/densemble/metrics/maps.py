"""How alike two maps are, over a stated region of voxels."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.grid import Grid


def voxels_near(grid: Grid, coords: Float[Tensor, "*n 3"], radius: float) -> Bool[Tensor, "nx ny nz"]:
    """The voxels whose centres lie within ``radius`` Å of any of the atoms.

    Figures of map fit differ widely with the region: say which atoms and which radius were used. The
    voxels also hold the density of neighbours that are not among the atoms given.

    Args:
        grid: the box.
        coords: Å, shape=(..., 3); all leading dimensions count, so that several states can be given.
        radius: Å.
    """
    tree = cKDTree(coords.detach().reshape(-1, 3).double().cpu().numpy())
    distance, _ = tree.query(grid.points().reshape(-1, 3), distance_upper_bound=np.nextafter(radius, np.inf))
    return torch.as_tensor(np.isfinite(distance).reshape(grid.shape), device=coords.device)


def cosine(
    a: Float[Tensor, "nx ny nz"], b: Float[Tensor, "nx ny nz"], region: Bool[Tensor, "nx ny nz"]
) -> float:
    """``<a, b> / (|a| |b|)`` over the voxels of the region: 1 for maps that differ by a positive factor.

    The measure of paper 1. Unlike ``rscc`` it depends on the offset of the maps.

    Raises:
        ValueError: the region has no voxels, or a map is zero there.
    """
    x, y = _values(a, region), _values(b, region)
    norm = float(x.norm() * y.norm())
    if norm == 0:
        raise ValueError("cosine: a map is zero in the region")
    return float(x @ y) / norm


def rscc(
    a: Float[Tensor, "nx ny nz"], b: Float[Tensor, "nx ny nz"], region: Bool[Tensor, "nx ny nz"]
) -> float:
    """Real-space correlation: Pearson's coefficient of the two maps over the voxels of the region.

    Raises:
        ValueError: the region has fewer than two voxels, or a map is constant there.
    """
    x, y = _values(a, region), _values(b, region)
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    if len(x) < 2 or norm == 0:
        raise ValueError("rscc: a map is constant in the region")
    return float(x @ y) / norm


def _values(values: Tensor, region: Tensor) -> Tensor:
    """The region's voxels in double precision."""
    if not bool(region.any()):
        raise ValueError("the region has no voxels")
    return values.detach()[region].double()
