"""The network of the embedded prior for whole chains: denoising towards a reference model.

First a closed form: over nested neighbourhoods, from the whole molecule down to a residue, the
reference is superposed on the noisy coordinates, each superposition drawn towards that of the larger
neighbourhood as far as the reference is trusted (``RigidPyramid``). Noise is averaged over as many atoms
as move together, so that domains of hundreds of residues keep their place and their shape at noise of
tens of Å. Then a transformer on the neighbour graph corrects this estimate as the segment network does:
in residue frames and along local directions. Time and memory are linear in the number of residues.

Everything that the network sees is invariant to rotation and translation of coordinates and reference
together, so the result turns and moves with them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from densemble.priors.chain_graph import OFFSETS, ChainGraph, Neighbourhoods
from densemble.priors.rigid import nearest_rotation
from densemble.priors.segment_features import (
    LOCAL_DISTANCES,
    PAIR_FEATURES,
    local_distances,
    pair_features,
    pull,
    residue_frames,
    with_beta,
)
from densemble.priors.segment_geometry import UNKNOWN

LEVELS = 7
ALIKE = 4
"""The level whose neighbourhood is made of what moves like the residue."""
# Initial standard deviations of each superposition about the one above it: radians and Å, and of the
# atoms about the last one.
_TURNS = (0.1, 0.15, 0.15, 0.15, 0.1, 0.15, 0.2)
_SHIFTS = (1.5, 2.0, 1.5, 1.2, 0.6, 0.6, 0.3)
_ATOMS = 0.15
_STRAINS = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class ChainNetworkConfig:
    """Sizes of the network."""

    width: int = 128
    heads: int = 4
    key: int = 8
    value: int = 16
    hidden: int = 256
    stages: tuple[int, ...] = (2, 3)
    pair: int = 32
    pair_value: int = 12
    condition: int = 64
    rigid: int = 32


class Placement(NamedTuple):
    """A superposition for every copy and residue: r -> rotation (r - centre) + position."""

    rotation: Tensor
    centre: Tensor
    position: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Points of shape (t, p, 3) or (c, t, p, 3), moved."""
        return (points - self.centre[..., None, :]) @ self.rotation.mT + self.position[..., None, :]


def width_of(graph: ChainGraph) -> Float[Tensor, " t"]:
    """Expected deviation in Å of the truth from the closed form at high noise: the network's output scale."""
    domains, local = graph.trust.exp().unbind(-1)
    return torch.sqrt(0.3**2 + local**2 + (0.5 * domains) ** 2)


