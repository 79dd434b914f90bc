"""The atoms of a model as contacts see them: heavy atoms and hydrogens, radii, hydrogen bonds.

Radii are those of Probe for hydrogens at the centre of the electron cloud (Word et al. 1999, J. Mol. Biol.
285, 1711-1733; values as in cctbx, ``mmtbx/probe``, 2025): C 1.70 (carbonyl 1.65), N 1.55, O 1.40, S 1.80,
H 1.22 (on N, O, S or an aromatic carbon 1.05) Å; metals have Pauling's ionic radii.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int

from densemble.metrics.conformers import Conformers
from densemble.metrics.covalent import BondPaths
from densemble.metrics.hydrogens import Hydrogens

_RADII = {
    "C": 1.70, "N": 1.55, "O": 1.40, "S": 1.80, "P": 1.80, "Se": 1.90, "F": 1.30, "Cl": 1.77, "Br": 1.95,
    "I": 2.10, "Li": 0.60, "Na": 0.95, "K": 1.33, "Rb": 1.48, "Cs": 1.69, "Mg": 0.65, "Ca": 0.99,
    "Sr": 1.13, "Ba": 1.35,
    "Al": 0.50, "Mn": 0.80, "Fe": 0.74, "Co": 0.70, "Ni": 0.66, "Cu": 0.72, "Zn": 0.74, "Cd": 0.91,
    "Hg": 1.00,
}  # fmt: skip
_CARBONYL = 1.65
_HYDROGEN, _POLAR_HYDROGEN = 1.22, 1.05
_CARBONYLS = {("ASN", "CG"), ("ASP", "CG"), ("GLN", "CD"), ("GLU", "CD")}
_RINGS = {
    "PHE": {"CG", "CD1", "CD2", "CE1", "CE2", "CZ"},
    "TYR": {"CG", "CD1", "CD2", "CE1", "CE2", "CZ"},
    "TRP": {"CD2", "CE2", "CE3", "CZ2", "CZ3", "CH2"},
}
"""Carbons of aromatic rings, which accept hydrogen bonds from above."""


@dataclass(frozen=True, eq=False)
class ContactAtoms:
    """n heavy atoms, followed by h hydrogens.

    Attributes:
        parents: the atom itself, or the heavy atom of a hydrogen, shape=(n + h,).
        heavy: n.
        coords: Å, shape=(n + h, 3).
        radii: Å.
        donor: hydrogens that can make a hydrogen bond.
        acceptor: atoms that can accept one.
        letters: altlocs.
        paths: bonds between heavy atoms.
    """

    parents: Int[np.ndarray, " m"]
    heavy: int
    coords: Float[np.ndarray, "m 3"]
    radii: Float[np.ndarray, " m"]
    donor: Bool[np.ndarray, " m"]
    acceptor: Bool[np.ndarray, " m"]
    letters: np.ndarray
    paths: BondPaths

    @classmethod
    def of(cls, model: Conformers, hydrogens: Hydrogens, paths: BondPaths) -> ContactAtoms:
        """Heavy atoms and hydrogens together; an N of histidine that has a hydrogen accepts no other."""
        parents = hydrogens.parents
        elements = np.array(model.elements)
        polar = np.isin(elements[parents], ("N", "O", "S"))
        ring = np.zeros(len(parents), dtype=bool)
        for group in hydrogens.groups:
            ring[group.hydrogens] = group.kind == "ring"
        return cls(
            parents=np.concatenate([np.arange(len(model)), parents]),
            heavy=len(model),
            coords=np.concatenate([model.coords, hydrogens.coords]),
            radii=np.concatenate([_heavy_radii(model), np.where(polar | ring, _POLAR_HYDROGEN, _HYDROGEN)]),
            donor=np.concatenate([np.zeros(len(model), dtype=bool), polar]),
            acceptor=np.concatenate([_acceptors(model, parents), np.zeros(len(parents), dtype=bool)]),
            letters=np.concatenate([model.altlocs, hydrogens.altlocs]).astype(str),
            paths=paths,
        )

    def overlap(self, i: np.ndarray, j: np.ndarray) -> Float[np.ndarray, " p"]:
        """Å by which the spheres of two atoms overlap; negative where there is a gap."""
        return self.radii[i] + self.radii[j] - np.linalg.norm(self.coords[i] - self.coords[j], axis=-1)

    def hydrogen_bonds(self, i: np.ndarray, j: np.ndarray) -> Bool[np.ndarray, " p"]:
        """Whether one is a donor's hydrogen and the other an acceptor."""
        return (self.donor[i] & self.acceptor[j]) | (self.acceptor[i] & self.donor[j])

    def touches(self, i: np.ndarray, j: np.ndarray) -> Bool[np.ndarray, " p"]:
        """Whether two atoms are there at the same time and are far enough apart along bonds.

        More than three bonds; where one of them is a hydrogen, more than four.
        """
        a, b = self.letters[i], self.letters[j]
        together = (a == b) | (a == "") | (b == "")
        return together & ~self.bonded(i, j)

    def bonded(self, i: np.ndarray, j: np.ndarray) -> Bool[np.ndarray, " p"]:
        """Whether at most three bonds, or four with a hydrogen at an end, are between two atoms."""
        i, j = np.broadcast_arrays(i, j)
        p, q = self.parents[i], self.parents[j]
        both = (i >= self.heavy) & (j >= self.heavy)  # one bond each: two more between their heavy atoms
        near = np.zeros(i.shape, dtype=bool)
        near[both] = self.paths.within(2, p[both], q[both])
        near[~both] = self.paths.within(3, p[~both], q[~both])
        return near


def _heavy_radii(model: Conformers) -> Float[np.ndarray, " n"]:
    def radius(name: str, element: str, residue: str, kind: str) -> float:
        if kind == "protein" and (name == "C" or (residue, name) in _CARBONYLS):
            return _CARBONYL
        return _RADII.get(element) or float(gemmi.Element(element).vdw_r)

    residues = [model.residues[r] for r in model.residue_index]
    return np.array(
        [radius(n, e, r.name, r.kind) for n, e, r in zip(model.names, model.elements, residues, strict=True)]
    )


def _acceptors(model: Conformers, parents: Int[np.ndarray, " h"]) -> Bool[np.ndarray, " n"]:
    with_hydrogen = set(parents.tolist())

    def accepts(i: int, name: str, element: str) -> bool:
        residue = model.residues[model.residue_index[i]]
        if element == "N":
            protein = residue.kind == "protein" and residue.name != "HIS"
            return not protein and i not in with_hydrogen
        return element in ("O", "S") or name in _RINGS.get(residue.name, ())

    return np.array(
        [accepts(i, n, e) for i, (n, e) in enumerate(zip(model.names, model.elements, strict=True))]
    )
