"""Which voxels count: those that the model can reach, by what is known before anything is fitted."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.grid import Grid


def reach_mask(
    grid: Grid,
    start: Float[np.ndarray, "n 3"],
    radius: float,
    *,
    exclude: Float[np.ndarray, "m 3"] | None = None,
    exclude_radius: float = 1.5,
    softness: float = 0.5,
) -> Float[Tensor, "nx ny nz"]:
    """Voxel weights from the starting model and how far it may move: never from the answer.

    1 within ``radius`` of a starting atom, falling to 0 on a cosine over ``softness`` further out. Voxels
    within ``exclude_radius`` of an atom of the static context are 0: no atom of the stretch can be there,
    and what is wrong with the context must not pull on it; from there the weight rises over ``softness``.

    Args:
        grid: the box.
        start: Å, atoms of the stretch in the starting model, shape=(n, 3).
        radius: Å; reach of the stretch plus that of an atom's density.
        exclude: Å, atoms of the context, symmetry copies included, shape=(m, 3).
        exclude_radius: Å.
        softness: Å; 0 for sharp edges.

    Returns:
        Weights between 0 and 1, single precision.
    """
    weight = soft_edge(radius + softness - _distance(grid, start), softness)
    if exclude is not None and len(exclude):
        weight = weight * soft_edge(_distance(grid, exclude) - exclude_radius, softness)
    return torch.as_tensor(weight, dtype=torch.float32)


def _distance(grid: Grid, atoms: np.ndarray) -> np.ndarray:
    """Å from each voxel to the nearest atom, shape=(nx, ny, nz)."""
    return np.asarray(cKDTree(atoms).query(grid.points())[0])


def soft_edge(depth: np.ndarray, softness: float) -> np.ndarray:
    """0 at depth 0 and below, 1 from ``softness`` on, half a cosine between."""
    if softness == 0:
        return (depth > 0).astype(float)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(depth / softness, 0, 1)))
