"""Training the whole-chain network: its examples and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corpus import Corpus
from densemble.priors.chain_graph import ChainGraph, build_graph, join
from densemble.priors.chain_network import ChainNetwork, ChainNetworkConfig, width_of
from losses import geometry_error, link_distances
from references import random_reference, random_trust

SIGMA_MIN, SIGMA_MAX = 0.02, 150.0
_LEVELS = (SIGMA_MIN, 0.5, 20.0, SIGMA_MAX)
_SHARES = (0.0, 0.3, 0.85, 1.0)


@dataclass(frozen=True)
class ChainBatch:
    """Several chains with their references, and C noisy copies of all of them, Å."""

    graph: ChainGraph
    truth: Float[Tensor, "t 4 3"]
    noisy: Float[Tensor, "c t 4 3"]
    sigma: Float[Tensor, " c"]

    def __len__(self) -> int:
        return len(self.sigma) * self.graph.scales[0].count


@dataclass(frozen=True)
class ChainTask:
    """What ``chains.toml`` says of the examples.

    Attributes:
        tokens: noisy residues per step and process: copies x residues.
        copies: noise levels of each example.
        split: fraction of chains that are cut into two, as a complex has several.
        network: its sizes.
    """

    tokens: int
    copies: int
    split: float
    network: ChainNetworkConfig

    def make(self) -> ChainNetwork:
        """The network with fresh weights."""
        return ChainNetwork(self.network)

    def batch(self, corpus: Corpus, chains: np.ndarray, seed: list[int], rank: int) -> ChainBatch:
        """Random chains, until there are enough residues."""
        rng = np.random.default_rng([*seed, rank])
        wanted, graphs, truths = self.tokens // self.copies, [], []
        while sum(map(len, truths)) < wanted:
            graph, truth = self._example(*corpus.chain(int(rng.choice(chains))), rng)
            graphs.append(graph)
            truths.append(truth)
        truth = torch.from_numpy(np.concatenate(truths)).float()
        sigma = torch.from_numpy(random_levels(self.copies, rng)).float()
        noise = torch.from_numpy(rng.standard_normal((self.copies, *truth.shape), dtype=np.float32))
        return ChainBatch(join(graphs), truth, truth + sigma[:, None, None, None] * noise, sigma)

    def _example(
        self, atoms: np.ndarray, kind: np.ndarray, rng: np.random.Generator
    ) -> tuple[ChainGraph, np.ndarray]:
        """One chain's graph, and the truth in the frame of the graph's reference."""
        trust = random_trust(rng)
        reference = random_reference(atoms, trust, rng)
        n = len(atoms)
        linked, chain = np.arange(n) > 0, np.zeros(n, dtype=np.int64)
        if rng.random() < self.split:
            cut = int(rng.integers(10, n - 9))
            linked[cut], chain[cut:] = False, 1
        graph = build_graph(reference, kind, linked, trust, chain=chain)
        return graph, atoms - reference.mean((0, 1))

    def validation(self, corpus: Corpus, seed: int) -> list[ChainBatch]:
        """Fixed examples of the validation chains."""
        chains = corpus.chosen(validation=True)
        return [self.batch(corpus, chains, [seed, 77, k], 0) for k in range(6)]

    def estimates(self, network: ChainNetwork, batch: ChainBatch) -> list[Tensor]:
        """Estimates of x0: closed form, then after every stage."""
        return network(batch.noisy, batch.sigma, batch.graph, network.encode(batch.graph))

    def terms(self, estimates: list[Tensor], batch: ChainBatch) -> dict[str, Tensor]:
        """Denoising error of every stage in units of the EDM output scale; the last one's local distances."""
        sigma, width = batch.sigma[:, None, None, None], width_of(batch.graph)[:, None, None]
        scale = sigma * width / torch.sqrt(sigma**2 + width**2)
        terms = {
            f"stage{i}": (((estimate - batch.truth) / scale) ** 2).mean((1, 2, 3))
            for i, estimate in enumerate(estimates)
        }
        there = batch.graph.linked[1:-1, None]
        terms["geometry"] = geometry_error(
            link_distances(estimates[-1]), link_distances(batch.truth[None]), there, batch.sigma
        )
        return terms


def random_levels(copies: int, rng: np.random.Generator) -> np.ndarray:
    """Noise levels in Å, stratified: most where loops and domains are decided, a third where bonds are."""
    u = (np.arange(copies) + rng.random(copies)) / copies
    return np.exp(np.interp(u, _SHARES, np.log(_LEVELS)))
