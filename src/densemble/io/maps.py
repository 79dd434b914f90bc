"""Map files: CCP4 and MRC2014, as an orthonormal box (`DensityMap`) or as a crystal's cell (`CrystalMap`).

Format: Cheng, A. et al. (2015). J. Struct. Biol. 192, 146-150. What is easily missed in the header:

- NC, NR, NS (words 1-3), NCSTART.. (5-7) count along columns, rows and sections of the file;
  MX, MY, MZ (8-10), the cell (11-16) and ORIGIN (50-52, Å) are along x, y, z; MAPC, MAPR, MAPS (17-19)
  say which is which.
- The voxel size is cell / M per axis, not cell / N.
- The first voxel is at ORIGIN when that is not zero (MRC2014, ChimeraX), else at NCSTART.. times the
  voxel size (CCP4, Coot).
- Values are at voxel positions, without a half-voxel shift.
- ISPG (23) is 1 for a volume, 401 to 630 for a stack of volumes. 0 means a stack of images, but is also
  found in volumes, and read as one.

Modes 0, 1, 2, 6 and 12 (8 and 16-bit integers, 32-bit floats, unsigned 16-bit integers, 16-bit floats) are
read, also gzipped.
"""

from __future__ import annotations

import gzip
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch

from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.io.output import replacing

_STACKS = range(401, 631)  # space group numbers that MRC2014 keeps for stacks of volumes
_NSTART, _SAMPLING, _CELL, _AXES, _SPACEGROUP, _SKEW, _ORIGIN = 5, 8, 11, 17, 23, 25, 50
_HEADER = 1024  # bytes
_16_BITS = {1: "i2", 6: "u2", 12: "f2"}  # modes


@dataclass(frozen=True, eq=False)
class CrystalMap:
    """Density over one whole unit cell.

    Attributes:
        grid: gemmi's periodic grid with cell and space group, point (0, 0, 0) at the cell's origin.
    """

    grid: gemmi.FloatGrid


def read_map(path: Path | str) -> DensityMap:
    """Read a map whose box is orthogonal and not periodic, as in cryo-EM.

    Values become float32 along x, y, z, with voxel (0, 0, 0) where the header puts it.

    Raises:
        InputError: the file is missing, not a map, empty or holds NaNs; its header has no voxel size; its
            cell is not orthogonal or it has symmetry (then it is a crystal's, see `read_crystal_map`); it is
            a stack of volumes.
    """
    return _box(_open(path), path)


def _box(ccp4: gemmi.Ccp4Map, path: Path | str) -> DensityMap:
    angles = _angles(ccp4)
    if np.abs(angles - 90).max() > 1e-3:
        raise InputError(f"{path} has a skewed cell, angles {angles.tolist()}; read it as a crystal's map")
    if ccp4.header_i32(_SPACEGROUP) in _STACKS:
        raise InputError(
            f"{path} is a stack of volumes (ISPG {ccp4.header_i32(_SPACEGROUP)}); give one of them"
        )
    if ccp4.header_i32(_SPACEGROUP) > 1:
        raise InputError(
            f"{path} has crystal symmetry, space group number {ccp4.header_i32(_SPACEGROUP)}; "
            "read it as a crystal's map"
        )
    cell = np.array([ccp4.header_float(_CELL + i) for i in range(3)])
    sampling = np.array([ccp4.header_i32(_SAMPLING + i) for i in range(3)])
    if not (np.isfinite(cell).all() and cell.min() > 0 and sampling.min() > 0):
        raise InputError(
            f"{path} has no voxel size in its header (cell {cell.tolist()} Å, sampling {sampling.tolist()}); "
            "write it anew with one"
        )
    values, starts = _to_xyz(ccp4)
    spacing = cell / sampling
    origin = np.array([ccp4.header_float(w) for w in range(_ORIGIN, _ORIGIN + 3)])
    if not origin.any():
        origin = starts * spacing
    (ox, oy, oz), (sx, sy, sz), (nx, ny, nz) = origin.tolist(), spacing.tolist(), values.shape
    grid = Grid((ox, oy, oz), (sx, sy, sz), (nx, ny, nz))
    return DensityMap(grid, torch.from_numpy(values))


def _angles(ccp4: gemmi.Ccp4Map) -> np.ndarray:
    """Of the cell, degrees; where none are given they are right."""
    angles = np.array([ccp4.header_float(_CELL + 3 + i) for i in range(3)])
    return angles if angles.any() else np.full(3, 90.0)


def read_crystal_map(path: Path | str) -> CrystalMap:
    """Read a map of a crystal, completed to the whole cell by its symmetry.

    Raises:
        InputError: the file is missing, not a map, empty or holds NaNs; or symmetry does not
            complete it to the whole cell.
    """
    return _whole_cell(_open(path), path)


def _whole_cell(ccp4: gemmi.Ccp4Map, path: Path | str) -> CrystalMap:
    try:
        ccp4.setup(float("nan"))
    except RuntimeError as error:
        raise InputError(f"{path}: its symmetry does not fit its grid; write it anew ({error})") from error
    if np.isnan(np.array(ccp4.grid, copy=False)).any():
        raise InputError(f"{path} covers only a part of the asymmetric unit; give one of the whole cell")
    return CrystalMap(ccp4.grid)


