"""Maps for experiments: drawn from a model as ``molmap`` does, or a deposited one cut around a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from densemble.errors import InputError
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import Model
from densemble.likelihood.blur import gaussian_blur
from densemble.metrics.maps import voxels_near

_MARGIN = 12.0  # Å of emptiness around a molecule whose box is not given


def draw_map(
    model: Model,
    path: Path,
    *,
    resolution: float,
    voxel: float = 1.0,
    box: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Write the map of a model.

    Args:
        model: whose atoms; hydrogens are in none.
        path: of the map.
        resolution: Å.
        voxel: Å.
        box: voxels along each side, the molecule in the middle; 12 Å around it if None.
        noise: Gaussian, blurred as the map is, in units of the standard deviation of the density above a
            tenth of its maximum.
        seed: of the noise.

    Raises:
        InputError: the molecule does not fit into the box.
    """
    grid = (
        Grid.around(model.coords, margin=_MARGIN, spacing=voxel) if box is None else _cube(model, voxel, box)
    )
    forward = MolmapDensity(grid, model.topology.elements, resolution=resolution)
    density = forward.members(torch.from_numpy(model.coords).float()[None])[0]
    if noise > 0:
        random = torch.randn(density.shape, generator=torch.Generator().manual_seed(seed))
        random = gaussian_blur(random, grid, forward.sigma)
        spread = density[density > 0.1 * density.max()].std()
        density = density + noise * spread * random / random.std()
    write_map(path, DensityMap(grid, density))


def _cube(model: Model, voxel: float, box: int) -> Grid:
    """A cube of voxels at multiples of the voxel size, the molecule in its middle."""
    low, high = model.coords.min(axis=0), model.coords.max(axis=0)
    if (high - low).max() > (box - 1) * voxel:
        raise InputError(
            f"{model.path}: {(high - low).max():.0f} Å long, it does not fit into {box} voxels of {voxel:g} Å"
        )
    x, y, z = (np.rint(((low + high) / 2 - (box - 1) / 2 * voxel) / voxel) * voxel).tolist()
    return Grid((x, y, z), (voxel, voxel, voxel), (box, box, box))


def cut_zone(density: DensityMap, model: Model, *, radius: float, padding: int) -> DensityMap:
    """A map that is zero farther than a radius from any atom, cut to what is left, with zeros around it.

    Args:
        density: the map.
        model: in its frame.
        radius: Å.
        padding: voxels on each side.

    Raises:
        InputError: no voxel is near the model.
    """
    near = voxels_near(density.grid, torch.from_numpy(model.coords), radius)
    if not bool(near.any()):
        raise InputError(f"{model.path} is nowhere near the map; give the model that was fitted into it")
    found = near.nonzero()
    low, high = found.min(dim=0).values.tolist(), found.max(dim=0).values.tolist()
    inside = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    kept = torch.where(near, density.values, torch.zeros_like(density.values))[inside]
    values = torch.nn.functional.pad(kept, (padding,) * 6)
    grid = density.grid
    x, y, z = (o + (a - padding) * s for o, a, s in zip(grid.origin, low, grid.spacing, strict=True))
    nx, ny, nz = values.shape
    return DensityMap(Grid((x, y, z), grid.spacing, (nx, ny, nz)), values)
