"""The network of the embedded prior: N, CA, C, O of a segment denoised, given its surroundings.

The context is encoded once; only the segment's tokens depend on the noise. The network works in
stages: each looks at its estimate of x0 so far through pair features (distances, directions in
residue frames, relative rotations, sequence offset), attends over context and segment with them
as bias and as values, and corrects the estimate in residue frames and along local interatomic
directions, so that bond lengths and angles come out right at low noise.

Preconditioning follows Karras et al. 2022 (EDM), Eq. 7 and Table 1, with a mean and a sigma_data for
every atom that grow from the anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from densemble.priors.segment_features import (
    LOCAL_DISTANCES,
    PAIR_FEATURES,
    assemble,
    local_distances,
    pair_features,
    residue_frames,
    with_beta,
)
from densemble.priors.segment_geometry import OTHER_CHAIN, UNKNOWN, Segment

_OFFSETS = 24


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network."""

    width: int = 192
    heads: int = 6
    hidden: int = 512
    context_layers: int = 3
    stages: tuple[int, ...] = (3, 4)
    pair: int = 32
    pair_value: int = 16
    condition: int = 96


@dataclass(frozen=True)
class Encoded:
    """What does not depend on the noise: keys and values of every layer of every stage, frames and atoms."""

    keys: list[list[tuple[Tensor, Tensor]]]
    frames: Tensor
    atoms: Tensor


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class PairBias(nn.Module):
    """Pair features to attention biases of several layers and to pair values."""

    def __init__(self, config: NetworkConfig, layers: int) -> None:
        super().__init__()
        self.layers, self.heads, self.values = layers, config.heads, config.pair_value
        self.embed = nn.Linear(PAIR_FEATURES, config.pair)
        self.offset = nn.Embedding(2 * _OFFSETS + 2, config.pair)
        self.condition = nn.Linear(config.condition, config.pair)
        self.out = nn.Linear(config.pair, layers * config.heads + config.pair_value)

    def forward(self, features: Tensor, offset: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Biases, shape=(layers, b, h, c, l, k), and values, shape=(b, c, l, k, v)."""
        h = self.embed(features)
        h = h + self.offset(offset)[:, None].to(h.dtype)
        h = self.out(functional.silu(h + self.condition(condition)[:, :, None, None]))
        bias = h[..., : self.layers * self.heads].unflatten(-1, (self.layers, self.heads))
        return bias.permute(4, 0, 5, 1, 2, 3), h[..., self.layers * self.heads :]


class Layer(nn.Module):
    """Pre-norm transformer layer with pair bias, pair values and noise-dependent modulation."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.heads = config.width, config.heads
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d + config.heads * config.pair_value, d, bias=False)
        self.up = nn.Linear(d, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, d, bias=False)
        self.modulation = nn.Linear(config.condition, 6 * d)

    def start_open(self) -> None:
        """Initial modulation: gates a little open, nearly independent of the noise."""
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.constant_(self.modulation.bias.view(6, -1)[2::3], 0.3)

    def context_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context, shape=(b, h, m, d)."""
        d = tokens.shape[-1]
        kv = functional.linear(functional.layer_norm(tokens, (d,)), self.qkv.weight[d:])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        bias: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Update tokens of shape (b, c, l, d); keys are the context's, then the segment's own."""
        _, c, n, _ = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].chunk(6, -1)
        q, k, v = self.qkv(_modulate(x, shift1, scale1)).unflatten(-1, (3, self.heads, -1)).unbind(3)
        q = q * (q.shape[-1] ** -0.5)
        score = torch.einsum("bclhd,bckhd->bhclk", q, k)
        if context is not None:
            ck, cv = context
            far = (q.permute(0, 3, 1, 2, 4).flatten(2, 3) @ ck.transpose(-1, -2)).unflatten(2, (c, n))
            score = torch.cat([far, score], dim=-1)
        weight = torch.softmax(score + bias, dim=-1).to(v.dtype)
        near = weight[..., -n:]
        mixed = torch.einsum("bhclk,bckhd->bclhd", near, v)
        if context is not None:
            far = (weight[..., :-n].flatten(2, 3) @ cv).unflatten(2, (c, n))
            mixed = mixed + far.permute(0, 2, 3, 1, 4)
        pairs = weight.permute(0, 2, 3, 1, 4) @ values
        mixed = torch.cat([mixed.flatten(-2), pairs.flatten(-2).to(mixed.dtype)], dim=-1)
        x = x + gate1 * self.out(mixed)
        gate, up = self.up(_modulate(x, shift2, scale2)).chunk(2, -1)
        return x + gate2 * self.down(functional.silu(gate) * up)


