"""Weights of states, the best sets of one, two, three ..., and how many of them the data support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

EXHAUSTIVE = 3000
"""Sets of one size up to which all are tried: below a second."""
_RIDGE = 1e-9  # of the mean diagonal, where two candidates are nearly the same
_GAIN = 1e-9  # of the sum of squares: what an exchange must gain
_SUM_TO_ONE = 1e4  # how much more a sum that is off costs than data


@dataclass(frozen=True, eq=False)
class Normal:
    """Normal equations of least squares: ``|y - sum_k w_k x_k|^2 = square - 2 cross.w + w.gram.w``.

    Attributes:
        gram: ``x_k . x_l``, shape=(K, K).
        cross: ``x_k . y``, shape=(K,).
        square: ``y . y``.
    """

    gram: Float[np.ndarray, "k k"]
    cross: Float[np.ndarray, " k"]
    square: float

    @classmethod
    def of(
        cls, signals: Float[np.ndarray, "k v"], target: Float[np.ndarray, " v"], *, offset: bool = False
    ) -> Normal:
        """Of rows of signals against a target.

        Args:
            signals: one row a candidate, shape=(K, V).
            target: shape=(V,).
            offset: a constant is fitted along with the weights.
        """
        x, y = signals.astype(np.float64), target.astype(np.float64)
        if offset:
            x, y = x - x.mean(axis=1, keepdims=True), y - y.mean()
        return cls(x @ x.T, x @ y, float(y @ y))

    def weights(self, members: Sequence[int]) -> tuple[Float[np.ndarray, " n"], float]:
        """Non-negative weights of some candidates, and the sum of squares that they leave."""
        index = list(members)
        w = _solve(self.gram[np.ix_(index, index)], self.cross[index])
        return w, self.left(index, w)

    def left(self, members: Sequence[int], w: np.ndarray) -> float:
        """The sum of squares left by given weights of some candidates."""
        index = list(members)
        return float(self.square - 2 * self.cross[index] @ w + w @ self.gram[np.ix_(index, index)] @ w)


def _solve(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Non-negative least squares given its normal equations.

    Where these are not those of a minimum, as a likelihood's far from its maximum need not be, they are
    curved up until they are (Levenberg), so that what is solved is a shorter step in a like direction.
    """
    ridge = _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-300)
    ridge += max(-float(np.linalg.eigvalsh(gram)[0]), 0.0) * (1 + _RIDGE)
    factor = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
    return np.asarray(nnls(factor.T, np.linalg.solve(factor, cross))[0])


