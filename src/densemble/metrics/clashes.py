"""Clash score: serious overlaps of atoms per thousand atoms, hydrogens included.

The definition of MolProbity (Word et al. 1999, J. Mol. Biol. 285, 1711-1733; Chen et al. 2010, Acta Cryst.
D66, 12-21): two atoms clash if their van der Waals spheres overlap by 0.4 Å or more, they are more than three
bonds apart (four where one is a hydrogen), and they are no hydrogen bond's donor and acceptor. Atoms of
different altlocs do not meet; atoms of occupancy 0.1 or less, and pairs of waters, do not count; nor do
atoms that one metal coordinates, with it and with each other. The overlap
must be open to the outside: of dots on the sphere of one atom (16 a square Å), one that no atom bonded to it
covers must lie 0.4 Å or more inside the other atom, and inside no third atom more deeply. No dot need lie on
the line between the atoms, so what the dots see is up to 0.02 Å less than the overlap of the spheres; the
published scores are of this kind. Copies by symmetry are not considered. What differs from Reduce and Probe:
``hydrogens``, ``orientations``, and ``docs/validation.md``, which compares the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from densemble.metrics.conformers import Conformers
from densemble.metrics.contact_atoms import ContactAtoms
from densemble.metrics.covalent import BondPaths, bonds
from densemble.metrics.hydrogens import place_hydrogens
from densemble.metrics.orientations import orient
from densemble.metrics.stereochemistry import Stereochemistry

OVERLAP = 0.4
"""Å, from which an overlap is a clash."""
LOW_OCCUPANCY = 0.1
"""Up to which an atom does not count."""
COORDINATION = 2.8
"""Å from a metal, up to which it coordinates a heavy atom."""
_DENSITY = 16.0  # dots a square Å


@dataclass(frozen=True)
class Clash:
    """Two atoms (indices of ``ContactAtoms``), and how deep in Å a dot of one lies in the other."""

    first: int
    second: int
    overlap: float


@dataclass(frozen=True, eq=False)
class AllAtomContacts:
    """A model with hydrogens and its clashes.

    Attributes:
        atoms: heavy atoms and hydrogens.
        names: of each.
        counted: atoms that the score is per thousand of: neither waters nor of low occupancy.
        clashes: the worst first.
    """

    atoms: ContactAtoms
    names: tuple[str, ...]
    counted: np.ndarray
    clashes: list[Clash]


def find_clashes(model: Conformers, stereo: Stereochemistry) -> AllAtomContacts:
    """Place hydrogens and list the clashes of a model."""
    paths = BondPaths.of(len(model), bonds(model, stereo))
    hydrogens = place_hydrogens(model, paths)
    atoms, hydrogens = orient(ContactAtoms.of(model, hydrogens, paths), hydrogens)
    water = np.array([r.kind == "water" for r in model.residues])[model.residue_index][atoms.parents]
    metal = np.array([gemmi.Element(e).is_metal for e in model.elements])
    coordinated = _coordinated(atoms, np.flatnonzero(metal))
    present = model.occupancy[atoms.parents] > LOW_OCCUPANCY + 1e-6  # files are read in single precision
    return AllAtomContacts(
        atoms=atoms,
        names=(*model.names, *hydrogens.names),
        counted=present & ~water,
        clashes=_clashes(atoms, present, water, coordinated),
    )


def _coordinated(atoms: ContactAtoms, metals: Int[np.ndarray, " k"]) -> Bool[np.ndarray, "m k"]:
    """Which heavy atoms, itself included, each metal coordinates."""
    apart = np.linalg.norm(atoms.coords[:, None] - atoms.coords[metals], axis=-1)
    apart[atoms.heavy :] = np.inf
    return np.asarray(apart <= COORDINATION)


def _clashes(
    atoms: ContactAtoms, present: np.ndarray, water: np.ndarray, coordinated: Bool[np.ndarray, "m k"]
) -> list[Clash]:
    tree = cKDTree(atoms.coords)
    pairs = tree.query_pairs(2 * float(atoms.radii.max(initial=0.0)) - OVERLAP, output_type="ndarray")
    i, j = pairs[:, 0], pairs[:, 1]
    keep = (atoms.overlap(i, j) >= OVERLAP) & present[i] & present[j] & ~(water[i] & water[j])
    i, j = i[keep], j[keep]
    keep = atoms.touches(i, j) & ~atoms.hydrogen_bonds(i, j)
    keep &= ~(coordinated[i] & coordinated[j]).any(1)
    i, j = i[keep], j[keep]
    deepest: dict[tuple[int, int], float] = {}
    for a, b in ((i, j), (j, i)):
        for source in np.unique(a[~water[a]]).tolist():
            targets = b[a == source]
            for target, overlap in _open_overlaps(atoms, tree, present, source, targets).items():
                pair = min(source, target), max(source, target)
                deepest[pair] = max(overlap, deepest.get(pair, 0.0))
    found = [Clash(*pair, overlap) for pair, overlap in sorted(deepest.items())]
    return sorted(found, key=lambda clash: -clash.overlap)


def _open_overlaps(
    atoms: ContactAtoms, tree: cKDTree, present: np.ndarray, source: int, targets: Int[np.ndarray, " t"]
) -> dict[int, float]:
    """How deep dots of the source lie in the targets, Å, where they are not in bonded or deeper atoms."""
    centre, radius = atoms.coords[source], atoms.radii[source]
    near = np.array(tree.query_ball_point(centre, radius + float(atoms.radii.max())), dtype=np.int64)
    compatible = np.isin(atoms.letters[near], (atoms.letters[source], "")) | (atoms.letters[source] == "")
    near = near[(near != source) & present[near] & compatible]
    bonded = atoms.bonded(np.full(len(near), source), near)
    dots = centre + radius * _sphere(round(4 * np.pi * radius**2 * _DENSITY))
    gaps = np.linalg.norm(dots[:, None] - atoms.coords[near], axis=-1) - atoms.radii[near]
    bare = ~(gaps[:, bonded] < 0).any(1)
    others, gaps = near[~bonded], gaps[bare][:, ~bonded]
    found: dict[int, float] = {}
    if gaps.size:
        for target, depth in zip(others[gaps.argmin(1)].tolist(), (-gaps.min(1)).tolist(), strict=True):
            if depth >= OVERLAP and target in targets:
                found[target] = max(depth, found.get(target, 0.0))
    return found


@cache
def _sphere(count: int) -> Float[np.ndarray, "d 3"]:
    """Evenly spread points of the unit sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z, longitude = 1 - 2 * k / count, np.pi * (1 + np.sqrt(5)) * k
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), z], axis=1)
