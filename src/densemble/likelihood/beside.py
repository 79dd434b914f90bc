"""The likelihood of a map given one known conformation and each member beside it, as a second state."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap
from densemble.likelihood.blur import gaussian_blur

_CACHED_BLURS = 8


@dataclass(frozen=True, eq=False)
class BesideKnown:
    """How much likelier a map becomes when a member stands beside a conformation that is known.

    ``log p_k = -1 / (2 sigma^2) min_{a, b, c} sum_v w_v (Fo_v - a Fc_v(known) - b Fc_v(x_k) - c)^2``

    with b not negative, less the same without the member: the ensemble likelihood (the papers' Eq. 2) of
    two states, one of which is held, occupancies, scale and offset solved in closed form. A member is
    drawn to density that the known conformation leaves unexplained, and is not drawn to it again. Members
    do not see each other, so each is a sample of the second state of its own.

    The fit is a projection: with the known density and a constant taken out of both map and member (in the
    inner product of the mask), the gain is ``max(Fo . Fc, 0)^2 / (2 sigma^2 |Fc|^2)``.

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
    _projected: OrderedDict[float, tuple[Tensor, Tensor]] = field(
        init=False, repr=False, default_factory=OrderedDict
    )

    def __call__(self, coords: Float[Tensor, "k n 3"], *, blur: float = 0.0) -> Float[Tensor, " k"]:
        """Gain of each member in nats, not negative; differentiable in the coordinates.

        Args:
            coords: Å, shape=(k, n, 3).
            blur: Å; compare map and model both convolved with a Gaussian of this standard deviation. A
                few blurred targets are kept, so reuse the same levels.
        """
        target, taken_out = self._at(blur)
        model = self._weighted(self.density.members(coords, self.b_iso, blur=blur))
        size = model.square().sum(1)
        model = model - (model @ taken_out) @ taken_out.T
        # of a member that is the known conformation nothing is left but rounding: it gains nothing
        left = model.square().sum(1).clamp_min(1e-4 * size.detach())
        return (model @ target).clamp_min(0).square() / (2 * self.sigma**2 * left)

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

    def _at(self, blur: float) -> tuple[Float[Tensor, " v"], Float[Tensor, "v 2"]]:
        """The target less its fit by the known conformation and a constant, and their orthonormal basis."""
        if blur not in self._projected:
            with torch.no_grad():
                values = gaussian_blur(self.target.values, self.density.grid, blur)
                known = self.density.members(self.known[None], self.b_iso, blur=blur)
                both = self._weighted(torch.cat([torch.ones_like(known), known]))
                basis = torch.linalg.qr(both.T)[0]
                target = self._weighted(values[None])[0]
                self._projected[blur] = target - basis @ (basis.T @ target), basis
            if len(self._projected) > _CACHED_BLURS:
                self._projected.popitem(last=False)
        return self._projected[blur]