def shares(
    gram: Float[np.ndarray, "n n"], cross: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Weights of least ``w.gram.w - 2 cross.w`` that are not negative and sum to one within each group.

    Args:
        gram: positive definite, or nearly so; else see ``_solve``, shape=(n, n).
        cross: shape=(n,).
        groups: the part that each state belongs to, shape=(n,).
    """
    scale = float(np.abs(np.diag(gram)).mean())
    member = (groups[:, None] == np.unique(groups)[None]).astype(float)
    heavy = _SUM_TO_ONE * scale
    w = _solve(gram + heavy * member @ member.T, cross + heavy * member.sum(axis=1))
    return np.asarray(w / (member @ (member.T @ w)))


@dataclass(frozen=True, eq=False)
class Candidates:
    """A set of members, one a state.

    Attributes:
        members: numbers of the members, the heaviest first.
        weights: sum to one, shape=(n,).
        left: sum of squares that they leave.
    """

    members: tuple[int, ...]
    weights: Float[np.ndarray, " n"]
    left: float


def best_sets(
    normal: Normal, groups: Int[np.ndarray, " k"], *, most: int, least_weight: float
) -> list[Candidates]:
    """The best set of one member, of two, of three ..., never two of one group.

    All sets of a size are tried while there are few. Beyond, the best set of one less is added to, then
    single members are exchanged while that helps: mostly this is the best set too, else one that leaves a few
    per cent more (tests/unit/selection/test_number.py).

    Args:
        normal: of all members.
        groups: of members that are the same state, shape=(K,).
        most: states, at most.
        least_weight: share of the whole that each state must have.

    Returns:
        One set a size, up to the last size at which a set explains more and each state has weight enough.
    """
    found: list[Candidates] = []
    for size in range(1, min(most, len(np.unique(groups))) + 1):
        if math.comb(len(groups), size) <= EXHAUSTIVE:
            best = _best_of(normal, combinations(range(len(groups)), size), groups, least_weight)
        else:
            best = _grown(normal, found[-1].members, groups, least_weight)
        if best is None or (found and best.left >= found[-1].left):
            break
        found.append(best)
    return found


def _trial(
    normal: Normal, members: Sequence[int], groups: np.ndarray, least_weight: float
) -> Candidates | None:
    """The set with its weights; None if two are of one group, or one has too little weight."""
    if len({int(groups[m]) for m in members}) < len(members):
        return None
    w, left = normal.weights(members)
    if w.sum() <= 0 or w.min() < least_weight * w.sum():
        return None
    order = np.argsort(-w, kind="stable")
    return Candidates(tuple(members[i] for i in order), w[order] / w.sum(), left)


def _best_of(normal: Normal, sets: object, groups: np.ndarray, least_weight: float) -> Candidates | None:
    trials = [_trial(normal, members, groups, least_weight) for members in sets]  # type: ignore[attr-defined]
    return min((t for t in trials if t is not None), key=lambda t: t.left, default=None)


def _grown(
    normal: Normal, members: tuple[int, ...], groups: np.ndarray, least_weight: float
) -> Candidates | None:
    """One member added to a set, then members exchanged one at a time."""
    everyone = range(len(groups))
    best = _best_of(normal, ((*members, m) for m in everyone), groups, least_weight)
    while best is not None:
        kept = best.members
        exchanged = ((*kept[:i], m, *kept[i + 1 :]) for i in range(len(kept)) for m in everyone)
        other = _best_of(normal, exchanged, groups, least_weight)
        if other is None or other.left > best.left - _GAIN * normal.square:  # rounding gains nothing
            return best
        best = other
    return None


@dataclass(frozen=True)
class Choice:
    """Which of several models is taken.

    Attributes:
        chosen: its place among them.
        gains: log-likelihood of each less that of the first, nats.
        errors: standard error of its gain over the model taken before it; 0 for the first.
    """

    chosen: int
    gains: tuple[float, ...]
    errors: tuple[float, ...]


def choose(log_likelihoods: Sequence[Float[np.ndarray, " m"]], *, need: Sequence[float]) -> Choice:
    """Take one state more if what was held out of the fit says so, or says nothing against it.

    Models are compared datum by datum: the sum of the differences in log-likelihood has a standard error
    that their scatter gives. A larger model replaces the one taken so far if the sum exceeds ``need``
    standard errors. A model that is no better in truth, and was fitted to other data, is on average worse, so
    that it passes more rarely than a normal deviate exceeds ``need``.

    Args:
        log_likelihoods: of each held-out datum under each model, the simplest model first, nats.
        need: of each model, in standard errors; negative where the data held out have a veto only, infinite
            where the model is out of the question; of the first it is not asked.
    """
    chosen, gains, errors = 0, [0.0], [0.0]
    for i in range(1, len(log_likelihoods)):
        gain = log_likelihoods[i] - log_likelihoods[chosen]
        error = math.sqrt(len(gain)) * float(gain.std(ddof=1))
        gains.append(float((log_likelihoods[i] - log_likelihoods[0]).sum()))
        errors.append(error)
        if float(gain.sum()) > need[i] * max(error, 1e-12):
            chosen = i
    return Choice(chosen, tuple(gains), tuple(errors))


def worth_parameters(fits: Sequence[float], parameters: Sequence[int]) -> list[bool]:
    """Which models explain the fitted data better than simpler ones, by more than the parameters they add.

    Akaike's criterion (1974, IEEE Trans. Autom. Control 19, 716-723).

    Args:
        fits: log-likelihood of each model, the simplest first, nats, of independent data.
        parameters: of each model.
    """
    value = [fit - count for fit, count in zip(fits, parameters, strict=True)]
    return [i == 0 or bool(v > max(value[:i])) for i, v in enumerate(value)]


def choose_by_information(fits: Sequence[float], parameters: Sequence[int]) -> Choice:
    """The model of the best Akaike criterion, for data of which nothing is held out; see above."""
    worth = worth_parameters(fits, parameters)
    chosen = max(i for i, better in enumerate(worth) if better)
    return Choice(chosen, tuple(fit - fits[0] for fit in fits), (0.0,) * len(fits))
