"""Simple chains of backbone atoms, bonded as the package sees bonds."""

import numpy as np

from densemble.atoms import Residue, ResidueId, Topology
from densemble.testing import chain_topology


def extended(residues: int) -> np.ndarray:
    """A straight chain in which every residue is bonded to the next, Å, shape=(4 residues, 3)."""
    along = 3.6 * np.arange(residues)[:, None] + np.array([0.0, 1.2, 2.4, 2.9])
    across = np.array([0.0, 0.8, 0.0, -1.0]) * np.ones((residues, 1))
    return np.stack([along, across, 0 * along], axis=-1).reshape(-1, 3)


def complex_of(*lengths: int) -> tuple[Topology, np.ndarray]:
    """Several chains beside each other, about the origin."""
    parts = [chain_topology(n) for n in lengths]
    names = tuple(name for part in parts for name in part.names)
    residues = tuple(
        Residue(ResidueId("ABC"[i], r + 1), "GLY") for i, n in enumerate(lengths) for r in range(n)
    )
    coords = np.concatenate([extended(n) + np.array([0, 12.0 * i, 0]) for i, n in enumerate(lengths)])
    coords -= coords.mean(axis=0)
    elements = tuple(name[0] for name in names)
    return Topology(names, elements, np.repeat(np.arange(len(residues)), 4), residues), coords
