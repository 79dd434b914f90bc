"""The width of the atoms, one overall B factor, that goes with given coordinates."""

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
from densemble.grid import DensityMap, Grid

_TRIALS = 9
_BLURS = 65


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


class BlurSearch:
    """Finds the Gaussian blur under which each of several densities correlates best with one map.

    A blur is a factor ``exp(-2 pi^2 blur^2 s^2)`` on the coefficients of the Fourier transform, so that one
    transform of a density serves all blurs: the correlation is a ratio of sums over shells. In it the
    covariance is over the weighted voxels, and the variance of the density over all, which is the same if
    there is none of it where the weight is not 1.

    Everything is where the map is, and what the densities have no part in is made once.

    Args:
        target: the map.
        weights: of the voxels, not negative.
        grid: their box, taken to be periodic.
        most: Å, the largest blur; 65 are tried, evenly spaced in their squares, and a parabola laid through
            the best and its neighbours.
    """

    def __init__(
        self,
        target: Float[Tensor, "nx ny nz"],
        weights: Float[Tensor, "nx ny nz"],
        grid: Grid,
        *,
        most: float,
    ) -> None:
        total = weights.sum()
        covered = weights * (target - (weights * target).sum() / total)
        shell, squares, twice = (torch.as_tensor(v).to(target.device) for v in _shells(grid))
        self._shell, self._twice = shell, twice.to(target)
        self._wanted = torch.fft.rfftn(covered).conj() * self._twice
        self._per_weight = math.prod(grid.shape) / total.double()
        self._tried = torch.linspace(0, most**2, _BLURS, dtype=torch.float64).to(target.device)
        self._factor = (-2 * math.pi**2 * self._tried[:, None] * squares).exp()

    def __call__(self, models: Float[Tensor, "k nx ny nz"]) -> Float[Tensor, " k"]:
        """Å, standard deviations of the best blurs of densities that are not blurred."""
        found = [self._correlations(model.detach()) for model in models]
        return _summits(self._tried, torch.stack(found)).clamp_min(0).sqrt().to(models)

    def _correlations(self, model: Float[Tensor, "nx ny nz"]) -> Float[Tensor, " b"]:
        """At every blur that is tried, up to a constant factor."""
        own = torch.fft.rfftn(model)
        covariance = self._factor @ self._over_shells((self._wanted * own).real)
        squared = own.real.square() + own.imag.square()
        power = self._factor.square() @ self._over_shells(squared * self._twice)
        variance = power - squared[0, 0, 0].double() * self._per_weight
        return covariance / torch.maximum(variance, 1e-12 * power).sqrt()

    def _over_shells(self, values: Float[Tensor, "nx ny nh"]) -> Float[Tensor, " s"]:
        empty = self._factor.new_zeros(self._factor.shape[1])
        return empty.index_add(0, self._shell, values.flatten().to(empty))


def _summits(x: Float[Tensor, " b"], y: Float[Tensor, "k b"]) -> Float[Tensor, " k"]:
    """Where parabolas through the highest of evenly spaced points and its neighbours are highest."""
    highest = y.argmax(1, keepdim=True)
    middle = highest.clamp(1, y.shape[1] - 2)
    before, at, after = (y.gather(1, middle + step)[:, 0] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    curved = (highest == middle)[:, 0] & (bend < 0)
    shift = 0.5 * (before - after) / torch.where(curved, bend, -1.0)
    return torch.where(curved, x[middle[:, 0]] + (x[1] - x[0]) * shift, x[highest[:, 0]])


def _shells(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shells of equal s of the coefficients of ``rfftn``.

    Returns:
        The shell of each coefficient, flat; the mean s^2 of each shell in Å^-2; and how many coefficients
        each one stands for, itself and its conjugate, by its place along the last axis.
    """
    axes = [np.fft.fftfreq(n, h) for n, h in zip(grid.shape[:2], grid.spacing[:2], strict=True)]
    axes.append(np.fft.rfftfreq(grid.shape[2], grid.spacing[2]))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    square = (x**2 + y**2 + z**2).ravel()
    longest = max(n * h for n, h in zip(grid.shape, grid.spacing, strict=True))
    shell = np.rint(np.sqrt(square) * longest).astype(np.int64)
    twice = np.full(len(axes[2]), 2.0, dtype=np.float32)
    twice[0] = 1.0
    if grid.shape[2] % 2 == 0:
        twice[-1] = 1.0
    return shell, np.bincount(shell, square) / np.maximum(np.bincount(shell), 1), twice
