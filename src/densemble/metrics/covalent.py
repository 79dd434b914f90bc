"""Which atoms of a model are bonded, and how many bonds apart two atoms are."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from jaxtyping import Bool, Int
from scipy.spatial import cKDTree

from densemble.geometry import targets
from densemble.geometry.contacts import within_bonds
from densemble.metrics.conformers import Conformers
from densemble.metrics.stereochemistry import Stereochemistry

_STRETCH = 0.3
"""Å beyond the sum of the covalent radii up to which atoms of residues without targets are bonded."""
_LOOSE = ("water", "ion")


def bonds(model: Conformers, stereo: Stereochemistry) -> Int[np.ndarray, "b 2"]:
    """Bonded pairs of atoms: those with targets, and for ligands and modified residues by distance.

    Waters and ions have none, nor have metals: what they coordinate is a contact.
    """
    known = [term.atoms for term in stereo.bonds]
    return np.array([*known, *_by_distance(model)], dtype=np.int64).reshape(-1, 2)


def _by_distance(model: Conformers) -> list[tuple[int, int]]:
    residues = model.residues
    # an amino acid of which CA is missing is no part of the protein for ``links``
    known = [r.name in targets.known_residues() and r.kind == "protein" for r in residues]
    standard = np.array(known)[model.residue_index]
    loose = np.array([r.kind in _LOOSE for r in residues])[model.residue_index]
    elements = [gemmi.Element(e) for e in model.elements]
    metal = np.array([e.is_metal for e in elements])
    radius = np.array([e.covalent_r for e in elements])
    here = np.flatnonzero(~loose & ~metal)
    unknown = np.flatnonzero(~loose & ~metal & ~standard)
    if not len(unknown):
        return []
    reach = 2 * float(radius[here].max()) + _STRETCH
    near = cKDTree(model.coords[unknown]).query_ball_tree(cKDTree(model.coords[here]), reach)
    i = np.repeat(unknown, [len(n) for n in near])
    j = here[np.concatenate([np.array(n, dtype=np.int64) for n in near])]
    close = np.linalg.norm(model.coords[i] - model.coords[j], axis=1) < radius[i] + radius[j] + _STRETCH
    keep = close & (i != j) & model.compatible(i, j)
    return list(zip(i[keep].tolist(), j[keep].tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class BondPaths:
    """Pairs of n atoms that few bonds separate, as increasing codes ``i * n + j``."""

    count: int
    codes: dict[int, Int[np.ndarray, " c"]]

    @classmethod
    def of(cls, count: int, pairs: Int[np.ndarray, "b 2"]) -> BondPaths:
        """Paths of up to one, two and three bonds; an atom is no bond apart from itself."""
        codes = {}
        for separation in (1, 2, 3):
            found = within_bonds(count, pairs, separation).tocoo()
            codes[separation] = np.unique(found.row.astype(np.int64) * count + found.col)
        return cls(count, codes)

    def within(
        self, separation: int, i: Int[np.ndarray, " p"], j: Int[np.ndarray, " p"]
    ) -> Bool[np.ndarray, " p"]:
        """Whether at most 1, 2 or 3 bonds separate two atoms."""
        codes, wanted = self.codes[separation], i * self.count + j
        if not len(codes):
            return np.zeros(len(wanted), dtype=bool)
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.asarray(codes[place] == wanted)

    def neighbours(self, i: int) -> Int[np.ndarray, " k"]:
        """Atoms bonded to one atom."""
        codes = self.codes[1]
        own = codes[np.searchsorted(codes, i * self.count) : np.searchsorted(codes, (i + 1) * self.count)]
        found = own - i * self.count
        return found[found != i]
