"""Hydrogens of the amino acids, placed from the heavy atoms.

Bond lengths are those to the centre of the electron cloud that Reduce uses since 2013 (Word et al. 1999,
J. Mol. Biol. 285, 1735-1747; Deis et al. 2013, Computational Crystallography Newsletter 4, 9-10). Hydrogens
with one possible place are put opposite the other bonds of their atom; methyl groups are staggered; hydroxyl,
thiol and ammonium groups are turned, and protons given to one or both nitrogens of histidine, by
``orientations``. Amides of Asn and Gln and rings of His are not turned over. Waters, ligands and nucleic
acids get no hydrogens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from densemble.metrics.conformers import Conformers, pick
from densemble.metrics.covalent import BondPaths

TETRAHEDRAL = 109.5
"""Degrees."""
_PLANAR, _THIOL = 120.0, 96.0  # degrees at the heavy atom
_LENGTHS = {"CH": 0.97, "aromatic": 0.93, "NH": 0.86, "NH3": 0.89, "OH": 0.84, "SH": 1.20}

# One group of hydrogens each: how they sit, the heavy atom, and the atoms that say where they go.
#   three: one, opposite three bonds; two: a pair, beside two bonds; flat: one, opposite two bonds;
#   ring: like flat, in an aromatic ring; turn: one whose torsion about the bond is free;
#   methyl, ammonium: three on a bond; amide: two in the plane; tautomer: like flat, may be absent.
_BETA = "two CB CA CG"
_GROUPS = {
    "ALA": "methyl CB CA N",
    "ARG": f"{_BETA};two CG CB CD;two CD CG NE;flat NE CD CZ;amide NH1 CZ NE;amide NH2 CZ NE",
    "ASN": f"{_BETA};amide ND2 CG OD1",
    "ASP": _BETA,
    "CYS": "two CB CA SG;turn SG CB CA",
    "GLN": f"{_BETA};two CG CB CD;amide NE2 CD CG",
    "GLU": f"{_BETA};two CG CB CD",
    "GLY": "two CA N C",
    "HIS": f"{_BETA};ring CD2 CG NE2;ring CE1 ND1 NE2;tautomer ND1 CG CE1;tautomer NE2 CD2 CE1",
    "ILE": "three CB CA CG1 CG2;two CG1 CB CD1;methyl CG2 CB CA;methyl CD1 CG1 CB",
    "LEU": f"{_BETA};three CG CB CD1 CD2;methyl CD1 CG CB;methyl CD2 CG CB",
    "LYS": f"{_BETA};two CG CB CD;two CD CG CE;two CE CD NZ;ammonium NZ CE CD",
    "MET": f"{_BETA};two CG CB SD;methyl CE SD CG",
    "MSE": f"{_BETA};two CG CB SE;methyl CE SE CG",
    "PHE": f"{_BETA};ring CD1 CG CE1;ring CD2 CG CE2;ring CE1 CD1 CZ;ring CE2 CD2 CZ;ring CZ CE1 CE2",
    "PRO": f"{_BETA};two CG CB CD;two CD CG N",
    "SER": "two CB CA OG;turn OG CB CA",
    "THR": "three CB CA OG1 CG2;turn OG1 CB CA;methyl CG2 CB CA",
    "TRP": (
        f"{_BETA};ring CD1 CG NE1;flat NE1 CD1 CE2;ring CE3 CD2 CZ3;ring CZ3 CE3 CH2;ring CH2 CZ2 CZ3;"
        "ring CZ2 CE2 CH2"
    ),
    "TYR": f"{_BETA};ring CD1 CG CE1;ring CD2 CG CE2;ring CE1 CD1 CZ;ring CE2 CD2 CZ;turn OH CZ CE1",
    "VAL": "three CB CA CG1 CG2;methyl CG1 CB CA;methyl CG2 CB CA",
}
_ALPHA = "three CA N C CB"
_FREE = {"turn": 360.0, "ammonium": 120.0}
"""Degrees over which a group is turned."""


@dataclass(frozen=True, eq=False)
class Group:
    """Hydrogens that move together: how they sit, their numbers, and the atoms that define their place."""

    kind: str
    hydrogens: Int[np.ndarray, " k"]
    frame: tuple[int, ...]
    length: float

    @property
    def period(self) -> float:
        """Degrees over which the group may be turned; 0 if it is not."""
        return _FREE.get(self.kind, 0.0)

    def places(self, coords: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "k 3"]:
        """Å, where the hydrogens are; of a group that may be turned, to begin with."""
        points = coords[list(self.frame)]
        if self.kind in _TURNS:
            return self.turned(coords, np.zeros(1))[0]
        return _beside_bonds(self.kind, points, self.length)

    def turned(
        self, coords: Float[np.ndarray, "n 3"], turns: Float[np.ndarray, " t"]
    ) -> Float[np.ndarray, "t k 3"]:
        """Å, where the hydrogens of a group on one bond are after turns by so many degrees."""
        c, b, a = coords[list(self.frame)]
        first, step, count, angle = _TURNS[self.kind]
        if self.kind == "turn" and self.length == _LENGTHS["SH"]:
            angle = _THIOL
        torsions = first + turns[:, None] + step * np.arange(count)
        return _about_bond(a, b, c, self.length, angle, torsions)


@dataclass(frozen=True, eq=False)
class Hydrogens:
    """The h hydrogens of a model.

    Attributes:
        parents: index of the heavy atom of each.
        names: of each.
        altlocs: of each, empty where none of the atoms that define its place has one.
        coords: Å, shape=(h, 3).
        groups: all of them, in order.
    """

    parents: Int[np.ndarray, " h"]
    names: tuple[str, ...]
    altlocs: tuple[str, ...]
    coords: Float[np.ndarray, "h 3"]
    groups: tuple[Group, ...]


def place_hydrogens(model: Conformers, paths: BondPaths) -> Hydrogens:
    """Put hydrogens on every conformer of every amino acid; groups that can turn are staggered.

    A group of which a defining atom is missing gets none, nor has an atom with a bond too many for them, such
    as the sulphur of a disulfide or a glycosylated amide.
    """
    parents: list[int] = []
    names: list[str] = []
    altlocs: list[str] = []
    coords: list[np.ndarray] = []
    groups: list[Group] = []
    seen = set()
    for kind, frame, letter in _frames(model):
        if (kind, frame) in seen or _is_substituted(model, paths, kind, frame):
            continue
        seen.add((kind, frame))
        own = model.names[frame[0]]
        suffixes = _SUFFIXES.get(kind, ("",))
        numbers = np.arange(len(parents), len(parents) + len(suffixes))
        group = Group(kind, numbers, frame, _length(kind, model.elements[frame[0]]))
        groups.append(group)
        coords.append(group.places(model.coords))
        parents += [frame[0]] * len(suffixes)
        names += [f"H{own[1:]}{suffix}" for suffix in suffixes]
        altlocs += [letter] * len(suffixes)
    return Hydrogens(
        np.array(parents, dtype=np.int64),
        tuple(names),
        tuple(altlocs),
        np.concatenate(coords) if coords else np.zeros((0, 3)),
        tuple(groups),
    )


_SUFFIXES = {
    "two": ("2", "3"),
    "methyl": ("1", "2", "3"),
    "ammonium": ("1", "2", "3"),
    "amide": ("1", "2"),
}


def _frames(model: Conformers) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Kind of each group, the atoms that define its place (its heavy atom first), and its altloc."""
    for r, residue in enumerate(model.residues):
        if residue.name not in _GROUPS or residue.kind != "protein":
            continue
        texts = [text.split() for text in _GROUPS[residue.name].split(";")]
        texts += [_ALPHA.split()] if residue.name != "GLY" else []
        for letter in model.letters(r):
            own = model.atoms(r, letter)
            for kind, *names in texts:
                atoms = pick(names, own, {})
                if atoms is not None:
                    yield kind, atoms, model.letter(atoms)
        yield from _amide(model, r)


