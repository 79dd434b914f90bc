"""A denoiser trained under EDM noise, sampled under the variance-preserving process as well.

Karras et al. (2022), "Elucidating the design space of diffusion-based models", Table 1: where the process
is ``x = s (x0 + sigma n)`` with ``s^2 = 1 / (1 + sigma^2)``, the denoiser takes ``x / s`` and sigma. As
``x / s`` has EDM's noise, it is what is kept here, in Å; the processes differ in the noise levels and in the
steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.priors.edm import EDM
from densemble.priors.protocol import Denoiser

BETA_D, BETA_MIN = 19.9, 0.1
"""The rate beta(t) = BETA_MIN + BETA_D t of Song et al. (2021), t from 0 (structure) to 1 (noise)."""


@dataclass(frozen=True, eq=False)
class Reverse(EDM):
    """EDM with the noise levels and the steps of the variance-preserving process to choose from.

    The steps of its probability-flow ODE, exact where x0_hat is constant (DDIM: Song, Meng & Ermon 2021), are
    Euler's in sigma: those of EDM without churn.

    Attributes:
        vp_unit: Å in which the structure's variance is about 1, for levels evenly spaced in the label t of
            the variance-preserving process, ``(sigma / vp_unit)^2 = exp(BETA_D t^2 / 2 + BETA_MIN t) - 1``.
            None: EDM's levels.
        posterior: draw each level from the posterior q(x_next | x, x0_hat) of the forward process: the steps
            of the reverse SDE (Ho et al. 2020, Eq. 7).

    Raises:
        ValueError: ``posterior`` with churn or Heun's rule.
    """

    vp_unit: float | None = None
    posterior: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.posterior and (self.churn or self.heun):
            raise ValueError("Reverse: posterior steps have their own noise; set churn 0 and heun False")

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """``steps + 1`` levels with the ends of EDM's, then 0."""
        levels = super().times(steps, first)
        if self.vp_unit is None:
            return levels
        ends = torch.tensor([levels[0], levels[-2]], dtype=torch.float64) / self.vp_unit
        high, low = (((BETA_MIN**2 + 2 * BETA_D * (ends**2).log1p()).sqrt() - BETA_MIN) / BETA_D).tolist()
        t = torch.linspace(high, low, steps, dtype=torch.float64)
        return [*(self.vp_unit * (BETA_D * t**2 / 2 + BETA_MIN * t).expm1().sqrt()).tolist(), 0.0]

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """One reverse step."""
        if not self.posterior:
            return super().step(denoise, x, t, t_next, generator)
        x0, kept = denoise(x, t), (t_next / t) ** 2
        return x0 + kept * (x - x0) + t_next * (1 - kept) ** 0.5 * self._noise(len(x), generator)
