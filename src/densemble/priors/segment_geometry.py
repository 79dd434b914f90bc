"""What the segment network is told, and in which frame: anchors, canonical frame, context, expected course.

A segment is L consecutive residues of a chain whose neighbours before and after (the anchors) are
fixed; at a chain's end there is one anchor. Everything here is computed from the anchors and the
fixed residues, never from the segment's own coordinates, and turns and moves with them, so the
network that works in the canonical frame is exactly equivariant.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ALPHABET = "ACDEFGHIKLMNPQRSTVWY"
UNKNOWN = len(ALPHABET)
OTHER_CHAIN = 10_000

# Place of N, CA, C, O along the chain, in residues from the CA.
_ALONG = np.array([-1 / 3, 0.0, 1 / 3, 1 / 3])
# Width in Å that remains at the anchor itself, by atom; measured on the training corpus.
_LOCAL = np.array([0.7, 1.0, 0.7, 1.3])
_RADII = (10.0, 20.0)


@dataclass(frozen=True)
class Segment:
    """Conditioning of B segments of equal length L, in their canonical frames.

    Attributes:
        context: N, CA, C, O of the M nearest fixed residues, Å, shape=(B, M, 4, 3).
        context_type: amino acid of each, index into ``ALPHABET`` or ``UNKNOWN``, shape=(B, M).
        context_place: place along the segment's chain, counted from the segment's first residue
            (-1 and L are the anchors), ``OTHER_CHAIN`` for residues of other chains, shape=(B, M).
        context_mask: false for padding, shape=(B, M).
        kind: amino acids of the segment, shape=(B, L).
        anchors: N, CA, C, O before and after (zeros where there is none), Å, shape=(B, 2, 4, 3).
        anchored: which of the two exist, shape=(B, 2).
        surroundings: per radius (10 and 20 Å around the middle): centre of the fixed CA over the
            radius, and their number over 20 and 100, shape=(B, 8).
        mean: expected course, Å, shape=(B, L, 4, 3).
        width: expected standard deviation about it per coordinate, Å, shape=(B, L, 4).
    """

    context: Float[Tensor, "b m 4 3"]
    context_type: Int[Tensor, "b m"]
    context_place: Int[Tensor, "b m"]
    context_mask: Bool[Tensor, "b m"]
    kind: Int[Tensor, "b l"]
    anchors: Float[Tensor, "b 2 4 3"]
    anchored: Bool[Tensor, "b 2"]
    surroundings: Float[Tensor, "b 8"]
    mean: Float[Tensor, "b l 4 3"]
    width: Float[Tensor, "b l 4"]

    def to(self, dtype: torch.dtype) -> Segment:
        """The same with floating-point members of another precision."""
        cast = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(dtype) for k, v in cast.items() if v.is_floating_point()})


def context_size(length: int) -> int:
    """Number of context residues for a segment of ``length`` residues."""
    return 36 + 2 * length


def types_of(sequence: str) -> np.ndarray:
    """Index of each one-letter code in ``ALPHABET``; ``UNKNOWN`` for anything else."""
    return np.array([ALPHABET.find(s) if s in ALPHABET else UNKNOWN for s in sequence], dtype=np.int64)


def canonical_frame(before: np.ndarray | None, after: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Frame fixed to the anchors.

    Two anchors: origin midway between C before and N after, x from the one to the other, y
    towards the carbonyl oxygen before. One anchor: origin at its C (or N), x along CA-C (or CA-N).

    Args:
        before: N, CA, C, O of the residue before the segment, shape=(4, 3), or None.
        after: the same of the residue after.

    Returns:
        Rotation whose columns are the axes, shape=(3, 3), and origin in Å, shape=(3,).
    """
    if before is not None and after is not None:
        origin, x, y = (before[2] + after[0]) / 2, after[0] - before[2], before[3] - before[2]
    elif before is not None:
        origin, x, y = before[2], before[2] - before[1], before[0] - before[1]
    elif after is not None:
        origin, x, y = after[0], after[0] - after[1], after[2] - after[1]
    else:
        raise ValueError("a segment needs at least one anchor")
    x = x / max(float(np.linalg.norm(x)), 1e-6)
    y = y - (y @ x) * x
    y = y / max(float(np.linalg.norm(y)), 1e-6)
    return np.stack([x, y, np.cross(x, y)], axis=-1), origin


