"""Candidate states of a part: groups of members that are nowhere further apart than can be told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from densemble.atoms import BACKBONE, Topology


def distances(
    topology: Topology, coords: Float[np.ndarray, "k n 3"], part: Sequence[int]
) -> Float[np.ndarray, "k k"]:
    """Å between members: the RMSD of the residue in which they differ most.

    Averaged over a long stretch a flipped peptide would count for nothing. Of each residue the backbone and
    the whole are looked at, and the larger of the two counts.
    """
    backbone = np.isin(topology.names, BACKBONE)
    found = np.zeros((len(coords), len(coords)))
    for r in part:
        own = topology.residue_index == r
        for atoms in (own, own & backbone):
            if atoms.any():
                x = coords[:, atoms]
                square = ((x[:, None] - x[None]) ** 2).sum(-1).mean(-1)
                found = np.maximum(found, np.sqrt(square))
    return found


def cluster(distance: Float[np.ndarray, "k k"], *, same: float) -> Int[np.ndarray, " k"]:
    """Group of each member, 0 the first one's: complete linkage, so that no two of a group differ by more.

    Args:
        distance: Å between members, shape=(K, K).
        same: Å, largest distance within a group.
    """
    if len(distance) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = linkage(squareform(distance, checks=False), method="complete")
    labels = fcluster(tree, same, criterion="distance")
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.asarray(rank[number], dtype=np.int64)
