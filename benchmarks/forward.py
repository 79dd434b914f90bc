"""What density and its gradient cost, against the machine and against the usual ways: the forward model.

The questions: how near to the machine's matrix product does the kernel run, and what does it save over (a)
every atom at every voxel with autograd, as the reference implementations have it, (b) every atom at the
voxels within its cutoff with autograd, scatter-added, as classical programs have it, (c) gemmi's density
calculator? ``python benchmarks/forward.py --case fab --json fab.json``. All ways run in turns in one process
and the least time of each counts: of the processor with one thread, of the wall with more (``measuring``),
where ratios mean something on a busy machine while the times may not. ``--growth FILE.png`` draws how the
cost grows.

``--device cuda`` has ours, (a), (b), the roofline and the peak of memory on the GPU; gemmi has one thread of
the CPU all the same. Operations are counted twice: those that are done, and those that must be, without the
padding of windows and of leaves. ``roofline_fraction`` is of the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from torch import Tensor

from densemble.forward.electron import ElectronDensity
from densemble.forward.kernel import CUTOFF, count_operations, gaussian_density
from densemble.forward.plan import Plan, reach_of
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid
from measuring import (
    CPU,
    begin,
    least,
    parser_of,
    peak_bytes,
    reset_peak,
    roofline,
    show,
    usable_cores,
    write,
)

PAIRS = {"cpu": 6e6, "cuda": 1e8}
"""Exponentials of one sample of all pairs, and of one chunk of the scatter-add: what keeps a device busy."""
SCATTERED = {"cpu": 2e7, "cuda": 1e9}
"""Atoms times voxels within the cutoff, about, of which more are not scattered: they are sampled."""
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
    def of(cls, case: Case, *, edge: int | None = None, device: torch.device = CPU) -> Problem:
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
        return cls(  # the same numbers on every device
            case,
            grid,
            coords.to(device),
            torch.full((case.members,), 1 / case.members).to(device),
            torch.tensor(rng.uniform(*case.b_iso, case.atoms), dtype=torch.float32).to(device),
            [ELEMENTS[i % len(ELEMENTS)] for i in range(case.atoms)],
            torch.randn(grid.shape, generator=torch.Generator().manual_seed(0)).to(device),
        )

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.coords.device

    @property
    def pairs(self) -> float:
        """Exponentials that keep its device busy."""
        return PAIRS.get(self.device.type, PAIRS["cpu"])

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centres, heights and exponents of all atoms, what ``gaussian_density`` takes."""
        density = self.case.kind(self.grid, self.elements, device=self.device)
        x, height, alpha = density._gaussians(self.coords, self.b_iso, 0.0)
        height = height * self.weights[:, None, None]
        return x.flatten(0, 1), height.flatten(0, 1), alpha.flatten(0, 1)


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
        among = torch.rand(voxels, 3, generator=torch.Generator().manual_seed(1)).to(problem.device)
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
        found, rows = [], chunk or len(self.points)
        for points, gradient in zip(self.points.split(rows), self.gradient.split(rows), strict=True):
            r2 = (points[:, None] - x).square().sum(-1)
            density = (height * torch.exp(-alpha * r2[..., None])).sum((-1, -2))
            density.backward(gradient)
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
        side = torch.arange(-int(radius + 1), int(radius + 1) + 1, device=problem.device)
        cube = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
        # of all voxels within the radius of any place in the voxel that the atom is nearest to
        self.offsets = cube[(cube.abs() - 0.5).clamp(min=0).square().sum(1) <= radius**2]
        chunk = max(int(problem.pairs / height.shape[1] / len(self.offsets)), 1)
        used = torch.arange(len(x), device=problem.device).split(chunk)
        limit = SCATTERED.get(problem.device.type, SCATTERED["cpu"])
        every = max(int(len(used) * len(self.offsets) * chunk // limit), 1)
        self.chunks = used[::every]
        self.fraction = sum(map(len, self.chunks)) / len(x)
        self.parts = x, height, alpha
        self.limit = torch.tensor(problem.grid.shape).to(problem.device)

    def __call__(self) -> Tensor:
        """The density of the chunks timed; the gradient is taken and dropped."""
        x, height, alpha = self.parts
        x = x.clone().requires_grad_()
        nx, ny, nz = self.problem.grid.shape
        h = self.problem.case.spacing
        out = x.new_zeros(nx * ny * nz)
        gradient = self.problem.gradient.flatten()
        for rows in self.chunks:
            voxel = (x[rows].detach() / h).round().long()[:, None] + self.offsets
            inside = ((voxel >= 0) & (voxel < self.limit)).all(-1)
            flat = ((voxel[..., 0] * ny + voxel[..., 1]) * nz + voxel[..., 2]).where(inside, 0).flatten()
            r2 = (voxel.to(x) * h - x[rows, None]).square().sum(-1)
            terms = height[rows, None] * torch.exp(-alpha[rows, None] * r2[..., None])
            values = (terms.sum(-1) * inside).flatten()
            out.index_add_(0, flat, values.detach())
            values.backward(gradient[flat])
        return out.view(nx, ny, nz)


class Gemmi:
    """gemmi's calculator: forward only, one thread of the CPU, atoms within a cutoff."""

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


def product_flops_needed(grid: Grid, x: Tensor, height: Tensor, alpha: Tensor) -> int:
    """Of the products' operations, those that must be done: every Gaussian with the window of its own leaf.

    ``count_operations`` counts those that are done. There the windows of a batch are as large as the largest,
    and leaves are of one size, with places to spare that hold no atom.
    """
    plan = Plan.of(grid, x[None], height[None], alpha[None], CUTOFF)
    shape, spacing = torch.tensor(grid.shape).to(x.device), torch.tensor(grid.spacing).to(x)
    voxel = (x - torch.tensor(grid.origin).to(x)) / spacing
    reach = reach_of(height[None], alpha[None], CUTOFF)[0][:, None] / spacing
    low = (voxel - reach).ceil().long().clamp(min=0)
    high = torch.minimum((voxel + reach).floor().long() + 1, shape)
    held, atoms = (plan.atoms < len(x))[..., None], plan.atoms.clamp(max=len(x) - 1)
    window = high[atoms].where(held, 0).amax(1) - low[atoms].where(held, max(grid.shape)).amin(1)
    return int((6 * height.shape[1] * held.sum((1, 2)) * window.prod(1)).sum())


def errors(problem: Problem, ours: Ours, voxels: int) -> dict[str, float]:
    """Against all pairs in double precision, at a sample of the voxels."""
    exact = AllPairs(problem, torch.float64, voxels)
    density, slope = exact(chunk=max(int(problem.pairs / ours.height.numel()), 1))
    only = torch.zeros_like(problem.gradient).flatten()
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
    ours, device = Ours(problem), problem.device
    times: dict[str, list[float]] = {}
    reset_peak(device)
    ours()
    found: dict[str, float] = {"peak_memory_bytes": peak_bytes(device)}
    with torch.no_grad():
        forward = least(lambda: ours.forward(ours.x), repeats, device)
    pairs = AllPairs(problem, torch.float32, max(int(problem.pairs / ours.height.numel()), 1))
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
            times.setdefault(name, []).append(least(way, often, device))
    found |= {"seconds_forward": forward} | {name: min(values) for name, values in times.items()}
    found["seconds_all_pairs"] /= pairs.fraction
    found["seconds_scatter"] /= scatter.fraction
    density = ours()[0]
    if scatter.fraction == 1:
        found["difference_scatter"] = float((scatter() - density).abs().max() / density.max())
    found["difference_gemmi"] = float(np.abs(calculator() - density.cpu().numpy()).max() / density.max())
    return found | {
        "fraction_of_voxels_all_pairs": pairs.fraction,
        "fraction_of_atoms_scatter": scatter.fraction,
        "ratio_all_pairs": found["seconds_all_pairs"] / found["seconds"],
        "ratio_scatter": found["seconds_scatter"] / found["seconds"],
        "ratio_gemmi": found["seconds_gemmi"] / forward,
    }


def larger_boxes(case: Case, repeats: int, device: torch.device = CPU) -> dict[str, float]:
    """Cost of the same molecule in a box of twice the volume, and of twice the edge, over that of its own."""
    edges = {"one": case.edge, "volume": round(case.edge * 2 ** (1 / 3)), "edge": 2 * case.edge}
    ways = {name: Ours(Problem.of(case, edge=edge, device=device)) for name, edge in edges.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(least(way, 2, device))
    one = min(times["one"])
    return {
        "ratio_box_of_twice_the_volume": min(times["volume"]) / one,
        "ratio_box_of_twice_the_edge": min(times["edge"]) / one,
    }


def growth(path: Path, repeats: int, device: torch.device = CPU) -> None:
    """Draw what density and gradient cost against atoms in a large box, and against voxels for the Fab."""
    from matplotlib.figure import Figure

    counts, edges = (500, 2000, 8000, 32_000), (80, 100, 160, 240)
    fab = CASES["fab"]
    cases = [(replace(fab, atoms=n, edge=160), n) for n in counts]
    ways = {("atoms", n): Ours(Problem.of(case, device=device)) for case, n in cases}
    ways |= {("voxels", edge**3): Ours(Problem.of(fab, edge=edge, device=device)) for edge in edges}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in ways}
    for _ in range(repeats):
        for key, way in ways.items():
            times[key].append(least(way, 2, device))
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


def fractions(problem: Problem, taken: float, rate: float) -> dict[str, float]:
    """Operations of a density and its gradient, and the share of a rate that so many seconds are."""
    given = problem.gaussians()
    counts = count_operations(problem.grid, *given)
    needed = product_flops_needed(problem.grid, *given)
    return {
        **counts,
        "product_flops_needed": needed,
        "roofline_fraction": needed / taken / rate,
        "roofline_fraction_of_operations_done": counts["product_flops"] / taken / rate,
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = parser_of(__doc__, threads=min(2, usable_cores()))
    parser.add_argument("--case", choices=list(CASES), default="fab")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", type=Path, metavar="FILE.png", help="draw this and do nothing else")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    device = torch.device(args.device)
    result = begin("forward", args.threads, device)
    if args.growth:
        growth(args.growth, args.repeats, device)
        return
    case = CASES[args.case]
    problem = Problem.of(case, device=device)
    found = compare(problem, args.repeats)
    roof = {name: max(value, result[name]) for name, value in roofline(device).items()}  # before and after
    figures: dict[str, object] = {
        "case": args.case,
        "atoms": case.atoms * case.members,
        "gaussians": problem.gaussians()[1].numel(),
        "voxels": int(np.prod(problem.grid.shape)),
        **roof,
        "gemmi": f"{gemmi.__version__}, one thread of the CPU",
        **found,
        **fractions(problem, found["seconds"], roof["matrix_product_flops"]),
        **errors(problem, Ours(problem), 2048 if case.atoms < 20_000 else 64),
    }
    if case.edge <= 160:
        figures |= larger_boxes(case, args.repeats, device)
    show(figures)
    write(result | figures, args.json)


if __name__ == "__main__":
    main()
