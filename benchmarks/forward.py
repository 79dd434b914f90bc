"""What density and its gradient cost, against the machine and against the usual ways: the forward model.

The questions: how near to the machine's matrix product does the kernel run, and what does it save over (a)
every atom at every voxel with autograd, as the reference implementations have it, (b) every atom at the
voxels within its cutoff with autograd, scatter-added, as classical programs have it, (c) gemmi's density
calculator? ``python benchmarks/forward.py --case fab --json fab.json``. All ways run in turns in one process
and the least time of each counts: of the processor with one thread, of the wall with more, where ratios mean
something on a busy machine while the times may not. ``--growth FILE.png`` draws how the cost grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from torch import Tensor

from densemble.forward.electron import ElectronDensity
from densemble.forward.kernel import CUTOFF, count_operations, gaussian_density
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid

PAIRS = 6e6  # exponentials of one sample of all pairs, and of one chunk of the scatter-add
ELEMENTS = ("C", "C", "N", "C", "O", "C", "C", "O", "C", "N")


@dataclass(frozen=True)
class Case:
    """A molecule in a cubic box, ``edge`` voxels of ``spacing`` Å; form factors of five Gaussians."""

    atoms: int
    members: int
    edge: int
    spacing: float
    b_iso: tuple[float, float]
    kind: type[XrayDensity]


CASES = {
    "loop": Case(150, 16, 40, 0.6, (15, 40), XrayDensity),
    "fab": Case(3300, 1, 100, 0.8, (20, 60), XrayDensity),
    "pgp": Case(9000, 1, 160, 1.0, (60, 120), ElectronDensity),
    "ribosome": Case(150_000, 1, 400, 0.8, (40, 100), ElectronDensity),
}


@dataclass(frozen=True)
class Problem:
    """A case with its atoms placed: what every way is given."""

    case: Case
    grid: Grid
    coords: Tensor
    weights: Tensor
    b_iso: Tensor
    elements: list[str]
    gradient: Tensor

    @classmethod
    def of(cls, case: Case, *, edge: int | None = None) -> Problem:
        """A ball of atoms at the density of protein, 17 Å^3 each, at the middle of the box."""
        rng = np.random.default_rng(0)
        edge = edge or case.edge
        grid = Grid((0.0,) * 3, (case.spacing,) * 3, (edge,) * 3)
        step = 17 ** (1 / 3)
        line = np.arange(-40, 41) * step
        lattice = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
        ball = lattice[np.argsort(np.square(lattice).sum(1), kind="stable")[: case.atoms]]
        members = ball + rng.uniform(-0.6, 0.6, (case.members, case.atoms, 3))
        if case.members > 1:
            members += rng.normal(0, 1, members.shape)
        coords = torch.tensor(members + case.spacing * (edge - 1) / 2, dtype=torch.float32)
        return cls(
            case,
            grid,
            coords,
            torch.full((case.members,), 1 / case.members),
            torch.tensor(rng.uniform(*case.b_iso, case.atoms), dtype=torch.float32),
            [ELEMENTS[i % len(ELEMENTS)] for i in range(case.atoms)],
            torch.randn(grid.shape, generator=torch.Generator().manual_seed(0)),
        )

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centres, heights and exponents of all atoms, what ``gaussian_density`` takes."""
        x, height, alpha = self.case.kind(self.grid, self.elements)._gaussians(self.coords, self.b_iso, 0.0)
        height = height * self.weights[:, None, None]
        return x.flatten(0, 1), height.flatten(0, 1), alpha.flatten(0, 1)


def roofline() -> dict[str, float]:
    """Rate of a large matrix product, and of a copy in memory, single precision."""
    a, x = torch.rand(1024, 1024), torch.rand(16_000_000)
    product, copy = torch.empty_like(a), torch.empty_like(x)
    return {
        "matrix_product_flops": 2 * 1024**3 / least(lambda: torch.mm(a, a, out=product), 9),
        "memory_bytes_per_s": 2 * 4 * x.numel() / least(lambda: copy.copy_(x), 9),
    }


