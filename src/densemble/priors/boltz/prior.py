"""The denoiser of a Boltz model as a prior: its trunk is done, its atoms are ours, its pose is hidden."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densemble.atoms import Topology
from densemble.priors.boltz.process import Anchor, BoltzNoise, BoltzProcess, Pose
from densemble.priors.boltz.steering import Steering

Kind = Literal["boltz1", "boltz2"]

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
        step_scale: instead of the model's own.
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
        step_scale: float | None = None,
    ) -> None:
        noise = BoltzNoise.of(diffusion)
        if step_scale is not None:
            noise = replace(noise, step_scale=step_scale)
        self.topology = topology
        self.together = together
        self._diffusion, self._conditioning, self._steering = diffusion, conditioning, steering
        # Boltz-1 keeps what only depends on the trunk, in a form that goes with one number of members.
        cached = getattr(diffusion, "use_inference_model_cache", False)
        self._caches: dict[int, dict[str, Any]] | None = {} if cached else None
        self._mask: Tensor = conditioning["feats"]["atom_pad_mask"].float()
        self._process = BoltzProcess(
            noise,
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
            torch.OutOfMemoryError: not even one member fits.
        """
        pose = self._process.pose or Pose.centred(x_t)
        x0 = pose.back(self._estimates(pose.seen(x_t), t))
        if self._steering is None or self._process.left == 0:
            return x0
        update = self._steering(self._with_padding(x0.detach()), self._process.left)
        return x0 + update[:, : len(self.topology)].to(x0)

    def _estimates(self, seen: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """The network's estimates in its own frame, in chunks that fit into memory."""
        while True:
            try:
                return self._in_chunks(seen, t)
            except RuntimeError as error:
                if "out of memory" not in str(error) or self.together == 1:
                    raise
            self.together = max(1, min(self.together, len(seen)) // 2)
            self._caches = None if self._caches is None else {}
            _log.warning("out of memory: going on with %d members at a time", self.together)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _in_chunks(self, seen: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """Estimates; of several chunks only one at a time keeps what its gradient needs."""
        chunks = seen.split(self.together)
        if self._caches is not None:
            for chunk in (c for c in chunks if len(c) not in self._caches):
                # Filled outside of autograd: what is kept does not depend on the coordinates.
                self._caches[len(chunk)] = {}
                with torch.no_grad():
                    self._network(chunk.detach(), t)
        apart = len(chunks) > 1 and torch.is_grad_enabled() and seen.requires_grad
        found = [
            checkpoint(self._network, chunk, t, use_reentrant=False, preserve_rng_state=False)
            if apart
            else self._network(chunk, t)
            for chunk in chunks
        ]
        if self.tokens is not None:
            self.tokens.latest = torch.cat([tokens for _, tokens in found]).detach()
        return torch.cat([x0 for x0, _ in found])

    def _network(self, seen: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """One call of the network: x0 of the atoms, and Boltz-1's representation of tokens (else empty)."""
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
        so_far = torch.zeros_like(self.latest) if self.so_far is None else self.so_far
        times = self._diffusion.c_noise(torch.full((len(so_far),), t).to(so_far))
        self.so_far = self._diffusion.out_token_feat_update(times=times, acc_a=so_far, next_a=self.latest)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {} if self.so_far is None else {"tokens": self.so_far}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.so_far = state.get("tokens")
