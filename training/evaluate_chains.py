"""Measure the whole-chain prior: ``python training/evaluate_chains.py --pairs FOLDER --json OUT``.

FOLDER holds one folder a protein with two files, one conformation each (backbones, same residues). The
first is the reference, the second the truth, which makes the map (CA atoms at 4 Å as ``molmap`` draws them,
with noise) and is used for nothing else but the figures: the reference is placed in the map by the map alone.

Guided: Cα RMSD after superposition, of the sample that fits the map best. Unguided, from the reference
alone: how far samples move, how much of it along the slowest modes of the reference's elastic network, and
how much of the way to the second conformation lies along the samples' main modes, and along the network's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from chemistry import PEPTIDE, TOLERANCE
from densemble.experiments.pairs import common
from densemble.forward.kernel import gaussian_density
from densemble.grid import Grid
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.io.models import Model, read_model
from densemble.likelihood.blur import gaussian_blur
from densemble.metrics.coordinates import rmsd, superpose
from densemble.priors.chain_graph import Trust
from densemble.priors.elastic_network import ElasticNetwork
from densemble.priors.whole_chain import CHAIN_WEIGHTS, WholeChainPrior, load_chain_network
from densemble.sampler import sample

NOISE = 0.05
"""Standard deviation of the map's noise over that of its density above a tenth of the maximum."""
_BLUR_STEP = 0.5
_SLOW = 10


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    The map is blurred by ``blur_per_sigma`` times the noise, at most ``blur`` Å: about the uncertainty of
    x0_hat. Its weight falls from ``weight`` at the most noise to ``weight_end``; see ``Stage`` for ``limit``.
    Chosen by trial on P0AEQ3, P67701 and P69441.
    """

    steps: int = 50
    guided: int = 4
    unguided: int = 16
    churn: float = 0.3
    resolution: float = 4.0
    blur_per_sigma: float = 0.25
    blur: float = 5.0
    weight: float = 30.0
    weight_end: float = 2.0
    limit: float = 4.0


class AlphaMap:
    """A map of CA atoms and how well models explain it.

    Args:
        alpha: Å, of the truth, shape=(n, 3).
        resolution: Å.
        generator: of the noise.
    """

    def __init__(self, alpha: Float[Tensor, "n 3"], resolution: float, generator: torch.Generator) -> None:
        self.grid = Grid.around(alpha.numpy(), margin=12.0, spacing=1.0)
        self.width = resolution / (math.pi * math.sqrt(2))
        clean = self.density(alpha, 0.0)
        high = clean > 0.1 * clean.max()
        noise = torch.randn(clean.shape, generator=generator)
        noise = gaussian_blur(noise, self.grid, self.width)
        self.values = clean + NOISE * clean[high].std() * noise / noise.std()
        self.volume = float(high.sum()) * self.grid.voxel_volume
        self._blurred: dict[float, Tensor] = {}

    def density(self, alpha: Float[Tensor, "n 3"], blur: float) -> Float[Tensor, "nx ny nz"]:
        """One Gaussian an atom, of integral one."""
        exponent = 1 / (2 * (self.width**2 + blur**2))
        alpha_of = alpha.new_full((len(alpha), 1), exponent)
        height = alpha.new_full((len(alpha), 1), (exponent / math.pi) ** 1.5)
        return gaussian_density(self.grid, alpha, height, alpha_of)

    def target(self, blur: float) -> Tensor:
        """The map, blurred."""
        if blur not in self._blurred:
            self._blurred[blur] = gaussian_blur(self.values, self.grid, blur)
        return self._blurred[blur]

    def correlation(self, alpha: Float[Tensor, "n 3"], blur: float = 0.0) -> Tensor:
        """Cosine of map and model over the box."""
        model, target = self.density(alpha, blur), self.target(blur)
        return (model * target).sum() / (model.norm() * target.norm())

    def log_likelihood(self, alphas: Float[Tensor, "k n 3"], blur: float) -> Tensor:
        """Sum over members, each alone; scale and noise level at their most likely.

        ``-(n / 2) log(1 - cosine^2)`` with n the degrees of freedom that the blurred map has in the volume of
        the molecule.
        """
        finest = math.pi * math.sqrt(2) * math.sqrt(self.width**2 + blur**2)
        data = self.volume * 4 * math.pi / (3 * finest**3)
        cosines = torch.stack([self.correlation(alpha, blur) for alpha in alphas])
        return -0.5 * data * torch.log1p(-(cosines.clamp(max=0.9999) ** 2)).sum()


def place(alpha: Float[Tensor, "n 3"], target: AlphaMap, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and shift of a model into a map: by centres of mass, 2,000 turns, then gradient steps.

    Returns:
        Rotation, shape=(3, 3), and shift in Å such that ``alpha @ rotation.T + shift`` lies in the map.
    """
    values = target.target(2.0)
    grid = target.grid
    low = torch.tensor(grid.origin)
    size = torch.tensor([h * (n - 1) for h, n in zip(grid.spacing, grid.shape, strict=True)])
    weights = values.clamp(min=0.2 * float(values.max())) - 0.2 * float(values.max())
    points = torch.as_tensor(grid.points()).float().reshape(*values.shape, 3)
    goal = (weights[..., None] * points).sum((0, 1, 2)) / weights.sum()
    centre = alpha.mean(0)

    def score(x: Tensor) -> Tensor:
        """Mean density at the atoms of poses of shape (p, n, 3)."""
        where = (2 * (x - low) / size - 1)[None, None]
        return grid_sample(values.permute(2, 1, 0)[None, None], where, align_corners=True)[0, 0, 0].mean(-1)

    turns = torch.from_numpy(Rotation.random(2000, random_state=seed).as_matrix()).float()
    with torch.no_grad():
        values_of = torch.cat([score((alpha - centre) @ t.mT + goal) for t in turns.split(100)])
    best, best_value = (turns[0], goal), -1.0
    for start in values_of.topk(5).indices:
        vector, shift = torch.zeros(3, requires_grad=True), goal.clone().requires_grad_()
        optimizer = torch.optim.Adam([{"params": [vector], "lr": 0.02}, {"params": [shift], "lr": 0.2}])
        for _ in range(80):
            optimizer.zero_grad()
            turn = torch.linalg.matrix_exp(_cross(vector)) @ turns[start]
            value = target.correlation((alpha - centre) @ turn.mT + shift, 2.0)
            (-value).backward()
            optimizer.step()
        if float(value.detach()) > best_value:
            best, best_value = (turn.detach(), shift.detach()), float(value.detach())
    rotation = best[0].double().numpy()
    return rotation, best[1].double().numpy() - rotation @ centre.double().numpy()


