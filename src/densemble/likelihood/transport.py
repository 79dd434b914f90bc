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
from typing import Any

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.likelihood.cloud import PointCloud
from densemble.likelihood.sinkhorn import Levels, half_transport_to_itself, transport

_APART = 8.0
"""Points further apart than this many blurs exchange a share of 1e-14 of their mass with themselves."""


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
        self._apart = self._lie_apart(cloud.points)

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

    def of_member(
        self, x: Float[Tensor, "n 3"], *, gradient: bool = True
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "n 3"]]:
        """Divergence and gradient (zero if not asked for) of one member."""
        if self.weights is None:
            return self._solve(x, torch.full((len(x),), 1 / len(x)), gradient)
        used = self.weights > 0
        shares = self.weights[used].double()
        value, slope = self._solve(x[used.to(x.device)], shares / shares.sum(), gradient)
        return value, torch.zeros_like(x).masked_scatter(used.to(x.device)[:, None], slope)

    def _solve(self, x: Tensor, a: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        shift = self._origin.to(x.device)
        y = (self.cloud.points.to(x.device, torch.float64) - shift).to(x.dtype)
        x = (x.detach().double() - shift).to(x.dtype)  # small numbers keep squared distances accurate
        a, b = a.to(x), self._shares.to(x)
        low, high = torch.minimum(x.amin(0), y.amin(0)), torch.maximum(x.amax(0), y.amax(0))
        diameter = float((high - low).norm())
        levels = Levels.between(diameter, self.blur, scaling=self.scaling, reach=self.reach)
        value, slope = transport(x, a, y, b, levels, gradient=gradient)
        if self._apart and self._lie_apart(x):
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

    def _lie_apart(self, points: Float[Tensor, "n 3"]) -> bool:
        """Whether no two points are within eight blurs of each other."""
        if len(points) < 2:
            return True
        places = points.detach().double().cpu().numpy()
        nearest = cKDTree(places).query(places, k=[2], distance_upper_bound=_APART * self.blur)[0]
        return math.isinf(float(nearest.min()))


class _Divergence(torch.autograd.Function):
    """Values with gradients found at once, so that no graph of several members is ever held."""

    @staticmethod
    def forward(ctx: Any, atoms: Tensor, divergence: SinkhornDivergence) -> Tensor:  # noqa: ANN401
        wanted = ctx.needs_input_grad[0]
        values, slopes = [], torch.zeros_like(atoms)
        for member, x in enumerate(atoms):
            value, slope = divergence.of_member(x, gradient=wanted)
            values.append(value)
            slopes[member] = slope
        ctx.save_for_backward(slopes)
        return torch.stack(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return grad[:, None, None] * slopes, None
