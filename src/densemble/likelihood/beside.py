"""The likelihood of a map given one known conformation and each member beside it, as a second state."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap
from densemble.likelihood.blur import gaussian_blur

_CACHED_BLURS = 8


class _Parts(NamedTuple):
    """A target in two orthonormal directions, and what lies in neither; all over the voxels that count.

    Attributes:
        constant: the offset's direction, shape=(v,).
        known: that of the known density, but for its constant, shape=(v,).
        explained: how much of the target lies along it.
        target: what is left, shape=(v,).
    """

    constant: Float[Tensor, " v"]
    known: Float[Tensor, " v"]
    explained: float
    target: Float[Tensor, " v"]


@dataclass(frozen=True, eq=False)
class BesideKnown:
    """How much likelier a map becomes when a member stands beside a conformation that is known.

    ``log p_k = -1 / (2 sigma^2) min_{a, b >= 0, c} sum_v w_v (Fo_v - a Fc_v(known) - b Fc_v(x_k) - c)^2``

    less the same without the member: the ensemble likelihood (the papers' Eq. 2) of two states, one of which
    is held, occupancies, scale and offset solved in closed form. A member is drawn to density that the known
    conformation leaves unexplained, and is not drawn to it again. Members do not see each other, so each is
    a sample of the second state of its own.

    The fit is a projection: with the known density and a constant taken out of both map and member (in the
    inner product of the mask), the gain is ``max(Fo . Fc, 0)^2 / (2 sigma^2 |Fc|^2)``. That holds where the
    known conformation keeps an occupancy. Elsewhere the member stands for it, alone: were a negative a
    allowed, the difference of two near copies, many times over, would explain any error of the known one.

    Attributes:
        density: atoms to density.
        target: the map Fo, on the grid of ``density``.
        mask: voxel weights w, shape=(nx, ny, nz), not negative.
        known: Å, the known conformation, shape=(N, 3).
        b_iso: Å^2, B factors: one, or per atom.
        sigma: noise of a voxel in the unit of the map; see ``effective_sigma``.
    """

    density: XrayDensity
    target: DensityMap
    mask: Float[Tensor, "nx ny nz"]
    known: Float[Tensor, "n 3"]
    b_iso: Float[Tensor, "*n"]
    sigma: float = 1.0
    _projected: OrderedDict[float, _Parts] = field(init=False, repr=False, default_factory=OrderedDict)

    def __call__(self, coords: Float[Tensor, "k n 3"], *, blur: float = 0.0) -> Float[Tensor, " k"]:
        """Gain of each member in nats, not negative; differentiable in the coordinates.

        Args:
            coords: Å, shape=(k, n, 3).
            blur: Å; compare map and model both convolved with a Gaussian of this standard deviation. A
                few blurred targets are kept, so reuse the same levels.
        """
        parts = self._at(blur)
        model = self._weighted(self.density.members(coords, self.b_iso, blur=blur))
        size = model.square().sum(1)
        model = model - torch.outer(model @ parts.constant, parts.constant)
        along = model @ parts.known
        left = model - torch.outer(along, parts.known)
        squared = left.square().sum(1)
        gain = left @ parts.target
        overlap = gain.clamp_min(0)
        base = max(parts.explained, 0.0) ** 2
        # of a member that is the known conformation nothing is left but rounding: it gains nothing
        beside = overlap.square() / squared.clamp_min(1e-4 * size.detach()) + parts.explained**2 - base
        alone = (along * parts.explained + gain).clamp_min(0)
        alone = alone.square() / (along.square() + squared) - base
        kept = parts.explained * squared >= along * overlap  # the known one's occupancy beside the member
        return torch.where(kept, beside, alone.clamp_min(0)) / (2 * self.sigma**2)

    def unexplained(self) -> Float[Tensor, "nx ny nz"]:
        """The target less its fit by the known conformation and a constant; zero where nothing counts."""
        inside, root = self._inside
        left = torch.zeros_like(self.target.values)
        left.view(-1)[inside] = self._at(0.0).target / root
        return left

    def _weighted(self, values: Float[Tensor, "k nx ny nz"]) -> Float[Tensor, "k v"]:
        """The voxels that count, times the square root of their weight."""
        inside, root = self._inside
        return values.flatten(1).index_select(1, inside) * root

    @cached_property
    def _inside(self) -> tuple[Int[Tensor, " v"], Float[Tensor, " v"]]:
        """Where the mask counts in the map as one row, and the square root of its weight there."""
        weights = self.mask.flatten()
        inside = weights.nonzero()[:, 0]
        return inside, weights[inside].sqrt()

    def _at(self, blur: float) -> _Parts:
        """What of the blurred target the known conformation and a constant explain, and what they leave."""
        if blur not in self._projected:
            with torch.no_grad():
                values = gaussian_blur(self.target.values, self.density.grid, blur)
                target = self._weighted(values[None])[0]
                constant = self._weighted(torch.ones_like(values)[None])[0]
                constant = constant / constant.norm()
                known = self._weighted(self.density.members(self.known[None], self.b_iso, blur=blur))[0]
                known = known - (known @ constant) * constant
                known = known / known.norm().clamp_min(torch.finfo(known.dtype).tiny)
                explained = target @ known
                left = target - (target @ constant) * constant - explained * known
                self._projected[blur] = _Parts(constant, known, float(explained), left)
            if len(self._projected) > _CACHED_BLURS:
                self._projected.popitem(last=False)
        return self._projected[blur]
