"""How noisy a real target is: ``python training/noise.py [--stretches N] --json OUT``.

The target of the package, 2(mFo - DFc) with the stretch left out of all phases, is made for ordered
stretches of the packaged crystal (7RIN, 1.85 Å). What the refined model of the stretch leaves of it, scale
and offset fitted, over the voxels within 2 Å of the stretch's atoms, is its noise there: errors of
amplitudes, of phases and of the model. It is stated relative to the standard deviation of the stretch's
density over the same voxels.
``LEVEL`` is the median; the simulated maps of ``guided.py`` have noise of that level.

``band_limited_noise`` makes the noise: Gaussian, of equal power up to the resolution and none beyond.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densemble.atoms import Region
from densemble.crystal.omit import omit_map
from densemble.demo import example
from densemble.grid import Grid
from densemble.io.models import Model, read_model
from densemble.io.reflections import Reflections, read_reflections
from densemble.metrics.maps import voxels_near
from densemble.problem import CrystalProblem, Stretches
from densemble.recipes import load_recipe

LEVEL = 0.41
"""Noise over the standard deviation of the density: the median of 16 stretches (quartiles 0.34 and 0.45)."""
LENGTH = 8
NEAR = 2.0
MOBILE = "A:176-191", "A:238-243", "A:152-153"
"""Deposited in two states: not ordered."""


def band_limited_noise(grid: Grid, d_min: float, level: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of r.m.s. ``level`` whose spectrum is flat to 1 / ``d_min`` and zero beyond.

    Args:
        grid: the box; the noise is periodic in it.
        d_min: Å.
        level: expected root mean square, e/Å^3.
        generator: source of randomness.

    Raises:
        ValueError: the grid is too coarse for the resolution.
    """
    if max(grid.spacing) > d_min / 2:
        raise ValueError(f"noise to {d_min} Å needs a spacing of {d_min / 2} Å or less, got {grid.spacing}")
    axes = [torch.fft.fftfreq(n, d=h) for n, h in zip(grid.shape, grid.spacing, strict=True)]
    square = sum(s**2 for s in torch.meshgrid(*axes, indexing="ij"))
    inside = square <= 1 / d_min**2
    white = torch.randn(grid.shape, generator=generator)
    band = torch.fft.ifftn(torch.fft.fftn(white) * inside).real
    return level * band / inside.float().mean().sqrt()


def ordered_stretches(model: Model, length: int, count: int) -> list[str]:
    """Regions of chain A whose main chain is ordered, evenly spread over it.

    Ordered: mean B factor of N, CA, C, O not above the median of those of all stretches, and no residue
    within three of one that is deposited in two states.
    """
    topology = model.topology
    mobile = {n for text in MOBILE for n in _numbers(text)}
    rows = [r for r, residue in enumerate(topology.residues) if residue.kind == "protein"]
    b = {}
    for first in rows[3 : -length - 3]:
        stretch = list(range(first, first + length))
        numbers = [topology.residues[r].id.number for r in stretch]
        near = set(range(numbers[0] - 3, numbers[-1] + 4))
        if numbers[-1] - numbers[0] == length - 1 and not near & mobile:
            b[first] = float(model.b_iso[topology.backbone(stretch)].mean())
    median = float(np.median(list(b.values())))
    good = [first for first, value in b.items() if value <= median]
    chosen = [good[i] for i in np.linspace(0, len(good) - 1, count).round().astype(int)]
    ids = [(topology.residues[r].id, topology.residues[r + length - 1].id) for r in chosen]
    return [f"{a.chain}:{a.number}-{z.number}" for a, z in ids]


def _numbers(text: str) -> range:
    span = Region.parse(text).spans[0]
    return range(span.first.number, span.last.number + 1)


@torch.no_grad()
def residual(model: Model, reflections: Reflections, region: str) -> dict[str, float | str]:
    """Noise of one stretch's target, absolute in e/Å^3 and relative to its density's standard deviation."""
    recipe = load_recipe("densemble")
    stretches = Stretches.of(model, Region.parse(region), window=0)
    residues = [model.topology.residues[r].id for r in stretches.free]
    problem = CrystalProblem.of(stretches, omit_map(model.structure, residues, reflections), recipe.density)
    density = problem.forward(stretches.start[None], torch.ones(1), problem.b_start)
    inside = voxels_near(problem.target.grid, stretches.start, NEAR)
    known, target = density[inside].double().numpy(), problem.target.values[inside].double().numpy()
    slope, offset = np.polyfit(known, target, 1)
    left = float((target - slope * known - offset).std())
    return {
        "region": region,
        "noise": left / float(slope),
        "density_sd": float(known.std()),
        "ratio": left / float(slope * known.std()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stretches", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = read_model(example("model.cif"))
    reflections = read_reflections(example("data.mtz"))
    regions = ordered_stretches(model, LENGTH, args.stretches)
    rows = [residual(model, reflections, region) for region in regions]
    ratios = [row["ratio"] for row in rows]
    result = {
        "median": float(np.median(ratios)),
        "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        "stretches": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['region']:<12}{row['noise']:7.3f} e/Å^3{row['ratio']:7.3f}")
    print(f"median ratio {result['median']:.3f}")


if __name__ == "__main__":
    main()
