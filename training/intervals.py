"""How sure a figure from few segments is: 90 % intervals."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.90
_NORMAL = 1.645
_RESAMPLED = 1000


def of_quantile(values: np.ndarray, q: float = 0.5) -> list[float]:
    """Percentile bootstrap interval of a quantile, resampling segments, from a fixed seed.

    Args:
        values: one row a segment, shape=(s,) or (s, k): the k members of a segment stay together, since they
            are not independent.
        q: quantile, over all rows and columns.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(_RESAMPLED, len(values)))
    found = np.quantile(np.asarray(values)[drawn].reshape(_RESAMPLED, -1), q, axis=1)
    return np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def of_fraction(count: int, total: int) -> list[float]:
    """Score interval of a fraction (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    p, z = count / total, _NORMAL
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]
