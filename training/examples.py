"""Random training examples: segments of the corpus, noise levels, noisy copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from corpus import EVERYTHING, Corpus, Told, cut
from densemble.priors.segment_geometry import Segment, stack

SIGMA_MIN = 0.02


@dataclass(frozen=True)
class Batch:
    """B segments of one length with C noisy copies each, canonical frames, Å."""

    segment: Segment
    truth: Float[Tensor, "b l 4 3"]
    noisy: Float[Tensor, "b c l 4 3"]
    sigma: Float[Tensor, "b c"]

    def __len__(self) -> int:
        return self.sigma.numel()


def random_length(rng: np.random.Generator) -> int:
    """Lengths 1-24, with emphasis on 4-16."""
    weight = np.array([0.4 if n < 4 else 1.0 if n <= 16 else 0.3 for n in range(1, 25)])
    return int(rng.choice(np.arange(1, 25), p=weight / weight.sum()))


def random_levels(width: np.ndarray, copies: int, rng: np.random.Generator) -> np.ndarray:
    """Noise levels of each copy, stratified.

    Four fifths log-normal about 0.3 of the segment's largest width, where the course of the chain is
    decided; one fifth log-uniform from ``SIGMA_MIN`` to 0.6 Å, where bonds and angles are.

    Args:
        width: largest expected standard deviation of each segment, Å, shape=(B,).
        copies: number of levels per segment.
        rng: source of randomness.

    Returns:
        Levels in Å, shape=(B, C), between ``SIGMA_MIN`` and 4 widths.
    """
    u = (np.arange(copies) + rng.random((len(width), copies))) / copies
    coarse = 0.3 * width[:, None] * np.exp(1.3 * ndtri(np.clip(u / 0.8, 1e-4, 1 - 1e-4)))
    fine = SIGMA_MIN * (0.6 / SIGMA_MIN) ** ((u - 0.8) / 0.2)
    return np.clip(np.where(u < 0.8, coarse, fine), SIGMA_MIN, 4 * width[:, None])


def random_segment(
    corpus: Corpus,
    chains: np.ndarray,
    length: int,
    terminal: float,
    hide: float,
    rng: np.random.Generator,
    told: Told = EVERYTHING,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One segment drawn uniformly over residues, at a chain's end with probability ``terminal``."""
    first, last = corpus.offset[chains], corpus.offset[chains + 1]
    ends = np.cumsum(last - first)
    index = int(chains[np.searchsorted(ends, rng.integers(ends[-1]), side="right")])
    atoms, types = corpus.chain(index)
    n = len(atoms)
    if rng.random() < terminal:
        start = 0 if rng.random() < 0.5 else n - length
    else:
        start = int(rng.integers(1, n - length))
    hidden = None
    if rng.random() < hide:
        hidden = np.zeros(n, dtype=bool)
        stretch = int(rng.integers(4, 17))
        at = int(rng.integers(max(0, start - 40), min(n, start + length + 40)))
        hidden[at : at + stretch] = True
    return cut(atoms, types, start, length, hidden, told)


def random_batch(
    corpus: Corpus,
    chains: np.ndarray,
    *,
    tokens: int,
    copies: int,
    terminal: float,
    hide: float,
    rng: np.random.Generator,
    length: int | None = None,
    told: Told = EVERYTHING,
) -> Batch:
    """A batch of about ``tokens`` noisy residues, all segments of one random length (or the one given)."""
    length = random_length(rng) if length is None else length
    count = max(4, round(tokens / (copies * length)))
    # Very short segments would fill the batch with contexts, which are not cheaper for them.
    count = min(count, tokens // (copies * 5))
    drawn = [random_segment(corpus, chains, length, terminal, hide, rng, told) for _ in range(count)]
    segment = stack([item for item, _ in drawn])
    truth = torch.from_numpy(np.stack([x for _, x in drawn])).float()
    levels = random_levels(segment.width.amax((1, 2)).numpy(), copies, rng)
    sigma = torch.from_numpy(levels).float()
    noise = torch.from_numpy(rng.standard_normal((count, copies, length, 4, 3), dtype=np.float32))
    noisy = truth[:, None] + sigma[..., None, None, None] * noise
    return Batch(segment, truth, noisy, sigma)
