"""How close two atoms that are not bonded may come, and which pairs count as not bonded.

C, N and O: the normal limits of contact distance of Ramachandran & Sasisekharan (1968), Adv. Protein
Chem. 23, 283-437, which were drawn from crystal structures. Pairs that can form a hydrogen bond (N-O,
O-O, N-N; hydrogens are not modelled, so donors are not told from acceptors) may come closer, to 2.5 Å,
the lower end of moderate hydrogen bonds (Jeffrey 1997, An Introduction to Hydrogen Bonding, table 2.1).
Everything else: the sum of the van der Waals radii of Bondi (1964),
J. Phys. Chem. 68, 441-451, less the 0.4 Å of overlap from which MolProbity counts a clash (Chen et al.
2010, Acta Cryst. D66, 12-21). Metals coordinate closely and take part in no contact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CONTACT_SD = 0.2
"""Å, s.d. of a contact distance below its limit (REFMAC, Murshudov et al. 1997)."""

_SEARCH_MARGIN = 0.05  # Å, above the rounding error of the squared distances that find contacts
_NEVER = 1e9  # Å^2, beyond any squared distance

_LIMITS = {
    ("C", "C"): 3.2,
    ("C", "N"): 2.9,
    ("C", "O"): 2.8,
    ("N", "N"): 2.5,
    ("N", "O"): 2.5,
    ("O", "O"): 2.5,
}
_RADII = {
    "C": 1.70,
    "N": 1.55,
    "O": 1.52,
    "S": 1.80,
    "P": 1.80,
    "F": 1.47,
    "Cl": 1.75,
    "Br": 1.85,
    "I": 1.98,
    "Se": 1.90,
    "Si": 2.10,
    "As": 1.85,
}
_OVERLAP = 0.4


def contact_limit(first: str, second: str) -> float:
    """Smallest usual distance in Å of two atoms that are not bonded, by element symbol; 0 for metals."""
    a, b = sorted((first.capitalize(), second.capitalize()))
    if (a, b) in _LIMITS:
        return _LIMITS[a, b]
    if a not in _RADII or b not in _RADII:
        return 0.0
    return _RADII[a] + _RADII[b] - _OVERLAP


def contact_limits(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """``contact_limit`` of all pairs of elements, shape=(len(first), len(second))."""
    kinds = sorted({*first, *second})
    table = np.array([[contact_limit(a, b) for b in kinds] for a in kinds])
    place = {kind: i for i, kind in enumerate(kinds)}
    return table[np.ix_([place[e] for e in first], [place[e] for e in second])]


def within_bonds(count: int, bonds: np.ndarray, separation: int = 3) -> np.ndarray:
    """Which pairs of atoms are at most ``separation`` bonds apart (themselves included).

    Args:
        count: number of atoms n.
        bonds: pairs of atom indices, shape=(b, 2).
        separation: 3 leaves out 1-2, 1-3 and 1-4 pairs.

    Returns:
        bool array, shape=(n, n).
    """
    step = np.eye(count, dtype=np.float32)
    if len(bonds):
        step[bonds[:, 0], bonds[:, 1]] = 1
        step[bonds[:, 1], bonds[:, 0]] = 1
    reached = np.eye(count, dtype=np.float32)
    for _ in range(separation):
        reached = np.minimum(reached @ step, 1)
    return np.asarray(reached > 0)


class ContactSearch:
    """Finds the pairs of atoms below their limit of contact, with two matrix products and no derivative.

    ``|a|^2 + |b|^2 - 2 a.b < limit^2`` is tested for every pair; all that does not depend on the free
    atoms is prepared once. A few pairs just above their limit are returned too (margin of 0.05 Å).
    """

    def __init__(self, limit: Float[Tensor, "n nm"], fixed: Float[Tensor, "m 3"]) -> None:
        """Prepare the thresholds.

        Args:
            limit: Å, of free atoms to free and fixed atoms; 0 where a pair makes no contact.
            fixed: Å, positions of the fixed atoms.
        """
        n = len(limit)
        squares = torch.where(limit > 0, (limit + _SEARCH_MARGIN).square(), torch.full_like(limit, -_NEVER))
        self._origin = fixed.mean(0) if len(fixed) else fixed.new_zeros(3)
        fixed = fixed - self._origin
        self._free = squares[:, :n]
        self._outside = fixed.square().sum(-1) - squares[:, n:]
        self._fixed = fixed.T.contiguous()

    @torch.no_grad()
    def __call__(
        self, coords: Float[Tensor, "k n 3"]
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Member, free atom and other atom (extended index) of each pair found."""
        here = coords - self._origin
        own = here.square().sum(-1)
        inside = torch.baddbmm(own[:, None, :] - self._free, here, here.mT, alpha=-2) < -own[..., None]
        outside = (here @ self._fixed).mul_(-2).add_(self._outside) < -own[..., None]
        k, i, j = inside.nonzero(as_tuple=True)
        p, q, r = outside.nonzero(as_tuple=True)
        return torch.cat([k, p]), torch.cat([i, q]), torch.cat([j, r + here.shape[1]])
