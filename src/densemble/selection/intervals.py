"""How sure the occupancies are: a bootstrap over blocks of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import null_space

from densemble.selection.number import shares

MODEL_ERROR = 0.043
"""Standard error of an occupancy that comes from the states themselves, their coordinates and B factors,
however good the data: what is left of the errors of 42 occupancies at 2 Å (``benchmarks/states.py``; root
mean square 0.044) when the bootstrap's 0.012 is taken out, the same in both crystals."""


_FLAT = 1e-9
"""Curvature, of the mean diagonal, up to which weights are not determined."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Normal equations of the weights, block of data by block; blocks are independent of each other.

    Attributes:
        gram: shape=(b, n, n).
        cross: shape=(b, n).
    """

    gram: Float[np.ndarray, "b n n"]
    cross: Float[np.ndarray, "b n"]

    @classmethod
    def of(
        cls,
        signals: Float[np.ndarray, "n d"],
        target: Float[np.ndarray, " d"],
        information: Float[np.ndarray, " d"],
        block: Int[np.ndarray, " d"],
    ) -> Blocks:
        """Of data in blocks.

        Args:
            signals: what each state adds to each datum, shape=(n, d).
            target: shape=(d,).
            information: 1 / variance of each datum, shape=(d,).
            block: that each datum is in, shape=(d,).
        """
        n, count = len(signals), int(block.max()) + 1
        gram, cross = np.empty((count, n, n)), np.empty((count, n))
        for i in range(n):
            cross[:, i] = np.bincount(block, information * signals[i] * target, minlength=count)
            for j in range(i, n):
                gram[:, i, j] = gram[:, j, i] = np.bincount(
                    block, information * signals[i] * signals[j], minlength=count
                )
        return cls(gram, cross)

    def shares(self, groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The weights that fit all blocks."""
        return shares(self.gram.sum(axis=0), self.cross.sum(axis=0), groups)


def bootstrap(
    blocks: Blocks, groups: Int[np.ndarray, " n"], *, draws: int = 400, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Interval of each weight: blocks are drawn with replacement and the weights fitted anew.

    Efron (1979), Annals of Statistics 7, 1-26; percentiles. The seed is fixed, so that the same data have
    the same interval.

    Args:
        blocks: of the data, independent of each other.
        groups: the part that each state belongs to, shape=(n,).
        draws: how often.
        level: share of the draws within the interval.
        seed: of the draws.

    Returns:
        Lower and upper end, each shape=(n,); 0 and 1 of the states of parts of several, where the data do
        not tell these apart.
    """
    count = len(blocks.gram)
    if not _telling(blocks.gram.sum(axis=0), groups):
        return np.where(np.bincount(groups)[groups] > 1, 0.0, 1.0), np.ones(len(groups))
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
    grams = np.einsum("db,bij->dij", times, blocks.gram, optimize=True)
    crosses = times @ blocks.cross
    drawn = _unbounded(grams, crosses, groups)
    for i in np.flatnonzero(drawn.min(axis=1) < 0):
        drawn[i] = shares(grams[i], crosses[i], groups)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def widened(
    weights: Float[np.ndarray, " n"], low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """95 % intervals that count the error of the states as well as that of the data, within 0 and 1.

    The bootstrap holds the states as they are, and alone covered the truth in 38 % of simulated cases. Both
    errors are independent, and add up in squares.

    Args:
        weights: shape=(n,).
        low: lower ends by ``bootstrap``, shape=(n,).
        high: upper ends, shape=(n,).
    """
    states = 1.96 * MODEL_ERROR
    below, above = np.maximum(weights - low, 0), np.maximum(high - weights, 0)
    return (weights - np.hypot(below, states)).clip(0, 1), (weights + np.hypot(above, states)).clip(0, 1)


def _telling(gram: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"]) -> bool:
    """Whether every exchange of weight within the groups is curved: else its normal equations have no end."""
    member = (groups[:, None] == np.unique(groups)[None]).astype(float)
    exchanges = null_space(member.T)
    if exchanges.shape[1] == 0:
        return True
    curvature = np.linalg.eigvalsh(exchanges.T @ gram @ exchanges)
    return bool(curvature[0] > _FLAT * np.abs(np.diag(gram)).mean())


def _unbounded(
    grams: Float[np.ndarray, "d n n"], crosses: Float[np.ndarray, "d n"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "d n"]:
    """Weights of any sign that sum to one within each group, of all draws at once (Lagrange multipliers)."""
    member = (groups[:, None] == np.unique(groups)[None]).astype(float)
    draws, (n, parts) = len(grams), member.shape
    matrix = np.zeros((draws, n + parts, n + parts))
    matrix[:, :n, :n] = grams
    matrix[:, :n, n:], matrix[:, n:, :n] = member, member.T
    right = np.concatenate([crosses, np.ones((draws, parts))], axis=1)
    return np.asarray(np.linalg.solve(matrix, right[..., None])[:, :n, 0])