def seconds(task: Callable[[], object]) -> float:
    """Processor time of one thread, which other work does not lengthen so much; wall time of several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    task()
    return clock() - begin


def least(task: Callable[[], object], repeats: int) -> float:
    """Least wall time of some."""
    return min(seconds(task) for _ in range(repeats))


class Ours:
    """The kernel, on Gaussians as the forward model makes them: forward, then backward to the coordinates."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x, self.height, self.alpha = problem.gaussians()

    def forward(self, x: Tensor) -> Tensor:
        """The density."""
        return gaussian_density(self.problem.grid, x, self.height, self.alpha)

    def __call__(self, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The density and the gradient of its product with ``gradient``."""
        x = self.x.detach().requires_grad_()
        density = self.forward(x)
        density.backward(self.problem.gradient if gradient is None else gradient)
        assert x.grad is not None
        return density.detach(), x.grad


class AllPairs:
    """Every atom at every voxel of a sample of the voxels, those around the atoms only, by autograd."""

    def __init__(self, problem: Problem, dtype: torch.dtype, voxels: int) -> None:
        edge, flat = problem.grid.shape[0], problem.coords.flatten(0, 1) / problem.case.spacing
        low, high = flat.amin(0).floor().clamp(min=0), flat.amax(0).ceil().clamp(max=edge - 1)
        among = torch.rand(voxels, 3, generator=torch.Generator().manual_seed(1))
        place = (low + among * (high - low)).round().long()
        self.index = ((place[:, 0] * edge + place[:, 1]) * edge + place[:, 2]).unique()
        self.fraction = len(self.index) / edge**3
        place = torch.stack([self.index // edge**2, self.index // edge % edge, self.index % edge], 1)
        self.points = place.to(dtype) * problem.case.spacing
        self.parts = tuple(v.to(dtype) for v in problem.gaussians())
        self.gradient = problem.gradient.flatten()[self.index].to(dtype)

    def __call__(self, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Density at the sample, and the gradient of its product with the sample of ``gradient``."""
        x, height, alpha = self.parts
        x = x.clone().requires_grad_()
        found = []
        for rows in torch.arange(len(self.points)).split(chunk or len(self.points)):
            r2 = (self.points[rows, None] - x).square().sum(-1)
            density = (height * torch.exp(-alpha * r2[..., None])).sum((-1, -2))
            density.backward(self.gradient[rows])
            found.append(density.detach())
        assert x.grad is not None
        return torch.cat(found), x.grad


class ScatterAdd:
    """Each atom at the voxels within its cutoff, added into the map, by autograd; in chunks of atoms."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        x, height, alpha = problem.gaussians()
        reach = torch.sqrt((height.abs() / (CUTOFF * height.abs().max())).clamp(min=1).log() / alpha)
        radius = float(reach.max()) / problem.case.spacing
        side = torch.arange(-int(radius + 1), int(radius + 1) + 1)
        cube = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
        # of all voxels within the radius of any place in the voxel that the atom is nearest to
        self.offsets = cube[(cube.abs() - 0.5).clamp(min=0).square().sum(1) <= radius**2]
        chunk = max(int(PAIRS / height.shape[1] / len(self.offsets)), 1)
        used = torch.arange(len(x)).split(chunk)
        every = max(len(used) * len(self.offsets) * chunk // 20_000_000, 1)
        self.chunks = used[::every]
        self.fraction = sum(map(len, self.chunks)) / len(x)
        self.parts = x, height, alpha

    def __call__(self) -> Tensor:
        """The density of the chunks timed; the gradient is taken and dropped."""
        x, height, alpha = self.parts
        x = x.clone().requires_grad_()
        nx, ny, nz = self.problem.grid.shape
        h = self.problem.case.spacing
        out = torch.zeros(nx * ny * nz)
        gradient = self.problem.gradient.flatten()
        limit = torch.tensor([nx, ny, nz])
        for rows in self.chunks:
            voxel = (x[rows].detach() / h).round().long()[:, None] + self.offsets
            inside = ((voxel >= 0) & (voxel < limit)).all(-1)
            flat = ((voxel[..., 0] * ny + voxel[..., 1]) * nz + voxel[..., 2]).where(inside, 0).flatten()
            r2 = (voxel.to(x) * h - x[rows, None]).square().sum(-1)
            terms = height[rows, None] * torch.exp(-alpha[rows, None] * r2[..., None])
            values = (terms.sum(-1) * inside).flatten()
            out.index_add_(0, flat, values.detach())
            values.backward(gradient[flat])
        return out.view(nx, ny, nz)


class Gemmi:
    """gemmi's calculator: forward only, one thread, atoms within a cutoff."""

    def __init__(self, problem: Problem) -> None:
        size = [n * problem.case.spacing for n in problem.grid.shape]
        electron = problem.case.kind is ElectronDensity
        self.calculator = gemmi.DensityCalculatorE() if electron else gemmi.DensityCalculatorX()
        self.calculator.grid.set_unit_cell(gemmi.UnitCell(*size, 90, 90, 90))
        self.calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
        self.calculator.grid.set_size(*problem.grid.shape)
        self.calculator.cutoff = CUTOFF * float(problem.gaussians()[1].abs().max())
        self.model = gemmi.Model("1")
        chain, residue = gemmi.Chain("A"), gemmi.Residue()
        for member, weight in zip(problem.coords, problem.weights, strict=True):
            for x, b, e in zip(member.tolist(), problem.b_iso.tolist(), problem.elements, strict=True):
                atom = gemmi.Atom()
                atom.element, atom.pos = gemmi.Element(e), gemmi.Position(*x)
                atom.b_iso, atom.occ = b, float(weight)
                residue.add_atom(atom)
        chain.add_residue(residue)
        self.model.add_chain(chain)

    def __call__(self) -> np.ndarray:
        """The density."""
        self.calculator.put_model_density_on_grid(self.model)
        return np.array(self.calculator.grid, copy=False)


def peak_bytes() -> int:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def errors(problem: Problem, ours: Ours, voxels: int) -> dict[str, float]:
    """Against all pairs in double precision, at a sample of the voxels."""
    exact = AllPairs(problem, torch.float64, voxels)
    density, slope = exact(chunk=max(int(PAIRS / ours.height.numel()), 1))
    only = torch.zeros(problem.grid.shape).flatten()
    only[exact.index] = problem.gradient.flatten()[exact.index]
    found, gradient = ours(only.view(problem.grid.shape))
    off = (found.flatten()[exact.index] - density).abs().max()
    return {
        "max_error": float(off / found.max()),
        "max_gradient_error": float((gradient - slope).abs().max() / slope.abs().max()),
        "sampled_voxels": voxels,
    }


def compare(problem: Problem, repeats: int) -> dict[str, float]:
    """Seconds of every way, and what they were timed on."""
    ours = Ours(problem)
    times: dict[str, list[float]] = {}
    with torch.no_grad():
        forward = least(lambda: ours.forward(ours.x), repeats)
    ours()
    found: dict[str, float] = {"peak_memory_bytes": peak_bytes(), "seconds_forward": forward}
    pairs = AllPairs(problem, torch.float32, max(int(PAIRS / ours.height.numel()), 1))
    scatter, calculator = ScatterAdd(problem), Gemmi(problem)
    ways: dict[str, Callable[[], object]] = {
        "seconds": ours,
        "seconds_all_pairs": pairs,
        "seconds_scatter": scatter,
        "seconds_gemmi": calculator,
    }
    for _ in range(repeats):
        for name, way in ways.items():
            often = (
                3 if name == "seconds" and problem.case.edge < 200 else 1
            )  # the shortest is easily disturbed
            times.setdefault(name, []).append(least(way, often))
    found |= {name: min(values) for name, values in times.items()}
    found["seconds_all_pairs"] /= pairs.fraction
    found["seconds_scatter"] /= scatter.fraction
    density = ours()[0]
    if scatter.fraction == 1:
        found["difference_scatter"] = float((scatter() - density).abs().max() / density.max())
    found["difference_gemmi"] = float(np.abs(calculator() - density.numpy()).max() / density.max())
    return found | {
        "fraction_of_voxels_all_pairs": pairs.fraction,
        "fraction_of_atoms_scatter": scatter.fraction,
        "ratio_all_pairs": found["seconds_all_pairs"] / found["seconds"],
        "ratio_scatter": found["seconds_scatter"] / found["seconds"],
        "ratio_gemmi": found["seconds_gemmi"] / forward,
    }


def larger_boxes(case: Case, repeats: int) -> dict[str, float]:
    """Cost of the same molecule in a box of twice the volume, and of twice the edge, over that of its own."""
    edges = {"one": case.edge, "volume": round(case.edge * 2 ** (1 / 3)), "edge": 2 * case.edge}
    ways = {name: Ours(Problem.of(case, edge=edge)) for name, edge in edges.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(least(way, 2))
    one = min(times["one"])
    return {
        "ratio_box_of_twice_the_volume": min(times["volume"]) / one,
        "ratio_box_of_twice_the_edge": min(times["edge"]) / one,
    }


def growth(path: Path, repeats: int) -> None:
    """Draw what density and gradient cost against atoms in a large box, and against voxels for the Fab."""
    from matplotlib.figure import Figure

    counts, edges = (500, 2000, 8000, 32_000), (80, 100, 160, 240)
    fab = CASES["fab"]
    cases = [(replace(fab, atoms=n, edge=160), n) for n in counts]
    ways = {("atoms", n): Ours(Problem.of(case)) for case, n in cases}
    ways |= {("voxels", edge**3): Ours(Problem.of(fab, edge=edge)) for edge in edges}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in ways}
    for _ in range(repeats):
        for key, way in ways.items():
            times[key].append(least(way, 2))
    by_atoms, by_voxels = (
        {n: min(values) for (kind, n), values in times.items() if kind == wanted}
        for wanted in ("atoms", "voxels")
    )
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, points, label in (
        (left, by_atoms, "atoms, 160^3 voxels"),
        (right, by_voxels, "voxels, 3,300 atoms"),
    ):
        axes.loglog(list(points), [1e3 * t for t in points.values()], "o-", color="tab:blue")
        axes.set(xlabel=label, ylabel="ms, density and gradient")
        axes.grid(alpha=0.3)
        print(label, {n: f"{1e3 * t:.1f} ms" for n, t in points.items()})
    first = counts[-1]
    left.loglog(
        counts, [1e3 * by_atoms[first] * n / first for n in counts], ":", color="gray", label="linear"
    )
    right.set_ylim(*left.get_ylim())
    left.legend()
    figure.savefig(path, dpi=80)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemmi": gemmi.__version__,
        "clock": "processor" if torch.get_num_threads() == 1 else "wall",
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), default="fab")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", type=Path, metavar="FILE.png", help="draw this and do nothing else")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.growth:
        growth(args.growth, args.repeats)
        return
    case = CASES[args.case]
    result: dict[str, object] = {"case": args.case, **machine()}
    roof = roofline()
    problem = Problem.of(case)
    found = compare(problem, args.repeats)
    roof = {name: max(value, roof[name]) for name, value in roofline().items()}  # before and after
    counts = count_operations(problem.grid, *problem.gaussians())
    result |= {
        "atoms": case.atoms * case.members,
        "gaussians": problem.gaussians()[1].numel(),
        "voxels": int(np.prod(problem.grid.shape)),
        **roof,
        **found,
        **counts,
        "roofline_fraction": counts["product_flops"] / found["seconds"] / roof["matrix_product_flops"],
        **errors(problem, Ours(problem), 2048 if case.atoms < 20_000 else 64),
    }
    if case.edge <= 160:
        result |= larger_boxes(case, args.repeats)
    result["load_after"] = os.getloadavg()[0]
    for name, value in result.items():
        print(f"{name:34s}{value:.4g}" if isinstance(value, float) else f"{name:34s}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