def _cross(v: Tensor) -> Tensor:
    zero = torch.zeros_like(v[0])
    rows = [
        torch.stack([zero, -v[2], v[1]]),
        torch.stack([v[2], zero, -v[0]]),
        torch.stack([-v[1], v[0], zero]),
    ]
    return torch.stack(rows)


def rows_of(prior: WholeChainPrior) -> Tensor:
    """N, CA, C, O of each residue among the prior's atoms, shape=(T, 4)."""
    return torch.as_tensor(prior.topology.backbone(range(len(prior.topology.residues))))


def draw(prior: WholeChainPrior, count: int, steps: int, seed: int) -> Float[np.ndarray, "k t 4 3"]:
    """Unguided samples."""
    with torch.no_grad():
        x = sample(prior, steps=steps, members=count, generator=torch.Generator().manual_seed(seed))
    return x[:, rows_of(prior)].double().numpy()


def draw_guided(
    prior: WholeChainPrior, target: AlphaMap, sampling: Sampling, seed: int
) -> Float[np.ndarray, "k t 4 3"]:
    """Samples, each guided by the map alone."""
    alpha = rows_of(prior)[:, 1]

    def term(x: Tensor, sigma: float) -> Tensor:
        blur = round(min(sampling.blur_per_sigma * sigma, sampling.blur) / _BLUR_STEP) * _BLUR_STEP
        return target.log_likelihood(x[:, alpha], blur)

    stage = Stage(
        name="map",
        term=term,
        high=2 * prior.process.sigma_max,
        low=0.1,
        weight=sampling.weight,
        weight_end=sampling.weight_end,
        limit=sampling.limit,
    )
    guided = GuidedPrior(prior, [stage])
    generator = torch.Generator().manual_seed(seed)
    x = sample(guided, steps=sampling.steps, members=sampling.guided, generator=generator)
    return x[:, rows_of(prior)].double().numpy()


