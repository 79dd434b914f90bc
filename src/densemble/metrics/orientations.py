"""Turn the hydrogens that are free to turn to where they make hydrogen bonds and no clashes.

As Reduce does (Word et al. 1999, J. Mol. Biol. 285, 1735-1747): the score of an orientation is 4 for a unit
of hydrogen-bonded overlap and -10 for a unit of any other; what a hydrogen bond overlaps beyond 0.6 Å is of
the other kind. A unit is here the square of the overlap in Å, to which the sum over the dots of a sphere is
proportional, instead of Reduce's dots themselves. Groups are turned one after the other, twice, so that each
sees the others as they were left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from densemble.metrics.contact_atoms import ContactAtoms
from densemble.metrics.hydrogens import Group, Hydrogens

STEP = 10.0
"""Degrees between the orientations tried."""
_REACH = 6.0  # Å between heavy atoms, beyond which hydrogens do not touch
_BOND, _BUMP = 4.0, -10.0
_DEEPEST = 0.6  # Å of overlap that a hydrogen bond may have; more counts as a bump
_PASSES = 2


def orient(atoms: ContactAtoms, hydrogens: Hydrogens) -> tuple[ContactAtoms, Hydrogens]:
    """Turn the free groups, and take from histidines the protons that they do not need.

    Every histidine keeps one proton, on the nitrogen where it is better, and both where both make a hydrogen
    bond.
    """
    scene = _Scene(atoms)
    free = [group for group in hydrogens.groups if group.period]
    for _ in range(_PASSES):
        for group in free:
            scene.turn(group)
    coords = scene.atoms.coords[atoms.heavy :]
    turned = replace(hydrogens, coords=coords)
    kept = np.ones(len(coords), dtype=bool)
    for pair in _histidines(hydrogens):
        scores = [scene.score(group, coords[group.hydrogens]) for group in pair]
        if min(scores) <= 0:
            kept[pair[int(np.argmin(scores))].hydrogens] = False
    return _without(atoms, turned, kept)


class _Scene:
    """Where all atoms are while groups are turned."""

    def __init__(self, atoms: ContactAtoms) -> None:
        self.atoms = replace(atoms, coords=atoms.coords.copy())
        self._tree = cKDTree(atoms.coords[: atoms.heavy])
        order = np.argsort(atoms.parents, kind="stable")
        counts = np.bincount(atoms.parents, minlength=atoms.heavy)
        self._own = np.split(order, np.cumsum(counts)[:-1])

    def _around(self, group: Group) -> np.ndarray:
        """Atoms that the group may touch."""
        atoms, centre, first = self.atoms, group.frame[0], int(group.hydrogens[0]) + self.atoms.heavy
        near = self._tree.query_ball_point(atoms.coords[centre], _REACH)
        others = np.concatenate([self._own[i] for i in near if i != centre])
        return others[atoms.touches(np.full(len(others), first), others)]

    def score(self, group: Group, places: Float[np.ndarray, "*batch k 3"]) -> Float[np.ndarray, " *batch"]:
        """Score of the group's hydrogens at one or several places."""
        atoms, others = self.atoms, self._around(group)
        own = group.hydrogens[0] + atoms.heavy
        distance = np.linalg.norm(places[..., None, :] - atoms.coords[others], axis=-1)
        overlap = np.maximum(atoms.radii[own] + atoms.radii[others] - distance, 0.0)
        bonded = atoms.donor[own] & atoms.acceptor[others]
        bump = np.where(bonded, np.maximum(overlap - _DEEPEST, 0.0), overlap) ** 2
        return np.asarray((_BOND * (overlap**2 - bump) + _BUMP * bump).sum((-1, -2)))

    def turn(self, group: Group) -> None:
        """Put the group where its score is best, the first of equals."""
        atoms = self.atoms
        turns = np.arange(0.0, group.period, STEP)
        places = group.turned(atoms.coords[: atoms.heavy], turns)
        best = int(np.argmax(np.round(self.score(group, places), 6)))
        atoms.coords[group.hydrogens + atoms.heavy] = places[best]


def _histidines(hydrogens: Hydrogens) -> list[tuple[Group, Group]]:
    """The two groups of each imidazole: they share the ring's carbon CE1, the last atom of both frames."""
    found: dict[int, list[Group]] = {}
    for group in hydrogens.groups:
        if group.kind == "tautomer":
            found.setdefault(group.frame[-1], []).append(group)
    return [(pair[0], pair[1]) for pair in found.values() if len(pair) == 2]


def _without(atoms: ContactAtoms, hydrogens: Hydrogens, kept: np.ndarray) -> tuple[ContactAtoms, Hydrogens]:
    """Only the hydrogens kept; the nitrogens that lost theirs accept hydrogen bonds."""
    bare = np.setdiff1d(hydrogens.parents[~kept], hydrogens.parents[kept])
    acceptor = atoms.acceptor.copy()
    acceptor[bare] = True
    every = np.concatenate([np.ones(atoms.heavy, dtype=bool), kept])
    number = np.cumsum(kept) - 1
    left = replace(
        hydrogens,
        parents=hydrogens.parents[kept],
        names=tuple(np.array(hydrogens.names)[kept]),
        altlocs=tuple(np.array(hydrogens.altlocs)[kept]),
        coords=hydrogens.coords[kept],
        groups=tuple(
            replace(group, hydrogens=number[group.hydrogens])
            for group in hydrogens.groups
            if kept[group.hydrogens].all()
        ),
    )
    return replace(
        atoms,
        parents=atoms.parents[every],
        coords=np.concatenate([atoms.coords[: atoms.heavy], left.coords]),
        radii=atoms.radii[every],
        donor=atoms.donor[every],
        acceptor=acceptor[every],
        letters=atoms.letters[every],
    ), left
