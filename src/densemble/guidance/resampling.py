"""Which members go on: resampling in proportion to how well each explains the measurement.

A gradient is local: a member that settled in a wrong place stays there. Comparing members is global.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def tempered_weights(
    log_p: Float[Tensor, " k"], *, share: float, temperature: float = 1.0
) -> Float[Tensor, " k"]:
    """Weights proportional to p^(1/T), with the least T >= ``temperature`` that leaves enough in play.

    Enough is an effective number ``1 / sum_k w_k^2`` of at least ``share`` times K (adaptive tempering by
    effective sample size: Jasra, Stephens, Doucet & Tsagaris 2011, Scand. J. Stat. 38, 1-22).

    Args:
        log_p: of each member, nats, up to a constant; shape=(K,).
        share: between 0 and 1.
        temperature: how many nats are one: above 1 where members are likely to gain as much yet.

    Returns:
        Sum to one, double precision, shape=(K,).

    Raises:
        ValueError: a value is not finite, or ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"tempered_weights: share must be above 0 and at most 1, got {share}")
    if not bool(torch.isfinite(log_p).all()):
        raise ValueError("tempered_weights: log probabilities are not finite")
    log_p = log_p.double() - log_p.double().max()

    def weights(temperature: float) -> Tensor:
        return torch.softmax(log_p / temperature, dim=0)

    def enough(temperature: float) -> bool:
        return float(1 / weights(temperature).square().sum()) >= share * len(log_p) * (1 - 1e-9)

    if enough(temperature):
        return weights(temperature)
    low = math.log(temperature)
    high = low + 1.0
    while not enough(math.exp(high)):
        low, high = high, high + 2 * (high - low)
        if high > 500:  # only equal weights are enough
            return torch.full_like(log_p, 1 / len(log_p))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(math.exp(middle)) else (middle, high)
    return weights(math.exp(high))


def systematic(weights: Float[Tensor, " k"], draws: int, generator: torch.Generator) -> Int[Tensor, " draws"]:
    """Draw indices so that each comes up its expected number of times, rounded down or up.

    Systematic resampling (Kitagawa 1996, J. Comput. Graph. Stat. 5, 1-25): unbiased, with little variance.

    Args:
        weights: not negative, shape=(K,); need not sum to one.
        draws: how many.
        generator: source of randomness.
    """
    edges = weights.double().cumsum(0)
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    points = (start + torch.arange(draws, dtype=torch.float64)) / draws * edges[-1]
    return torch.searchsorted(edges, points, right=True).clamp(max=len(weights) - 1)


def crowding(places: Float[Tensor, "k n 3"], within: float) -> Float[Tensor, " k"]:
    """How many members are about where each one is, itself among them.

    Weights divided by it are shared among members that are alike (Goldberg & Richardson 1987, Proc. 2nd Int.
    Conf. on Genetic Algorithms, 41-49): else many copies of one answer outvote a rare one that is as good.

    Args:
        places: Å, shape=(K, n, 3).
        within: Å, RMSD in place.
    """
    apart = torch.cdist(places.flatten(1).double(), places.flatten(1).double()) / places.shape[1] ** 0.5
    return (apart < within).double().sum(1)