class ContextEncoder(nn.Module):
    """Tokens of the fixed residues, from their types, places and relative geometry."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.width
        self.amino_acid = nn.Embedding(UNKNOWN + 1, d)
        self.place = nn.Embedding(4 * _OFFSETS + 2, d)
        self.geometry = nn.Linear(15 + 3, d)
        self.condition = nn.Parameter(torch.zeros(config.condition))
        self.pairs = PairBias(config, config.context_layers)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.context_layers))

    def forward(self, segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, shape=(b, m, d), frames and atoms (with CB)."""
        length = segment.kind.shape[1]
        atoms = with_beta(segment.context)
        frames = residue_frames(segment.context)
        alpha = atoms[:, :, 1:2]
        shape = torch.cat([atoms - alpha, alpha / 10], dim=-2).flatten(-2)
        other = segment.context_place == OTHER_CHAIN
        # Places before the segment count from its start, places after from its end.
        place = segment.context_place
        near = torch.where(
            place < 0, place.clamp(min=-2 * _OFFSETS), (place - length + 1).clamp(max=2 * _OFFSETS)
        )
        near = torch.where(other, 4 * _OFFSETS + 1, near + 2 * _OFFSETS)
        x = self.amino_acid(segment.context_type) + self.place(near) + self.geometry(shape)
        with torch.autocast(atoms.device.type, enabled=False):
            features = pair_features(atoms[:, None], frames[:, None], atoms[:, None], frames[:, None])
        offset = _offsets(place, place, other)
        condition = self.condition.expand(len(x), 1, -1)
        bias, values = self.pairs(features, offset, condition)
        bias = bias.masked_fill(~segment.context_mask[None, :, None, None, None], -1e4)
        x = x[:, None]
        for layer, b in zip(self.layers, bias, strict=True):
            x = layer(x, condition, b, values, None)
        return x[:, 0], frames, atoms


def _offsets(query: Tensor, key: Tensor, other: Tensor) -> Tensor:
    """Index of the sequence offset key - query for the embedding, shape=(b, l, k)."""
    offset = (key[:, None] - query[:, :, None]).clamp(-_OFFSETS, _OFFSETS) + _OFFSETS
    # The queries are residues of the segment's chain, or the keys themselves.
    apart = other[:, None] | other[:, :, None] if query is key else other[:, None]
    return torch.where(apart, 2 * _OFFSETS + 1, offset)


