"""The Sinkhorn divergence between atoms and a cloud: GeomLoss's ways to it, and what accuracy costs.

The questions: which of the library's interfaces that run without KeOps is fastest, with the gradient, at the
size of residues (1,000 x 250) and of atoms (5,000 x 1,250)? How far are value and gradient from converged at
the paper's settings? Run ``python benchmarks/bench_transport.py``; all ways run one after another on one
thread, and of each the least time of three counts (``measuring``), so ratios mean something on a busy machine
while the times may not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from geomloss import SamplesLoss, ot
from torch import Tensor

from densemble.likelihood.cloud import PointCloud, point_cloud
from densemble.likelihood.transport import SinkhornDivergence
from measuring import REPEATS, begin, clock, parser_of, peak_bytes, timed, write

BLUR, REACH = 0.05, 10.0
Way = Callable[[Tensor], Tensor]


def molecule(atoms: int, count: int) -> tuple[Tensor, PointCloud]:
    """A ball of atoms at the density of protein, 1.3 Å apart, and the cloud of the ball sheared by 6 Å."""
    rng = np.random.default_rng(0)
    edge = np.arange(-40.0, 41.0, 2.57)
    lattice = np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), axis=-1).reshape(-1, 3)
    x = lattice[np.argsort(np.linalg.norm(lattice, axis=1))[:atoms]] + rng.uniform(-0.6, 0.6, (atoms, 3))
    moved = x + np.stack([6 * np.tanh(x[:, 1] / 10), np.zeros(atoms), np.zeros(atoms)], axis=1)
    around = np.repeat(moved, 8, axis=0) + rng.normal(size=(8 * atoms, 3))
    return torch.from_numpy(x), point_cloud(around, np.ones(len(around)), count=count)


def legacy(cloud: PointCloud, backend: str, scaling: float) -> Way:
    """``geomloss.SamplesLoss``, debiased, with all terms iterated."""
    loss = SamplesLoss("sinkhorn", p=2, blur=BLUR, reach=REACH, scaling=scaling, backend=backend)

    def value(x: Tensor) -> Tensor:
        y = cloud.points.to(x)
        share = (cloud.weights / cloud.weights.sum()).to(x)
        equal = torch.full((len(x),), 1 / len(x), dtype=x.dtype)
        return loss(equal, x, share, y)

    return value


def current(cloud: PointCloud, iterations: int) -> Way:
    """``geomloss.ot.solve_sample``, whose cost is not halved."""

    def value(x: Tensor) -> Tensor:
        share = (cloud.weights / cloud.weights.sum()).to(x)
        equal = torch.full((len(x),), 1 / len(x), dtype=x.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it makes numbers of tensors that need gradients
            found = ot.solve_sample(
                x, cloud.points.to(x), equal, share, debias=True, blur=BLUR, reach=REACH, max_iter=iterations
            )
        return found.value / 2

    return value


def ours(cloud: PointCloud, scaling: float, blur: float = BLUR) -> Way:
    """``SinkhornDivergence``."""
    divergence = SinkhornDivergence(cloud, scaling=scaling, blur=blur, reach=REACH)
    return lambda x: divergence(x[None])[0]


def measure(way: Way, x: Tensor, repeats: int = REPEATS) -> tuple[float, float, Tensor]:
    """Seconds with the gradient, the least of some runs; value, gradient."""
    leaf = x.clone().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        value = way(leaf)
        return value, torch.autograd.grad(value, leaf)[0]

    runs = [timed(run) for _ in range(repeats)]
    value, gradient = runs[-1][1]
    return min(seconds for seconds, _ in runs), float(value.detach()), gradient.double()


def backends(atoms: int, count: int) -> list[dict[str, object]]:
    """Print and return time and memory of each interface at one size, in single precision."""
    x, cloud = molecule(atoms, count)
    print(f"{atoms} atoms x {count} points, blur {BLUR} Å, reach {REACH} Å, float32, value and gradient:")
    ways = {
        "SinkhornDivergence": ours(cloud, 0.5),
        "SamplesLoss tensorized": legacy(cloud, "tensorized", 0.5),
        "SamplesLoss online": legacy(cloud, "online", 0.5),
        "SamplesLoss multiscale": legacy(cloud, "multiscale", 0.5),
        "ot.solve_sample, 15 rounds": current(cloud, 15),
    }
    own, rows = 0.0, list[dict[str, object]]()
    for name, way in ways.items():  # ours first; from the least memory to the most: the peak only grows
        try:
            seconds, value, gradient = measure(way, x.float())
        except NameError as error:
            print(f"  {name:28s} not available: {error}")
            continue
        own, peak, slope = own or seconds, peak_bytes(), float(gradient.norm())
        print(
            f"  {name:28s} s {seconds:7.2f} ({seconds / own:5.1f} x ours)   peak so far {peak >> 20:5d} MiB"
            f"   value {value:9.5f}   gradient {slope:.5f}"
        )
        row = {"atoms": atoms, "points": count, "way": name, "seconds": seconds, "ratio": seconds / own}
        rows.append(row | {"peak_memory_bytes": peak, "value": value, "gradient_norm": slope})
    return rows


def samples(atoms: int, count: int, members: int) -> dict[str, object]:
    """Print and return what all samples of a run cost, one member at a time."""
    x, cloud = molecule(atoms, count)
    before = peak_bytes()
    divergence = SinkhornDivergence(cloud, blur=BLUR, reach=REACH)
    seconds = measure(lambda y: divergence(y).sum(), x.float().repeat(members, 1, 1))[0]
    more = peak_bytes() - before
    print(f"{members} members of {atoms} atoms x {count} points: s {seconds:.2f}, {more >> 20} MiB more")
    return {
        "members": members,
        "atoms": atoms,
        "points": count,
        "seconds": seconds,
        "more_memory_bytes": more,
    }


def accuracy(atoms: int, count: int) -> list[dict[str, float]]:
    """Print and return what fewer iterations cost in accuracy, in double precision."""
    x, cloud = molecule(atoms, count)
    rows = []
    for blur in (0.05, 0.5, 2.0):
        _, best, slope = measure(ours(cloud, 0.99, blur), x, 1)  # not for its time
        print(f"{atoms} x {count}, blur {blur} Å: against scaling 0.99 (value {best:.4f} Å^2)")
        for scaling in (0.3, 0.5, 0.7, 0.9, 0.95):
            seconds, value, gradient = measure(ours(cloud, scaling, blur), x)
            error = float((gradient - slope).norm() / slope.norm())
            along = float((gradient * slope).sum() / gradient.norm() / slope.norm())
            print(
                f"  scaling {scaling:4.2f}   s {seconds:6.2f}   value {value / best - 1:+8.1e}   "
                f"gradient off by {error:.2f} of its norm, cosine {along:.3f}"
            )
            row = {"blur": blur, "scaling": scaling, "seconds": seconds, "value_error": value / best - 1}
            rows.append(row | {"gradient_error": error, "gradient_cosine": along})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    args = parser_of(__doc__).parse_args(arguments)
    result = begin("transport", args.threads)
    print(f"least {clock()} time of {REPEATS} runs each")
    result |= {"repeats": REPEATS, "all_members": samples(5000, 1250, 25)}
    small, lost, large = backends(1000, 250), accuracy(1000, 250), backends(5000, 1250)
    write(result | {"backends": small + large, "accuracy": lost}, args.json)


if __name__ == "__main__":
    main()
