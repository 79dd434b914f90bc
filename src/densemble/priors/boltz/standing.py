"""All atoms of a fold in the place of a docked model that has only some of them."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float

from densemble.atoms import Topology
from densemble.metrics.coordinates import superpose

FLANK = 4
"""Residues on each side of what is missing by which the fold's coordinates are brought there."""
ENOUGH = 3
"""Atoms that determine a pose."""


def standing_atoms(
    topology: Topology, fold: Float[np.ndarray, "n 3"], places: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """The places that are known, and near them what is missing, in the conformation of the fold.

    What a residue lacks is brought there with its own atoms, if it has three, else with those of its
    neighbours in the chain; a loop moves as one body with the residues beside it. What has no neighbours (a
    chain that is missing) is brought with everything that is known.

    Args:
        topology: of the fold.
        fold: Å, anywhere.
        places: Å, NaN where the model has no such atom.

    Raises:
        ValueError: fewer than three places are known.
    """
    known = np.isfinite(places).all(axis=1)
    found = np.where(known[:, None], places, 0.0)
    residues = topology.residue_index
    lacking = np.unique(residues[~known]).tolist()
    partly = [r for r in lacking if known[residues == r].sum() >= ENOUGH]
    bodies = [[r] for r in partly]
    for _, run in groupby(
        enumerate(r for r in lacking if r not in set(partly)),
        key=lambda item: (item[1] - item[0], topology.residues[item[1]].id.chain),
    ):
        bodies.append([r for _, r in run])
    for body in bodies:
        moving = np.isin(residues, body) & ~known
        guide = np.flatnonzero(_guide(topology, body, known))
        found[moving] = superpose(fold, places, fit=guide)[moving]
    return found


def _guide(topology: Topology, body: list[int], known: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Known atoms by which a body is placed: the nearest that suffice."""
    own = np.isin(topology.residue_index, body) & known
    if own.sum() >= ENOUGH:
        return own
    chain = topology.residues[body[0]].id.chain
    same = np.array([r.id.chain == chain for r in topology.residues])[topology.residue_index]
    beside = (topology.residue_index >= body[0] - FLANK) & (topology.residue_index <= body[-1] + FLANK)
    for chosen in (beside & same & known, same & known):
        if chosen.sum() >= ENOUGH:
            return chosen
    return known