class Stage(nn.Module):
    """A few layers on one estimate of x0, and the correction that they propose."""

    def __init__(self, config: NetworkConfig, layers: int) -> None:
        super().__init__()
        self.geometry = nn.Linear(24 + LOCAL_DISTANCES, config.width)
        self.pairs = PairBias(config, layers)
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))
        self.head = nn.Linear(config.width, 24 + LOCAL_DISTANCES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def context_keys(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the context for every layer."""
        return [layer.context_keys(tokens) for layer in cast(Iterable[Layer], self.layers)]

    def forward(
        self,
        h: Tensor,
        geometry: Tensor,
        pairs: tuple[Tensor, Tensor, Tensor],
        masked: Tensor,
        context: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Updated tokens, and coefficients of the correction for ``assemble``.

        Args:
            h: tokens, shape=(b, c, l, d).
            geometry: noisy coordinates, the estimate, its local distances, shape=(b, c, l, f).
            pairs: pair features, sequence offsets, noise condition.
            masked: true for keys that are padding, broadcast over the biases.
            context: keys and values of the context for every layer.
        """
        h = h + self.geometry(geometry)
        condition = pairs[2]
        bias, values = self.pairs(*pairs)
        bias = bias.masked_fill(masked, -1e4)
        for layer, bias_of_layer, keys in zip(self.layers, bias, context, strict=True):
            h = layer(h, condition, bias_of_layer, values, keys)
        return h, self.head(functional.layer_norm(h, h.shape[-1:]))


class SegmentNetwork(nn.Module):
    """D(x; sigma) of a segment of backbone, conditioned on anchors, context and sequence."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.context = ContextEncoder(config)
        self.kind = nn.Embedding(UNKNOWN + 1, d)
        self.from_start = nn.Embedding(32, d)
        self.from_end = nn.Embedding(32, d)
        self.noise = nn.Sequential(
            nn.Linear(32 + 8 + 2 + 2, config.condition),
            nn.SiLU(),
            nn.Linear(config.condition, config.condition),
        )
        self.stages = nn.ModuleList(Stage(config, n) for n in config.stages)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
            if isinstance(module, Layer):
                module.start_open()

    def encode(self, segment: Segment) -> Encoded:
        """The part that does not depend on the noisy coordinates."""
        tokens, frames, atoms = self.context(segment)
        keys = [stage.context_keys(tokens) for stage in cast(Iterable[Stage], self.stages)]
        return Encoded(keys, frames, atoms)

    def forward(
        self,
        x: Float[Tensor, "b c l 4 3"],
        sigma: Float[Tensor, "b c"],
        segment: Segment,
        encoded: Encoded,
    ) -> list[Tensor]:
        """Estimates of x0 after each stage, the last the best, in Å in the canonical frame.

        Args:
            x: C noisy copies of each segment, canonical frame, Å.
            sigma: their noise in Å.
            segment: conditioning.
            encoded: from ``encode``.

        Returns:
            One tensor of shape (b, c, l, 4, 3) per stage.
        """
        b, c, n = x.shape[:3]
        s = sigma[:, :, None, None, None]
        width = segment.width[:, None, :, :, None]
        mean = segment.mean[:, None]
        total = torch.sqrt(s * s + width * width)
        base = mean + (width / total) ** 2 * (x - mean)
        out_scale = s * width / total
        condition = self._condition(sigma, segment)
        steps = torch.arange(n, device=x.device)
        h = self.kind(segment.kind) + self.from_start(steps) + self.from_end(n - 1 - steps)
        h = h[:, None].expand(b, c, n, -1)
        offset = self._pair_offsets(segment, n)
        masked = ~functional.pad(segment.context_mask, (0, n), value=True)[None, :, None, None, None]
        ends = segment.anchors[:, None].expand(b, c, 2, 4, 3)
        there = torch.ones(b, 1, n + 1, dtype=x.dtype, device=x.device)
        there[:, 0, 0], there[:, 0, -1] = segment.anchored.to(x.dtype).unbind(1)
        noisy = ((x - mean) / total).flatten(-2)
        estimates, estimate, f = [], base, torch.zeros_like(x)
        for i, stage in enumerate(self.stages):
            # While training, gradients do not run through the geometry of earlier estimates.
            seen = estimate.detach() if self.training else estimate
            chain = torch.cat([ends[:, :, :1], seen, ends[:, :, 1:]], dim=2)
            local, directions = local_distances(chain, there, sigma[:, :, None, None])
            own = (seen / 10).flatten(-2) if i == 0 else ((seen - base) / out_scale).flatten(-2)
            frames = residue_frames(seen)
            pairs = (_segment_pairs(seen, frames, encoded), offset, condition)
            geometry = torch.cat([noisy, own, local], dim=-1)
            h, change = stage(h, geometry, pairs, masked, encoded.keys[i])
            change = change.to(x.dtype)
            f = f + assemble(change, frames, directions)
            estimate = base + out_scale * f
            estimates.append(estimate)
        return estimates

    def _condition(self, sigma: Tensor, segment: Segment) -> Tensor:
        level = sigma.log()[..., None]
        waves = torch.exp(
            torch.linspace(math.log(0.3), math.log(4.0), 16, dtype=sigma.dtype, device=sigma.device)
        )
        phases = level * waves
        parts = [
            torch.sin(phases),
            torch.cos(phases),
            segment.surroundings[:, None].expand(*sigma.shape, -1),
            segment.anchored[:, None].expand(*sigma.shape, -1).to(sigma.dtype),
            level / 3,
            (level - segment.width.amax((1, 2)).log()[:, None, None]) / 3,
        ]
        return self.noise(torch.cat(parts, dim=-1))

    def _pair_offsets(self, segment: Segment, n: int) -> Tensor:
        own = torch.arange(n, device=segment.kind.device).expand(len(segment.kind), n)
        keys = torch.cat([segment.context_place, own], dim=1)
        return _offsets(own, keys, keys == OTHER_CHAIN)


def _segment_pairs(atoms: Tensor, frames: Tensor, encoded: Encoded) -> Tensor:
    b, c = atoms.shape[:2]
    query = with_beta(atoms)
    keys = torch.cat([encoded.atoms[:, None].expand(b, c, -1, -1, -1), query], dim=2)
    key_frames = torch.cat([encoded.frames[:, None].expand(b, c, -1, -1, -1), frames], dim=2)
    with torch.autocast(atoms.device.type, enabled=False):
        return pair_features(query, frames, keys, key_frames)
