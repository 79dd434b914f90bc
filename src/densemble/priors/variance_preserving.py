"""The variance-preserving process with correlated noise and a linear log signal-to-noise ratio.

Ingraham et al. (2023), "Illuminating protein space with a programmable generative model", Nature 623,
1070-1078; Song et al. (2021), "Score-based generative modeling through stochastic differential equations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.priors.correlated import conditional, regression
from densemble.priors.protocol import Denoiser


@runtime_checkable
class Schedule(Protocol):
    """How noise grows with the label t from 0 (structure) to 1 (noise), with alpha^2 + sigma^2 = 1."""

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Factors of the structure and of the noise at label ``t``."""
        ...

    def beta(self, t: float) -> float:
        """-d log(alpha^2) / dt."""
        ...


@dataclass(frozen=True)
class LinearLogSnr:
    """``log(alpha^2 / sigma^2)`` linear in t; given at t = 1 and at t = 0."""

    noise: float = -7.0
    structure: float = 13.5

    def __post_init__(self) -> None:
        if self.noise >= self.structure:
            raise ValueError(f"LinearLogSnr: must rise to structure, got {self.noise}, {self.structure}")

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Factors of the structure and of the noise at label ``t``."""
        log_snr = (1 - t) * self.structure + t * self.noise
        return 1 / math.sqrt(1 + math.exp(-log_snr)), 1 / math.sqrt(1 + math.exp(log_snr))

    def beta(self, t: float) -> float:
        """-d log(alpha^2) / dt."""
        return (self.structure - self.noise) * self.alpha_sigma(t)[1] ** 2


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """x_t = c + alpha_t (x0 - c) + sigma_t L z, with z standard normal and alpha^2 + sigma^2 = 1.

    The label t falls from 1 (noise) to 0 (structure). With ``beta = -d log(alpha^2) / dt`` the reverse
    process is (paper 1, Eq. 1; Ingraham et al., with their factors of temperature and Langevin noise)

    ``dx = [-beta/2 (x - c) - beta (lambda_t + lambda psi / 2) L L^T score] dt + sqrt(beta (1 + psi)) L dw``

    with ``L L^T score = -(x - c - alpha (x0_hat - c)) / sigma^2``, taken backwards in Euler-Maruyama steps.

    Attributes:
        factor: L, Å, shape=(N, N).
        center: c, Å, shape=(N, 3). None: the mean of the atoms, each member's own, which then is not scaled
            and wanders; so Chroma has it for chains that nothing holds.
        schedule: alpha, sigma and beta.
        span: the first and the last label.
        inverse_temperature: lambda_0; above 1 for samples of higher likelihood. Enters as
            ``lambda_t = lambda_0 / (lambda_0 sigma^2 + alpha^2)``.
        langevin_factor: psi, of equilibration by fresh noise at each step.
        langevin_isothermal: equilibrate at lambda_0 (lambda above) instead of at lambda_t.
    """

    factor: Float[Tensor, "n n"]
    center: Float[Tensor, "n 3"] | None = None
    schedule: Schedule = LinearLogSnr()
    span: tuple[float, float] = (1.0, 0.001)
    inverse_temperature: float = 1.0
    langevin_factor: float = 0.0
    langevin_isothermal: bool = True

    def __post_init__(self) -> None:
        if not 1 >= self.span[0] > self.span[1] >= 0:
            raise ValueError(f"VariancePreserving: span must fall within 1 and 0, got {self.span}")
        if self.inverse_temperature <= 0 or self.langevin_factor < 0:
            raise ValueError(
                "VariancePreserving: needs inverse_temperature > 0 and langevin_factor >= 0, got "
                f"{self.inverse_temperature} and {self.langevin_factor}"
            )

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """``steps + 1`` labels, evenly from ``first`` (the span's if None) to the end of the span.

        They are numbers of single precision, so that a schedule in single precision gets them as they are.
        """
        if steps < 1:
            raise ValueError(f"VariancePreserving: at least one step, got {steps}")
        first, last = self.span[0] if first is None else first, self.span[1]
        if not last < first <= 1:
            raise ValueError(f"VariancePreserving: the first label must be above {last}, got {first}")
        return torch.linspace(first, last, steps + 1, dtype=torch.float32).tolist()

    def sigma(self, t: float) -> float:
        """sigma_t / alpha_t times the root mean square over atoms of the noise's deviation, Å."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return sigma / alpha * self._spread

    def level(self, sigma: float) -> float:
        """The label at which the noise is ``sigma`` Å, as a number of single precision.

        Raises:
            ValueError: the noise is never so weak or so strong.
        """
        high, low = self.span
        if not self.sigma(low) <= sigma <= self.sigma(high):
            raise ValueError(
                f"VariancePreserving: noise between {self.sigma(low):.3g} and {self.sigma(high):.3g} Å, "
                f"not {sigma:g} Å"
            )
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.sigma(middle) < sigma else (low, middle)
        return float(torch.tensor(high, dtype=torch.float32))

    def precondition(self, gradient: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """sigma^2 / alpha L L^T gradient: the shift of x0_hat that a score causes."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        factor = self.factor.to(gradient)
        shift = sigma**2 * (factor @ (factor.T @ gradient))
        if self.center is None:  # the mean of x0_hat is not scaled by alpha
            mean = shift.mean(1, keepdim=True)
            return mean + (shift - mean) / alpha
        return shift / alpha

    def gain(self, held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
        """K, with which the noise of held atoms foretells that of the others."""
        return regression(self.factor, held)

    def given(
        self, known: Float[Tensor, "n 3"], held: Bool[Tensor, " n"]
    ) -> tuple[VariancePreserving, Float[Tensor, "f h"]]:
        """The process of the other atoms when those held are in known places, whatever the noise; and K.

        It is centred where the noise alone would have them, ``c_f + K (x_h - c_h)``, with the covariance that
        the held atoms leave them. Without a centre, c is the mean of the held atoms.
        """
        center = known[held].mean(0).expand_as(known) if self.center is None else self.center
        gain, factor = conditional(self.factor, held)
        middle = center[~held] + gain.to(known) @ (known - center)[held]
        return replace(self, factor=factor, center=middle), gain

    def initial(self, members: int, generator: torch.Generator) -> Float[Tensor, "k n 3"]:
        """Noise of the first label about the centre."""
        center = self.factor.new_zeros(len(self.factor), 3) if self.center is None else self.center
        return self.diffuse(center.expand(members, -1, -1), self.span[0], generator)

    def diffuse(
        self, x0: Float[Tensor, "k n 3"], t: float, generator: torch.Generator
    ) -> Float[Tensor, "k n 3"]:
        """x0 with the noise of label ``t``; without a centre it leaves the mean of the atoms alone."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        noise = self._noise(x0, generator)
        if self.center is None:
            noise = noise - noise.mean(1, keepdim=True)
        return self._shrunk(x0, alpha) + sigma * noise

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """One Euler-Maruyama step of the reverse process."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        beta, ahead = self.schedule.beta(t), t_next - t
        noise = self._noise(x, generator)
        score = (self._shrunk(denoise(x, t), alpha) - x) / sigma**2
        drift = -beta / 2 * (x - self._center_of(x)) - beta * self._heat(alpha, sigma) * score
        return x + ahead * drift + math.sqrt(-ahead * beta * (1 + self.langevin_factor)) * noise

    def _heat(self, alpha: float, sigma: float) -> float:
        """The factor of the score: temperature and Langevin equilibration."""
        lambda_t = self.inverse_temperature / (self.inverse_temperature * sigma**2 + alpha**2)
        langevin = self.inverse_temperature if self.langevin_isothermal else lambda_t
        return lambda_t + langevin * self.langevin_factor / 2

    def _center_of(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) if self.center is None else self.center.to(x)

    def _shrunk(self, x: Tensor, alpha: float) -> Tensor:
        center = self._center_of(x)
        return center + alpha * (x - center)

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(like.shape, generator=generator, dtype=self.factor.dtype, device=self.factor.device)
        return (self.factor @ z).to(like)

    @cached_property
    def _spread(self) -> float:
        return float(self.factor.double().square().sum(1).mean().sqrt())
