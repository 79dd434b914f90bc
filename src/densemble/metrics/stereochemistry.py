"""Bond lengths, bond angles and chiral centres of a model against their targets.

The targets are those of ``geometry.targets``: Engh & Huber (International Tables F, 2006, ch. 18.3), which
wwPDB reports use as well (Gore et al. 2017, Structure 25, 1916-1927). RMSZ is the root mean square of
(value - target) / s.d. over all terms of residues that have targets, and over the peptide and disulfide bonds
between them. Ligands, nucleic acids and other modified residues are not judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from densemble.geometry import targets
from densemble.geometry.targets import Target
from densemble.metrics.conformers import CIS, Atoms, Conformers, dihedral, pick

FLAT = 0.1
"""A centre counts as of the wrong hand where its chiral volume is below this part of the ideal one, so that
centres modelled flat count (as in wwPDB reports)."""
_DISULFIDE = 2.5  # Å
_CYSTINE = Target(("CA", "CB", "SG"), 114.0, 1.8)
"""Degrees, in a disulfide (Engh & Huber's CYSS); ``geometry.targets`` has the free cysteine's."""


@dataclass(frozen=True)
class Deviation:
    """One term: the residue that owns it, its atoms, its value, and (value - target) / s.d.

    Lengths in Å, angles in degrees; for a chiral centre, ``value`` is the volume as a part of the ideal one.
    """

    residue: int
    atoms: Atoms
    value: float
    z: float


@dataclass(frozen=True)
class Stereochemistry:
    """Every term of every conformer, once."""

    bonds: list[Deviation]
    angles: list[Deviation]
    chirals: list[Deviation]


def stereochemistry(model: Conformers) -> Stereochemistry:
    """Measure all terms of a model."""
    terms: dict[str, dict[Atoms, tuple[int, Target]]] = {"bonds": {}, "angles": {}, "chirals": {}}
    for kind, residue, target, atoms in itertools.chain(_across_disulfides(model), _all(model)):
        terms[kind].setdefault(atoms, (residue, target))
    measured = {}
    for kind, found in terms.items():
        values = _MEASURES[kind](model.coords[np.array(list(found))]).tolist() if found else []
        measured[kind] = [
            Deviation(residue, atoms, value / _unit(kind, target), (value - target.mean) / target.sd)
            for (atoms, (residue, target)), value in zip(found.items(), values, strict=True)
        ]
    return Stereochemistry(**measured)


def _unit(kind: str, target: Target) -> float:
    return target.mean if kind == "chirals" else 1.0


def rmsz(terms: Iterable[Deviation]) -> float | None:
    """Root mean square of the deviations in standard deviations; None if there are no terms."""
    z = np.array([term.z for term in terms])
    return float(np.sqrt(np.mean(z**2))) if len(z) else None


def is_wrong_hand(centre: Deviation) -> bool:
    """Whether a chiral centre is inverted, or flat."""
    return centre.value < FLAT


def _all(model: Conformers) -> Iterator[tuple[str, int, Target, Atoms]]:
    """Every term with the residue that owns it, those without altloc once for each conformer."""
    known = targets.known_residues()
    for r, residue in enumerate(model.residues):
        if residue.name in known:
            for letter in model.letters(r):
                own = model.atoms(r, letter)
                yield from _picked("bonds", r, targets.residue_bonds(residue.name), own, {})
                yield from _picked("angles", r, targets.residue_angles(residue.name), own, {})
                yield from _picked("chirals", r, targets.chiral_centres(residue.name), own, {})
    for i, j in model.links:
        first, second = model.residues[i].name, model.residues[j].name
        if first in known and second in known:
            for letter in model.letters(i, j):
                own, after = model.atoms(i, letter), model.atoms(j, letter)
                torsion = pick(("CA", "C", "+N", "+CA"), own, after)
                cis = torsion is not None and bool(abs(dihedral(model.coords[list(torsion)])) < CIS)
                yield from _picked("bonds", i, targets.peptide_bonds(first, second), own, after)
                yield from _picked("angles", i, targets.peptide_angles(first, second, cis=cis), own, after)


def _across_disulfides(model: Conformers) -> Iterator[tuple[str, int, Target, Atoms]]:
    """What disulfides add, and their own targets, which precede those of free cysteines."""
    for i, j, letter in disulfides(model):
        own, after = model.atoms(i, letter), model.atoms(j, letter)
        yield from _picked("bonds", i, targets.disulfide_bonds(), own, after)
        yield from _picked("angles", i, targets.disulfide_angles(), own, after)
        yield from _picked("angles", i, (_CYSTINE,), own, {})
        yield from _picked("angles", j, (_CYSTINE,), after, {})


def _picked(
    kind: str, residue: int, wanted: Iterable[Target], own: Mapping[str, int], after: Mapping[str, int]
) -> Iterator[tuple[str, int, Target, Atoms]]:
    for target in wanted:
        atoms = pick(target.atoms, own, after)
        if atoms is not None:
            yield kind, residue, target, atoms


def disulfides(model: Conformers) -> list[tuple[int, int, str]]:
    """Pairs of cysteines whose sulphurs are bonded, with the altloc in which they are."""
    sulphurs = [
        i
        for i, name in enumerate(model.names)
        if name == "SG" and model.residues[model.residue_index[i]].name == "CYS"
    ]
    if not sulphurs:
        return []
    found = set()
    for a, b in cKDTree(model.coords[sulphurs]).query_pairs(_DISULFIDE):
        i, j = sulphurs[a], sulphurs[b]
        r, s = int(model.residue_index[i]), int(model.residue_index[j])
        if r != s and model.compatible(np.array([i]), np.array([j]))[0]:
            found.add((min(r, s), max(r, s), model.letter((i, j))))
    return sorted(found)


def _lengths(points: Float[np.ndarray, "t 2 3"]) -> Float[np.ndarray, " t"]:
    return np.asarray(np.linalg.norm(points[:, 0] - points[:, 1], axis=-1))


def _angles(points: Float[np.ndarray, "t 3 3"]) -> Float[np.ndarray, " t"]:
    u, v = points[:, 0] - points[:, 1], points[:, 2] - points[:, 1]
    return np.asarray(np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1))))


def _volumes(points: Float[np.ndarray, "t 4 3"]) -> Float[np.ndarray, " t"]:
    steps = points[:, 1:] - points[:, :1]
    u, v, w = np.moveaxis(steps / np.linalg.norm(steps, axis=-1, keepdims=True), 1, 0)
    return np.asarray((u * np.cross(v, w)).sum(-1))


_MEASURES = {"bonds": _lengths, "angles": _angles, "chirals": _volumes}
