"""Measure the embedded prior: ``python training/evaluate.py --chains FILE.npz [--segments N] --json OUT``.

Segments are drawn from the chains given (validation chains if the file marks any), with a seed, between
two anchors. Sampling is unguided; RMSD is over N, CA, C, O in place, without superposition. ``all`` is
uniform over residues; ``loop`` has at least 60 % coil (neither helix nor bridge by the hydrogen bonds of
Kabsch and Sander). The closed-form chain prior of the same anchors goes through the same table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chemistry import chemistry
from corpus import EVERYTHING, Corpus, Told, cut, load
from densemble.priors.embedded import CHURN, SIGMA_MIN, WEIGHTS, first_level, load_network
from densemble.priors.segment_geometry import Segment, stack
from densemble.priors.segment_network import SegmentNetwork
from intervals import of_quantile
from regularised import chemistry_regularised
from reverse import Reverse
from structure import coil

LENGTHS = (4, 8, 12, 16)
LOOP_FRACTION = 0.6
BATCH = 10
REGULARISED = (5, 4)
"""Segments of each set and members of each that go through the geometry objective."""


@dataclass(frozen=True)
class Sampling:
    """How members are drawn.

    Attributes:
        members: of each segment.
        steps: reverse steps.
        sigma_min, churn, churn_min, rho, heun: see ``densemble.priors.edm.EDM``.
        vp_unit: see ``reverse.Reverse``, here in the largest expected standard deviations of the segments.
        posterior: see ``reverse.Reverse``.
    """

    members: int = 16
    steps: int = 50
    churn: float = CHURN
    churn_min: float = 0.05
    sigma_min: float = SIGMA_MIN
    rho: float = 7.0
    heun: bool = False
    vp_unit: float | None = None
    posterior: bool = False

    @property
    def widths(self) -> float:
        """First noise level, in the largest expected standard deviations of the segments."""
        return first_level(1.0, self.churn)

    @property
    def record(self) -> dict[str, float | bool | None]:
        """All of it, for a file."""
        return vars(self) | {"widths": self.widths}


def draw(corpus: Corpus, length: int, count: int, *, loop: bool, seed: int) -> list[tuple[int, int]]:
    """Chain and first residue of ``count`` segments, uniform over residues.

    Raises:
        ValueError: the chains hold too few such segments.
    """
    rng = np.random.default_rng([seed, length, int(loop)])
    chains = corpus.chosen(validation=True)
    chains = chains if len(chains) else np.arange(len(corpus))
    ends = np.cumsum(corpus.offset[chains + 1] - corpus.offset[chains])
    coils: dict[int, np.ndarray] = {}
    found: list[tuple[int, int]] = []
    for _ in range(2000 * count):
        chain = int(chains[np.searchsorted(ends, rng.integers(ends[-1]), side="right")])
        atoms, _ = corpus.chain(chain)
        if len(atoms) < length + 2:
            continue
        start = int(rng.integers(1, len(atoms) - length))
        if loop:
            if chain not in coils:
                coils[chain] = coil(atoms.astype(np.float64))
            if coils[chain][start : start + length].mean() < LOOP_FRACTION:
                continue
        found.append((chain, start))
        if len(found) == count:
            return found
    raise ValueError(f"the chains hold too few segments of {length} residues")


def sample(
    denoise: Callable[[Tensor, float], Tensor],
    mean: Tensor,
    sigma_max: float,
    sampling: Sampling,
    generator: torch.Generator,
) -> Tensor:
    """Unguided samples about each of B means.

    Args:
        denoise: takes x of shape (b, members, l, 4, 3) and sigma.
        mean: centre of pure noise, Å, shape=(b, l, 4, 3).
        sigma_max: first noise level, Å.
        sampling: members, steps, churn.
        generator: source of randomness.
    """
    b, length = mean.shape[:2]
    shape = (b, sampling.members, length, 4, 3)
    center = torch.zeros(4 * length, 3, dtype=mean.dtype)
    widest = sigma_max / sampling.widths
    process = Reverse(
        center,
        sigma_max=sigma_max,
        sigma_min=sampling.sigma_min,
        rho=sampling.rho,
        churn=sampling.churn,
        churn_min=sampling.churn_min,
        heun=sampling.heun,
        vp_unit=None if sampling.vp_unit is None else sampling.vp_unit * widest,
        posterior=sampling.posterior,
    )

    def flat(x: Tensor, sigma: float) -> Tensor:
        return denoise(x.view(shape), sigma).reshape(x.shape)

    x = process.initial(b * sampling.members, generator).view(shape) + mean[:, None]
    x = x.reshape(-1, 4 * length, 3)
    times = process.times(sampling.steps)
    for t, t_next in itertools.pairwise(times):
        x = process.step(flat, x, t, t_next, generator)
    return x.view(shape)


def network_denoiser(network: SegmentNetwork, segment: Segment) -> Callable[[Tensor, float], Tensor]:
    """The network on one batch of segments, the context encoded once."""
    encoded = network.encode(segment)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return network(x, torch.full(x.shape[:2], sigma), segment, encoded)[-1]

    return denoise


def bridge_denoiser(segment: Segment) -> Callable[[Tensor, float], Tensor]:
    """The closed-form chain prior: a Brownian bridge of the backbone between the anchors.

    Steps along N, CA, C (1.45 Å on average) are independent Gaussians, conditioned on both ends (C before, N
    after); O follows its C with the spread of a bond. Its denoiser is exact: C (C + sigma^2)^-1.
    """
    length = segment.kind.shape[1]
    index = np.arange(3 * length)
    place = np.stack([3 * np.arange(length) + k for k in (0, 1, 2, 2)], axis=1).ravel()
    n = 3 * length + 1
    bridge = np.minimum.outer(index + 1, index + 1) * (n - np.maximum.outer(index + 1, index + 1)) / n
    covariance = 1.45**2 * bridge[np.ix_(place, place)]
    covariance += np.diag(np.tile([0.0, 0.0, 0.0, 1.23**2 / 3], length))
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = torch.from_numpy(values).float().clamp(min=1e-6), torch.from_numpy(vectors).float()
    mean = segment.mean.reshape(len(segment.kind), 1, -1, 3)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        flat = x.flatten(2, 3) - mean
        shrink = (values / (values + sigma**2))[:, None]
        return (mean + vectors @ (shrink * (vectors.T @ flat))).view(x.shape)

    return denoise


def rank_histogram(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank, among the members', of the true distances from the middle residue's CA to the other CA.

    Uniform if the spread of the members is that of the truth; U-shaped if they are too alike.

    Args:
        samples: canonical frame, shape=(s, k, l, 4, 3).
        truth: shape=(s, l, 4, 3).

    Returns:
        Counts over the k + 1 ranks.
    """
    middle = truth.shape[1] // 2
    end = np.arange(truth.shape[1]) != middle
    pairs = [(samples[:, :, middle, 1] - samples[:, :, j, 1]) for j in np.flatnonzero(end)]
    true = [(truth[:, middle, 1] - truth[:, j, 1]) for j in np.flatnonzero(end)]
    far = np.linalg.norm(np.stack(pairs), axis=-1)
    own = np.linalg.norm(np.stack(true), axis=-1)
    rank = (far < own[..., None]).sum(-1)
    return np.bincount(rank.ravel(), minlength=samples.shape[1] + 1)


