"""Where states differ: the atoms that get altlocs, and those that stand once.

Decided residue by residue, as crystallographers build: a residue whose backbone differs is split as a whole,
one whose side chain alone differs from CB on, and every other one stands once, at the mean of its states.
States differ where an atom of one is further from the same atom of another than a threshold. It is set by
the resolution (``states.same_within``); it has the name ``coordinate_error``, and estimates none. Two names
for one conformation of a symmetric side chain (OD1 and OD2 of aspartate) are no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from densemble.atoms import BACKBONE, Ensemble, Topology
from densemble.io.altlocs import occupancies
from densemble.io.models import PEPTIDE_BOND_LIMIT
from densemble.metrics.coordinates import nearest_naming

BOND_TOLERANCE = 0.05
"""Å. A bond between a split and a shared atom may be so much longer or shorter than within its state."""

_MAIN = (*BACKBONE, "OXT")
_SHARED, _SIDE_CHAIN, _WHOLE = 0, 1, 2


def by_occupancy(part: Ensemble) -> list[int]:
    """Members that are written (``occupancies`` above zero), the most occupied first."""
    written = occupancies(part.weights)
    order = np.argsort(-part.weights.detach().cpu().double().numpy(), kind="stable")
    return [int(k) for k in order if written[k] > 0]


def split_where_different(parts: Sequence[Ensemble], coordinate_error: float) -> list[Ensemble]:
    """Parts of the same atoms in which only atoms that differ have several members.

    Members come in the order of ``by_occupancy``, those whose occupancy rounds to zero are gone, and weights
    sum to one. What is shared within a part becomes a part of one member. A bond between a split and a shared
    atom that would so change by more than ``BOND_TOLERANCE`` splits the shared residue too.

    Args:
        parts: disjoint atoms; members are states, weights their occupancies.
        coordinate_error: Å, up to which places count as the same.
    """
    found: list[Ensemble] = []
    for part in parts:
        order = by_occupancy(part)
        kept = part.select(order, weights=part.weights[order] / part.weights[order].sum())
        found += _divided(kept, coordinate_error) if len(kept) > 1 else [kept]
    return found


def sources(refined: Ensemble, part: Ensemble) -> list[int]:
    """Which state of a part each state of what became of it was: the nearest, each taken once.

    Args:
        refined: states of some of the part's atoms, in any order.
        part: what was refined.
    """
    own = torch.from_numpy(part.topology.places_of(refined.topology))
    apart = (refined.coords[:, None] - part.coords[None, :, own]).square().sum((-1, -2))
    rows, columns = linear_sum_assignment(apart.detach().cpu().numpy())
    return [int(columns[rows == k][0]) for k in range(len(refined))]


def _divided(part: Ensemble, coordinate_error: float) -> list[Ensemble]:
    """The split and the shared atoms of a part of several members."""
    coords = part.coords.detach().double().cpu().numpy()
    alike = np.stack([nearest_naming(part.topology, x, coords[0]) for x in coords])
    mean = np.einsum("k,kni->ni", part.weights.detach().double().cpu().numpy(), alike)
    level = _levels(part.topology, alike, coordinate_error)
    bonds = _bonds(part.topology, coords[0])
    while True:
        split = _split_atoms(part.topology, level)
        strained = _strained(part.topology, coords, mean, split, bonds)
        if not strained:
            break
        level[strained] = _WHOLE
    several = _subset(part, np.flatnonzero(split))
    once = _subset(_merged(part, mean), np.flatnonzero(~split))
    return [e for e in (several, once) if len(e.topology)]


def _merged(part: Ensemble, mean: Float[np.ndarray, "n 3"]) -> Ensemble:
    """One member at the mean place, with the mean B factor."""
    b_iso = (part.weights[:, None] * part.b_iso).sum(0, keepdim=True)
    return Ensemble(
        part.topology, torch.as_tensor(mean[None]).to(part.coords), part.weights.new_ones(1), b_iso
    )


def _subset(part: Ensemble, atoms: Int[np.ndarray, " m"]) -> Ensemble:
    index = torch.as_tensor(atoms)
    return Ensemble(part.topology.subset(atoms), part.coords[:, index], part.weights, part.b_iso[:, index])


def _levels(topology: Topology, coords: Float[np.ndarray, "k n 3"], error: float) -> Int[np.ndarray, " r"]:
    """How each residue is split."""
    apart = np.linalg.norm(coords[:, None] - coords[None], axis=-1).max(axis=(0, 1)) > error
    main = np.isin(topology.names, _MAIN)
    count = len(topology.residues)
    along, aside = (
        np.bincount(topology.residue_index[apart & which], minlength=count) > 0 for which in (main, ~main)
    )
    has_backbone = np.bincount(topology.residue_index[main], minlength=count) > 0
    return np.where(along | (aside & ~has_backbone), _WHOLE, np.where(aside, _SIDE_CHAIN, _SHARED))


def _split_atoms(topology: Topology, level: Int[np.ndarray, " r"]) -> np.ndarray:
    """Which atoms are split, shape=(N,)."""
    own = level[topology.residue_index]
    return (own == _WHOLE) | ((own == _SIDE_CHAIN) & ~np.isin(topology.names, _MAIN))


def _bonds(topology: Topology, coords: Float[np.ndarray, "n 3"]) -> list[tuple[int, int]]:
    """The bonds that may have one end split and the other shared: to side chains, and between residues."""
    index = topology.atom_index
    count = len(topology.residues)
    pairs = [((r, "CA"), (r, "CB")) for r in range(count)] + [((r, "N"), (r, "CD")) for r in range(count)]
    pairs += [((r, "C"), (s, "N")) for r, s in pairwise(range(count))]
    known = [(index[a], index[b]) for a, b in pairs if a in index and b in index]
    return [(a, b) for a, b in known if np.linalg.norm(coords[a] - coords[b]) < PEPTIDE_BOND_LIMIT]


def _strained(
    topology: Topology,
    coords: Float[np.ndarray, "k n 3"],
    mean: Float[np.ndarray, "n 3"],
    split: np.ndarray,
    bonds: list[tuple[int, int]],
) -> list[int]:
    """Residues whose shared atom is too far from, or too near, a split one that it is bonded to."""
    found = set()
    for a, b in bonds:
        if split[a] == split[b]:
            continue
        here, shared = (a, b) if split[a] else (b, a)
        within = np.linalg.norm(coords[:, here] - coords[:, shared], axis=-1)
        across = np.linalg.norm(coords[:, here] - mean[shared], axis=-1)
        if np.abs(across - within).max() > BOND_TOLERANCE:
            found.add(int(topology.residue_index[shared]))
    return sorted(found)