def _amide(model: Conformers, r: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Hydrogens of the backbone nitrogen: of a peptide, or of the first residue of a chain."""
    name = model.residues[r].name
    before = model.previous.get(r, ())
    for i in before if name != "PRO" else ():
        for letter in model.letters(i, r):
            atoms = pick(("+N", "C", "+CA"), model.atoms(i, letter), model.atoms(r, letter))
            if atoms is not None:
                yield "flat", atoms, model.letter(atoms)
    if not before and _is_first(model, r):
        kind, names = ("two", ("N", "CA", "CD")) if name == "PRO" else ("ammonium", ("N", "CA", "C"))
        for letter in model.letters(r):
            atoms = pick(names, model.atoms(r, letter), {})
            if atoms is not None:
                yield kind, atoms, model.letter(atoms)


def _is_first(model: Conformers, r: int) -> bool:
    """Whether the protein of the chain begins here, with a number of at most 1 (the rule of Reduce).

    Otherwise residues are missing before, and the nitrogen is left bare, as it is after a gap.
    """
    own = model.residues[r].id
    return own.number <= 1 and all(
        other.id.chain != own.chain or other.kind != "protein" or other.id == own
        for other in model.residues[:r]
    )


def _is_substituted(model: Conformers, paths: BondPaths, kind: str, frame: tuple[int, ...]) -> bool:
    expected = {"three": 3, "two": 2, "flat": 2, "ring": 2, "tautomer": 2}.get(kind, 1)
    bonded = {(model.residue_index[i], model.names[i]) for i in paths.neighbours(frame[0])}
    return len(bonded) > expected


def _length(kind: str, element: str) -> float:
    if element in ("O", "S"):
        return _LENGTHS[f"{element}H"]
    if element == "N":
        return _LENGTHS["NH3" if kind in ("ammonium", "two") else "NH"]
    return _LENGTHS["aromatic" if kind == "ring" else "CH"]


def _beside_bonds(kind: str, points: Float[np.ndarray, "f 3"], length: float) -> Float[np.ndarray, "k 3"]:
    """Opposite the bonds of the first point with the others, or a pair astride."""
    centre = points[0]
    unit = (points[1:] - centre) / np.linalg.norm(points[1:] - centre, axis=1, keepdims=True)
    away = -unit.sum(0)
    away /= np.linalg.norm(away)
    if kind != "two":
        return centre + length * away[None]
    across = np.cross(unit[0], unit[1])
    half = np.radians(TETRAHEDRAL / 2)
    across *= np.sin(half) / np.linalg.norm(across)
    return centre + length * (np.cos(half) * away + np.stack([-across, across]))


_TURNS = {
    "methyl": (180.0, 120.0, 3, TETRAHEDRAL),
    "ammonium": (180.0, 120.0, 3, TETRAHEDRAL),
    "amide": (0.0, 180.0, 2, _PLANAR),
    "turn": (180.0, 0.0, 1, TETRAHEDRAL),
}
"""First torsion, step between hydrogens, their number, angle at the heavy atom."""


def _about_bond(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, torsions: np.ndarray
) -> Float[np.ndarray, "*batch 3"]:
    """Points bonded to c at an angle with b and dihedral angles about b-c from a, all in degrees."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    bend, torsion = np.radians(angle), np.radians(torsions)[..., None]
    around = np.cos(torsion) * side + np.sin(torsion) * normal
    return c + length * (-np.cos(bend) * axis + np.sin(bend) * around)
