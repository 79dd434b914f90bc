"""Ideal backbones for the tests of priors."""

import numpy as np
from scipy.spatial.transform import Rotation

from densemble.testing import chain_topology


def place(a, b, c, length, angle, torsion):
    """The atom at ``length`` from c, with angle b-c-d and torsion a-b-c-d in degrees."""
    angle, torsion = np.deg2rad(angle), np.deg2rad(torsion)
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    x, y, z = -np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)
    return c + length * (x * along + y * np.cross(normal, along) + z * normal)


def backbone(torsions):
    """N, CA, C, O of residues of the (phi, psi) given, Engh and Huber's geometry, shape=(4 n, 3)."""
    n, a = np.zeros(3), np.array([1.458, 0.0, 0.0])
    c = place(np.array([0.0, 1.0, 0.0]), n, a, 1.525, 111.0, 0.0)
    atoms = []
    for (_, psi), (phi, _) in zip(torsions, [*torsions[1:], (-60, 0)], strict=True):
        atoms += [n, a, c, place(n, a, c, 1.231, 120.5, psi + 180)]
        after = place(n, a, c, 1.329, 116.6, psi)
        after_a = place(a, c, after, 1.458, 121.7, 180)
        n, a, c = after, after_a, place(c, after, after_a, 1.525, 111.0, phi)
    return np.array(atoms)


def two_helices(length=24, linker=4):
    """Two helices joined by an extended linker: topology, coordinates, and the residue in the middle."""
    torsions = [(-62, -42)] * length + [(-120, 130)] * linker + [(-62, -42)] * length
    return chain_topology(len(torsions)), backbone(torsions), length + linker // 2


def hinged(coords, residue, degrees):
    """All from a residue on, turned about an axis through its CA, square to the chain of the second half."""
    pivot = coords[4 * residue + 1]
    chain = coords[4 * residue :].mean(axis=0) - pivot
    axis = np.cross(chain, [0.3, -0.5, 0.8])
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
    moved = coords.copy()
    moved[4 * residue :] = turn.apply(coords[4 * residue :] - pivot) + pivot
    return moved
