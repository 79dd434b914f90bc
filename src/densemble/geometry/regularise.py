"""Bring coordinates to good stereochemistry, alone or together with what they are to explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.geometry.ascent import ascend
from densemble.geometry.curvature import Curvature, evened, mean_curvature

LogProbability = Callable[[Tensor], Tensor]
"""Coordinates, shape=(k, n, 3), to a scalar."""


@dataclass(frozen=True, eq=False)
class Regularised:
    """What came out.

    Attributes:
        coords: Å.
        before: log probability at the start.
        after: log probability at ``coords``; never below ``before``.
        evaluations: of the objective with its gradient.
    """

    coords: Float[Tensor, "k n 3"]
    before: float
    after: float
    evaluations: int


def regularise(
    coords: Float[Tensor, "k n 3"],
    geometry: LogProbability,
    *,
    log_likelihood: LogProbability | None = None,
    curvature: Curvature | None = None,
    evaluations: int = 200,
) -> Regularised:
    """Maximise ``geometry(coords) + log_likelihood(coords)`` by L-BFGS with a strong-Wolfe line search.

    All members move together, since a likelihood of the ensemble couples them. Use an objective without
    cap: the tails of a capped one are not convex, and strongly distorted members get stuck in them.

    Args:
        coords: where to start; left as they are.
        geometry: usually a ``GeometryObjective``.
        log_likelihood: e.g. of the density; none: stereochemistry alone.
        curvature: of the geometry (``GeometryObjective.curvature``), quadratic in the atoms: directions are
            evened out by it first, which saves half of the evaluations or more. None: for large models, and
            where stopping early is what keeps atoms from following noise.
        evaluations: of the objective, at most; the line search under way is finished (up to 25 more).

    Raises:
        ValueError: the coordinates are not finite.
    """
    if not bool(torch.isfinite(coords).all()):
        raise ValueError("regularise: the given coordinates are not finite")

    def value(x: Tensor) -> Tensor:
        return geometry(x) if log_likelihood is None else geometry(x) + log_likelihood(x)

    if curvature is None:
        found = ascend([coords], value, evaluations=evaluations)
        return Regularised(found.best[0], found.before, found.after, found.evaluations)
    also = coords.new_zeros(len(coords)) if log_likelihood is None else mean_curvature(log_likelihood, coords)
    with torch.no_grad():
        root = evened(curvature(coords), also)

    def at(z: Tensor) -> Tensor:
        return coords + (root @ z[..., None]).view_as(coords)

    found = ascend([coords.flatten(1) * 0], lambda z: value(at(z)), evaluations=evaluations)
    best = at(found.best[0])
    return Regularised(best, found.before, found.after, found.evaluations)
