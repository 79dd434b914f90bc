"""What the whole-chain network is told: a reference model as a graph of residues, and how far to trust it.

Everything here comes from the reference (the user's starting model) and costs time and memory linear
in the number of residues: neighbours of each residue, and nested neighbourhoods of growing size over
which the reference may be nearly rigid.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

NEIGHBOURS = 16
"""Residues that each residue attends to: two on either side in sequence, the others nearest in space."""
OFFSETS = 24
"""Sequence offsets are told apart up to here; the last index is another chain."""

# Residues of a group and groups of a neighbourhood: 256, 128, 64, again 256, and 16 residues.
_GROUPS = ((16, 16), (8, 16), (4, 16), (8, 32), (1, 16))
_CROWD = ((8.0, 16.0), (14.0, 64.0))  # radius in Å and usual number of CA within


@dataclass(frozen=True)
class Trust:
    """How far the truth may lie from the reference, as standard deviations in Å of what is to be expected.

    Attributes:
        domains: displacement of parts of the chain as near-rigid bodies; 0.3 to 15.
        local: what remains after such motion, within a domain; 0.1 to 3.
    """

    domains: float = 6.0
    local: float = 0.5

    def __post_init__(self) -> None:
        if not (0.3 <= self.domains <= 15.0 and 0.1 <= self.local <= 3.0):
            raise ValueError(
                f"Trust: domains {self.domains} must be in 0.3-15 Å and local {self.local} in 0.1-3 Å"
            )


@dataclass(frozen=True)
class Neighbourhoods:
    """For each residue a set of residues, as a list of groups of consecutive ones.

    Attributes:
        group: of each residue, shape=(T,).
        count: number of groups, G.
        members: groups of each residue's neighbourhood, shape=(T, k).
        mask: false for padding, shape=(T, k).
    """

    group: Int[Tensor, " t"]
    count: int
    members: Int[Tensor, "t k"]
    mask: Bool[Tensor, "t k"]


@dataclass(frozen=True)
class ChainGraph:
    """T residues of one or several chains, with the reference that they are denoised towards.

    Several molecules (in training) are one graph without edges between them.

    Attributes:
        reference: N, CA, C, O, Å, each molecule centred on its mean, shape=(T, 4, 3).
        kind: amino acids, index into ``segment_geometry.ALPHABET`` or ``UNKNOWN``, shape=(T,).
        linked: whether a residue is bonded to the one before it; with a last entry (false) for the end,
            shape=(T + 1,).
        neighbours: shape=(T, NEIGHBOURS).
        mask: false for padding, shape=(T, NEIGHBOURS).
        offset: sequence offset of each neighbour, clamped, from 0; 2 OFFSETS + 1 for other chains.
        crowd: number of CA about each over the usual number, shape=(T, 2).
        trust: logarithms of ``Trust.domains`` and ``Trust.local``, shape=(T, 2).
        scales: from all of the molecule to a residue and the two beside it; see
            ``chain_network.RigidPyramid`` for the one that is out of order.
    """

    reference: Float[Tensor, "t 4 3"]
    kind: Int[Tensor, " t"]
    linked: Bool[Tensor, " t+1"]
    neighbours: Int[Tensor, "t k"]
    mask: Bool[Tensor, "t k"]
    offset: Int[Tensor, "t k"]
    crowd: Float[Tensor, "t 2"]
    trust: Float[Tensor, "t 2"]
    scales: tuple[Neighbourhoods, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def to(self, dtype: torch.dtype) -> ChainGraph:
        """The same with floating-point members of another precision."""
        cast = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scales"}
        return replace(self, **{k: v.to(dtype) for k, v in cast.items() if v.is_floating_point()})


def build_graph(
    atoms: Float[np.ndarray, "t 4 3"],
    kind: Int[np.ndarray, " t"],
    linked: Bool[np.ndarray, " t"],
    trust: Trust,
    *,
    place: Int[np.ndarray, " t"] | None = None,
    chain: Int[np.ndarray, " t"] | None = None,
) -> ChainGraph:
    """The graph of one molecule.

    Args:
        atoms: N, CA, C, O of the reference, Å; centred here.
        kind: amino acids.
        linked: whether a residue is bonded to the one before it.
        trust: how far to trust the reference.
        place: along the chain; counted from the links if left out.
        chain: index of the chain; one if left out.
    """
    n = len(atoms)
    chain = np.zeros(n, dtype=np.int64) if chain is None else chain
    if place is None:
        place = np.arange(n) + 2 * np.cumsum(~linked)
    alpha = atoms[:, 1]
    tree = cKDTree(alpha)
    neighbours, mask = _neighbours(tree, place, chain)
    away = np.clip(place[neighbours] - place[:, None], -OFFSETS, OFFSETS) + OFFSETS
    offset = np.where(chain[neighbours] == chain[:, None], away, 2 * OFFSETS + 1)
    crowd = [tree.query_ball_point(alpha, r, return_length=True) / usual for r, usual in _CROWD]
    logs = np.log([trust.domains, trust.local])
    return ChainGraph(
        reference=torch.from_numpy(atoms - atoms.mean((0, 1))).float(),
        kind=torch.from_numpy(kind),
        linked=torch.from_numpy(np.append(linked, False)),
        neighbours=torch.from_numpy(neighbours),
        mask=torch.from_numpy(mask),
        offset=torch.from_numpy(offset),
        crowd=torch.from_numpy(np.stack(crowd, axis=-1)).float(),
        trust=torch.from_numpy(np.tile(logs, (n, 1))).float(),
        scales=(_everything(n), *(_grouped(alpha, chain, *of) for of in _GROUPS), _beside(linked)),
    )


def _neighbours(tree: cKDTree, place: np.ndarray, chain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two on either side in sequence, then the nearest in space; padded with the residue itself."""
    n = len(place)
    rows = np.arange(n)[:, None]
    beside = rows + np.array([-2, -1, 1, 2])
    inside = (beside >= 0) & (beside < n)
    beside = np.clip(beside, 0, n - 1)
    near = tree.query(tree.data, k=NEIGHBOURS + 5)[1].reshape(n, -1)

    def in_sequence(other: np.ndarray) -> np.ndarray:
        same = chain[np.minimum(other, n - 1)] == chain[:, None]
        return same & (np.abs(place[np.minimum(other, n - 1)] - place[:, None]) <= 2)

    beside_ok = inside & in_sequence(beside)
    near_ok = (near < n) & ~in_sequence(near)  # the tree pads with n
    both, valid = np.concatenate([beside, near], axis=1), np.concatenate([beside_ok, near_ok], axis=1)
    order = np.argsort(~valid, axis=1, kind="stable")[:, :NEIGHBOURS]
    mask = np.take_along_axis(valid, order, axis=1)
    return np.where(mask, np.take_along_axis(both, order, axis=1), rows), mask


