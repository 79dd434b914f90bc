"""How far the atoms are from a point cloud: the Sinkhorn divergence (paper 2, section 3.2 and appendix A.4).

Between the measure ``alpha`` of the atoms, of mass 1 (each 1/N, or weights given), and ``beta`` of the cloud,
also scaled to mass 1, with cost ``C_ij = |x_i - y_j|^2 / 2``, ``eps = blur^2`` and ``rho = reach^2``:

``OT(alpha, beta) = min_pi <pi, C> + eps KL(pi, alpha x beta) + rho KL(pi 1, alpha) + rho KL(pi^T 1, beta)``
``S(alpha, beta) = OT(alpha, beta) - OT(alpha, alpha) / 2 - OT(beta, beta) / 2``

in Å^2 (Séjourné, Feydy, Vialard, Trouvé & Peyré 2019, arXiv:1910.12958, Definition 4). Mass is moved up to
about ``reach`` and left behind beyond it. Two single points at a distance d have
``S = (2 rho + eps) (1 - exp(-d^2 / (2 (2 rho + eps))))``; without reach, d^2 / 2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.likelihood.cloud import PointCloud
from densemble.likelihood.sinkhorn import Levels, half_transport_to_itself, transport

_APART = 8.0
"""Points further apart than this many blurs exchange a share of 1e-14 of their mass with themselves."""


class _Known(NamedTuple):
    """What does not depend on where the atoms are.

    Attributes:
        origin: Å, the middle of the cloud, double precision, shape=(3,).
        used: indices of the atoms that have mass, shape=(u,).
        shares: of these in the mass, shape=(u,).
        points: Å, of the cloud about its middle, shape=(k, 3).
        weights: their shares in its mass, shape=(k,).
    """

    origin: Float[Tensor, " 3"]
    used: Int[Tensor, " u"]
    shares: Float[Tensor, " u"]
    points: Float[Tensor, "k 3"]
    weights: Float[Tensor, " k"]


class SinkhornDivergence:
    """The divergence between each member and the cloud, each alone, and its gradient.

    One member at a time, and of its costs a block at a time, so that memory does not grow with their number.
    The terms of a measure with itself, which would cost N x N, have a closed form where its points lie
    further apart than eight blurs, as atoms do at blur 0.05 Å; where they do not, they are iterated. The
    values are those of GeomLoss (its ``SamplesLoss``). Measured by ``benchmarks/bench_transport.py`` (AMD
    EPYC, CPU time on one shared core, single precision, value and gradient, the paper's settings; a ball of
    atoms):

    ==============  ======  =====================  =====================
    atoms x points  this    GeomLoss, tensorized   GeomLoss, solve_sample
    ==============  ======  =====================  =====================
    1,000 x 250     0.02 s  0.36 s                 0.36 s
    5,000 x 1,250   0.38 s  8.0 s, 0.5 GiB         9.8 s, 0.65 GiB
    ==============  ======  =====================  =====================

    This takes 11 MiB; the backends ``online`` and ``multiscale`` need KeOps and were not measured.

    Iterations go from eps of the squared diameter down to ``blur^2`` by factors ``scaling^2``, one at each
    level, and then stop, converged or not. At the paper's settings (blur 0.05 Å, scaling 0.5) they are far
    from it: for 1,000 atoms and 250 points the value is 10 % low and the gradient, though it points downhill,
    has a cosine of 0.67 with that of scaling 0.99; it is smoother, as of a blurrier problem. The cosine is
    0.91 at scaling 0.9 for four times the cost. A blur of the order of the spacing is the better-posed
    problem: with 2 Å, scaling 0.5 and 0.7 reach cosines of 0.95 and 0.99. The gradient is that at fixed
    potentials (envelope theorem), in which GeomLoss 0.3.1 has a factor ``(rho + eps / 2) / (rho + eps)`` too
    much.

    Args:
        cloud: the k points.
        weights: share of each atom in the mass, not negative, shape=(N,): equal if None. Atoms of weight
            zero take no part, so one atom a residue, weighted by the residue's mass, is cheap.
        blur: Å.
        reach: Å; None moves all mass (balanced transport).
        scaling: between 0 and 1, ratio of successive blurs.

    Raises:
        ValueError: blur, reach or scaling out of range, or weights negative or all zero.
    """

    def __init__(
        self,
        cloud: PointCloud,
        *,
        weights: Float[Tensor, " n"] | None = None,
        blur: float = 0.05,
        reach: float | None = 10.0,
        scaling: float = 0.5,
    ) -> None:
        if not (blur > 0 and (reach is None or reach > 0) and 0 < scaling < 1):
            raise ValueError(
                "SinkhornDivergence: needs blur > 0, reach > 0 and scaling between 0 and 1, got "
                f"{blur}, {reach} and {scaling}"
            )
        if weights is not None and (bool((weights < 0).any()) or not bool((weights > 0).any())):
            raise ValueError("SinkhornDivergence: the weights of the atoms are negative, or all zero")
        self.cloud = cloud
        self.weights = weights
        self.blur, self.reach, self.scaling = blur, reach, scaling
        self._origin = cloud.points.double().mean(0)
        self._shares = cloud.weights.double() / cloud.weights.double().sum()
        places = (cloud.points.double() - self._origin).cpu().numpy()
        self._reach = places.min(0), places.max(0)
        self._apart = self._lie_apart(places)
        self._known: dict[tuple[torch.device, torch.dtype, int], _Known] = {}

    def __call__(self, atoms: Float[Tensor, "k n 3"]) -> Float[Tensor, " k"]:
        """The divergence of each member in Å^2, once differentiable.

        Args:
            atoms: Å, map frame, shape=(k, n, 3).

        Raises:
            ValueError: there are not as many atoms as weights.
        """
        if self.weights is not None and atoms.shape[1] != len(self.weights):
            raise ValueError(f"SinkhornDivergence: {atoms.shape[1]} atoms, weights of {len(self.weights)}")
        return _Divergence.apply(atoms, self)

    def of_members(
        self, atoms: Float[Tensor, "k n 3"], *, gradient: bool = True
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k n 3"]]:
        """Divergence and gradient (zero if not asked for) of each member.

        The host sees the coordinates once, for how far the points are apart; a GPU is not waited for again.
        """
        known = self._on(atoms)
        moved = (atoms.detach().double() - known.origin)[:, known.used]
        places = moved.cpu().numpy()
        values, slopes = [], torch.zeros_like(atoms)
        for member, (x, place) in enumerate(zip(moved.to(atoms.dtype), places, strict=True)):
            value, slope = self._solve(x, place, known, gradient)
            values.append(value)
            slopes[member].index_copy_(0, known.used, slope)
        return torch.stack(values), slopes

    def _on(self, atoms: Float[Tensor, "k n 3"]) -> _Known:
        """What does not depend on where the atoms are, in their type and where they are."""
        key = atoms.device, atoms.dtype, atoms.shape[1]
        if key not in self._known:
            weights = torch.ones(atoms.shape[1]) if self.weights is None else self.weights.cpu()
            used = weights.nonzero()[:, 0]
            shares = weights[used].double()
            self._known[key] = _Known(
                origin=self._origin.to(atoms.device),
                used=used.to(atoms.device),
                shares=(shares / shares.sum()).to(atoms),
                points=(self.cloud.points.double() - self._origin).to(atoms),
                weights=self._shares.to(atoms),
            )
        return self._known[key]

    def _solve(self, x: Tensor, place: np.ndarray, known: _Known, gradient: bool) -> tuple[Tensor, Tensor]:
        """Of atoms about the origin of the cloud: small numbers keep squared distances accurate."""
        (low, high), a, y, b = self._reach, known.shares, known.points, known.weights
        extent = np.maximum(place.max(0), high) - np.minimum(place.min(0), low)
        diameter = float(np.linalg.norm(extent))
        levels = Levels.between(diameter, self.blur, scaling=self.scaling, reach=self.reach)
        value, slope = transport(x, a, y, b, levels, gradient=gradient)
        if self._apart and self._lie_apart(place):
            return value - self._alone(a) - self._alone(b), slope
        own, own_slope = half_transport_to_itself(x, a, levels, gradient=gradient)
        other, _ = half_transport_to_itself(y, b, levels, gradient=False)
        return value - own - other, slope - own_slope

    def _alone(self, shares: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Half the transport of points far apart onto themselves: each stays, potential by potential."""
        eps, log = self.blur**2, shares.double().log()
        if self.reach is None:
            value = -eps / 2 * (shares.double() * log).sum()
        else:
            rho = self.reach**2
            value = -(rho + eps / 2) * (shares.double() * torch.expm1(log * eps / (2 * rho + eps))).sum()
        return value.to(shares)

    def _lie_apart(self, places: Float[np.ndarray, "n 3"]) -> bool:
        """Whether no two points are within eight blurs of each other."""
        if len(places) < 2:
            return True
        nearest = cKDTree(places).query(places, k=[2], distance_upper_bound=_APART * self.blur)[0]
        return math.isinf(float(nearest.min()))


class _Divergence(torch.autograd.Function):
    """Values with gradients found at once, so that no graph of several members is ever held."""

    @staticmethod
    def forward(ctx: Any, atoms: Tensor, divergence: SinkhornDivergence) -> Tensor:  # noqa: ANN401
        values, slopes = divergence.of_members(atoms, gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return grad[:, None, None] * slopes, None
