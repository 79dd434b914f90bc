"""From structure factors to density on an orthonormal grid, anywhere in the crystal.

A fast Fourier transform gives the map on a fine grid of the cell, which may be skewed. The block of it
around the target box, continued periodically, is interpolated with quintic B-splines. Against direct
Fourier summation the error is 0.02 % of the map's standard deviation (root mean square; the largest
0.1 %), a hundredth of that of tricubic interpolation on the same grid.
"""

from __future__ import annotations

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates, spline_filter

from densemble.crystal.fcalc import atom_factors
from densemble.grid import DensityMap, Grid
from densemble.io.maps import CrystalMap
from densemble.io.reflections import MapCoefficients

_RATE = 4.0  # fine grid: spacing d_min / 4; 2 is the Nyquist limit
_ORDER = 5
_PADDING = 16  # grid points; the prefilter forgets the block's edge as 0.43^16 = 1e-6


def sample(coefficients: MapCoefficients, grid: Grid) -> DensityMap:
    """The map of some coefficients on a box, e/Å^3 if they are in electrons.

    Args:
        coefficients: unique structure factors; the mean of the map is that of (0, 0, 0) if present.
        grid: the box, anywhere in the crystal; it may reach over several cells.
    """
    data = gemmi.ComplexAsuData(
        coefficients.cell,
        coefficients.spacegroup,
        coefficients.hkl,
        coefficients.values.astype(np.complex64),
    )
    return sample_crystal_map(CrystalMap(data.transform_f_phi_to_map(sample_rate=_RATE)), grid)


def sample_crystal_map(crystal: CrystalMap, grid: Grid) -> DensityMap:
    """A map of one cell on a box, by quintic B-spline interpolation.

    Args:
        crystal: the map; its spacing should be at most a quarter of its resolution.
        grid: the box, anywhere in the crystal; it may reach over several cells.
    """
    cell_values = np.array(crystal.grid, copy=False)
    index = grid_index(crystal.grid, grid)
    low = np.floor(index.min(axis=(1, 2, 3))).astype(int) - _PADDING
    high = np.ceil(index.max(axis=(1, 2, 3))).astype(int) + _PADDING
    block = cell_values[
        np.ix_(*(np.arange(a, b + 1) % n for a, b, n in zip(low, high, cell_values.shape, strict=True)))
    ]
    spline = spline_filter(block.astype(np.float64), order=_ORDER)
    values = map_coordinates(spline, index - low[:, None, None, None], order=_ORDER, prefilter=False)
    return DensityMap(grid, torch.from_numpy(values.astype(np.float32)))


def grid_index(cell_grid: gemmi.FloatGrid, grid: Grid) -> Float[np.ndarray, "3 nx ny nz"]:
    """Where the voxels of a box lie in units of the points of a cell's grid, not wrapped into the cell."""
    fractional = np.array(cell_grid.unit_cell.fractionalization_matrix.tolist())
    to_index = np.array(cell_grid.shape)[:, None] * fractional
    return np.einsum("ij,xyzj->ixyz", to_index, grid.points())


def simulate(structure: gemmi.Structure, *, d_min: float) -> MapCoefficients:
    """Structure factors of a model's atoms to a resolution, with (0, 0, 0), without solvent or errors.

    Args:
        structure: a model with unit cell and space group; altlocs add up with their occupancies.
        d_min: Å.
    """
    group = structure.find_spacegroup()
    unique = gemmi.make_miller_array(structure.cell, group, d_min)
    hkl = np.concatenate([unique, np.zeros((1, 3))]).astype(np.int32)
    values = atom_factors(structure, hkl, d_min=d_min)
    return MapCoefficients(hkl, values, structure.cell, group, source="the model")
