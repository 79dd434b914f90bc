"""The noise process of Karras et al. (2022), "Elucidating the design space of diffusion-based models"."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.priors.correlated import conditional, regression
from densemble.priors.protocol import Denoiser


@dataclass(frozen=True, eq=False)
class EDM:
    """x_t = x0 + t L z, with z standard normal; the label of a noise level is its sigma t in Å.

    Attributes:
        center: where pure noise is centred, Å, shape=(N, 3).
        sigma_max: Å; large against the spread of x0 about ``center``.
        sigma_min: Å; the last noise level before zero.
        rho: bends the schedule (Karras et al., Eq. 5).
        churn: sigma is raised by this fraction, with fresh noise, before each step (their gamma).
        churn_min: Å; no churn at or below this noise level.
        heun: second-order steps (their Algorithm 1), two denoiser calls a step.
        factor: L, shape=(N, N), of noise correlated along the chain; None is the identity.
    """

    center: Float[Tensor, "n 3"]
    sigma_max: float
    sigma_min: float = 0.01
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.05
    heun: bool = False
    factor: Float[Tensor, "n n"] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"EDM: needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """``steps + 1`` levels: from ``first`` (``sigma_max`` if None) to ``sigma_min``, then 0."""
        if steps < 1:
            raise ValueError(f"EDM: at least one step, got {steps}")
        first = self.sigma_max if first is None else first
        if first <= self.sigma_min:
            raise ValueError(f"EDM: the first level must be above sigma_min {self.sigma_min}, got {first}")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = first ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [*((high + ramp * (low - high)) ** self.rho).tolist(), 0.0]

    def sigma(self, t: float) -> float:
        """The noise level is its own label."""
        return t

    def level(self, sigma: float) -> float:
        """The noise level is its own label."""
        return sigma

    def precondition(self, gradient: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """sigma^2 L L^T gradient: the shift of x0_hat that a score causes."""
        if self.factor is not None:
            gradient = self.factor @ (self.factor.T @ gradient)
        return t**2 * gradient

    def gain(self, held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
        """K, with which the noise of held atoms foretells that of the others; zero for independent noise."""
        if self.factor is None:
            return self.center.new_zeros(int((~held).sum()), int(held.sum()))
        return regression(self.factor, held)

    def given(
        self, known: Float[Tensor, "n 3"], held: Bool[Tensor, " n"]
    ) -> tuple[EDM, Float[Tensor, "f h"]]:
        """The process of the other atoms when those held are in known places; and K.

        It is centred where the noise alone would have them, with the covariance that is left to them.
        """
        missed = (known.to(self.center) - self.center)[held]
        gain, factor = (self.gain(held), None) if self.factor is None else conditional(self.factor, held)
        return replace(self, center=self.center[~held] + gain @ missed, factor=factor), gain

    def initial(self, members: int, generator: torch.Generator) -> Float[Tensor, "k n 3"]:
        """Noise of the first level about ``center``."""
        return self.center + self.sigma_max * self._noise(members, generator)

    def diffuse(
        self, x0: Float[Tensor, "k n 3"], t: float, generator: torch.Generator
    ) -> Float[Tensor, "k n 3"]:
        """x0 with the noise of level ``t``."""
        return x0 + t * self._noise(len(x0), generator)

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """One reverse step (their Algorithm 2)."""
        if self.churn > 0 and t > self.churn_min:
            raised = t * (1 + self.churn)
            x = x + (raised**2 - t**2) ** 0.5 * self._noise(x.shape[0], generator)
            t = raised
        slope = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * slope
        if self.heun and t_next > 0:
            slope_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (slope + slope_next) / 2
        return x_next

    def _noise(self, members: int, generator: torch.Generator) -> Tensor:
        shape = (members, *self.center.shape)
        z = torch.randn(shape, generator=generator, dtype=self.center.dtype, device=self.center.device)
        return z if self.factor is None else self.factor @ z