def _everything(n: int) -> Neighbourhoods:
    zeros = torch.zeros(n, dtype=torch.int64)
    return Neighbourhoods(zeros, 1, zeros[:, None], torch.ones(n, 1, dtype=torch.bool))


def _grouped(alpha: np.ndarray, chain: np.ndarray, size: int, listed: int) -> Neighbourhoods:
    """The groups of ``size`` consecutive residues of a chain that are nearest to each residue's CA."""
    first = np.flatnonzero(np.r_[True, np.diff(chain) != 0])
    within = np.arange(len(alpha)) - np.repeat(first, np.diff(np.r_[first, len(alpha)]))
    group = np.cumsum(within % size == 0) - 1
    count = int(group[-1]) + 1
    total = np.zeros((count, 3))
    np.add.at(total, group, alpha)
    centre = total / np.bincount(group)[:, None]
    near = cKDTree(centre).query(alpha, k=listed)[1].reshape(len(alpha), -1)
    mask = near < count
    return Neighbourhoods(
        torch.from_numpy(group),
        count,
        torch.from_numpy(np.where(mask, near, 0)),
        torch.from_numpy(mask),
    )


def _beside(linked: np.ndarray) -> Neighbourhoods:
    """Each residue and those bonded to it."""
    n = len(linked)
    rows = np.arange(n)
    mask = np.stack([linked, np.ones(n, dtype=bool), np.append(linked[1:], False)], axis=-1)
    members = np.where(mask, rows[:, None] + np.array([-1, 0, 1]), rows[:, None])
    return Neighbourhoods(torch.from_numpy(rows), n, torch.from_numpy(members), torch.from_numpy(mask))


def join(graphs: list[ChainGraph]) -> ChainGraph:
    """Several molecules as one graph without edges between them."""
    start = np.cumsum([0] + [len(g) for g in graphs])[:-1].tolist()
    scales = []
    for level in range(len(graphs[0].scales)):
        parts = [g.scales[level] for g in graphs]
        before = np.cumsum([0] + [p.count for p in parts]).tolist()
        scales.append(
            Neighbourhoods(
                torch.cat([p.group + b for p, b in zip(parts, before, strict=False)]),
                before[-1],
                torch.cat([p.members + b for p, b in zip(parts, before, strict=False)]),
                torch.cat([p.mask for p in parts]),
            )
        )
    plain = {
        name: torch.cat([getattr(g, name) for g in graphs])
        for name in ("reference", "kind", "mask", "offset", "crowd", "trust")
    }
    return ChainGraph(
        **plain,
        linked=torch.cat([*(g.linked[:-1] for g in graphs), graphs[0].linked[-1:]]),
        neighbours=torch.cat([g.neighbours + s for g, s in zip(graphs, start, strict=True)]),
        scales=tuple(scales),
    )
