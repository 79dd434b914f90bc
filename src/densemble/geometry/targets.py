"""Target values of the stereochemistry of proteins: what bonds, angles, planes and centres should be.

Bond lengths and angles with their standard deviations are those of Engh & Huber (International Tables
for Crystallography F, 2006, ch. 18.3), kept in ``data/geometry/engh_huber.csv``, which states the
exceptions. Everything that follows from them (chiral volumes, the dihedral angles between branches
of a side chain) is derived here and stands in no table of its own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

PLANE_SD = 0.02
"""Å, s.d. of the distance of an atom from the plane of its group (REFMAC, Murshudov et al. 1997)."""
CHIRAL_SD = 0.2
"""Å^3, s.d. of the chiral volume at ideal bond lengths (Hendrickson & Konnert 1980; REFMAC)."""
OMEGA_SD = 6.2
"""Degrees, s.d. of the peptide torsion omega about 180 or 0 (International Tables F, table 18.3.2.3)."""

_RING = ("CB", "CG", "CD1", "CD2", "CE1", "CE2", "CZ")
PLANES: Mapping[str, tuple[str, ...]] = {
    "ARG": ("CD", "NE", "CZ", "NH1", "NH2"),
    "ASN": ("CB", "CG", "OD1", "ND2"),
    "ASP": ("CB", "CG", "OD1", "OD2"),
    "GLN": ("CG", "CD", "OE1", "NE2"),
    "GLU": ("CG", "CD", "OE1", "OE2"),
    "HIS": ("CB", "CG", "ND1", "CD2", "CE1", "NE2"),
    "PHE": _RING,
    "TRP": ("CB", "CG", "CD1", "CD2", "NE1", "CE2", "CE3", "CZ2", "CZ3", "CH2"),
    "TYR": (*_RING, "OH"),
}
"""Side-chain atoms that lie in one plane, by residue name."""

_CENTRES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "ILE": (("CB", "CA", "CG1", "CG2"), 1),
    "THR": (("CB", "CA", "OG1", "CG2"), 1),
    "VAL": (("CB", "CA", "CG1", "CG2"), -1),
    "LEU": (("CG", "CB", "CD1", "CD2"), -1),
}
"""Centre, its three neighbours, sign of the chiral volume. Those of VAL and LEU only fix the naming of
the two equivalent atoms (IUPAC-IUB 1970, Biochemistry 9, 3471)."""
_ALPHA = (("CA", "N", "C", "CB"), 1)


@dataclass(frozen=True)
class Target:
    """An ideal value.

    Attributes:
        atoms: atom names; ``+`` in front means an atom of the next (or disulfide-bonded) residue.
        mean: Å for a bond, degrees for an angle, no unit for a chiral volume.
        sd: standard deviation, same unit.
    """

    atoms: tuple[str, ...]
    mean: float
    sd: float


@cache
def _table() -> dict[tuple[str, str], tuple[Target, ...]]:
    text = (resources.files("densemble") / "data" / "geometry" / "engh_huber.csv").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    table: dict[tuple[str, str], list[Target]] = {}
    for row in csv.DictReader(lines):
        target = Target(tuple(row["atoms"].split()), float(row["mean"]), float(row["sd"]))
        for residue in row["residues"].split():
            table.setdefault((row["kind"], residue), []).append(target)
    return {key: tuple(values) for key, values in table.items()}


@cache
def known_residues() -> frozenset[str]:
    """Names of the residues that have targets: the twenty amino acids and MSE."""
    return frozenset(name for kind, name in _table() if kind == "bond" and not name.startswith("link:"))


def residue_bonds(name: str) -> tuple[Target, ...]:
    """Bonds within a residue; none for a residue that is not in the table."""
    return _table().get(("bond", name), ())


def residue_angles(name: str) -> tuple[Target, ...]:
    """Angles within a residue; none for a residue that is not in the table."""
    return _table().get(("angle", name), ())


def _link_classes(first: str, second: str, cis: bool) -> tuple[str, str]:
    if second == "PRO":
        return "link:proline", "link:to-proline-cis" if cis else "link:to-proline-trans"
    own = "link:glycine" if first == "GLY" else "link:peptide"
    return own, "link:to-glycine" if second == "GLY" else "link:to-peptide"


def peptide_bonds(first: str, second: str) -> tuple[Target, ...]:
    """The bond between residues ``first`` and ``second`` of a chain."""
    return _table()["bond", _link_classes(first, second, False)[0]]


def peptide_angles(first: str, second: str, *, cis: bool = False) -> tuple[Target, ...]:
    """The angles across the peptide bond between residues ``first`` and ``second`` of a chain."""
    own, following = _link_classes(first, second, cis)
    return _table()["angle", own] + _table()["angle", following]


def disulfide_bonds() -> tuple[Target, ...]:
    """The bond between two cystine sulphurs."""
    return _table()["bond", "link:disulfide"]


def disulfide_angles() -> tuple[Target, ...]:
    """The angles at the two sulphurs of a cystine."""
    return _table()["angle", "link:disulfide"]


@cache
def bond_length(residue: str, a: str, b: str) -> float:
    """Ideal length in Å of the bond a-b.

    Raises:
        KeyError: the residue has no such bond.
    """
    return _find(residue_bonds(residue), (a, b), residue)


@cache
def bond_angle(residue: str, a: str, b: str, c: str) -> float:
    """Ideal angle a-b-c in degrees.

    Raises:
        KeyError: the residue has no such angle.
    """
    return _find(residue_angles(residue), (a, b, c), residue)


def _find(targets: Iterable[Target], atoms: tuple[str, ...], residue: str) -> float:
    for target in targets:
        if target.atoms in (atoms, atoms[::-1]):
            return target.mean
    raise KeyError(f"no target for {'-'.join(atoms)} in {residue}")


def branch_dihedral(residue: str, a: str, b: str, c: str, d: str) -> float:
    """Magnitude in degrees of the dihedral angle between c and d, all bonded to b, about the bond a-b.

    From the spherical triangle of the three bond angles at b; 180 where they sum to 360 or more.
    """
    ac, ad, cd = (math.radians(bond_angle(residue, *atoms)) for atoms in ((a, b, c), (a, b, d), (c, b, d)))
    cosine = (math.cos(cd) - math.cos(ac) * math.cos(ad)) / (math.sin(ac) * math.sin(ad))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


@cache
def chiral_centres(name: str) -> tuple[Target, ...]:
    """Chiral volumes ``u . (v x w)`` of the centres of a residue, atoms (o, a, b, c).

    u, v, w are the directions, of unit length, from o to a, b, c; so the volume does not depend on the
    bond lengths, and its derivative stays bounded where these are long. The magnitude is that of the
    ideal angles (Gram determinant), so that the kinds of restraint do not pull against each other.
    """
    if name == "GLY" or name not in known_residues():
        return ()
    centres = [_ALPHA, *([_CENTRES[name]] if name in _CENTRES else [])]
    targets = []
    for atoms, sign in centres:
        o, a, b, c = atoms
        x, y, z = (math.cos(math.radians(bond_angle(name, i, o, j))) for i, j in ((a, b), (a, c), (b, c)))
        gram = 1 + 2 * x * y * z - x * x - y * y - z * z
        lengths = math.prod(bond_length(name, o, other) for other in (a, b, c))
        targets.append(Target(atoms, sign * math.sqrt(max(gram, 0.0)), CHIRAL_SD / lengths))
    return tuple(targets)
