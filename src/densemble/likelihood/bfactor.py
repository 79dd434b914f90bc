"""The B factor that goes with given coordinates."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from densemble.likelihood.density import DensityLikelihood


def fit_b(
    likelihood: DensityLikelihood,
    coords: Float[Tensor, "k n 3"],
    weights: Float[Tensor, " k"],
    *,
    base: Float[Tensor, "*kn"] | None = None,
    bounds: tuple[float, float] | None = None,
    blur: float = 0.0,
    tolerance: float = 0.1,
) -> Float[Tensor, "*kn"]:
    """The uniform B factor, or the one addition to given ones, under which the map is most likely.

    With fixed coordinates and weights; scale and offset are fitted along, as the likelihood does. The
    deposited B factors of one model contain the spread that an ensemble carries in its members, so the
    fitted B falls as the ensemble grows.

    Args:
        likelihood: its ``b_iso`` is not used.
        coords: Å, shape=(k, n, 3).
        weights: occupancies, shape=(k,).
        base: Å^2, B factors to add to; without, one B for all atoms is fitted.
        bounds: Å^2, where to look: for B itself, from the least that the form factors allow to 150 if left
            out; for the addition to ``base``, -50 to 100. Sums below the least allowed are raised to it.
        blur: Å, as in the likelihood.
        tolerance: Å^2.

    Returns:
        Å^2, shape=() or that of ``base``, for ``dataclasses.replace(likelihood, b_iso=...)``.
    """
    least = max(likelihood.density.b_min, 1.0)
    start = coords.new_zeros(()) if base is None else base
    low, high = bounds or ((least, 150.0) if base is None else (-50.0, 100.0))

    def shifted(delta: float) -> Tensor:
        return (start + delta).clamp(min=least)

    def loss(delta: float) -> float:
        with torch.no_grad():
            return -float(replace(likelihood, b_iso=shifted(delta))(coords, weights, blur=blur))

    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": tolerance})
    return shifted(float(best.x))
