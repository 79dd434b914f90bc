"""The contract between priors, guidance and the sampler.

A prior is a pretrained (or closed-form) diffusion model of atoms. It owns its noise: the process
says which noise levels there are, how to draw pure noise and how to go one step back. Everything
that only a given network needs (centring, augmentation, units, atom order) stays inside its
``denoise``; outside there is the frame of the map, in Å, and the order of ``topology``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.atoms import Topology

Denoiser = Callable[[Tensor, float], Tensor]


@runtime_checkable
class NoiseProcess(Protocol):
    """Noise levels and the reverse step. ``t`` is the process's own label of a noise level."""

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """``steps + 1`` decreasing levels, from ``first`` or pure noise; the last is noise-free."""
        ...

    def sigma(self, t: float) -> float:
        """Standard deviation in Å of the noise on x0 at level ``t``, per coordinate."""
        ...

    def level(self, sigma: float) -> float:
        """The label of the level at which the noise is ``sigma`` Å."""
        ...

    def initial(self, members: int, generator: torch.Generator) -> Float[Tensor, "k n 3"]:
        """Draw x at the first time."""
        ...

    def diffuse(
        self, x0: Float[Tensor, "k n 3"], t: float, generator: torch.Generator
    ) -> Float[Tensor, "k n 3"]:
        """Draw x at level ``t``, given x0."""
        ...

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """One reverse step from noise level ``t`` to ``t_next``."""
        ...

    def precondition(self, gradient: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """Turn a score ``grad_{x_t} log p`` into the shift of x0_hat that it causes (Tweedie's formula).

        With x_t = x0 + sigma L z the shift is ``sigma^2 L L^T gradient``.
        """
        ...

    def gain(self, held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
        """The regression K of the noise of the other atoms on that of the held ones (``correlated``)."""
        ...


@runtime_checkable
class ConditionalNoise(NoiseProcess, Protocol):
    """Noise of each atom where it is, which leaves a process of its own to some of them."""

    def given(
        self, known: Float[Tensor, "n 3"], held: Bool[Tensor, " n"]
    ) -> tuple[NoiseProcess, Float[Tensor, "f h"]]:
        """The noise of the other atoms when those held are in known places, Å; and K (``gain``)."""
        ...


@runtime_checkable
class Prior(Protocol):
    """A diffusion model of the atoms of ``topology``."""

    @property
    def topology(self) -> Topology:
        """The N atoms modelled."""
        ...

    @property
    def process(self) -> NoiseProcess:
        """Its noise."""
        ...

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t], differentiable in ``x_t``."""
        ...


class Anew(Prior, Protocol):
    """A prior of some atoms of each member, the others being in known places."""

    @property
    def start(self) -> Float[Tensor, "k n 3"]:
        """Å, where pure noise is centred; held atoms in their places."""
        ...


@runtime_checkable
class Conditional(Prior, Protocol):
    """A prior that can be told of atoms in known places, at every noise level."""

    def anew(self, known: Float[Tensor, "k n 3"], held: Bool[Tensor, "k n"]) -> Anew:
        """The prior of what is not held, given the rest; a residue is held as a whole."""
        ...
