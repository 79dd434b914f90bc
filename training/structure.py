"""What backbone atoms say: hydrogen bonds and coil, bonds, torsions."""

from __future__ import annotations

import numpy as np


def hydrogen_bonds(atoms: np.ndarray) -> np.ndarray:
    """Backbone hydrogen bonds of one chain by the electrostatic rule of Kabsch and Sander (1983).

    Args:
        atoms: N, CA, C, O in Å, shape=(n, 4, 3).

    Returns:
        True at (i, j) where C=O of i accepts from N-H of j: energy below -0.5 kcal/mol, shape=(n, n).
        The hydrogen lies 1.01 Å from N, opposite to the C=O before it. The first residue donates none.
    """
    nitrogen, carbon, oxygen = atoms[:, 0], atoms[:, 2], atoms[:, 3]
    opposite = np.zeros_like(nitrogen)
    opposite[1:] = carbon[:-1] - oxygen[:-1]
    hydrogen = nitrogen + 1.01 * opposite / np.maximum(np.linalg.norm(opposite, axis=-1, keepdims=True), 1e-6)

    def inverse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(np.linalg.norm(a[:, None] - b[None], axis=-1), 0.5)

    energy = 27.9 * (
        inverse(oxygen, nitrogen)
        + inverse(carbon, hydrogen)
        - inverse(oxygen, hydrogen)
        - inverse(carbon, nitrogen)
    )
    bonded = energy < -0.5
    i, j = np.indices(bonded.shape)
    bonded[np.abs(i - j) < 2] = False
    bonded[:, 0] = False
    return bonded


def coil(atoms: np.ndarray) -> np.ndarray:
    """Residues that are in neither helix (3-10, alpha, pi) nor bridge (strand), shape=(n,).

    Helix: two turns of the same kind starting at i - 1 and i make i to i + n - 1 helical. Bridge: the four
    hydrogen-bond patterns of Kabsch and Sander, also single ones.
    """
    bonds = hydrogen_bonds(atoms)
    n = len(atoms)
    structured = np.zeros(n, dtype=bool)
    for turn in (3, 4, 5):
        starts = np.flatnonzero(np.diagonal(bonds, turn))
        for i in starts[np.isin(starts - 1, starts)]:
            structured[i : i + turn] = True
    wide = np.pad(bonds, 1)

    def at(di: int, dj: int) -> np.ndarray:
        """Entry (i, j): C=O of i + di accepts from N-H of j + dj."""
        return wide[1 + di : 1 + di + n, 1 + dj : 1 + dj + n]

    # (i - 1 accepts from j) and (j accepts from i + 1); the transpose of at(0, 1) is entry (j, i + 1).
    parallel = at(-1, 0) & at(0, 1).T
    anti = (bonds & bonds.T) | (at(-1, 1) & at(-1, 1).T)
    bridge = parallel | parallel.T | anti
    i, j = np.indices(bridge.shape)
    bridge &= np.abs(i - j) > 2
    return ~(structured | bridge.any(0) | bridge.any(1))


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Torsion angles in radians, IUPAC sign."""
    u, v, w = b - a, c - b, d - c
    first, second = np.cross(u, v), np.cross(v, w)
    sine = (u * second).sum(-1) * np.linalg.norm(v, axis=-1)
    return np.arctan2(sine, (first * second).sum(-1))
