"""A model as points with weights, and rigid poses of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

REACH = 2.5
"""Å from an atom that count as the model's volume, also where side chains or hydrogens are not modelled."""
_LATTICE = 2.0


@dataclass(frozen=True, eq=False)
class Points:
    """A rigid model about its centre of weight.

    Attributes:
        offsets: Å from the centre, shape=(n, 3).
        weights: positive, their sum is 1, shape=(n,).
        centre: Å, where the centre is before the model is moved, shape=(3,).
    """

    offsets: Float[np.ndarray, "n 3"]
    weights: Float[np.ndarray, " n"]
    centre: Float[np.ndarray, " 3"]

    @classmethod
    def of(cls, coords: Float[np.ndarray, "n 3"], weights: Float[np.ndarray, " n"]) -> Points:
        """Coordinates in Å and their weights, of any positive sum."""
        share = weights / weights.sum()
        centre = share @ coords
        return cls(coords - centre, share, centre)

    @property
    def radius(self) -> float:
        """Å from the centre to the farthest point."""
        return float(np.linalg.norm(self.offsets, axis=1).max())

    @property
    def gyration(self) -> float:
        """Radius of gyration in Å; 1 Å for a single point, whose rotation moves nothing."""
        square = float(self.weights @ (self.offsets**2).sum(axis=1))
        return square**0.5 if square > 0 else 1.0

    def volume(self) -> float:
        """Å^3 within ``REACH`` of a point, counted on a lattice."""
        low, high = self.offsets.min(axis=0) - REACH, self.offsets.max(axis=0) + REACH
        axes = [np.arange(a, b, _LATTICE) for a, b in zip(low, high, strict=True)]
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        near, _ = cKDTree(self.offsets).query(lattice, distance_upper_bound=REACH)
        return int(np.isfinite(near).sum()) * _LATTICE**3

    def thinned(self, cell: float) -> Points:
        """The points in each cube of edge ``cell`` Å joined to one at their centre of weight."""
        _, index = np.unique(np.floor(self.offsets / cell).astype(int), axis=0, return_inverse=True)
        index = index.reshape(-1)
        weights = np.bincount(index, self.weights)
        sums = [np.bincount(index, self.weights * self.offsets[:, k]) for k in range(3)]
        return Points(np.stack(sums, axis=-1) / weights[:, None], weights, self.centre)

    def mirrored(self) -> Points:
        """Its mirror image, by inversion through the centre."""
        return Points(-self.offsets, self.weights, self.centre)


@dataclass(frozen=True, eq=False)
class Poses:
    """Rigid placements of a model: offset d of a point from its centre goes to ``rotation d + position``.

    Attributes:
        rotations: shape=(p, 3, 3).
        positions: Å, of the centre of weight in the map, shape=(p, 3).
        scores: what they were judged by last, shape=(p,).
    """

    rotations: Float[np.ndarray, "p 3 3"]
    positions: Float[np.ndarray, "p 3"]
    scores: Float[np.ndarray, " p"]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray) -> Poses:
        """Some of them, in the order of the indices."""
        return Poses(self.rotations[index], self.positions[index], self.scores[index])

    def best(self, count: int) -> Poses:
        """Those with the highest scores, best first."""
        return self.select(np.argsort(-self.scores, kind="stable")[:count])

    def apply(self, offsets: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "p n 3"]:
        """Å in the map."""
        return offsets @ self.rotations.transpose(0, 2, 1) + self.positions[:, None]
