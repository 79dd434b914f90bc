"""Orthonormal sampling of density: a box (``Grid``) and values on it (``DensityMap``).

All fitting happens on axis-aligned orthonormal boxes, in Å. Crystal maps, whose cells need not
be orthogonal, are sampled onto such a box once (``densemble.crystal``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """An axis-aligned box of voxels.

    Voxel ``(i, j, k)`` has its centre at ``origin + (i, j, k) * spacing``: the values of a map
    are point samples, there is no half-voxel shift.

    Attributes:
        origin: Å, position of voxel (0, 0, 0).
        spacing: Å along x, y, z (may differ per axis).
        shape: voxels along x, y, z.
    """

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.spacing) <= 0:
            raise ValueError(f"Grid: shape {self.shape} and spacing {self.spacing} must be positive")

    @classmethod
    def around(cls, points: np.ndarray, *, margin: float, spacing: float) -> Grid:
        """The smallest box, ``spacing`` Å between voxels, that holds points [n, 3] and ``margin`` Å."""
        low = np.floor((points.min(axis=0) - margin) / spacing) * spacing
        shape = np.ceil((points.max(axis=0) + margin - low) / spacing).astype(int) + 1
        return cls(
            origin=(float(low[0]), float(low[1]), float(low[2])),
            spacing=(spacing, spacing, spacing),
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        )

    @property
    def voxel_volume(self) -> float:
        """Å^3."""
        return self.spacing[0] * self.spacing[1] * self.spacing[2]

    def axes(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> list[Tensor]:
        """Coordinates in Å of the voxel centres along x, y and z, each shape=(n_axis,)."""
        return [
            torch.tensor(o + s * np.arange(n), dtype=dtype, device=device)
            for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]

    def points(self) -> np.ndarray:
        """Voxel centres in Å, shape=(nx, ny, nz, 3)."""
        x, y, z = (
            o + s * np.arange(n) for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        )
        return np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)


@dataclass(frozen=True, eq=False)
class DensityMap:
    """Density sampled on a grid.

    Attributes:
        grid: the box.
        values: e/Å^3 for X-ray, arbitrary units for cryo-EM; shape=(nx, ny, nz).
    """

    grid: Grid
    values: Float[Tensor, "nx ny nz"]

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != self.grid.shape:
            raise ValueError(
                f"DensityMap: values {tuple(self.values.shape)} on a grid of shape {self.grid.shape}"
            )

    def at(self, points: Float[np.ndarray, "*n 3"], *, order: int) -> Float[np.ndarray, "*n"]:
        """Values at points in Å by splines of an order, linear 1 or cubic 3; zero outside the box."""
        place = (points - np.array(self.grid.origin)) / np.array(self.grid.spacing)
        values = self.values.cpu().numpy()
        return map_coordinates(values, np.moveaxis(place, -1, 0), output=np.float64, order=order)
