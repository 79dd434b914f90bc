"""What guides, when, and how strongly: data, not code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

Term = Callable[[Float[Tensor, "k n 3"], float], Float[Tensor, ""]]
"""All atoms of all members [K, N, 3] in Å and the noise level in Å -> a log-probability, to be ascended."""


@dataclass(frozen=True)
class Stage:
    """One guidance term over an interval of noise.

    Attributes:
        name: for the trace.
        term: the log-probability to ascend.
        high: active while the noise is at or below this sigma, Å ...
        low: ... and above this one.
        weight: factor at ``high``.
        weight_end: factor at ``low``, reached on a cosine; None keeps ``weight``.
        knots: noise levels, Å, falling, between which the weight goes equally far along the cosine, as at the
            steps of a sampler (paper 2, appendix A.5), and evenly in log sigma within; ``high`` and ``low``
            if None.
        mode: ``score`` adds weight * sigma^2 * gradient to x0_hat (Tweedie's formula: with weight
            1 and an exact log p(y | x_t) the posterior is exact; paper 1, Eq. 4). ``ratio``
            rescales, for each member, the gradient to the Frobenius norm of the unguided update
            x0_hat - x_t and multiplies by weight (paper 2, as its code does it).
        clip: largest norm of the gradient of one member, before weighting; None does not clip.
        limit: largest shift of one member, Å root mean square over its atoms, after weighting; None does
            not limit. Keeps a sharp likelihood from overshooting where much noise is left.
        through_network: take the gradient with respect to x_t, through the denoiser (DPS), or
            with respect to x0_hat alone.
    """

    name: str
    term: Term
    high: float = math.inf
    low: float = 0.0
    weight: float = 1.0
    weight_end: float | None = None
    knots: tuple[float, ...] | None = None
    mode: Literal["score", "ratio"] = "score"
    clip: float | None = None
    limit: float | None = None
    through_network: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"stage {self.name}: needs 0 <= low < high, got {self.low} and {self.high}")
        if self.weight_end is not None and self.knots is None and (math.isinf(self.high) or self.low <= 0):
            raise ValueError(f"stage {self.name}: a changing weight needs a finite interval above zero")
        if self.knots is not None and not (
            len(self.knots) > 1 and min(self.knots) > 0 and all(a > b for a, b in pairwise(self.knots))
        ):
            raise ValueError(f"stage {self.name}: knots must be two or more and fall, above zero")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"stage {self.name}: clip must be positive, got {self.clip}")
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"stage {self.name}: limit must be positive, got {self.limit}")

    def below(self, sigma: float) -> Stage | None:
        """The stage from a noise level in Å on, with the same weight at each; None if it is over by then."""
        high = min(self.high, sigma * (1 + 1e-6))
        if high <= self.low:
            return None
        knots = (self.high, self.low) if self.weight_end is not None and self.knots is None else self.knots
        return replace(self, high=high, knots=knots)

    def active(self, sigma: float) -> bool:
        """Whether the stage guides at this noise level."""
        return self.low < sigma <= self.high

    def weight_at(self, sigma: float) -> float:
        """The weight at a noise level within the interval."""
        if self.weight_end is None:
            return self.weight
        knots = np.array(self.knots or (self.high, self.low))
        done = np.interp(math.log(knots[0] / sigma), np.log(knots[0] / knots), np.linspace(0, 1, len(knots)))
        return self.weight_end + (self.weight - self.weight_end) * (1 + math.cos(math.pi * float(done))) / 2