def expected_course(
    length: int, before: np.ndarray | None, after: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the segment's atoms given the anchors alone.

    Between two anchors the mean is the straight line and the width that of a bridge, 1.5 Å times
    the harmonic distance to the anchors in residues; from one anchor the chain leaves along the
    last bond, saturating at 6 Å, and its width at 13 Å. Measured on the training corpus.

    Returns:
        Mean in Å in the anchors' frame of coordinates, shape=(L, 4, 3), and width, shape=(L, 4).
    """
    place = np.arange(1, length + 1)[:, None] + _ALONG
    if before is not None and after is not None:
        start, end = 1 / 3, length + 2 / 3
        fraction = (place - start) / (end - start)
        mean = before[2] + fraction[..., None] * (after[0] - before[2])
        bridge = 1.5 * (place - start) * (end - place) / (end - start)
        return mean, np.sqrt(bridge**2 + _LOCAL**2)
    if before is not None:
        out, origin, away = before[2] - before[1], before[2], place - 1 / 3
    elif after is not None:
        out, origin, away = after[0] - after[1], after[0], length + 2 / 3 - place
    else:
        raise ValueError("a segment needs at least one anchor")
    out = out / max(float(np.linalg.norm(out)), 1e-6)
    mean = origin + (6.0 * (1 - np.exp(-away / 2.5)))[..., None] * out
    return mean, np.sqrt((13.0 * np.tanh(away / 11.0)) ** 2 + _LOCAL**2)


def nearest(fixed: np.ndarray, course: np.ndarray, size: int) -> np.ndarray:
    """Indices of the ``size`` residues whose CA is nearest to the expected course, nearest first.

    Args:
        fixed: CA positions in Å, shape=(n, 3).
        course: points along the course in Å, shape=(p, 3).
        size: how many; fewer come back if there are fewer.
    """
    square = ((fixed[:, None] - course[None]) ** 2).sum(-1).min(1)
    if len(square) > size:
        chosen = np.argpartition(square, size)[:size]
        return chosen[np.argsort(square[chosen], kind="stable")]
    return np.argsort(square, kind="stable")


def describe(
    fixed: np.ndarray,
    types: np.ndarray,
    places: np.ndarray,
    kind: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The conditioning of one segment, from the fixed residues alone.

    Args:
        fixed: N, CA, C, O of all fixed residues, Å, shape=(n, 4, 3).
        types: their amino acids, shape=(n,).
        places: their places, as ``Segment.context_place``, shape=(n,).
        kind: amino acids of the segment, shape=(L,).

    Returns:
        Arrays named and shaped as the members of ``Segment`` without B; rotation; origin.
    """
    length = len(kind)
    index = {int(p): i for i, p in enumerate(places) if p in (-1, length)}
    before = fixed[index[-1]] if -1 in index else None
    after = fixed[index[length]] if length in index else None
    rotation, origin = canonical_frame(before, after)
    mean, width = expected_course(length, before, after)
    course = np.concatenate([a[1:2] for a in (before, after) if a is not None] + [mean[:, 1]])
    size = context_size(length)
    chosen = nearest(fixed[:, 1], course, size)
    m = len(chosen)
    local = (fixed - origin) @ rotation
    context = np.zeros((size, 4, 3))
    context[:m] = local[chosen]
    anchors = np.zeros((2, 4, 3))
    for side, place in enumerate((-1, length)):
        if place in index:
            anchors[side] = local[index[place]]
    members = {
        "context": context,
        "context_type": np.concatenate([types[chosen], np.full(size - m, UNKNOWN)]),
        "context_place": np.concatenate([places[chosen], np.full(size - m, OTHER_CHAIN)]),
        "context_mask": np.arange(size) < m,
        "kind": kind,
        "anchors": anchors,
        "anchored": np.array([before is not None, after is not None]),
        "surroundings": _surroundings(local[:, 1], ((mean[:, 1].mean(0) - origin) @ rotation)),
        "mean": (mean - origin) @ rotation,
        "width": width,
    }
    return members, rotation, origin


def _surroundings(alphas: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Centre and number of CA within two radii of the middle: which side is solvent."""
    away = alphas - middle
    distance = np.sqrt((away**2).sum(-1))
    parts: list[float] = []
    for radius, usual in zip(_RADII, (20.0, 100.0), strict=True):
        near = away[distance < radius]
        parts.extend(near.mean(0) / radius if len(near) else np.zeros(3))
        parts.append(len(near) / usual)
    return np.array(parts)


def stack(items: list[dict[str, np.ndarray]]) -> Segment:
    """Batch descriptions of equally long segments, in single precision."""
    members = {}
    for name in items[0]:
        tensor = torch.from_numpy(np.stack([item[name] for item in items]))
        members[name] = tensor.float() if tensor.is_floating_point() else tensor
    return Segment(**members)