def peptides(x: Float[np.ndarray, "k t 4 3"], linked: np.ndarray) -> float:
    """Fraction of peptide bonds of 1.33 ± 0.03 Å."""
    bonds = np.linalg.norm(x[:, 1:, 0] - x[:, :-1, 2], axis=-1)[:, linked[1:]]
    return float((np.abs(bonds - PEPTIDE) < TOLERANCE).mean())


def alphas(model: Model) -> Int[np.ndarray, " t"]:
    """Indices of the CA of all residues."""
    return model.topology.backbone(range(len(model.topology.residues)))[:, 1]


def slowest(model: Model) -> Float[np.ndarray, "m d"]:
    """Orthonormal displacements of CA in the ten slowest modes of the elastic network, shape=(10, 3 T)."""
    _, displaced = ElasticNetwork(model.topology, model.coords).modes(_SLOW)
    of_alphas = displaced[:, alphas(model)].reshape(len(displaced), -1)
    return np.linalg.qr(of_alphas.T)[0].T


def moves(
    samples: Float[np.ndarray, "k t 3"],
    reference: Float[np.ndarray, "t 3"],
    truth: Float[np.ndarray, "t 3"],
    slow: Float[np.ndarray, "m d"],
) -> dict[str, float]:
    """How far CA move from the reference, along which modes, and how much of the way to the truth these hold.

    The cumulative overlap of the first m principal components p_i of the samples with the direction d to the
    truth is sqrt(sum_i (p_i . d)^2) (Marques & Sanejouand 1995, Proteins 23, 557).

    Args:
        samples: Å.
        reference: Å.
        truth: Å.
        slow: orthonormal slow modes of the reference, by which motion is compared, shape=(m, 3 T).
    """
    fitted = np.stack([superpose(x, reference) for x in samples])
    way = (superpose(truth, reference) - reference).ravel()
    away = (fitted - fitted.mean(0)).reshape(len(fitted), -1)
    modes = np.linalg.svd(away, full_matrices=False)[2][: len(fitted) - 1]
    overlap = np.sqrt(np.cumsum((modes @ (way / np.linalg.norm(way))) ** 2))
    elastic = np.linalg.norm(slow @ way) / np.linalg.norm(way)
    return {
        "moved_median": float(np.median(rmsd(fitted, reference))),
        "moved_largest": float(rmsd(fitted, reference).max()),
        "nearest_to_truth": float(min(rmsd(superpose(x, truth), truth) for x in samples)),
        "overlap_first": float(overlap[0]),
        "overlap_three": float(overlap[2]),
        "overlap_ten": float(overlap[min(9, len(overlap) - 1)]),
        "overlap_elastic": float(elastic),
        "variance_in_elastic": float(np.square(away @ slow.T).sum() / np.square(away).sum()),
    }


def measure_guided(
    first: Model, second: Model, sampling: Sampling, trust: Trust, weights: Path, seed: int
) -> dict[str, object]:
    """From the first conformation to the second by the second's map."""
    network = load_chain_network(weights)
    options = {"trust": trust, "network": network, "churn": sampling.churn}
    rows, truth = alphas(first), second.coords[alphas(second)]
    target = AlphaMap(
        torch.from_numpy(truth).float(), sampling.resolution, torch.Generator().manual_seed(seed)
    )
    rotation, shift = place(torch.from_numpy(first.coords[rows]).float(), target, seed)
    placed = first.coords @ rotation.T + shift
    prior = WholeChainPrior(first.topology, placed, **options)
    begin = time.process_time()
    samples = draw_guided(prior, target, sampling, seed)
    spent = time.process_time() - begin
    fits = [float(target.correlation(torch.from_numpy(x[:, 1]).float())) for x in samples]
    errors = [float(rmsd(superpose(x[:, 1], truth), truth)) for x in samples]
    start = placed[rows]
    return {
        "residues": len(rows),
        "start": float(rmsd(superpose(start, truth), truth)),
        "start_fit": float(target.correlation(torch.from_numpy(start).float())),
        "truth_fit": float(target.correlation(torch.from_numpy(truth).float())),
        "selected": errors[int(np.argmax(fits))],
        "selected_fit": max(fits),
        "best": min(errors),
        "all": errors,
        "peptides_guided": peptides(samples, prior.graph.linked[:-1].numpy()),
        "guided_cpu_seconds": spent,
    }


