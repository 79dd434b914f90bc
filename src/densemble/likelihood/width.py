"""The width of the atoms that goes with given coordinates, where no B factor describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap

_TRIALS = 9


def fit_resolution(
    target: DensityMap,
    mask: Float[Tensor, "nx ny nz"],
    elements: Sequence[str],
    coords: Float[Tensor, "k n 3"],
    weights: Float[Tensor, " k"],
    *,
    bounds: tuple[float, float] = (1.0, 20.0),
    tolerance: float = 0.01,
) -> float:
    """The resolution under which ``MolmapDensity`` correlates best with a map.

    The stated resolution of a map is that of its FSC; how wide its atoms are depends on its sharpening as
    well. The correlation is Pearson's, weighted with the mask. It is tried at nine resolutions, evenly
    spaced in their logarithm, and the best is refined between its neighbours by Brent's method. (For form
    factors with B factors, ``fit_b`` does the same: under a fitted scale and offset, the likelihood is
    highest where the correlation is.)

    Args:
        target: the map.
        mask: voxel weights, not negative, shape=(nx, ny, nz).
        elements: element symbols, length n.
        coords: Å, shape=(k, n, 3).
        weights: occupancies of the members, shape=(k,).
        bounds: Å, where to look.
        tolerance: of the logarithm of the resolution.

    Raises:
        ValueError: the mask is empty, or the map is constant within it.
    """
    w = mask.double() / mask.double().sum()
    y = target.values.double()
    y = y - (w * y).sum()
    spread = (w * y.square()).sum().sqrt()
    if not float(spread) > 0:
        raise ValueError("fit_resolution: the mask is empty, or the map is constant within it")

    def loss(logarithm: float) -> float:
        model = MolmapDensity(
            target.grid,
            elements,
            resolution=math.exp(logarithm),
            dtype=coords.dtype,
            device=coords.device,
        )
        with torch.no_grad():
            x = model(coords, weights).double()
        x = x - (w * x).sum()
        norm = float((w * x.square()).sum().sqrt() * spread)
        return -float((w * x * y).sum()) / norm if norm > 0 else 0.0

    trials = np.linspace(math.log(bounds[0]), math.log(bounds[1]), _TRIALS)
    best = int(np.argmin([loss(trial) for trial in trials]))
    low, high = trials[max(best - 1, 0)], trials[min(best + 1, _TRIALS - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": tolerance})
    return math.exp(found.x)
