"""From the backbone that a prior denoises to all atoms (paper 1, Algorithm A1, lines 8-15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.sidechains.packing import SideChains

Term = Callable[[Tensor, float], Tensor]
DensityAt = Callable[[Tensor], Tensor]


@runtime_checkable
class Packer(Protocol):
    """Draws the chi angles of all members anew, for their present backbones."""

    def __call__(
        self, side_chains: SideChains, backbone: Float[Tensor, "k g 4 3"], generator: torch.Generator
    ) -> None:
        """Change ``side_chains.chi``; the backbone is that of the region's residues, Å."""
        ...


@dataclass(frozen=True)
class RotamerPacker:
    """From the rotamer library; see ``SideChains.pack``.

    Attributes:
        density_at: gain of an electron at points in Å; None: rotamer frequency and contacts alone.
        temperature: of the draw.
    """

    density_at: DensityAt | None = None
    temperature: float = 1.0

    def __call__(
        self, side_chains: SideChains, backbone: Float[Tensor, "k g 4 3"], generator: torch.Generator
    ) -> None:
        """Draw rotamers."""
        side_chains.pack(
            backbone, generator=generator, density_at=self.density_at, temperature=self.temperature
        )


class SideChainCompletion:
    """Side chains on a backbone prior, resampled every T calls of ``update`` and refined in between.

    Args:
        side_chains: of the prior's residues (and a window, if it has one).
        topology: the atoms of the prior: N, CA, C, O of each residue.
        resample_every: T.
        gradient_steps: S.
        step_size: of the gradient steps on chi, radians^2.
        high: Å; above this noise side chains stay as they are.
        seed: of the draws.
        final_update: one more update when sampling is done, on the members' own backbones. Algorithm A1 has
            none: its members have the chi angles of their last step.
        packer: what draws.
        log_likelihood: of all atoms at a noise level, climbed by the gradient steps; None: no steps.
    """

    def __init__(
        self,
        side_chains: SideChains,
        topology: Topology,
        *,
        resample_every: int,
        gradient_steps: int,
        step_size: float,
        high: float,
        seed: int,
        final_update: bool = True,
        packer: Packer | None = None,
        log_likelihood: Term | None = None,
    ) -> None:
        self.side_chains = side_chains
        self._rows = torch.as_tensor(topology.backbone(range(len(topology.residues))))
        self._every = resample_every
        self._steps = gradient_steps
        self._step_size = step_size
        self._high = high
        self._final_update = final_update
        self._log_likelihood = log_likelihood
        self._packer: Packer = packer or RotamerPacker()
        self._generator = torch.Generator().manual_seed(seed)
        self._calls = 0

    def update(self, x0_hat: Float[Tensor, "k m 3"], sigma: float) -> None:
        """Draw chi anew at every T-th call, climb the likelihood in chi at the others."""
        if sigma > self._high:
            return
        backbone = x0_hat[:, self._rows]
        if self._calls % self._every == 0:
            self._packer(self.side_chains, backbone, self._generator)
        elif self._log_likelihood is not None and self._steps > 0:
            likelihood = self._log_likelihood
            self.side_chains.refine(
                backbone, lambda atoms: likelihood(atoms, sigma), steps=self._steps, step_size=self._step_size
            )
        self._calls += 1

    def finish(self, x0: Float[Tensor, "k m 3"]) -> None:
        """One more update if there is to be one, or if nothing was drawn yet (no guidance asked for chi)."""
        if self._final_update or self._calls == 0:
            self.update(x0, 0.0)

    def __call__(self, x0_hat: Float[Tensor, "k m 3"]) -> Float[Tensor, "k n 3"]:
        """All atoms, differentiable in the backbone."""
        return self.side_chains.complete(x0_hat[:, self._rows])

    def adopt(self, atoms: Float[Tensor, "k n 3"]) -> None:
        """Take over the chi angles of given members."""
        self.side_chains.adopt(atoms)

    def state_dict(self) -> dict[str, Tensor]:
        """Chi angles, number of calls and the state of the draws."""
        return {
            **self.side_chains.state_dict(),
            "calls": torch.tensor(self._calls),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.side_chains.load_state_dict({"chi": state["chi"]})
        self._calls = int(state["calls"])
        self._generator.set_state(state["generator"])
