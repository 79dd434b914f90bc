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
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from torch import Tensor

CONTACT_SD = 0.2
"""Å, s.d. of a contact distance below its limit (REFMAC, Murshudov et al. 1997)."""

_SKIN = 1.0
"""Å beyond the largest limit up to which pairs are listed."""

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


def within_bonds(count: int, bonds: np.ndarray, separation: int = 3) -> csr_array:
    """Which pairs of atoms are at most ``separation`` bonds apart (themselves included).

    Args:
        count: number of atoms n.
        bonds: pairs of atom indices, shape=(b, 2).
        separation: at least 1; 3 leaves out 1-2, 1-3 and 1-4 pairs.

    Returns:
        Sparse bool array, shape=(n, n).
    """
    itself = np.arange(count).repeat(2).reshape(-1, 2)
    ends = np.concatenate([itself, bonds, bonds[:, ::-1]])
    step = csr_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    reached = step
    for _ in range(separation - 1):
        reached = reached @ step
    return reached


@dataclass(frozen=True, eq=False)
class Contacts:
    """Which pairs of a free atom with any extended atom make a contact, and from which distance.

    Each pair of free atoms counts once, as ``i < j``. Memory is linear in the number of atoms.

    Attributes:
        count: number N of free atoms, the first of the extended ones.
        kind: element of each extended atom, as a row of ``table``.
        table: Å, ``contact_limit`` of the elements that occur; 0: no contact.
        excluded: codes ``i * (N + M) + j`` of the pairs that do not count (bonded up to 1-4), increasing.
    """

    count: int
    kind: Int[Tensor, " nm"]
    table: Float[Tensor, "e e"]
    excluded: Int[Tensor, " x"]

    @classmethod
    def between(cls, elements: Sequence[str], count: int, bonds: np.ndarray) -> Contacts:
        """The contacts of ``count`` free atoms.

        Args:
            elements: of all extended atoms, length N + M.
            count: N.
            bonds: pairs of extended indices, shape=(b, 2).
        """
        kinds = sorted(set(elements))
        place = {kind: i for i, kind in enumerate(kinds)}
        bonded = within_bonds(len(elements), bonds)[:count].tocoo()
        return cls(
            count=count,
            kind=torch.tensor([place[e] for e in elements], dtype=torch.long),
            table=torch.tensor(
                [contact_limit(a, b) for a in kinds for b in kinds], dtype=torch.float64
            ).reshape(len(kinds), len(kinds)),
            excluded=torch.as_tensor(np.sort(bonded.row.astype(np.int64) * len(elements) + bonded.col)),
        )

    def limit(self, i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Smallest distance in Å of free and other atoms by element, whether the pairs count or not."""
        return self.table[self.kind[i], self.kind[j]]

    def counts(self, i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> Bool[Tensor, " p"]:
        """Whether pairs count: of elements that make contacts, not bonded up to 1-4, and once each."""
        code = i * len(self.kind) + j
        at = torch.searchsorted(self.excluded, code).clamp(max=max(len(self.excluded) - 1, 0))
        bonded = self.excluded[at] == code if len(self.excluded) else torch.zeros_like(code, dtype=torch.bool)
        return (self.limit(i, j) > 0) & ~bonded & (i < j)

    def dense(self) -> Float[Tensor, "n nm"]:
        """Å, limit of every pair, 0 where it does not count: for regions, its memory is quadratic."""
        limit = self.table[self.kind[: self.count, None], self.kind]
        limit.view(-1)[self.excluded] = 0.0
        limit[:, : self.count].triu_(1)
        return limit

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Contacts:
        """The same with limits of another precision, on another device."""
        return Contacts(
            count=self.count,
            kind=self.kind.to(device),
            table=self.table.to(device, dtype),
            excluded=self.excluded.to(device),
        )


class ContactSearch:
    """Finds the pairs of atoms below their limit of contact, from lists of neighbours that are kept.

    For each member the pairs that count and are closer than the largest limit and a skin are listed by
    k-d trees (scipy, on the CPU), in time and memory linear in the atoms for models of usual density. A
    list holds as long as no atom has moved by more than half the skin (Verlet 1967, Phys. Rev. 159, 98), so
    that small steps only measure the distances of the listed pairs. What is returned does not depend on
    which lists were kept. A member with a coordinate that is not finite has no pairs.
    """

    def __init__(self, contacts: Contacts, fixed: Float[Tensor, "m 3"], *, skin: float = _SKIN) -> None:
        """Prepare what does not depend on the free atoms.

        Args:
            contacts: with limits of the precision of the coordinates, on their device.
            fixed: Å, positions of the fixed atoms.
            skin: Å; 0 for coordinates that are searched once.
        """
        self._contacts, self._fixed, self._skin = contacts, fixed, skin
        # the trees see double precision, the pairs are judged in that of the coordinates
        self._radius = float(contacts.table.max()) + skin + 1e-3 if contacts.table.numel() else 0.0
        self._outside = cKDTree(fixed.detach().double().cpu().numpy())
        self._listed_at: Tensor | None = None
        self._pairs = torch.zeros(3, 0, dtype=torch.long, device=fixed.device)

    @torch.no_grad()
    def __call__(
        self, coords: Float[Tensor, "k n 3"]
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Member, free atom and other atom (extended index) of each pair found, in this order."""
        self._update(coords.detach())
        k, i, j = self._pairs
        x = torch.cat([coords, self._fixed.expand(len(coords), -1, -1)], dim=1)
        close = (x[k, i] - x[k, j]).square().sum(-1) < self._contacts.limit(i, j).square()
        return k[close], i[close], j[close]

    def _update(self, coords: Tensor) -> None:
        """List the neighbours of the members that moved too far anew."""
        if self._listed_at is None or self._listed_at.shape != coords.shape:
            self._listed_at = torch.full_like(coords, torch.nan)
            self._pairs = self._pairs[:, :0]
        moved = (coords - self._listed_at).square().sum(-1)
        stale = ~(moved <= (self._skin / 2) ** 2).all(-1)  # also where it was or is not finite
        if not bool(stale.any()):
            return
        self._listed_at = torch.where(stale[:, None, None], coords, self._listed_at)
        kept = self._pairs[:, ~stale[self._pairs[0]]]
        anew = [self._list(coords[k], k) for k in stale.nonzero()[:, 0].tolist()]
        pairs = torch.cat([kept, *anew], dim=1)
        self._pairs = pairs[:, pairs[0].argsort(stable=True)]

    def _list(self, coords: Tensor, member: int) -> Tensor:
        """Member, free atom and other atom of the pairs of one member that count and are near, in order."""
        points = coords.double().cpu().numpy()
        if not np.isfinite(points).all():
            return self._pairs[:, :0]
        tree = cKDTree(points)
        inside = tree.query_pairs(self._radius, output_type="ndarray")
        outside = tree.sparse_distance_matrix(self._outside, self._radius, output_type="ndarray")
        i = np.concatenate([inside[:, 0], outside["i"]])
        j = np.concatenate([inside[:, 1], outside["j"] + len(points)])
        order = np.lexsort((j, i))
        pair = torch.as_tensor(np.stack([i[order], j[order]]), device=coords.device)
        pair = pair[:, self._contacts.counts(pair[0], pair[1])]
        return torch.cat([torch.full_like(pair[:1], member), pair])
