"""How usual torsion angles are: Ramachandran classes and rotamers, by the contours of MolProbity.

A table gives at each point the fraction of reference residues in less populated places. The tables and what
they come from: ``training/validation_tables.py``. Ramachandran (Top8000; Lovell et al. 2003, Proteins 50,
437-450; Chen et al. 2010, Acta Cryst. D66, 12-21): favoured from 0.02; allowed from 0.0005 (general), 0.002
(cis proline), 0.001 (other classes); outliers below. Rotamers (Top500; Lovell et al. 2000, Proteins 40,
389-408): outliers below 0.01. MolProbity itself has used tables from the Top8000 set with a threshold of
0.003 since 2016 (Hintze et al., Proteins 84, 1177-1189); how far the two differ: ``docs/validation.md``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from jaxtyping import Float

from densemble.metrics.conformers import CIS, Atoms, Conformers, dihedral, pick

Verdict = Literal["favoured", "allowed", "outlier"]

FAVOURED = 0.02
RAMACHANDRAN_OUTLIER = {"general": 0.0005, "cis-proline": 0.002}
"""By class; 0.001 for the others."""
ROTAMER_OUTLIER = 0.01


_DECADES = 4.25  # from the lowest to the highest level of a table

_CHAINS = {
    "ARG": "N CA CB CG CD NE CZ",
    "ASN": "N CA CB CG OD1",
    "ASP": "N CA CB CG OD1",
    "CYS": "N CA CB SG",
    "GLN": "N CA CB CG CD OE1",
    "GLU": "N CA CB CG CD OE1",
    "HIS": "N CA CB CG ND1",
    "ILE": "N CA CB CG1 CD1",
    "LEU": "N CA CB CG CD1",
    "LYS": "N CA CB CG CD CE NZ",
    "MET": "N CA CB CG SD CE",
    "MSE": "N CA CB CG SE CE",
    "PHE": "N CA CB CG CD1",
    "PRO": "N CA CB CG",
    "SER": "N CA CB OG",
    "THR": "N CA CB OG1",
    "TRP": "N CA CB CG CD1",
    "TYR": "N CA CB CG CD1",
    "VAL": "N CA CB CG1",
}
"""Atoms along which the chi angles of a side chain lie; those of the tables (of proline only chi1)."""
_TABLES = {"MSE": "met", "PHE": "phetyr", "TYR": "phetyr"}


@dataclass(frozen=True, eq=False)
class Contours:
    """One table on a periodic grid of angles in degrees.

    Attributes:
        levels: unsigned: the type's largest number for 1, the lowest for 10^-4.25, logarithmic between; 0
            for less than any threshold.
        low, high: degrees, where each axis begins and ends.
    """

    levels: np.ndarray
    low: Float[np.ndarray, " d"]
    high: Float[np.ndarray, " d"]

    def at(self, angles: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " r"]:
        """Values at angles in degrees, between the points by multilinear interpolation."""
        bins = np.array(self.levels.shape)
        place = (angles - self.low) / (self.high - self.low) * bins - 0.5
        base = np.floor(place).astype(np.int64)
        part = place - base
        top, total = np.iinfo(self.levels.dtype).max, np.zeros(len(angles))
        for corner in itertools.product((0, 1), repeat=len(bins)):
            index = (base + corner) % bins
            level = self.levels[tuple(index.T)].astype(np.float64)
            value = np.where(level > 0, 10 ** (_DECADES * (level / top - 1)), 0.0)
            total += value * np.where(corner, part, 1 - part).prod(axis=1)
        return total


@cache
def contours() -> dict[str, Contours]:
    """All tables by name: ``rama-...`` by class, ``rota-...`` by residue."""
    path = resources.files("densemble") / "data" / "validation" / "contours.npz"
    with path.open("rb") as file, np.load(file) as data:
        names = [name for name in data.files if not name.endswith("-spans")]
        return {name: Contours(data[name], *data[f"{name}-spans"].T) for name in names}


@dataclass(frozen=True)
class Torsions:
    """One residue's backbone or side chain in one conformer.

    Attributes:
        residue: its index.
        atoms: those the angles come from.
        value: of the table.
        verdict: by the thresholds.
    """

    residue: int
    atoms: Atoms
    value: float
    verdict: Verdict


def ramachandran(model: Conformers) -> list[Torsions]:
    """Phi and psi of each conformer of each residue that is bonded on both sides."""
    found: dict[Atoms, tuple[int, str]] = {}
    for i, r in model.links:
        for j in model.following.get(r, ()):
            for letter in model.letters(i, r, j):
                before, own, after = (model.atoms(k, letter) for k in (i, r, j))
                atoms = pick(("C", "+N", "+CA", "+C"), before, own)
                nitrogen = after.get("N")
                if atoms is not None and nitrogen is not None:
                    kind = _class(model, i, r, j, letter)
                    found.setdefault((*atoms, nitrogen), (r, kind))
    rows = []
    for kind in {kind for _, kind in found.values()}:
        terms = [atoms for atoms, (_, own) in found.items() if own == kind]
        points = model.coords[np.array(terms)]
        angles = np.stack([dihedral(points[:, :4]), dihedral(points[:, 1:])], axis=1)
        outlier = RAMACHANDRAN_OUTLIER.get(kind, 0.001)
        for atoms, value in zip(terms, contours()[f"rama-{kind}"].at(angles), strict=True):
            rows.append(Torsions(found[atoms][0], atoms, float(value), _verdict(value, outlier)))
    return sorted(rows, key=lambda row: (row.residue, row.atoms))


def _class(model: Conformers, before: int, residue: int, after: int, letter: str) -> str:
    name = model.residues[residue].name
    if name == "GLY":
        return "glycine"
    if name == "PRO":
        atoms = pick(("CA", "C", "+N", "+CA"), model.atoms(before, letter), model.atoms(residue, letter))
        cis = atoms is not None and abs(dihedral(model.coords[list(atoms)])) < CIS
        return "cis-proline" if cis else "trans-proline"
    if model.residues[after].name == "PRO":
        return "pre-proline"
    return "ile-val" if name in ("ILE", "VAL") else "general"


def _verdict(value: float, outlier: float) -> Verdict:
    return "favoured" if value >= FAVOURED else "allowed" if value >= outlier else "outlier"


def rotamers(model: Conformers) -> list[Torsions]:
    """Chi angles of each conformer of each side chain that has a table and all the atoms."""
    rows = []
    for name, chain in _CHAINS.items():
        path = chain.split()
        found: dict[Atoms, int] = {}
        for r, residue in enumerate(model.residues):
            if residue.name == name and residue.kind == "protein":
                for letter in model.letters(r):
                    atoms = pick(path, model.atoms(r, letter), {})
                    if atoms is not None:
                        found.setdefault(atoms, r)
        if not found:
            continue
        points = model.coords[np.array(list(found))]
        chi = np.stack([dihedral(points[:, k : k + 4]) for k in range(len(path) - 3)], axis=1)
        table = contours()[f"rota-{_TABLES.get(name, name.lower())}"]
        for (atoms, r), value in zip(found.items(), table.at(chi), strict=True):
            rows.append(Torsions(r, atoms, float(value), _verdict(value, ROTAMER_OUTLIER)))
    return sorted(rows, key=lambda row: (row.residue, row.atoms))
