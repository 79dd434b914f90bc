"""Training the segment network: its examples and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corpus import Corpus, Told
from densemble.priors.segment_geometry import Segment
from densemble.priors.segment_network import NetworkConfig, SegmentNetwork
from examples import Batch, random_batch, random_length
from losses import geometry_error, link_distances


@dataclass(frozen=True)
class SegmentTask:
    """What ``segments.toml`` says of the examples.

    Attributes:
        tokens: noisy residues per step and process: contexts x copies x length.
        copies: noise levels of each example.
        terminal: fraction of segments at a chain's end.
        hide: fraction with a second stretch missing from the context.
        network: its sizes.
        sequence, context: whether the network is told of them; see ``corpus.Told``.
    """

    tokens: int
    copies: int
    terminal: float
    hide: float
    network: NetworkConfig
    sequence: bool = True
    context: bool = True

    @property
    def told(self) -> Told:
        """What the network is told of each segment."""
        return Told(self.sequence, self.context)

    def make(self) -> SegmentNetwork:
        """The network with fresh weights."""
        return SegmentNetwork(self.network)

    def batch(self, corpus: Corpus, chains: np.ndarray, seed: list[int], rank: int) -> Batch:
        """Random segments; those of all processes have the same length."""
        length = random_length(np.random.default_rng(seed))
        return self._draw(
            corpus, chains, np.random.default_rng([*seed, rank]), length, self.terminal, self.hide
        )

    def validation(self, corpus: Corpus, seed: int) -> list[Batch]:
        """Fixed segments of the validation chains."""
        chains = corpus.chosen(validation=True)
        return [
            self._draw(corpus, chains, np.random.default_rng([seed, 77, n]), n, 0.0, 0.0)
            for n in (4, 8, 8, 12, 12, 16)
        ]

    def _draw(
        self,
        corpus: Corpus,
        chains: np.ndarray,
        rng: np.random.Generator,
        length: int,
        terminal: float,
        hide: float,
    ) -> Batch:
        amounts = {"tokens": self.tokens, "copies": self.copies}
        shares = {"terminal": terminal, "hide": hide}
        return random_batch(corpus, chains, rng=rng, length=length, told=self.told, **amounts, **shares)

    def estimates(self, network: SegmentNetwork, batch: Batch) -> list[Tensor]:
        """Estimates of x0 after every stage."""
        return network(batch.noisy, batch.sigma, batch.segment, network.encode(batch.segment))

    def terms(self, estimates: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Denoising error of every stage, and the last one's local distances, of every noisy copy.

        Both are in units of the EDM output scale, so that every noise level counts alike.
        """
        sigma = batch.sigma[:, :, None, None]
        width = batch.segment.width[:, None]
        scale = sigma * width / torch.sqrt(sigma**2 + width**2)
        terms = {}
        for i, estimate in enumerate(estimates):
            error = ((estimate - batch.truth[:, None]) / scale[..., None]) ** 2
            terms[f"stage{i}"] = error.mean((2, 3, 4))
        found = anchored_distances(estimates[-1], batch.segment)
        truth = anchored_distances(batch.truth[:, None], batch.segment)
        there = torch.ones(found.shape[0], 1, found.shape[2], 1, device=found.device)
        there[:, 0, 0, 0], there[:, 0, -1, 0] = batch.segment.anchored.float().unbind(1)
        terms["geometry"] = geometry_error(found, truth, there, batch.sigma)
        return terms


def anchored_distances(x: Tensor, segment: Segment) -> Tensor:
    """Distances between all atoms of neighbouring residues, anchors included, shape=(b, c, l + 1, 28)."""
    b, c = x.shape[:2]
    ends = segment.anchors[:, None].expand(b, c, 2, 4, 3)
    return link_distances(torch.cat([ends[:, :, :1], x, ends[:, :, 1:]], dim=2))