def measure_unguided(
    first: Model, second: Model, sampling: Sampling, trust: Trust, weights: Path, seed: int
) -> dict[str, object]:
    """Samples from the first conformation alone."""
    network = load_chain_network(weights)
    prior = WholeChainPrior(first.topology, first.coords, trust=trust, network=network, churn=sampling.churn)
    samples = draw(prior, sampling.unguided, sampling.steps, seed)
    rows = alphas(first)
    found = moves(samples[:, :, 1], first.coords[rows], second.coords[alphas(second)], slowest(first))
    return {
        "residues": len(rows),
        "peptides_unguided": peptides(samples, prior.graph.linked[:-1].numpy()),
        "unguided": found,
    }


PARTS = {"guided": measure_guided, "unguided": measure_unguided}


def text(name: str, row: dict) -> str:
    """What was measured of one protein, for people."""
    lines = [f"{name} {row['residues']} residues"]
    if "selected" in row:
        lines.append(
            f"  guided: {row['start']:.2f} to {row['selected']:.2f} (best {row['best']:.2f}) Å, fit"
            f" {row['start_fit']:.3f} to {row['selected_fit']:.3f} (truth {row['truth_fit']:.3f}),"
            f" C-N {100 * row['peptides_guided']:.1f} %"
        )
    if "unguided" in row:
        free = row["unguided"]
        lines.append(
            f"  unguided: moved {free['moved_median']:.2f} (most {free['moved_largest']:.2f}) Å,"
            f" {100 * free['variance_in_elastic']:.0f} % in slow elastic modes; overlap with the way of 1, 3,"
            f" 10 modes {free['overlap_first']:.2f}, {free['overlap_three']:.2f}, {free['overlap_ten']:.2f}"
            f" (elastic network, ten: {free['overlap_elastic']:.2f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=CHAIN_WEIGHTS)
    parser.add_argument("--domains", type=float, default=Trust().domains, help="Å; see Trust")
    parser.add_argument("--local", type=float, default=Trust().local, help="Å; see Trust")
    parser.add_argument("--steps", type=int, default=Sampling().steps)
    parser.add_argument("--members", type=int, default=Sampling().guided)
    parser.add_argument("--weight", type=float, default=Sampling().weight, help="of the map")
    parser.add_argument("--blur-per-sigma", type=float, default=Sampling().blur_per_sigma)
    parser.add_argument("--blur", type=float, default=Sampling().blur, help="Å")
    parser.add_argument("--weight-end", type=float, default=Sampling().weight_end)
    parser.add_argument("--limit", type=float, default=Sampling().limit, help="Å; see Stage")
    parser.add_argument("--only", nargs="*", help="some of the proteins")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(
        steps=args.steps,
        guided=args.members,
        weight=args.weight,
        blur_per_sigma=args.blur_per_sigma,
        blur=args.blur,
        weight_end=args.weight_end,
        limit=args.limit,
    )
    trust = Trust(domains=args.domains, local=args.local)
    found: dict[str, dict] = {}
    for folder in sorted(
        p for p in args.pairs.iterdir() if p.is_dir() and (not args.only or p.name in args.only)
    ):
        first, second = common(*(read_model(p) for p in sorted(folder.glob("*.pdb"))))
        row: dict = {}
        for part in args.parts:
            row |= PARTS[part](first, second, sampling, trust, args.weights, args.seed)
        found[folder.name] = row
        print(text(folder.name, row), flush=True)
        settings = vars(sampling) | vars(trust) | {"seed": args.seed}
        args.json.write_text(json.dumps({"pairs": found, "settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