class RigidPyramid(nn.Module):
    """Superpositions of the reference on noisy coordinates, from large to small neighbourhoods.

    At each level the rotation is the mode of a posterior: the likelihood of the noisy atoms of the
    neighbourhood, times a matrix von Mises-Fisher prior about the rotation of the level above; the
    position likewise, with a Gaussian prior. How wide the priors are is learned, from the noise, the
    trust, and how well the level above fits here. At the top the prior is the reference's own pose.

    A large neighbourhood averages much noise away, but reaches over the boundary of a domain. So after the
    level of 64 residues there is one of 256 in which groups count by how well the residue's own placement
    so far explains where they are (``ALIKE``).
    """

    def __init__(self, config: ChainNetworkConfig) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(10, config.rigid) for _ in range(LEVELS + 1))
        self.outer = nn.ModuleList(nn.Linear(config.rigid, 2) for _ in range(LEVELS + 1))
        self.alike = nn.Sequential(nn.Linear(6, config.rigid), nn.SiLU(), nn.Linear(config.rigid, 1))
        for layer, turn, shift in zip(
            cast(Iterable[nn.Linear], self.outer), (*_TURNS, 1.0), (*_SHIFTS, _ATOMS), strict=True
        ):
            nn.init.normal_(layer.weight, std=0.02)
            layer.bias.data = torch.tensor([math.log(turn), math.log(shift)])

    def forward(
        self, x: Float[Tensor, "c t 4 3"], sigma: Float[Tensor, " c"], graph: ChainGraph
    ) -> tuple[list[Tensor], Tensor]:
        """Estimates after each level, the last of single atoms, shape=(c, t, 4, 3); fits, shape=(c, t, f)."""
        reference = graph.reference
        still = torch.eye(3, dtype=x.dtype, device=x.device).expand(*x.shape[:2], 3, 3)
        origin = torch.zeros_like(x[:, :, 0])
        placed = Placement(still, origin, origin)
        moments = torch.cat([(x.mT @ reference).flatten(-2), x.sum(-2)], dim=-1)
        own = torch.cat([reference.sum(-2), torch.full_like(reference[:, 0, :1], 4)], dim=-1)
        variance = (sigma**2)[:, None, None]
        known = self._known(sigma, graph)
        estimates, fits = [reference.expand_as(x)], []
        for level, scale in enumerate(graph.scales):
            share = self._alike(moments, own, placed, known, variance, scale) if level == ALIKE else None
            total = _gather_sum(moments, scale, share)
            fixed = _gather_sum(own.expand(len(x), -1, -1), scale, share)
            count = fixed[..., 3:]
            fit = self._fit(x, estimates[-1], variance, scale, count, share)
            fits.append(fit)
            turn, shift = self._spread(level, known, fit)
            centre, mean = fixed[..., :3] / count, total[..., 9:] / count
            outer = mean[..., :, None] * centre[..., None, :]
            cross = total[..., :9].unflatten(-1, (3, 3)) - count[..., None] * outer
            pooled = cross / variance[..., None] + placed.rotation / turn[..., None] ** 2
            rotation = nearest_rotation(pooled / pooled.detach().norm(dim=(-1, -2), keepdim=True))
            expected = placed(centre[..., None, :])[..., 0, :]
            gain = shift**2 / (shift**2 + variance / count)
            placed = Placement(rotation, centre, expected + gain * (mean - expected))
            estimates.append(placed(reference))
        fit = ((x - estimates[-1]) ** 2).mean((-1, -2))[..., None] / variance - 1
        fits.append(torch.cat([torch.log1p(fit.clamp(min=-0.9)), torch.tanh(fit)], dim=-1))
        _, shift = self._spread(LEVELS, known, fits[-1])
        gain = (shift**2 / (shift**2 + variance))[..., None]
        estimates.append(estimates[-1] + gain * (x - estimates[-1]))
        return estimates[1:], torch.cat(fits, dim=-1)

    def _alike(
        self,
        moments: Tensor,
        own: Tensor,
        placed: Placement,
        known: Tensor,
        variance: Tensor,
        scale: Neighbourhoods,
    ) -> Tensor:
        """Weight of each group in a residue's neighbourhood, between 0 and 1, shape=(c, t, k)."""
        seen, still = _gather(moments[..., 9:], scale), _gather(own[None], scale)
        count = still[..., 3:].clamp(min=1)
        away = seen / count - placed(still[0, ..., :3] / count[0])
        off = away.square().sum(-1, keepdim=True)
        strange = off / (3 * (variance[..., None] / count + 1.0))
        near = ((still[..., :3] / count)[0] - placed.centre[..., None, :]).square().sum(-1, keepdim=True)
        plain = known[:, :, None, (0, 4, 5)].expand(-1, -1, away.shape[2], -1)
        near = near.add(1e-4).sqrt() / 20
        features = torch.cat([torch.log1p(strange), torch.tanh(strange), near, plain], dim=-1)
        # About one half where a group is off by as much as the noise, nothing where by ten times that.
        return torch.sigmoid(self.alike(features) + 2.0 - 3.0 * torch.log1p(strange))[..., 0]

    def _known(self, sigma: Tensor, graph: ChainGraph) -> Tensor:
        """What is known before the coordinates are: noise, trust, crowding; shape=(c, t, 8)."""
        level = sigma.log()[:, None, None].expand(-1, len(graph), 1)
        still = torch.cat([graph.trust, graph.crowd], dim=-1).expand(len(sigma), -1, -1)
        return torch.cat([level / 2, torch.sin(level), torch.cos(level), torch.tanh(level), still], dim=-1)

    def _fit(
        self,
        x: Tensor,
        estimate: Tensor,
        variance: Tensor,
        scale: Neighbourhoods,
        count: Tensor,
        share: Tensor | None,
    ) -> Tensor:
        """How far the atoms of a neighbourhood are from the estimate, against the noise; shape=(c, t, 2)."""
        square = ((x - estimate) ** 2).sum((-1, -2))[..., None]
        excess = _gather_sum(square, scale, share) / (3 * count * variance) - 1
        strange = torch.tanh(excess * torch.sqrt(count) / 4)
        return torch.cat([torch.log1p(excess.clamp(min=-0.9)).clamp(max=6.0), strange], dim=-1)

    def _spread(self, level: int, known: Tensor, fit: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations of rotation (radians) and position (Å) about the level above."""
        h = self.outer[level](functional.silu(self.inner[level](torch.cat([known, fit], dim=-1))))
        turn, shift = h.clamp(min=-5.0, max=3.5).exp().unbind(-1)
        return turn[..., None], shift[..., None]


def _gather_sum(values: Tensor, scale: Neighbourhoods, share: Tensor | None = None) -> Tensor:
    """Sums over neighbourhoods of values of shape (c, t, f), each group with its weight if there are any."""
    listed = _gather(values, scale)
    return listed.sum(2) if share is None else (listed * share[..., None]).sum(2)


def _gather(values: Tensor, scale: Neighbourhoods) -> Tensor:
    """Sums over the groups of each neighbourhood, zero for padding, shape=(c, t, k, f)."""
    pooled = values.new_zeros(len(values), scale.count, values.shape[-1]).index_add(1, scale.group, values)
    t, k = scale.members.shape
    listed = pooled.index_select(1, scale.members.flatten()).unflatten(1, (t, k))
    return listed * scale.mask[..., None]


class GraphLayer(nn.Module):
    """Pre-norm transformer layer on the neighbour graph with pair bias, pair values and modulation."""

    def __init__(self, config: ChainNetworkConfig) -> None:
        super().__init__()
        d, self.heads, self.key = config.width, config.heads, config.key
        self.qkv = nn.Linear(d, config.heads * (2 * config.key + config.value), bias=False)
        self.out = nn.Linear(config.heads * (config.value + config.pair_value), d, bias=False)
        self.up = nn.Linear(d, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, d, bias=False)
        self.modulation = nn.Linear(config.condition, 6 * d)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.constant_(self.modulation.bias.view(6, -1)[2::3], 0.3)

    def forward(
        self, x: Tensor, condition: Tensor, bias: Tensor, values: Tensor, graph: ChainGraph
    ) -> Tensor:
        """Update tokens of shape (c, t, d); bias, shape=(c, t, k, h), values, shape=(c, t, k, v)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        h = functional.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
        split = self.heads * self.key
        q, kv = self.qkv(h).tensor_split((split,), dim=-1)
        t, n = graph.neighbours.shape
        seen = kv.index_select(1, graph.neighbours.flatten()).unflatten(1, (t, n))
        k, v = (a.unflatten(-1, (self.heads, -1)) for a in seen.tensor_split((split,), dim=-1))
        score = (q.unflatten(-1, (self.heads, -1))[:, :, None] * k).sum(-1) * self.key**-0.5 + bias
        weight = torch.softmax(score, dim=2)
        mixed = (weight[..., None] * v).sum(2)
        pairs = weight.mT @ values
        x = x + gate1 * self.out(torch.cat([mixed.flatten(-2), pairs.flatten(-2)], dim=-1))
        h = functional.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
        gate, up = self.up(h).chunk(2, -1)
        return x + gate2 * self.down(functional.silu(gate) * up)


class GraphStage(nn.Module):
    """A few layers on one estimate of x0, and the correction that they propose."""

    def __init__(self, config: ChainNetworkConfig, layers: int) -> None:
        super().__init__()
        self.layers, self.heads = layers, config.heads
        seen = 12 + 3 * LEVELS + LOCAL_DISTANCES
        self.geometry = nn.Linear(seen, config.width)
        self.seen = nn.Linear(PAIR_FEATURES, config.pair)
        self.strain = nn.Linear(2 * len(_STRAINS), config.pair)
        self.condition = nn.Linear(config.condition, config.pair)
        self.pair_out = nn.Linear(config.pair, layers * config.heads + config.pair_value)
        self.blocks = nn.ModuleList(GraphLayer(config) for _ in range(layers))
        self.head = nn.Linear(config.width, 12 + LOCAL_DISTANCES + LEVELS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        h: Tensor,
        geometry: Tensor,
        pairs: tuple[Tensor, Tensor, Tensor],
        condition: Tensor,
        graph: ChainGraph,
    ) -> tuple[Tensor, Tensor]:
        """Updated tokens, and coefficients of the correction.

        Args:
            h: tokens, shape=(c, t, d).
            geometry: of each residue, shape=(c, t, f).
            pairs: features of the estimate's pairs, strain against the reference's, embedding of the latter.
            condition: of the noise, shape=(c, f).
            graph: neighbours.
        """
        seen, strain, static = pairs
        p = self.seen(seen) + self.strain(strain) + static + self.condition(condition)[:, None, None]
        p = self.pair_out(functional.silu(p))
        bias, values = p.tensor_split((self.layers * self.heads,), dim=-1)
        bias = bias.masked_fill(~graph.mask[..., None], -1e4)
        h = h + self.geometry(geometry)
        for layer, b in zip(self.blocks, bias.chunk(self.layers, -1), strict=True):
            h = layer(h, condition, b, values, graph)
        return h, self.head(functional.layer_norm(h, h.shape[-1:]))


class ReferencePairs(NamedTuple):
    """What does not depend on the noise: pair features of the reference and distances of CA and CB."""

    features: Tensor
    gaps: Tensor
    local: Tensor


class ChainNetwork(nn.Module):
    """D(x; sigma) of whole chains, conditioned on a reference and on the sequence."""

    def __init__(self, config: ChainNetworkConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.pyramid = RigidPyramid(config)
        self.kind = nn.Embedding(UNKNOWN + 1, d)
        self.still = nn.Linear(LOCAL_DISTANCES + 4 + 2 * (LEVELS + 1), d)
        self.noise = nn.Sequential(
            nn.Linear(33, config.condition), nn.SiLU(), nn.Linear(config.condition, config.condition)
        )
        self.reference = nn.ModuleList(nn.Linear(PAIR_FEATURES, config.pair) for _ in config.stages)
        self.offset = nn.Embedding(2 * OFFSETS + 2, config.pair)
        self.stages = nn.ModuleList(GraphStage(config, n) for n in config.stages)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)

    def encode(self, graph: ChainGraph) -> ReferencePairs:
        """The part that depends on the reference alone."""
        atoms = graph.reference[None]
        features, gaps = _pairs(atoms, residue_frames(atoms), graph)
        local, _ = _local(atoms, torch.full_like(atoms[:, 0, 0, 0], 0.1), graph)
        return ReferencePairs(features[0], gaps[0], local[0])

    def forward(
        self,
        x: Float[Tensor, "c t 4 3"],
        sigma: Float[Tensor, " c"],
        graph: ChainGraph,
        encoded: ReferencePairs,
    ) -> list[Tensor]:
        """Estimates of x0: the closed form, then after each stage, the last the best, Å.

        Args:
            x: C noisy copies in the frame of ``graph.reference``, Å.
            sigma: their noise in Å.
            graph: reference and neighbours.
            encoded: from ``encode``.

        Returns:
            Tensors of shape (c, t, 4, 3).
        """
        levels, fits = self.pyramid(x, sigma, graph)
        base = levels[-1]
        s = sigma[:, None, None, None]
        width = width_of(graph)[:, None, None]
        scale = s * width / torch.sqrt(s * s + width * width)
        level = sigma.log()[:, None]
        waves = torch.exp(torch.linspace(math.log(0.3), math.log(4.0), 16, dtype=x.dtype, device=x.device))
        condition = self.noise(
            torch.cat([torch.sin(level * waves), torch.cos(level * waves), level / 3], dim=-1)
        )
        known = torch.cat([encoded.local, graph.trust, graph.crowd], dim=-1).expand(len(x), -1, -1)
        h = self.kind(graph.kind) + self.still(torch.cat([known, fits], dim=-1))
        apart = torch.stack([coarse - base for coarse in levels[:-1]], dim=2) / scale[..., None]
        # At low noise the larger neighbourhoods are far away in units of the scale: bounded by it.
        apart = apart / (1 + apart.square().sum(-1, keepdim=True).add(1e-6).sqrt())
        estimates, estimate, f = [base], base, torch.zeros_like(x)
        for stage, linear in zip(self.stages, self.reference, strict=True):
            # While training, gradients do not run through the geometry of earlier estimates.
            seen = estimate.detach() if self.training else estimate
            frames = residue_frames(seen)
            local, directions = _local(seen, sigma, graph)
            noisy = ((x - seen) / torch.sqrt(s * s + 0.01)) @ frames
            levelled = apart[:, :, :, 1] @ frames
            geometry = torch.cat([noisy.flatten(-2), levelled.flatten(-2), local], dim=-1)
            features, gaps = _pairs(seen, frames, graph)
            strain = torch.cat([torch.tanh((gaps - encoded.gaps) / c) for c in _STRAINS], dim=-1)
            static = linear(encoded.features) + self.offset(graph.offset)
            h, change = stage(h, geometry, (features, strain, static), condition, graph)
            turned, pulls, mix = change.split((12, LOCAL_DISTANCES, LEVELS), dim=-1)
            f = f + turned.unflatten(-1, (4, 3)) @ frames.mT + pull(pulls[None], directions)[0]
            f = f + (mix[..., None, None] * apart).sum(2)
            estimate = base + scale * f
            estimates.append(estimate)
        return estimates


def _pairs(atoms: Tensor, frames: Tensor, graph: ChainGraph) -> tuple[Tensor, Tensor]:
    """Relative geometry of neighbours, shape=(c, t, k, f); CA and CB distances, shape=(c, t, k, 2)."""
    c, t = atoms.shape[:2]
    k = graph.neighbours.shape[1]
    full = with_beta(atoms)
    index = graph.neighbours.flatten()
    others = full.index_select(1, index).view(c, t, k, 5, 3)
    turned = frames.index_select(1, index).view(c, t, k, 3, 3)
    # Each residue is a query of its own, with its neighbours as keys.
    features = pair_features(full[:, :, None], frames[:, :, None], others, turned)[:, :, 0]
    gaps = (others[..., (1, 4), :] - full[:, :, None, (1, 4)]).square().sum(-1).add(1e-4).sqrt()
    return features, gaps


def _local(atoms: Tensor, sigma: Tensor, graph: ChainGraph) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Local distances and directions along the chains, shape=(c, t, LOCAL_DISTANCES)."""
    chain = functional.pad(atoms, (0, 0, 0, 0, 1, 1))[None]
    there = graph.linked.to(atoms.dtype)[None, None]
    features, directions = local_distances(chain, there, sigma[:, None, None])
    return features[0], directions
