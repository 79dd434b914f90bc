"""Entropic transport between weighted points: Sinkhorn's iteration in logarithms, a block of costs at a time.

With cost ``C_ij = |x_i - y_j|^2 / 2``, potentials f and g, and
``soft(h)_i = -eps log sum_j exp(h_j - C_ij / eps)``, a round is
``f <- (f + lambda soft(log b + g / eps)) / 2`` and likewise g, both from the old ones, with
``lambda = rho / (rho + eps)``, or 1 without rho. eps falls from the squared diameter to its final value, one
round at each level (Feydy 2020, Geometric data analysis, algorithm 3.5); one more, not averaged, ends it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 17  # costs in a block: what a cache holds. Measured: flat from 2^15 to 2^19.
DEVICE_BLOCK = 1 << 25  # on a GPU, where every call costs alike: a molecule at once, in two times 128 MiB


@dataclass(frozen=True)
class Levels:
    """The regularisation at each round.

    Attributes:
        eps: Å^2, falling; the last one is that of the problem.
        rho: Å^2, price of mass left behind; None moves all.
    """

    eps: tuple[float, ...]
    rho: float | None

    @classmethod
    def between(cls, diameter: float, blur: float, *, scaling: float, reach: float | None) -> Levels:
        """From the squared diameter (Å) to the squared blur (Å) by factors ``scaling^2``."""
        start = max(diameter, blur)
        rounds = math.ceil(round(math.log(blur / start) / math.log(scaling), 9))
        falling = [(start * scaling**i) ** 2 for i in range(rounds)]
        return cls((start**2, *falling, blur**2), None if reach is None else reach**2)

    def damping(self, eps: float) -> float:
        """The factor on every update of a potential."""
        return 1.0 if self.rho is None else self.rho / (self.rho + eps)

    def objective(self, potential: Float[Tensor, " n"], shares: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """What the potential of one side adds to the value (Séjourné et al. 2019, proposition 12)."""
        f, a = potential.double(), shares.double()
        if self.rho is None:
            return (a * f).sum()
        return -(self.rho + self.eps[-1] / 2) * (a * torch.expm1(-f / self.rho)).sum()

    def kept(self, potential: Float[Tensor, " n"], shares: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The mass that each point sends, by its potential."""
        return shares if self.rho is None else shares * (-potential / self.rho).exp()


def transport(
    x: Float[Tensor, "n 3"],
    a: Float[Tensor, " n"],
    y: Float[Tensor, "k 3"],
    b: Float[Tensor, " k"],
    levels: Levels,
    *,
    gradient: bool = True,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n 3"]]:
    """Value of the transport of shares a > 0 at x to b > 0 at y, in Å^2, and its gradient in x.

    The gradient is that at fixed potentials (envelope theorem): the mass that a point sends, times the way
    from where it goes on average. It is zero if not asked for.
    """
    log_a, log_b = a.log(), b.log()
    eps = levels.eps[0]
    f, g = (levels.damping(eps) * v for v in (softmin(x, y, log_b, eps)[0], softmin(y, x, log_a, eps)[0]))
    for eps in levels.eps:
        new_f = levels.damping(eps) * softmin(x, y, log_b + g / eps, eps)[0]
        new_g = levels.damping(eps) * softmin(y, x, log_a + f / eps, eps)[0]
        f, g = (f + new_f) / 2, (g + new_g) / 2
    soft_f, target = softmin(x, y, log_b + g / eps, eps, means=gradient)
    last_g = levels.damping(eps) * softmin(y, x, log_a + f / eps, eps)[0]
    last_f = levels.damping(eps) * soft_f
    value = levels.objective(last_f, a) + levels.objective(last_g, b)
    slope = torch.zeros_like(x) if target is None else levels.kept(last_f, a)[:, None] * (x - target)
    return value.to(x), slope


def half_transport_to_itself(
    x: Float[Tensor, "n 3"], a: Float[Tensor, " n"], levels: Levels, *, gradient: bool = True
) -> tuple[Float[Tensor, ""], Float[Tensor, "n 3"]]:
    """Half the transport of shares a > 0 at x to themselves, whose potentials are one; as ``transport``."""
    log_a, eps = a.log(), levels.eps[0]
    f = levels.damping(eps) * softmin(x, x, log_a, eps)[0]
    for eps in levels.eps:
        f = (f + levels.damping(eps) * softmin(x, x, log_a + f / eps, eps)[0]) / 2
    soft, target = softmin(x, x, log_a + f / eps, eps, means=gradient)
    last = levels.damping(eps) * soft
    slope = torch.zeros_like(x) if target is None else levels.kept(last, a)[:, None] * (x - target)
    return levels.objective(last, a).to(x), slope


def softmin(
    x: Float[Tensor, "n 3"],
    y: Float[Tensor, "k 3"],
    h: Float[Tensor, " k"],
    eps: float,
    *,
    means: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"] | None]:
    """``-eps log sum_j exp(h_j - |x_i - y_j|^2 / (2 eps))``, and the mean of y by the terms of the sum.

    Squares of differences, not differences of squares: a cost that is small is exact.
    """
    rows = max((BLOCK if x.device.type == "cpu" else DEVICE_BLOCK) // len(y), 1)
    costs, steps = (x.new_empty(min(rows, len(x)), len(y)) for _ in range(2))
    soft = x.new_empty(len(x))
    mean = torch.empty_like(x) if means else None
    lines = y.T.contiguous()
    bits = h / math.log(2)
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        z, step = costs[: part.stop - start], steps[: part.stop - start]
        for axis in range(3):
            torch.sub(lines[axis], x[part, axis, None], out=step)
            if axis == 0:
                torch.mul(step, step, out=z)
            else:
                z.addcmul_(step, step)
        torch.add(bits, z, alpha=-1 / (2 * eps * math.log(2)), out=z)
        top = z.amax(1, keepdim=True)
        z.sub_(top).exp2_()  # measured: a tenth of the time of exp
        total = z.sum(1)
        soft[part] = -eps * math.log(2) * (total.log2() + top[:, 0])
        if mean is not None:
            mean[part] = (z @ y) / total[:, None]
    return soft, mean
