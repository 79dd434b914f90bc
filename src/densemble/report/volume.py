"""The map as it is drawn: small enough to travel in the page, with the level at which it is contoured."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from densemble.grid import DensityMap, Grid
from densemble.io.results import Result
from densemble.io.state_results import StateResult
from densemble.report.scene import Scene

MOST_VOXELS = 1_500_000
STEPS = 127
"""Levels of an 8-bit number on one side of zero."""
HIGHEST = 4.0
"""The slider ends at so many times the first level."""
AROUND = 8.0
"""Å of map beyond the atoms that are shown, where the map is larger than the page can carry."""
CARVED = 5.0
"""Å around the states of a region beyond which its map is not drawn."""


@dataclass(frozen=True)
class Level:
    """A contour level in the unit of the map, and where it comes from in words."""

    value: float
    rule: str
    unit: str


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """A map for the page, in 8 bits.

    Attributes:
        data: a CCP4 file of mode 0, whose numbers times ``step`` are the map's; beyond the highest level
            that can be chosen it is cut off.
        step: of the map's unit.
        level: where it is contoured at first.
        lowest, highest: of the levels that can be chosen.
        note: how what is drawn differs from the file, in words.
    """

    data: bytes
    step: float
    level: Level
    lowest: float
    highest: float
    note: str


def level_of(result: Result | StateResult, density: DensityMap, scene: Scene) -> Level:
    """Where to contour at first: half of what the map is at the atoms of the state that is best seen."""
    unit = "e/Å³" if isinstance(result, Result) else "map units"
    first = max(scene.conformations, key=lambda c: c.occupancy or 0.0)
    value = float(np.median(density.at(first.coords, order=1))) / 2
    if value > 0:
        return Level(value, f"half of the map's median at the atoms of {first.name}", unit)
    return Level(float(density.values.double().std()), "the standard deviation of the map", unit)


def drawn(density: DensityMap, result: Result | StateResult, scene: Scene) -> DrawnMap:
    """The map of a run for its page: around what is shown, and coarser if it is still too large."""
    level = level_of(result, density, scene)
    grid, values = density.grid, density.values.double().numpy()
    note = "drawn with 8 bits for each voxel"
    if values.size > MOST_VOXELS:
        grid, values = _around(grid, values, scene.points)
    if scene.around is not None:
        values = _carved(grid, values, scene.points)
        note = f"{note}, within {CARVED:g} Å of the states"
    factor = int(np.ceil((values.size / MOST_VOXELS) ** (1 / 3)))
    if factor > 1:
        grid, values = _coarser(grid, values, factor)
        note += f", each the mean of {factor}³ of the file's"
    highest = HIGHEST * level.value
    step = highest / STEPS
    whole = np.clip(np.rint(values / step), -STEPS, STEPS).astype(np.int8)
    return DrawnMap(ccp4_bytes(grid, whole), step, level, level.value / 4, highest, note)


def _around(grid: Grid, values: np.ndarray, points: Float[np.ndarray, "n 3"]) -> tuple[Grid, np.ndarray]:
    """The part of a box that is near some points."""
    spacing, origin, shape = (np.array(x) for x in (grid.spacing, grid.origin, grid.shape))
    low = np.floor((points.min(axis=0) - AROUND - origin) / spacing).astype(int).clip(0, shape - 2)
    high = np.ceil((points.max(axis=0) + AROUND - origin) / spacing).astype(int).clip(low + 2, shape)
    cut = values[tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))]
    return _grid(origin + low * spacing, spacing, cut.shape), cut


def _carved(grid: Grid, values: np.ndarray, points: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Zero beyond the reach of the atoms."""
    distance, _ = cKDTree(points).query(grid.points().reshape(-1, 3), distance_upper_bound=CARVED)
    return np.where(np.isfinite(distance).reshape(values.shape), values, 0.0)


def _coarser(grid: Grid, values: np.ndarray, factor: int) -> tuple[Grid, np.ndarray]:
    """Means over cubes of voxels; what does not fill a cube at the far ends is left out."""
    nx, ny, nz = (n // factor for n in values.shape)
    cut = values[: nx * factor, : ny * factor, : nz * factor]
    mean = cut.reshape(nx, factor, ny, factor, nz, factor).mean(axis=(1, 3, 5))
    spacing = np.array(grid.spacing)
    return _grid(np.array(grid.origin) + spacing * (factor - 1) / 2, spacing * factor, mean.shape), mean


def _grid(origin: np.ndarray, spacing: np.ndarray, shape: tuple[int, ...]) -> Grid:
    (ox, oy, oz), (sx, sy, sz), (nx, ny, nz) = origin.tolist(), spacing.tolist(), shape
    return Grid((ox, oy, oz), (sx, sy, sz), (nx, ny, nz))


def ccp4_bytes(grid: Grid, values: np.ndarray) -> bytes:
    """A CCP4 file of signed bytes whose origin is in Å, as MRC2014 has it."""
    file = gemmi.Ccp4Mask()
    file.grid = gemmi.Int8Grid(np.ascontiguousarray(values))
    a, b, c = (np.array(grid.spacing) * grid.shape).tolist()
    file.grid.set_unit_cell(gemmi.UnitCell(a, b, c, 90, 90, 90))
    file.grid.spacegroup = gemmi.SpaceGroup("P 1")
    file.update_ccp4_header(0)
    for i, x in enumerate(grid.origin):
        file.set_header_float(50 + i, float(x))
    return _written(file)


def _written(file: gemmi.Ccp4Mask) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.ccp4"
        file.write_ccp4_map(str(path))
        return path.read_bytes()
