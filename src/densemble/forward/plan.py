"""Which atoms are evaluated together by the kernel, and which voxels they reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from densemble.forward.leaves import kd_leaves
from densemble.grid import Grid

LEAF = 48, 80  # Gaussians in a leaf. Measured for 1, 3 and 5 an atom: within a tenth of the least time
VECTOR = 16  # single-precision numbers in a vector of a processor: rows that fill them are a fifth faster
BATCH = 1 << 19  # Gaussians x voxels of the y-z face of their window in one batch. Measured: flat from 2^18


@dataclass(frozen=True)
class Batch:
    """Leaves ``rows`` of a plan, whose windows have one shape.

    Attributes:
        rows: of the plan.
        shape: of the windows.
        first: where each window begins in the densities as one flat array.
    """

    rows: slice
    shape: tuple[int, int, int]
    first: list[int]

    def windows(self, density: Float[Tensor, "k nx ny nz"]) -> list[Tensor]:
        """Views of the windows, which may overlap."""
        stride, start = density.stride()[1:], density.storage_offset()
        return [density.as_strided(self.shape, stride, start + first) for first in self.first]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which atoms are evaluated together, and where.

    Attributes:
        atoms: of each leaf, as indices into the atoms of all members in a row, which have one more that
            stands for no atom, shape=(l, p).
        corner: Å, the first voxel of each leaf's window, shape=(l, 3).
        batches: of leaves whose windows are about as large.
    """

    atoms: Int[Tensor, "l p"]
    corner: Float[Tensor, "l 3"]
    batches: list[Batch]

    @classmethod
    def of(cls, grid: Grid, coords: Tensor, amplitude: Tensor, alpha: Tensor, cutoff: float) -> Plan:
        """For the atoms of K members (K, M, ...) that reach the box.

        Shapes are data, so it waits for a GPU: once for how many atoms there are, once for the windows.
        """
        members, count, terms = amplitude.shape
        origin, spacing = _row(coords, grid.origin), _row(coords, grid.spacing)
        voxel = (coords - origin) / spacing
        reach = reach_of(amplitude, alpha, cutoff)[..., None]
        low = (voxel - reach / spacing).ceil().long().clamp(min=0)
        high = torch.minimum((voxel + reach / spacing).floor().long() + 1, _row(low, grid.shape))
        inside = (low < high).all(-1) & (reach[..., 0] > 0)
        atoms = kd_leaves(coords, inside, count=_most(coords, inside), sizes=_leaf_sizes(terms))
        low = pad(low.flatten(0, 1), (0, 0, 0, 1), value=max(grid.shape))[atoms].amin(1)
        high = pad(high.flatten(0, 1), (0, 0, 0, 1), value=0)[atoms].amax(1)
        member = atoms.amin(1) // max(count, 1)  # of a leaf without atoms: one that there is not
        table = torch.cat([member[:, None], low, high - low], 1).cpu()
        order, sizes = _alike(table, members, atoms.shape[1] * terms)
        rows = table[order].numpy()
        batches = _batches(grid, rows, sizes)
        first = torch.from_numpy(rows[:, 1:4]).to(coords.device)  # as moved
        return cls(atoms[order.to(coords.device)], origin + first * spacing, batches)


def _row(like: Tensor, values: Sequence[float] | Sequence[int]) -> Tensor:
    """A few numbers in the type of a tensor, written where it is: to copy them there would be to wait."""
    return torch.stack([like.new_full((), value) for value in values])


def _most(coords: Float[Tensor, "k m 3"], inside: Bool[Tensor, "k m"]) -> int:
    """How many atoms of a member are inside, at most.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if inside.numel() == 0:
        return 0
    finite, most = torch.stack([torch.isfinite(coords).all().long(), inside.sum(1).amax()]).cpu().tolist()
    if not finite:
        raise ValueError("gaussian_density: coordinates that are not finite")
    return int(most)


def _alike(table: Int[Tensor, "l 7"], members: int, size: int) -> tuple[Int[Tensor, " r"], list[int]]:
    """Leaves whose windows are about as large, together: sorted as atoms are, by their extents as places.

    Args:
        table: member, low and extent of each leaf, on the CPU.
        members: K; those of no member are left out.
        size: Gaussians in a leaf.

    Returns:
        Leaves in that order, and how many go together.
    """
    held = (table[:, 0] < members).nonzero()[:, 0]
    extent = table[held, 4:]
    face = float((extent[:, 1] * extent[:, 2]).double().mean()) if len(held) else 1.0
    groups = kd_leaves(
        extent[None].float(),
        torch.ones(1, len(held), dtype=torch.bool),
        count=len(held),
        sizes=[max(int(BATCH / (size * face)), 1)],
    )
    real = groups < len(held)
    return held[groups[real]], [size for size in real.sum(1).tolist() if size]


def reach_of(amplitude: Float[Tensor, "k m j"], alpha: Tensor, cutoff: float) -> Float[Tensor, "k m"]:
    """Å beyond which no Gaussian of an atom exceeds ``cutoff`` times the largest amplitude."""
    if amplitude.numel() == 0:
        return amplitude.new_zeros(amplitude.shape[:2])
    size = amplitude.detach().abs()
    least = (cutoff * size.max()).clamp(min=torch.finfo(size.dtype).tiny)
    return ((size / least).clamp(min=1).log() / alpha.detach()).amax(2).sqrt()


def _leaf_sizes(terms: int) -> list[int]:
    """How many atoms of so many Gaussians make leaves of whole vectors, near ``LEAF`` Gaussians."""
    step = VECTOR // math.gcd(VECTOR, terms)
    return [n for n in range(step, LEAF[1] // terms + 1, step) if n * terms >= LEAF[0]] or [step]


def _batches(grid: Grid, table: Int[np.ndarray, "l 7"], sizes: list[int]) -> list[Batch]:
    """Of leaves (member, low, extent), so many in each; ``low`` is moved in place to keep windows inside."""
    batches, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        shape = table[rows, 4:].max(0)
        table[rows, 1:4] = np.minimum(table[rows, 1:4], np.array(grid.shape) - shape)
        nx, ny, nz = grid.shape
        first = table[rows, :4] @ np.array([nx * ny * nz, ny * nz, nz, 1])
        batches.append(Batch(rows, (int(shape[0]), int(shape[1]), int(shape[2])), first.tolist()))
        start = rows.stop
    return batches