def read_either(path: Path | str) -> DensityMap | CrystalMap:
    """Read a map of either kind: one with symmetry or a skewed cell is a crystal's.

    Raises:
        InputError: see `read_map` and `read_crystal_map`.
    """
    ccp4 = _open(path)
    symmetric = ccp4.header_i32(_SPACEGROUP) > 1 and ccp4.header_i32(_SPACEGROUP) not in _STACKS
    if symmetric or np.abs(_angles(ccp4) - 90).max() > 1e-3:
        return _whole_cell(ccp4, path)
    return _box(ccp4, path)


def write_map(path: Path | str, density: DensityMap) -> None:
    """Write a box in CCP4/MRC2014 format, float32, replacing the file only when it is complete.

    The origin is written twice: ORIGIN in Å, exact, for ChimeraX and `read_map`; NCSTART..
    as the nearest voxel for Coot and PyMOL, which read no ORIGIN: exact for them too when the origin is a
    multiple of the spacing, as `Grid.around` makes it, else up to half a voxel off.
    """
    grid = density.grid
    spacing, origin = np.array(grid.spacing), np.array(grid.origin)
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(density.values.detach().cpu().numpy().astype(np.float32))
    a, b, c = (spacing * grid.shape).tolist()
    ccp4.grid.set_unit_cell(gemmi.UnitCell(a, b, c, 90, 90, 90))
    ccp4.grid.spacegroup = gemmi.SpaceGroup("P 1")
    ccp4.update_ccp4_header(2)
    for i, start in enumerate(np.rint(origin / spacing)):
        ccp4.set_header_i32(_NSTART + i, int(start))
        ccp4.set_header_float(_ORIGIN + i, float(origin[i]))
    with replacing(path) as temporary:
        ccp4.write_ccp4_map(str(temporary))


def _open(path: Path | str) -> gemmi.Ccp4Map:
    """The map in the order of the file, checked for emptiness and NaNs."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; give a CCP4 or MRC map")
    try:
        ccp4 = _read(Path(path))
    except (RuntimeError, ValueError) as error:
        if str(error).startswith("Mode "):
            raise InputError(
                f"{path} stores its values in a format that cannot be read; write it anew as 32-bit floats, "
                f"mode 2 ({error})"
            ) from error
        raise InputError(f"{path} is not a CCP4 or MRC map; give one ({error})") from error
    if ccp4.has_skew_transformation() and not _skews_nothing(ccp4):
        raise InputError(f"{path} has a skew transformation in its header; write it anew without one")
    values = np.array(ccp4.grid, copy=False)
    if np.isnan(values).any():
        raise InputError(f"{path} holds NaNs; write it anew without them")
    if values.size == 0 or values.min() == values.max():
        raise InputError(f"{path} is empty: all its values are the same; give a map with density in it")
    return ccp4


def _read(path: Path) -> gemmi.Ccp4Map:
    """By gemmi; values of 16 bits are widened first where it does not read them.

    It has no 16-bit floats, and takes the two bytes of big-endian integers in the wrong order (0.6.5).
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(_HEADER)
        order = ">" if header[212:213] == b"\x11" else "<"
        mode = struct.unpack_from(f"{order}i", header, 12)[0] if len(header) == _HEADER else 2
        if mode not in _16_BITS or (order == "<" and mode != 12):
            return gemmi.read_ccp4_map(str(path))
        rest = file.read()
    columns, rows, sections = struct.unpack_from(f"{order}3i", header)
    symmetry = struct.unpack_from(f"{order}i", header, 92)[0]  # bytes between header and values
    values = np.frombuffer(rest, order + _16_BITS[mode], columns * rows * sections, symmetry)
    mode_2 = header[:12] + struct.pack(f"{order}i", 2) + header[16:]
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "wide.mrc"
        wide.write_bytes(mode_2 + rest[:symmetry] + values.astype(f"{order}f4").tobytes())
        return gemmi.read_ccp4_map(str(wide))


def _skews_nothing(ccp4: gemmi.Ccp4Map) -> bool:
    """Whether the skew transformation is the identity."""
    turn = [ccp4.header_float(_SKEW + 1 + i) for i in range(9)]
    shift = [ccp4.header_float(_SKEW + 10 + i) for i in range(3)]
    return bool(np.array_equal(turn, np.eye(3).ravel()) and not np.any(shift))


def _to_xyz(ccp4: gemmi.Ccp4Map) -> tuple[np.ndarray, np.ndarray]:
    """Values along x, y, z and the first voxel's index along them."""
    axes = [ccp4.header_i32(_AXES + i) - 1 for i in range(3)]
    columns_of = np.argsort(axes)  # file dimension that runs along x, along y, along z
    values = np.array(ccp4.grid, copy=False).transpose(columns_of)
    starts = np.array([ccp4.header_i32(_NSTART + i) for i in range(3)])[columns_of]
    return np.ascontiguousarray(values, dtype=np.float32), starts
