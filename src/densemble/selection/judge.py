"""What data say of states: what each state adds to them, and how likely they are."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from densemble.selection.intervals import Blocks

_STEPS = 6


@runtime_checkable
class Judge(Protocol):
    """Data, part of which may be held out of every fit.

    Signals are rows, one a state: what it would add to each datum, fitted or held out, at full occupancy.
    """

    @property
    def rule(self) -> str:
        """What is compared and on which data."""
        ...

    @property
    def holds_out(self) -> bool:
        """Whether data are held out."""
        ...

    def signals(
        self,
        atoms: Int[np.ndarray, " n"],
        coords: Float[np.ndarray, "k n 3"],
        b_iso: Float[np.ndarray, "k n"],
    ) -> np.ndarray:
        """Of each of k conformations of some of the region's atoms, shape=(k, d)."""
        ...

    def blocks(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Blocks:
        """Normal equations of the weights on the fitted data, linear about the ones given."""
        ...

    def fitted(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> float:
        """Log-likelihood of the fitted data, nats."""
        ...

    def held_out(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, " m"]:
        """Log-likelihood of each held-out datum (or independent block of them), nats."""
        ...


def fit_shares(
    judge: Judge, signals: np.ndarray, start: Float[np.ndarray, " s"], groups: Int[np.ndarray, " s"]
) -> Float[np.ndarray, " s"]:
    """Weights under which the fitted data are likeliest, summing to one in each part.

    Newton's method on what ``Judge.blocks`` makes linear; a step that lowers the likelihood is halved.

    Args:
        judge: the data.
        signals: of all states of all parts.
        start: weights to start from, shape=(s,).
        groups: the part that each state belongs to, shape=(s,).
    """
    weights, best = start, judge.fitted(signals, start)
    for _ in range(_STEPS):
        step = judge.blocks(signals, weights).shares(groups) - weights
        if np.abs(step).max() < 1e-4:
            break
        value = judge.fitted(signals, weights + step)
        while value < best and np.abs(step).max() > 1e-4:
            step = step / 2
            value = judge.fitted(signals, weights + step)
        if value < best:
            break
        weights, best = weights + step, value
    return weights
