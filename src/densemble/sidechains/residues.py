"""Internal coordinates of the side chains: which atom hangs on which, and at what dihedral angle.

Only the tree is written here. Lengths and angles come from ``densemble.geometry.targets``, and so do the
dihedral angles between branches. Names and chi angles follow IUPAC-IUB (1970), Biochemistry 9, 3471-3479.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from densemble.atoms import Topology
from densemble.geometry import targets

CHI_COUNT = 4
"""Most chi angles that a side chain has (ARG, LYS)."""

# Atom, its three parents (the last is bonded to it), dihedral: "2" is chi2, "2+180" opposite to it,
# "2/CD1" the branch next to CD1, "=180" a fixed angle.
_GAMMA = "N-CA-CB"
_DELTA = "CA-CB-CG"
_EPSILON = "CB-CG-CD"
_ARYL = (
    f"CG {_GAMMA} 1;CD1 {_DELTA} 2;CD2 {_DELTA} 2+180;CE1 CB-CG-CD1 =180;CE2 CB-CG-CD2 =180;CZ CG-CD1-CE1 =0"
)
_TREES: Mapping[str, str] = {
    "ALA": "",
    "ARG": (f"CG {_GAMMA} 1;CD {_DELTA} 2;NE {_EPSILON} 3;CZ CG-CD-NE 4;NH1 CD-NE-CZ =0;NH2 CD-NE-CZ =180"),
    "ASN": f"CG {_GAMMA} 1;OD1 {_DELTA} 2;ND2 {_DELTA} 2+180",
    "ASP": f"CG {_GAMMA} 1;OD1 {_DELTA} 2;OD2 {_DELTA} 2+180",
    "CYS": f"SG {_GAMMA} 1",
    "GLN": f"CG {_GAMMA} 1;CD {_DELTA} 2;OE1 {_EPSILON} 3;NE2 {_EPSILON} 3+180",
    "GLU": f"CG {_GAMMA} 1;CD {_DELTA} 2;OE1 {_EPSILON} 3;OE2 {_EPSILON} 3+180",
    "HIS": f"CG {_GAMMA} 1;ND1 {_DELTA} 2;CD2 {_DELTA} 2+180;CE1 CB-CG-ND1 =180;NE2 CB-CG-CD2 =180",
    "ILE": f"CG1 {_GAMMA} 1;CG2 {_GAMMA} 1/CG1;CD1 CA-CB-CG1 2",
    "LEU": f"CG {_GAMMA} 1;CD1 {_DELTA} 2;CD2 {_DELTA} 2/CD1",
    "LYS": f"CG {_GAMMA} 1;CD {_DELTA} 2;CE {_EPSILON} 3;NZ CG-CD-CE 4",
    "MET": f"CG {_GAMMA} 1;SD {_DELTA} 2;CE CB-CG-SD 3",
    "MSE": f"CG {_GAMMA} 1;SE {_DELTA} 2;CE CB-CG-SE 3",
    "PHE": _ARYL,
    "PRO": f"CG {_GAMMA} 1;CD {_DELTA} 2",
    "SER": f"OG {_GAMMA} 1",
    "THR": f"OG1 {_GAMMA} 1;CG2 {_GAMMA} 1/OG1",
    "TRP": (
        f"CG {_GAMMA} 1;CD1 {_DELTA} 2;CD2 {_DELTA} 2+180;NE1 CB-CG-CD1 =180;CE2 CB-CG-CD2 =180;"
        "CE3 CB-CG-CD2 =0;CZ2 CG-CD2-CE2 =180;CZ3 CG-CD2-CE3 =180;CH2 CD2-CE2-CZ2 =0"
    ),
    "TYR": f"{_ARYL};OH CD1-CE1-CZ =180",
    "VAL": f"CG1 {_GAMMA} 1;CG2 {_GAMMA} 1/CG1",
}
SYMMETRIC_CHI: Mapping[str, int] = {"ASP": 2, "GLU": 3, "PHE": 2, "TYR": 2}
"""The chi angle that has a period of 180 degrees, since it carries two equivalent atoms."""


@dataclass(frozen=True)
class Placement:
    """How one side-chain atom is placed.

    Attributes:
        atom: its name.
        parents: three placed atoms; the last is bonded to ``atom``.
        chi: 1 to 4 if the dihedral follows a chi angle, 0 if it is fixed.
        offset: radians added to chi, or the fixed dihedral.
        length: Å, of the bond to the last parent.
        angle: radians, at the last parent.
        level: 0 for CB, otherwise one more than the highest among the parents.
    """

    atom: str
    parents: tuple[str, str, str]
    chi: int
    offset: float
    length: float
    angle: float
    level: int


@cache
def placements(name: str) -> tuple[Placement, ...]:
    """Side-chain atoms of a residue, CB first, each after its parents; empty for GLY.

    Raises:
        KeyError: a residue whose side chain is not known.
    """
    if name == "GLY":
        return ()
    tree = [item.split() for item in _TREES[name].split(";") if item]
    levels = {"N": -1, "CA": -1, "C": -1, "CB": 0}
    placed = [_place(name, "CB", ("C", "N", "CA"), "0/C", 0)]
    for atom, path, dihedral in tree:
        a, b, c = path.split("-")
        levels[atom] = 1 + max(levels[parent] for parent in (a, b, c))
        placed.append(_place(name, atom, (a, b, c), dihedral, levels[atom]))
    return tuple(placed)


def _place(name: str, atom: str, parents: tuple[str, str, str], dihedral: str, level: int) -> Placement:
    _, b, c = parents
    if dihedral.startswith("="):
        chi, offset = 0, float(dihedral[1:])
    elif "/" in dihedral:
        number, sibling = dihedral.split("/")
        chi, offset = int(number), _branch(name, b, c, sibling, atom)
    else:
        number, _, rest = dihedral.partition("+")
        chi, offset = int(number), float(rest or 0)
    return Placement(
        atom=atom,
        parents=parents,
        chi=chi,
        offset=math.radians(offset),
        length=targets.bond_length(name, c, atom),
        angle=math.radians(targets.bond_angle(name, b, c, atom)),
        level=level,
    )


def _branch(name: str, axis: str, centre: str, sibling: str, atom: str) -> float:
    """Signed dihedral in degrees from ``sibling`` to ``atom`` about axis-centre; handedness as in targets."""
    volume = next(t.mean for t in targets.chiral_centres(name) if t.atoms == (centre, axis, sibling, atom))
    return -math.copysign(targets.branch_dihedral(name, axis, centre, sibling, atom), volume)


@cache
def chi_atoms(name: str) -> tuple[tuple[str, str, str, str], ...]:
    """The four atoms of chi1, chi2, ... of a residue; empty for GLY and ALA."""
    return tuple((*p.parents, p.atom) for p in placements(name) if p.chi and p.offset == 0)


def is_buildable(name: str) -> bool:
    """Whether the side chain of the residue (GLY included) can be built."""
    return name == "GLY" or name in _TREES


def complete_topology(topology: Topology) -> tuple[Topology, np.ndarray]:
    """Add the side-chain atoms that the model lacks, after the others of their residue.

    Returns:
        The topology with them, and for each of its atoms the index in ``topology`` or -1 if it is new.
    """
    names: list[str] = []
    elements: list[str] = []
    index: list[int] = []
    source: list[int] = []
    for i, residue in enumerate(topology.residues):
        own = topology.atoms_of([i])
        present = [topology.names[a] for a in own]
        new = []
        if residue.kind == "protein" and is_buildable(residue.name) and {"N", "CA", "C"} <= set(present):
            new = [p.atom for p in placements(residue.name) if p.atom not in present]
        names += [*present, *new]
        elements += [*(topology.elements[a] for a in own), *("Se" if n == "SE" else n[0] for n in new)]
        source += [*own.tolist(), *[-1] * len(new)]
        index += [i] * (len(own) + len(new))
    whole = Topology(tuple(names), tuple(elements), np.array(index, dtype=np.int64), topology.residues)
    return whole, np.array(source, dtype=np.int64)