def measure(
    network: SegmentNetwork,
    corpus: Corpus,
    places: list[tuple[int, int]],
    length: int,
    sampling: Sampling,
    seed: int,
    told: Told = EVERYTHING,
) -> tuple[dict[str, object], dict[str, float], np.ndarray]:
    """RMSD of samples of one set of segments, by the network and by the closed form; chemistry; samples."""
    generator = torch.Generator().manual_seed(seed)
    drawn, truths, items, closed = [], [], [], []
    start = time.perf_counter()
    spent = 0.0
    for first in range(0, len(places), BATCH):
        batch = places[first : first + BATCH]
        cuts = [cut(*corpus.chain(c), s, length) for c, s in batch]
        seen = cuts if told == EVERYTHING else [cut(*corpus.chain(c), s, length, told=told) for c, s in batch]
        segment = stack([item for item, _ in seen])
        sigma_max = sampling.widths * float(segment.width.max())
        before = time.perf_counter()
        drawn.append(sample(network_denoiser(network, segment), segment.mean, sigma_max, sampling, generator))
        spent += time.perf_counter() - before
        closed.append(sample(bridge_denoiser(segment), segment.mean, sigma_max, sampling, generator))
        truths.append(torch.from_numpy(np.stack([x for _, x in cuts])).float())
        items.extend(item for item, _ in cuts)
    samples, truth = torch.cat(drawn).numpy(), torch.cat(truths).numpy()
    figures = summary(samples, truth) | {
        "closed_form": summary(torch.cat(closed).numpy(), truth),
        "seconds": spent,
        "seconds_per_segment": spent / len(places),
        "seconds_total": time.perf_counter() - start,
        "rank_histogram": rank_histogram(samples, truth).tolist(),
    }
    return figures, chemistry(samples, items), samples


