"""The denoiser of a Boltz model as a prior: its trunk is done, its atoms are ours, its pose is hidden."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.priors.boltz.memory import members_that_fit, ran_out, recompute_layers, too_little
from densemble.priors.boltz.process import Anchor, BoltzNoise, BoltzProcess, Pose
from densemble.priors.boltz.steering import Steering

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class BoltzPrior:
    """E[x0 | x_t] of all atoms by the ``structure_module`` of Boltz-1 or Boltz-2.

    Args:
        diffusion: the model's ``structure_module`` (``AtomDiffusion``), in evaluation mode; its weights are
            not trained here.
        topology: the N atoms, in Boltz's order.
        conditioning: what the trunk found, as ``preconditioned_network_forward`` takes it.
        centre: where pure noise is centred, Å, shape=(3,).
        start: a model to start from instead, Å, shape=(N, 3) ...
        first: ... and the noise it is given, Å.
        together: members denoised in one call; bounds memory. Halved for good when memory runs out.
        anchor: where to place samples in the map.
        steering: Boltz's own potentials, applied to every estimate of x0.
    """

    def __init__(
        self,
        diffusion: Any,
        topology: Topology,
        conditioning: dict[str, Any],
        *,
        centre: Float[Tensor, " 3"],
        together: int,
        start: Float[Tensor, "n 3"] | None = None,
        first: float | None = None,
        anchor: Anchor | None = None,
        steering: Steering | None = None,
    ) -> None:
        self.topology = topology
        self.together = together
        self._diffusion, self._conditioning, self._steering = diffusion, conditioning, steering
        # Boltz-1 keeps what only depends on the trunk, in a form that goes with one number of members.
        cached = getattr(diffusion, "use_inference_model_cache", False)
        self._caches: dict[int, dict[str, Any]] | None = {} if cached else None
        self._mask: Tensor = conditioning["feats"]["atom_pad_mask"].float()
        self._process = BoltzProcess(
            BoltzNoise.of(diffusion),
            atoms=len(topology),
            centre=centre if start is None else start,
            first=first,
            estimate=self.denoise,
            anchor=anchor,
        )
        self.tokens: TokenMemory | None = None
        if getattr(diffusion, "accumulate_token_repr", False):
            self.tokens = TokenMemory(diffusion)
            self._process.memory = self.tokens

    @property
    def process(self) -> BoltzProcess:
        """Its noise."""
        return self._process

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t], differentiable in ``x_t``; in the pose of the step under way, or merely centred.

        Raises:
            InputError: not even one member fits into memory.
        """
        pose = self._process.pose or Pose.centred(x_t)
        x0 = pose.back(self._estimates(pose.seen(x_t), t))
        if self._steering is None or self._process.left == 0:
            return x0
        return x0 + self.fitting(lambda: self._steered(x0.detach()), len(x0))

    def _steered(self, x0: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
        """What Boltz's potentials add to estimates; overlaps look at pairs of atoms, so in chunks too."""
        assert self._steering is not None
        parts = [
            self._steering(self._with_padding(chunk), self._process.left)[:, : len(self.topology)]
            for chunk in x0.split(self.together)
        ]
        return torch.cat(parts).to(x0)

    def _estimates(self, seen: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """The network's estimates in its own frame, in chunks that fit into memory."""
        if torch.is_grad_enabled() and seen.requires_grad:
            return _Estimates.apply(seen, self, t)
        return self.fitting(lambda: self.in_chunks(seen, t), len(seen))

    def measure(self, t: float) -> None:
        """Take as many members together as memory holds the graphs of at level ``t``, Å: at least one.

        Where it does not hold that of a single member, layers are computed twice, which keeps less; if that
        is not enough either, the first gradient will say so, and what needs none goes on.
        """
        one = self._mask.new_zeros(1, len(self.topology), 3)
        self.together = 1
        while True:
            try:
                fit = members_that_fit(lambda x: self.in_chunks(x, t), one, device=self.device)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                self._forget()
                if not self._keeps_less():
                    return
            else:
                self.together = fit
                return

    def fitting(self, call: Callable[[], Result], members: int) -> Result:
        """The result of ``call``, with ever smaller chunks where memory runs out, then keeping less.

        Raises:
            InputError: not even one member fits.
        """
        while True:
            try:
                return call()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                self._forget()
                if min(self.together, members) > 1:
                    self.together = min(self.together, members) // 2
                    _log.warning("out of memory: going on with %d members at a time", self.together)
                elif not self._keeps_less():
                    what = f"a sample of {len(self.topology)} atoms, not even one at a time"
                    raise too_little(what, self.device) from error

    def _keeps_less(self) -> bool:
        """Compute layers twice for gradients from now on; whether that is new."""
        if not recompute_layers(self._diffusion):
            return False
        _log.warning("out of memory: going on with layers that are computed twice for gradients")
        return True

    def _forget(self) -> None:
        """Give back what is kept and can be made again, also what was being made when memory ran out."""
        self._caches = None if self._caches is None else {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def in_chunks(self, seen: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """Estimates of as many members at a time as fit."""
        found = [self._network(chunk, t) for chunk in seen.split(self.together)]
        if self.tokens is not None:
            self.tokens.latest = torch.cat([tokens for _, tokens in found]).detach()
        return torch.cat([x0 for x0, _ in found])

    def without_tokens(self, seen: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """Estimates of one chunk, which leave no trace in the memory of tokens."""
        return self._network(seen, t)[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._mask.device

    def _network(self, seen: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """One call of the network: x0 of the atoms, and Boltz-1's representation of tokens (else empty)."""
        if self._caches is not None and len(seen) not in self._caches:
            # Filled outside of autograd: what is kept does not depend on the coordinates.
            self._caches[len(seen)] = {}
            with torch.no_grad():
                self._network(seen.detach(), t)
        given = {"multiplicity": len(seen), **self._conditioning}
        if self._caches is not None:
            given["model_cache"] = self._caches[len(seen)]
        out = self._diffusion.preconditioned_network_forward(
            self._with_padding(seen), float(t), network_condition_kwargs=given
        )
        x0, tokens = out if isinstance(out, tuple) else (out, seen.new_empty(0))
        return x0[:, : len(self.topology)].to(seen), tokens

    def _with_padding(self, x: Float[Tensor, "k n 3"]) -> Float[Tensor, "k m 3"]:
        """On the network's device; Boltz pads atoms to whole windows, and masks what it is shown there."""
        return torch.nn.functional.pad(x, (0, 0, 0, self._mask.shape[1] - x.shape[1])).to(self._mask)


class _Estimates(torch.autograd.Function):
    """Estimates whose gradient survives a want of memory, also while it is taken.

    If all members fit together their graph is kept, as usual. Otherwise, or when memory runs out on the way
    back, each chunk is estimated anew with its graph, one after the other.
    """

    @staticmethod
    def forward(ctx: Any, seen: Tensor, prior: BoltzPrior, t: float) -> Tensor:
        ctx.prior, ctx.t, ctx.leaf, ctx.kept = prior, t, seen.detach(), None

        def estimate() -> Tensor:
            if len(seen) > prior.together:
                return prior.in_chunks(ctx.leaf, t)
            leaf = ctx.leaf.requires_grad_()
            with torch.enable_grad():
                ctx.kept = (leaf, prior.in_chunks(leaf, t))
            return ctx.kept[1].detach()

        return prior.fitting(estimate, len(seen))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        prior, t = ctx.prior, ctx.t

        def gradient() -> Tensor:
            kept, ctx.kept = ctx.kept, None
            if kept is not None:
                (found,) = torch.autograd.grad(kept[1], kept[0], grad, retain_graph=True)
                ctx.kept = kept
                return found
            parts = []
            with torch.enable_grad():
                for x, g in zip(ctx.leaf.split(prior.together), grad.split(prior.together), strict=True):
                    leaf = x.detach().requires_grad_()
                    parts.append(torch.autograd.grad(prior.without_tokens(leaf, t), leaf, g)[0])
            return torch.cat(parts)

        return prior.fitting(gradient, len(grad)), None, None


class TokenMemory:
    """What Boltz-1's confidence head is told of the course of sampling: one representation of all steps.

    Attributes:
        latest: of the last estimate, shape=(K, tokens, d).
        so_far: of all steps done, shape=(K, tokens, d).
    """

    def __init__(self, diffusion: Any) -> None:
        self.latest: Tensor | None = None
        self.so_far: Tensor | None = None
        self._diffusion = diffusion

    def begin(self) -> None:
        """Forget the samples before."""
        self.so_far = None

    @torch.no_grad()
    def advance(self, t: float) -> None:
        """Take in the estimate at level ``t``."""
        assert self.latest is not None
        so_far = torch.zeros_like(self.latest) if self.so_far is None else self.so_far.to(self.latest)
        times = self._diffusion.c_noise(so_far.new_full((len(so_far),), t))
        self.so_far = self._diffusion.out_token_feat_update(times=times, acc_a=so_far, next_a=self.latest)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {} if self.so_far is None else {"tokens": self.so_far}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, read to wherever."""
        self.so_far = state.get("tokens")
