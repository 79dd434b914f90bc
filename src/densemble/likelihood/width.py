"""The width of the atoms that goes with given coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from densemble.forward.cryoem import AtomForm
from densemble.grid import DensityMap

_TRIALS = 9


def fit_form(
    form: AtomForm,
    target: DensityMap,
    mask: Float[Tensor, "nx ny nz"],
    elements: Sequence[str],
    coords: Float[Tensor, "k n 3"],
    weights: Float[Tensor, " k"],
    *,
    occupancy: Float[Tensor, " n"] | None = None,
    tolerance: float = 0.01,
) -> AtomForm:
    """The form of that kind under which the density correlates best with a map.

    The stated resolution of a map is that of its FSC; how wide its atoms are depends on its sharpening as
    well. The correlation is Pearson's, weighted with the mask. It is tried at nine spreads, evenly
    spaced in their logarithm within the form's bounds, and the best is refined between its neighbours by
    Brent's method.

    Args:
        form: its kind and resolution; the spread is not used.
        target: the map.
        mask: voxel weights, not negative, shape=(nx, ny, nz).
        elements: element symbols, length n.
        coords: Å, shape=(k, n, 3).
        weights: occupancies of the members, shape=(k,).
        occupancy: of each atom within its member, shape=(n,); 1 if None.
        tolerance: of the logarithm of the spread.

    Raises:
        ValueError: the mask is empty, or the map is constant within it.
    """
    w = mask.double() / mask.double().sum()
    y = target.values.double()
    y = y - (w * y).sum()
    deviation = (w * y.square()).sum().sqrt()
    if not float(deviation) > 0:
        raise ValueError("fit_form: the mask is empty, or the map is constant within it")

    def loss(logarithm: float) -> float:
        trial = replace(form, spread=math.exp(logarithm))
        density = trial.density(target.grid, elements, occupancy=occupancy, dtype=coords.dtype)
        with torch.no_grad():
            x = density(coords, weights).double()
        x = x - (w * x).sum()
        norm = float((w * x.square()).sum().sqrt() * deviation)
        return -float((w * x * y).sum()) / norm if norm > 0 else 0.0

    trials = np.linspace(math.log(form.bounds[0]), math.log(form.bounds[1]), _TRIALS)
    best = int(np.argmin([loss(trial) for trial in trials]))
    low, high = trials[max(best - 1, 0)], trials[min(best + 1, _TRIALS - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": tolerance})
    return replace(form, spread=math.exp(found.x))
