"""Density of an ensemble: all-pairs exponentials against the matrix product, side by side.

The question: what does writing the sum of Gaussians as a matrix product save, forward and backward,
at the size of one guidance step? Run ``python benchmarks/bench_density_kernel.py``; both ways run in
the same process, so the ratio means something on a busy machine while the times may not.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from densemble.forward.kernel import gaussian_density
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid


def all_pairs(grid: Grid, coords: Tensor, amplitude: Tensor, alpha: Tensor) -> Tensor:
    """One exponential per voxel and Gaussian, in slabs along x to bound memory."""
    points = torch.as_tensor(grid.points(), dtype=coords.dtype)
    slabs = []
    for slab in points:
        r2 = torch.cdist(slab.reshape(-1, 3), coords, compute_mode="donot_use_mm_for_euclid_dist").square()
        slabs.append((amplitude * torch.exp(-alpha * r2[..., None])).sum((-1, -2)).view(slab.shape[:-1]))
    return torch.stack(slabs)


def timed(compute: Callable[[], Tensor], coords: Tensor, repeats: int) -> tuple[float, float, Tensor, Tensor]:
    """Median seconds forward and backward, the density, and the gradient of its sum of squares."""
    forward, backward = [], []
    for _ in range(repeats):
        coords.grad = None
        start = time.perf_counter()
        density = compute()
        middle = time.perf_counter()
        density.square().sum().backward()
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    assert coords.grad is not None
    skip = 1 if repeats > 1 else 0  # the first call warms up
    return (
        float(np.median(forward[skip:])),
        float(np.median(backward[skip:])),
        density.detach(),
        coords.grad.clone(),
    )


def loop(members: int, atoms: int, terms: int, edge: int) -> tuple[Grid, Tensor, Tensor, Tensor]:
    """Members of a stretch of chain about 18 x 12 x 12 Å in a box of ``edge`` voxels of 0.6 Å."""
    generator = torch.Generator().manual_seed(0)
    grid = Grid((0.0, 0.0, 0.0), (0.6, 0.6, 0.6), (edge, edge, edge))
    half = 0.3 * (edge - 1)
    base = (torch.rand(atoms, 3, generator=generator) - 0.5) * torch.tensor([18.0, 12.0, 12.0]) + half
    coords = base + torch.randn(members, atoms, 3, generator=generator)
    width = torch.tensor([21.0, 29.0, 41.0, 16.0, 55.0])[:terms] + 15.0
    alpha = (4 * np.pi**2 / width).expand(members * atoms, terms).contiguous().float()
    return grid, coords.flatten(0, 1).requires_grad_(), torch.ones(members * atoms, terms), alpha


def compare(members: int, atoms: int, terms: int, edge: int, repeats: int) -> None:
    """Print both ways and their ratio."""
    grid, coords, amplitude, alpha = loop(members, atoms, terms, edge)
    product = timed(lambda: gaussian_density(grid, coords, amplitude, alpha), coords, repeats)
    pairs = timed(lambda: all_pairs(grid, coords, amplitude, alpha), coords, 1)
    print(f"{members} members x {atoms} atoms x {terms} Gaussians, {edge}^3 voxels:")
    for name, (forward, backward, _, _) in (("all pairs", pairs), ("product", product)):
        print(f"  {name:10s} forward {1e3 * forward:9.1f} ms   backward {1e3 * backward:9.1f} ms")
    error = float((product[2] - pairs[2]).abs().max() / pairs[2].abs().max())
    gradient = float((product[3] - pairs[3]).abs().max() / pairs[3].abs().max())
    ratio = (pairs[0] + pairs[1]) / (product[0] + product[1])
    print(
        f"  ratio {ratio:.0f}; largest difference {error:.1e} of the maximum, of the gradient {gradient:.1e}"
    )


def members_and_sum(repeats: int) -> None:
    """What separate densities for each member cost over their sum, with truncated carbon atoms."""
    grid, coords, _, _ = loop(16, 130, 3, 50)
    model = XrayDensity(grid, ["C"] * 130, d_min=1.85)
    weights, b_iso = torch.full((16,), 1 / 16), torch.tensor(20.0)
    ways = {
        "sum": lambda: model(coords.view(16, 130, 3), weights, b_iso),
        "each": lambda: model.members(coords.view(16, 130, 3), b_iso),
    }
    times = {name: sum(timed(way, coords, repeats)[:2]) for name, way in ways.items()}
    print(
        f"XrayDensity to 1.85 Å, 16 x 130 atoms, 50^3: sum {1e3 * times['sum']:.1f} ms, "
        f"each {1e3 * times['each']:.1f} ms, ratio {times['each'] / times['sum']:.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    compare(2, 130, 3, 50, arguments.repeats)
    compare(16, 130, 3, 50, arguments.repeats)
    members_and_sum(arguments.repeats)
