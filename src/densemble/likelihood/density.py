"""The likelihood of a map given a whole ensemble (the papers' Eq. 2), and given each member alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.blur import gaussian_blur

_CACHED_BLURS = 8


class Fit(NamedTuple):
    """The closed-form part of the fit; tensors of shape () for an ensemble, (k,) for each member.

    Attributes:
        scale: of the model (and its context) onto the target, not negative.
        offset: in the unit of the target.
        residual: weighted sum of squared differences that is left.
    """

    scale: Tensor
    offset: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class DensityLikelihood:
    """How likely a map is, given an ensemble.

    ``log p = -1 / (2 sigma^2) sum_v w_v (Fo_v - scale (sum_k weight_k Fc_v(x_k) + context_v) - offset)^2``

    up to a constant, for a map with Gaussian noise. It is to be ascended. Scale and offset are those that
    make it largest, in closed form, at every call. At their optimum the derivative by them vanishes, so the
    gradient of the whole is the one at fixed scale and offset.

    ``mode="each"`` is the ablation of paper 1, Table A2: each member alone, at the occupancy of the whole
    ensemble and with its own scale and offset, is to explain the map. The result is the sum over members, so
    that a member's gradient is the one that it has without the others, however many there are.

    Attributes:
        density: atoms to density.
        target: the map Fo, on the grid of ``density``.
        mask: voxel weights w, shape=(nx, ny, nz), not negative.
        b_iso: Å^2, B factors: one, per atom, or per member and atom.
        sigma: noise of a voxel in the unit of the map. Voxels of a map are not independent; see
            ``effective_sigma``.
        context: density of everything that does not move, in the unit of ``density``; zero if left out.
        mode: ``ensemble`` or ``each``.
        fit_scale: fit the scale; 1 otherwise.
        fit_offset: fit the offset; 0 otherwise.

    Raises:
        ValueError: shapes do not agree, the mask is empty or has negative weights, sigma is not positive.
    """

    density: XrayDensity
    target: DensityMap
    mask: Float[Tensor, "nx ny nz"]
    b_iso: Float[Tensor, "*kn"]
    sigma: float = 1.0
    context: Float[Tensor, "nx ny nz"] | None = None
    mode: Literal["ensemble", "each"] = "ensemble"
    fit_scale: bool = True
    fit_offset: bool = True
    _blurred: OrderedDict[float, tuple[Tensor, Tensor | None]] = field(
        init=False, repr=False, default_factory=OrderedDict
    )

    def __post_init__(self) -> None:
        grid, shapes = self.density.grid, [tuple(self.mask.shape)]
        if self.context is not None:
            shapes.append(tuple(self.context.shape))
        if self.target.grid != grid or any(shape != grid.shape for shape in shapes):
            raise ValueError(
                f"DensityLikelihood: density on {grid}, target on {self.target.grid}, mask and context of "
                f"shapes {shapes} do not agree"
            )
        if bool((self.mask < 0).any()) or not bool((self.mask > 0).any()):
            raise ValueError("DensityLikelihood: the mask has no positive weights, or has negative ones")
        if self.sigma <= 0:
            raise ValueError(f"DensityLikelihood: sigma must be positive, got {self.sigma}")

    def __call__(
        self,
        coords: Float[Tensor, "k n 3"],
        weights: Float[Tensor, " k"] | Float[Tensor, "k n"],
        *,
        blur: float = 0.0,
    ) -> Float[Tensor, ""]:
        """The log-probability of the map given the ensemble; differentiable in coordinates and weights.

        Args:
            coords: Å, shape=(k, n, 3).
            weights: occupancies of the members, shape=(k,); in mode ``ensemble`` also of their atoms,
                shape=(k, n).
            blur: Å; compare target, context and model all convolved with a Gaussian of this standard
                deviation, for a wider basin of attraction. Sigma stays, so blurring also tempers. A few
                blurred targets are kept, so reuse the same levels.
        """
        return -self.fit(coords, weights, blur=blur).residual.sum() / (2 * self.sigma**2)

    def fit(
        self,
        coords: Float[Tensor, "k n 3"],
        weights: Float[Tensor, " k"] | Float[Tensor, "k n"],
        *,
        blur: float = 0.0,
    ) -> Fit:
        """Scale, offset and what they leave: for the ensemble, or for each member in mode ``each``."""
        target, context = self._at(blur)
        if self.mode == "ensemble":
            model = self.density(coords, weights, self.b_iso, blur=blur)
        else:
            model = weights.sum() * self.density.members(coords, self.b_iso, blur=blur)
        return self._solve(target, model if context is None else model + context)

    def rms(
        self, coords: Float[Tensor, "k n 3"], weights: Float[Tensor, " k"], *, blur: float = 0.0
    ) -> float:
        """Weighted root mean square residual per voxel: the sigma under which this fit is most likely.

        In mode ``each`` over the voxels of all members.
        """
        with torch.no_grad():
            residual = self.fit(coords, weights, blur=blur).residual.mean()
        return math.sqrt(float(residual) / float(self.mask.sum()))

    def _at(self, blur: float) -> tuple[Tensor, Tensor | None]:
        """Target and context convolved by the same operator, so that their difference is too."""
        if blur not in self._blurred:
            self._blurred[blur] = tuple(  # type: ignore[assignment]
                None if v is None else gaussian_blur(v, self.density.grid, blur)
                for v in (self.target.values, self.context)
            )
            if len(self._blurred) > _CACHED_BLURS:
                self._blurred.popitem(last=False)
        return self._blurred[blur]

    def _solve(self, target: Tensor, model: Tensor) -> Fit:
        """Weighted least squares of ``target`` on ``model``, shape=([k,] nx, ny, nz)."""
        voxels = (-3, -2, -1)
        total = self.mask.sum()

        def mean(values: Tensor) -> Tensor:
            return (self.mask * values).sum(voxels) / total

        with torch.no_grad():
            fixed = model.detach()
            y0 = mean(target) if self.fit_offset else target.new_zeros(())
            m0 = mean(fixed) if self.fit_offset else torch.zeros_like(mean(fixed))
            scale = torch.ones_like(m0)
            if self.fit_scale:
                centred = fixed - m0[..., None, None, None]
                square = mean(centred.square())
                scale = (mean(centred * (target - y0)) / torch.where(square > 0, square, 1.0)).clamp(min=0)
            offset = y0 - scale * m0
        difference = target - offset[..., None, None, None] - scale[..., None, None, None] * model
        return Fit(scale, offset, (self.mask * difference.square()).sum(voxels))


def effective_sigma(grid: Grid, noise: float, d_min: float) -> float:
    """The sigma to give so that log p counts independent observations, not voxels.

    A map of resolution ``d_min`` has ``4 pi / (3 d_min^3)`` degrees of freedom per Å^3, one for each
    reciprocal-lattice point in the sphere (a Friedel pair is one complex number); a finer grid adds voxels,
    not information. Summing over voxels with this sigma does not depend on the spacing.

    Args:
        grid: the box.
        noise: standard deviation of the map's noise in the unit of the map (``DensityLikelihood.rms`` of a
            fit estimates it).
        d_min: Å.
    """
    voxels_per_datum = 3 * d_min**3 / (4 * math.pi * grid.voxel_volume)
    return noise * math.sqrt(max(voxels_per_datum, 1.0))