def summary(samples: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """Medians of members' and of the best member's RMSD, Å, with their intervals over segments."""
    square = ((samples - truth[:, None]) ** 2).sum(-1).mean((2, 3))
    rmsd = np.sqrt(square)
    return {
        "segments": len(rmsd),
        "single_median": float(np.median(rmsd)),
        "single_median_interval": of_quantile(rmsd),
        "single_mean": float(rmsd.mean()),
        f"best{rmsd.shape[1]}_median": float(np.median(rmsd.min(1))),
        f"best{rmsd.shape[1]}_median_interval": of_quantile(rmsd.min(1)),
        f"best{rmsd.shape[1]}_mean": float(rmsd.min(1).mean()),
    }


def denoising_error(denoise: Callable[[Tensor, float], Tensor], truth: Tensor, seed: int) -> dict[str, float]:
    """Root mean square error per coordinate of D(x0 + sigma n; sigma) against sigma, Å.

    Args:
        denoise: takes x of shape (b, members, l, 4, 3) and sigma.
        truth: Å, shape=(b, 1, l, 4, 3).
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = {}
    for sigma in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        x = truth + sigma * torch.randn(truth.shape, generator=generator)
        errors[str(sigma)] = float((denoise(x, sigma) - truth).square().mean().sqrt())
    return errors


@torch.no_grad()
def evaluate(
    network: SegmentNetwork, corpus: Corpus, *, segments: int, sampling: Sampling, seed: int
) -> dict:
    """Everything in the model card's table."""
    start = time.perf_counter()
    table: dict[str, dict[str, object]] = {"all": {}, "loop": {}}
    chemical: dict[str, dict[str, float]] = {}
    drawn: dict[str, tuple[list[tuple[int, int]], np.ndarray]] = {}
    for kind in table:
        for length in LENGTHS:
            places = draw(corpus, length, segments, loop=kind == "loop", seed=seed)
            figures, good, samples = measure(network, corpus, places, length, sampling, seed)
            name = f"{kind}_{length}"
            table[kind][str(length)], chemical[name], drawn[name] = figures, good, (places, samples)
    count, members = REGULARISED
    cuts = [cut(*corpus.chain(c), s, 8) for c, s in draw(corpus, 8, segments, loop=False, seed=seed)]
    segment = stack([item for item, _ in cuts])
    truth = torch.from_numpy(np.stack([x for _, x in cuts])).float()[:, None]
    return {
        "segments": table,
        "chemistry": pooled(chemical) | {"by_set": chemical},
        "chemistry_regularised": chemistry_regularised(corpus, drawn, segments=count, members=members),
        "denoising_rmse": denoising_error(network_denoiser(network, segment), truth, seed),
        "denoising_rmse_closed_form": denoising_error(bridge_denoiser(segment), truth, seed),
        "sampling": sampling.record,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - start,
    }


def pooled(chemical: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over the sets of segments."""
    names = next(iter(chemical.values())).keys()
    return {name: float(np.mean([c[name] for c in chemical.values()])) for name in names}


def table_text(result: dict) -> str:
    """The table for people."""
    best = f"best{result['sampling']['members']}_median"
    lines = ["set       single    best   closed single / best"]
    for kind, rows in result["segments"].items():
        for length, row in rows.items():
            closed = row["closed_form"]
            lines.append(
                f"{kind} {length:>3}  {row['single_median']:8.2f}{row[best]:8.2f}"
                f"{closed['single_median']:12.2f} / {closed[best]:.2f}"
            )
    lines.extend(f"{k}: {v:.4f}" for k, v in result["chemistry"].items() if isinstance(v, float))
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=Path, required=True, help="a file of the corpus format")
    parser.add_argument("--segments", type=int, default=100, help="segments of each length and kind")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--churn", type=float, default=CHURN)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampling = Sampling(members=args.members, steps=args.steps, churn=args.churn)
    network, corpus = load_network(args.weights), load(args.chains)
    result = evaluate(network, corpus, segments=args.segments, sampling=sampling, seed=args.seed)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table_text(result))


if __name__ == "__main__":
    main()
