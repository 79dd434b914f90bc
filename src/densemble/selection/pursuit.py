"""Matching pursuit: the few members that together explain the map (paper 1, Algorithm A2).

As printed, line 5 draws candidates from outside the candidate set, and the loop keeps its last
addition even when that lowered the score; both are put right here (a candidate is added only if
it raises the score).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Selection:
    """Members kept, in the order in which they were picked.

    Attributes:
        members: indices into the candidates.
        weights: occupancies, non-negative, summing to one; shape=(len(members),).
        score: correlation of the weighted sum with the target.
    """

    members: tuple[int, ...]
    weights: np.ndarray
    score: float


def correlation(density: np.ndarray, target: np.ndarray) -> float:
    """Pearson correlation over voxels, shape=(V,): indifferent to scale and offset."""
    a, b = density - density.mean(), target - target.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 0 else 0.0


def fit_weights(densities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Non-negative least squares of the target on densities, free scale and offset.

    Args:
        densities: one row a member, shape=(K, V).
        target: shape=(V,).

    Returns:
        weights, normalised to sum one, shape=(K,).

    Raises:
        ValueError: no member correlates with the target.
    """
    # the offset is solved by centring, the scale by normalising the weights
    design = (densities - densities.mean(axis=1, keepdims=True)).T
    weights, _ = nnls(design.astype(np.float64), (target - target.mean()).astype(np.float64))
    if weights.sum() <= 0:
        raise ValueError("no member has a positive correlation with the target density")
    return weights / weights.sum()


def equal_weights(densities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Those of the plain mean, as paper 1 has it; for the use of ``fit_weights``."""
    if correlation(densities.mean(axis=0), target) <= 0:
        raise ValueError("no member has a positive correlation with the target density")
    return np.full(len(densities), 1 / len(densities))


def matching_pursuit(
    densities: np.ndarray, target: np.ndarray, *, keep: int, equal: bool = False
) -> Selection:
    """Greedily add the member that most raises the correlation of the joint density with the target.

    The weights are refitted jointly for every candidate set, so a member that explains a minor
    state can enter with a small occupancy.

    Args:
        densities: one row a member, shape=(K, V).
        target: shape=(V,).
        keep: at most this many members.
        equal: of equal weights, instead.

    Raises:
        ValueError: ``keep`` is below one, or no member correlates with the target.
    """
    if keep < 1:
        raise ValueError(f"keep at least one member, got {keep}")
    weigh = equal_weights if equal else fit_weights
    chosen: list[int] = []
    weights = np.zeros(0)
    best = 0.0
    while len(chosen) < min(keep, len(densities)):
        trials = []
        for i in sorted(set(range(len(densities))) - set(chosen)):
            trial = [*chosen, i]
            try:
                fitted = weigh(densities[trial], target)
            except ValueError:
                continue
            trials.append((correlation(fitted @ densities[trial], target), i, fitted))
        if not trials:
            break
        score, member, fitted = max(trials, key=lambda trial: trial[0])
        if score <= best:
            break
        chosen.append(member)
        weights, best = fitted, score
    if not chosen:
        raise ValueError("no member has a positive correlation with the target density")
    kept = weights > 0
    return Selection(tuple(np.asarray(chosen)[kept].tolist()), weights[kept], best)
