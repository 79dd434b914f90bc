"""What surrounds a stretch of chain in the crystal: the rest of the model, and its symmetry copies."""

from __future__ import annotations

import gemmi
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from densemble.forward.xray import SymmetryImages
from densemble.grid import Grid


def symmetry_copies(
    structure: gemmi.Structure,
    coords: Float[np.ndarray, "n 3"],
    near: Float[np.ndarray, "m 3"],
    *,
    reach: float,
) -> tuple[Float[np.ndarray, "c 3"], np.ndarray]:
    """Copies of atoms, other than themselves, that lie within reach of some points.

    Args:
        structure: its cell and space group; nothing is copied without a unit cell.
        coords: Å, the atoms, shape=(n, 3).
        near: Å, shape=(m, 3).
        reach: Å.

    Returns:
        Å, positions of the copies, shape=(c, 3), and which atom each is a copy of, shape=(c,).
    """
    if len(coords) == 0 or not structure.cell.is_crystal():
        return np.zeros((0, 3)), np.zeros(0, dtype=np.int64)
    box = Grid.around(near, margin=0.0, spacing=1.0)
    images = SymmetryImages.reaching(box, coords, structure.cell, structure.find_spacegroup(), margin=reach)
    tree = cKDTree(near)
    found, sources = [np.zeros((0, 3))], [np.zeros(0, dtype=np.int64)]
    for rotation, translation in zip(images.rotation, images.translation, strict=True):
        if np.allclose(rotation, np.eye(3)) and np.allclose(translation, 0):
            continue
        moved = coords @ rotation.T + translation
        distance, _ = tree.query(moved, distance_upper_bound=reach)
        close = np.flatnonzero(np.isfinite(distance))
        found.append(moved[close])
        sources.append(close)
    return np.concatenate(found), np.concatenate(sources)
