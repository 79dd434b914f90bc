"""A guided prior is a prior: the sampler does not know the difference."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.atoms import Topology
from densemble.guidance.realign import FollowingProcess, Realignment
from densemble.guidance.stage import Stage
from densemble.priors.protocol import NoiseProcess, Prior


@runtime_checkable
class Completion(Protocol):
    """From the atoms of the prior to those of the objectives: side chains, or nothing to add."""

    def update(self, x0_hat: Float[Tensor, "k n 3"], sigma: float) -> None:
        """Bring the completion's own state (side-chain torsions) up to date; no gradient."""
        ...

    def finish(self, x0: Float[Tensor, "k n 3"]) -> None:
        """Bring the state to what the members at the end of sampling are to have; no gradient."""
        ...

    def __call__(self, x0_hat: Float[Tensor, "k n 3"]) -> Float[Tensor, "k m 3"]:
        """All atoms, differentiable in ``x0_hat``."""
        ...

    def adopt(self, atoms: Float[Tensor, "k m 3"]) -> None:
        """Take over the state (side-chain torsions) that given atoms have, one set for each member."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...


@runtime_checkable
class Memory(Protocol):
    """What a prior remembers of the steps done."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...


class AllAtom:
    """The completion of an all-atom prior: nothing to add.

    Args:
        memory: of the prior, which is kept and restored with the run.
        atoms: those that the objectives know, in their order; all if None.
    """

    def __init__(self, memory: Memory | None = None, *, atoms: Int[Tensor, " m"] | None = None) -> None:
        self._memory, self._atoms = memory, atoms

    def update(self, x0_hat: Float[Tensor, "k n 3"], sigma: float) -> None:
        """Nothing to bring up to date."""

    def finish(self, x0: Float[Tensor, "k n 3"]) -> None:
        """Nothing to bring up to date."""

    def __call__(self, x0_hat: Float[Tensor, "k n 3"]) -> Float[Tensor, "k m 3"]:
        """The atoms themselves."""
        return x0_hat if self._atoms is None else x0_hat[:, self._atoms]

    def adopt(self, atoms: Float[Tensor, "k n 3"]) -> None:
        """Nothing to take over."""

    def state_dict(self) -> dict[str, Tensor]:
        """The prior's memory, if it has one."""
        return {} if self._memory is None else self._memory.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        if self._memory is not None:
            self._memory.load_state_dict(state)


class GuidedPrior:
    """Diffusion posterior sampling: the denoiser's estimate, shifted along the gradient of each active stage.

    Args:
        prior: the unguided prior.
        stages: what guides; several may be active at once, each gradient is computed by itself.
        completion: atoms that the prior does not model.
        realign: moves samples as a whole; None leaves them where the prior puts them.
    """

    def __init__(
        self,
        prior: Prior,
        stages: Sequence[Stage],
        completion: Completion | None = None,
        *,
        realign: Realignment | None = None,
    ) -> None:
        self.prior = prior
        self.realign = realign
        self._following = FollowingProcess(prior.process)
        self.stages = tuple(stages)
        self.completion: Completion = completion or AllAtom()
        self._told: list[dict[str, float]] = []
        self._untold: list[dict[str, float | Tensor]] = []

    @property
    def trace(self) -> list[dict[str, float]]:
        """Every objective at every guided step. Values stay on their device until this is asked for."""
        self._told += [{name: float(value) for name, value in row.items()} for row in self._untold]
        self._untold.clear()
        return self._told

    @trace.setter
    def trace(self, rows: Sequence[dict[str, float]]) -> None:
        self._told, self._untold = list(rows), []

    def of(self, prior: Prior) -> GuidedPrior:
        """The same guidance of another prior of the same atoms; one trace is of both."""
        other = copy(self)
        other.prior = prior
        other._following = FollowingProcess(prior.process)
        return other

    @property
    def topology(self) -> Topology:
        """The atoms of the prior."""
        return self.prior.topology

    @property
    def process(self) -> NoiseProcess:
        """The noise of the prior."""
        return self.prior.process if self.realign is None else self._following

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t, y], approximately: x0_hat plus the shift of every stage active at this noise level."""
        sigma = self.process.sigma(t)
        active = [stage for stage in self.stages if stage.active(sigma)]
        if not active:
            with torch.no_grad():
                return self.prior.denoise(x_t, t)
        through = any(stage.through_network for stage in active)
        x = x_t.detach().requires_grad_(through)
        with torch.set_grad_enabled(through):
            x0 = self.prior.denoise(x, t)
        leaf = x0 if through else x0.detach().requires_grad_()
        with torch.no_grad():
            self.completion.update(leaf.detach(), sigma)
        shift = torch.zeros_like(x0)
        row: dict[str, float | Tensor] = {"sigma": sigma}
        with torch.enable_grad():
            atoms = self._placed(self.completion(leaf), row, active, sigma)
            for stage in active:
                value = stage.term(atoms, sigma)
                row[stage.name] = value.detach()
                wrt = x if stage.through_network else leaf
                (gradient,) = torch.autograd.grad(value, wrt, retain_graph=True)
                shift += self._shift(stage, gradient, x0.detach() - x_t, t)
        self._untold.append(row)
        return x0.detach() + shift

    def _placed(
        self, atoms: Tensor, row: dict[str, float | Tensor], active: Sequence[Stage], sigma: float
    ) -> Tensor:
        """The atoms where realignment wants them, at the steps at which it is done."""
        realign = self.realign
        if realign is None or all(stage.name != realign.stage for stage in active):
            return atoms
        before = [realign.stage in told for told in self._told]
        before += [realign.stage in untold for untold in self._untold]
        if sum(before) % realign.every:
            return atoms
        moves = self._following.moves = realign(atoms, sigma)
        if moves is None:
            return atoms
        placed = moves.apply(atoms)
        row["moved"] = (placed - atoms).detach().square().sum(-1).mean().sqrt()
        return placed

    def _shift(self, stage: Stage, gradient: Tensor, update: Tensor, t: float) -> Tensor:
        """Shift of x0_hat caused by the gradient of one stage; norms are per member."""
        norm = gradient.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        if stage.clip is not None:
            gradient = gradient * (stage.clip / norm).clamp_max(1)
        weight = stage.weight_at(self.process.sigma(t))
        if stage.mode == "ratio":
            moved = update * (gradient != 0)  # atoms in known places have no say in how far the others go
            shift = weight * moved.norm(dim=(1, 2), keepdim=True) * gradient / norm
        else:
            shift = weight * self.process.precondition(gradient, t)
        if stage.limit is not None:
            length = shift.square().sum(-1, keepdim=True).mean(1, keepdim=True).sqrt()
            shift = shift * (stage.limit / length.clamp_min(torch.finfo(shift.dtype).tiny)).clamp_max(1)
        return shift
