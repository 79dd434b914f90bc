"""The reverse-diffusion loop: noise in, structures out, resumable at any step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.priors.protocol import Prior


@dataclass
class SamplerState:
    """Where a run stands: enough to go on as if it had never stopped.

    Attributes:
        step: steps done.
        x: Å, shape=(K, N, 3).
        generator: state of the random generator.
    """

    step: int
    x: Float[Tensor, "k n 3"]
    generator: Tensor


def sample(
    prior: Prior,
    *,
    steps: int,
    members: int,
    generator: torch.Generator,
    first: float | None = None,
    state: SamplerState | None = None,
    on_step: Callable[[SamplerState], None] | None = None,
) -> Float[Tensor, "k n 3"]:
    """Draw ``members`` structures from a prior, guided or not.

    Args:
        prior: what to sample from.
        steps: reverse steps.
        members: K.
        generator: the only source of randomness.
        first: noise level to begin at, for an x that is given by ``state``; pure noise if None.
        state: go on from here instead of from noise.
        on_step: called after every step with the new state (progress, checkpoints).

    Returns:
        Å, shape=(K, N, 3).

    Raises:
        FloatingPointError: a coordinate became NaN or infinite.
    """
    times = prior.process.times(steps, first)
    if state is None:
        state = SamplerState(0, prior.process.initial(members, generator), generator.get_state())
    else:
        generator.set_state(state.generator)
    x = state.x
    for i in range(state.step, steps):
        x = prior.process.step(prior.denoise, x, times[i], times[i + 1], generator).detach()
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"sampling diverged at step {i + 1} of {steps} (sigma {times[i]:.3g} Å)")
        if on_step is not None:
            on_step(SamplerState(i + 1, x, generator.get_state()))
    return x


def save_checkpoint(path: Path, payload: dict[str, object]) -> None:
    """Write tensors and plain values so that a killed writer never leaves half a file."""
    part = path.with_suffix(path.suffix + ".part")
    torch.save(payload, part)
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict[str, object]:
    """Read what ``save_checkpoint`` wrote, to the CPU wherever it was; no code in the file is run."""
    return torch.load(path, weights_only=True, map_location="cpu")
