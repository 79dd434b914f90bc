"""The bulk solvent that atoms displace.

In an omit map the solvent has flowed into the volume of the atoms left out, so what the map shows of
them is their density *minus* that of the solvent they displace. Each atom displaces a Gaussian of its
own volume: Fraser, R. D. B., MacRae, T. P. & Suzuki, E. (1978). J. Appl. Cryst. 11, 693-694. The solvent
is smoothed by its own B factor, as in the bulk-solvent correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

#: Displaced volumes in Å^3 of heavy atoms with their hydrogens, after Fraser et al. (1978), Table 1;
#: phosphorus, selenium and others take the volume of sulphur.
VOLUMES = {
    "C": {0: 16.44, 1: 21.59, 2: 26.74, 3: 31.89},
    "N": {0: 2.49, 1: 7.64, 2: 12.79, 3: 17.94},
    "O": {0: 9.13, 1: 14.28},
    "S": {0: 19.86, 1: 25.10},
}
_OTHER = 19.86

_NO_HYDROGEN = {
    "PHE": ("CG",),
    "TYR": ("CG", "CZ"),
    "TRP": ("CG", "CD2", "CE2"),
    "ASP": ("CG", "OD1", "OD2"),
    "GLU": ("CD", "OE1", "OE2"),
    "ASN": ("CG", "OD1"),
    "GLN": ("CD", "OE1"),
    "ARG": ("CZ",),
    "HIS": ("CG", "ND1"),
    "MET": ("SD",),
    "MSE": ("SE",),
}
_HYDROGENS = {
    ("GLY", "CA"): 2,
    ("PRO", "N"): 0,
    ("ALA", "CB"): 3,
    ("VAL", "CB"): 1,
    ("ILE", "CB"): 1,
    ("THR", "CB"): 1,
    ("LEU", "CG"): 1,
    ("LYS", "NZ"): 3,
    ("ASN", "ND2"): 2,
    ("GLN", "NE2"): 2,
    ("ARG", "NH1"): 2,
    ("ARG", "NH2"): 2,
    ("ARG", "NE"): 1,
    ("MET", "CE"): 3,
    ("MSE", "CE"): 3,
    ("THR", "CG2"): 3,
    ("ILE", "CG2"): 3,
    ("VAL", "CG1"): 3,
    ("VAL", "CG2"): 3,
    ("LEU", "CD1"): 3,
    ("LEU", "CD2"): 3,
    ("ILE", "CD1"): 3,
}
_BACKBONE_HYDROGENS = {"N": 1, "CA": 1, "C": 0, "O": 0, "OXT": 0}
_AROMATIC = ("PHE", "TYR", "TRP", "HIS")


def hydrogens_on(residue: str, atom: str, element: str) -> int:
    """How many hydrogens a heavy atom of an amino acid carries at neutral pH (charged ASP, GLU, LYS, ARG)."""
    if (residue, atom) in _HYDROGENS:
        return _HYDROGENS[residue, atom]
    if atom in _BACKBONE_HYDROGENS:
        return _BACKBONE_HYDROGENS[atom]
    if atom in _NO_HYDROGEN.get(residue, ()):
        return 0
    if element == "C":
        return 1 if residue in _AROMATIC and atom != "CB" else 2
    return 1


def displaced_volumes(
    residues: Sequence[str], names: Sequence[str], elements: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Å^3 that each atom takes from the solvent, shape=(N,).

    Args:
        residues: name of the residue of each atom, length N.
        names: of the atoms.
        elements: of the atoms.
    """
    volumes = []
    for residue, name, element in zip(residues, names, elements, strict=True):
        table = VOLUMES.get(element)
        if table is None:
            volumes.append(_OTHER)
        else:
            volumes.append(table[min(hydrogens_on(residue, name, element), max(table))])
    return np.array(volumes)


def displacement_factors(
    volumes: Float[np.ndarray, " n"], *, density: float, b_solvent: float
) -> tuple[Float[np.ndarray, "n 1"], Float[np.ndarray, "n 1"]]:
    """Form factors of the displaced solvent, ``a exp(-b s^2 / 4)``, to be added to those of the atoms.

    A Gaussian ``exp(-pi r^2 / V^(2/3))`` of volume V has the transform ``V exp(-pi V^(2/3) s^2)``.

    Args:
        volumes: Å^3, shape=(N,).
        density: of the bulk solvent, e/Å^3.
        b_solvent: Å^2, which smooths its edge.

    Returns:
        a in electrons (negative), b in Å^2.
    """
    a = -density * volumes
    b = 4 * math.pi * volumes ** (2 / 3) + b_solvent
    return a[:, None], b[:, None]
