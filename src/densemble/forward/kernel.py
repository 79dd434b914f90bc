"""Sums of isotropic Gaussians on a box, as matrix products.

On an axis-aligned box a Gaussian factorises,

    exp(-alpha |r - x|^2) = exp(-alpha (r_x - x_x)^2) exp(-alpha (r_y - x_y)^2) exp(-alpha (r_z - x_z)^2),

so the density of a set of Gaussians is one product X^T (Y * Z) whose contraction index runs over
atoms, Gaussians per atom and ensemble members alike. To keep it cheap, atoms are sorted into cells
and each cell writes only to the window of voxels that its atoms reach. The backward pass recomputes
the factors and consists of the same products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.grid import Grid

CELL = 8.0  # Å; edge of the cells into which atoms are sorted. Measured on a CPU: flat between 5 and 10.
WIDE_CELL = 64.0  # Å; the same elsewhere, where a few large products are cheaper than many small ones
MAX_TERMS = 4096  # Gaussians in one product; bounds its memory to MAX_TERMS x (a window's y-z face)


@dataclass(frozen=True)
class _Bin:
    """Rows ``rows`` of the sorted Gaussians; they write to ``window`` of density ``member``."""

    member: int
    rows: slice
    window: tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class _Plan:
    """The atoms that reach the box, in the order of their bins, and the bins."""

    order: Tensor
    bins: list[_Bin]


def _reach(amplitude: np.ndarray, alpha: np.ndarray, cutoff: float) -> np.ndarray:
    """Å beyond which no Gaussian of an atom exceeds ``cutoff`` times the largest amplitude; shape=(m,)."""
    size = np.abs(amplitude)
    largest = float(size.max(initial=0.0))
    if largest == 0:
        return np.zeros(len(size))
    return np.asarray(np.sqrt(np.log(np.maximum(size / (cutoff * largest), 1.0)) / alpha).max(axis=1))


def _plan(grid: Grid, coords: Tensor, amplitude: Tensor, alpha: Tensor, cutoff: float, cell: float) -> _Plan:
    """Sort the atoms of K members (K, M, ...) into bins of one member and one cell of space each."""
    atoms, terms = amplitude.shape[1:]
    x, size, rate = (v.detach().flatten(0, 1).double().cpu().numpy() for v in (coords, amplitude, alpha))
    if not np.isfinite(x).all():
        raise ValueError("gaussian_density: coordinates that are not finite")
    spacing = np.array(grid.spacing)
    voxel = (x - np.array(grid.origin)) / spacing
    reach = _reach(size, rate, cutoff)
    extent = reach[:, None] / spacing
    low = np.maximum(np.ceil(voxel - extent), 0)
    high = np.minimum(np.floor(voxel + extent) + 1, grid.shape)
    inside = np.flatnonzero((low < high).all(axis=1) & (reach > 0))
    key = np.column_stack([inside // atoms, np.floor(voxel[inside] * spacing / cell).astype(np.int64)])
    sort = np.lexsort(key.T[::-1])
    key, order = key[sort], inside[sort]
    ends = np.r_[np.flatnonzero((key[1:] != key[:-1]).any(axis=1)) + 1, len(order)]
    step = max(MAX_TERMS // terms, 1)
    bins, start = [], 0
    for end in ends:
        for first in range(start, end, step):
            rows = order[first : min(first + step, end)]
            wx, wy, wz = (
                slice(int(a), int(b))
                for a, b in zip(low[rows].min(axis=0), high[rows].max(axis=0), strict=True)
            )
            gaussians = slice(first * terms, (first + len(rows)) * terms)
            bins.append(_Bin(int(key[first, 0]), gaussians, (wx, wy, wz)))
        start = end
    return _Plan(torch.as_tensor(order, device=coords.device), bins)


def _factors(
    grid: Grid, coords: Float[Tensor, "m 3"], alpha: Float[Tensor, "m j"]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per axis: offsets r - x, shape=(m, 1, n), and factors exp(-alpha (r - x)^2), shape=(m * j, n).

    No factor is let below a floor (7e-13 in single precision), so that products of three stay normal
    numbers: arithmetic on denormal ones is many times slower. exp2 is measured three times as fast as exp.
    """
    floor = math.log2(torch.finfo(coords.dtype).tiny) / 3 + 2
    rate = -alpha[:, :, None] / math.log(2)
    offsets, factors = [], []
    for axis, r in enumerate(grid.axes(coords.dtype, coords.device)):
        d = (r - coords[:, axis, None])[:, None, :]
        offsets.append(d)
        factors.append((rate * d.square()).clamp(min=floor).exp2().flatten(0, 1))
    return offsets, factors


class _GaussianSum(torch.autograd.Function):
    """Density of K members, (K, M, 3) -> (K, nx, ny, nz), and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        coords: Tensor,
        amplitude: Tensor,
        alpha: Tensor,
        grid: Grid,
        cutoff: float,
    ) -> Tensor:
        cell = CELL if coords.device.type == "cpu" else WIDE_CELL
        plan = _plan(grid, coords, amplitude, alpha, cutoff, cell)
        ctx.save_for_backward(coords, amplitude, alpha)
        ctx.grid, ctx.plan = grid, plan
        x, a, w = (v.flatten(0, 1)[plan.order] for v in (coords, amplitude, alpha))
        _, (fx, fy, fz) = _factors(grid, x, w)
        fx = fx * a.reshape(-1, 1)
        density = coords.new_zeros((coords.shape[0], *grid.shape))
        for b in plan.bins:
            wx, wy, wz = b.window
            yz = fy[b.rows, wy, None] * fz[b.rows, None, wz]
            product = fx[b.rows, wx].T @ yz.flatten(1)
            density[b.member, wx, wy, wz] += product.view(-1, *yz.shape[1:])
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        plan: _Plan = ctx.plan
        x, a, w = (v.flatten(0, 1)[plan.order] for v in ctx.saved_tensors)
        offsets, factors = _factors(ctx.grid, x, w)
        lines = _line_integrals(grad, plan, factors)
        # Zeroth, first and second moment of the incoming gradient under each Gaussian.
        weighted = [(t * f).view(*a.shape, f.shape[-1]) for t, f in zip(lines, factors, strict=True)]
        zeroth = weighted[0].sum(-1)
        first = torch.stack([(m * d).sum(-1) for m, d in zip(weighted, offsets, strict=True)], -1)
        second = torch.stack([(m * d.square()).sum(-1) for m, d in zip(weighted, offsets, strict=True)])
        results = ((2 * (a * w)[..., None] * first).sum(1), zeroth, -a * second.sum(0))
        grads = [_unsort(v, r, plan.order) for v, r in zip(ctx.saved_tensors, results, strict=True)]
        return (*grads, None, None)


def _line_integrals(grad: Tensor, plan: _Plan, factors: list[Tensor]) -> list[Tensor]:
    """Per axis, the incoming gradient summed over the two other axes with their factors; (rows, n_axis)."""
    fx, fy, fz = factors
    tx, ty, tz = (torch.zeros_like(f) for f in factors)
    for b in plan.bins:
        wx, wy, wz = b.window
        g = grad[b.member, wx, wy, wz]
        ax, ay, az = fx[b.rows, wx], fy[b.rows, wy], fz[b.rows, wz]
        yz = ay[:, :, None] * az[:, None, :]
        tx[b.rows, wx] = yz.flatten(1) @ g.flatten(1).T
        planes = (ax @ g.flatten(1)).view(yz.shape)
        ty[b.rows, wy] = torch.bmm(planes, az[:, :, None])[..., 0]
        tz[b.rows, wz] = torch.bmm(ay[:, None, :], planes)[:, 0]
    return [tx, ty, tz]


def _unsort(like: Tensor, values: Tensor, order: Tensor) -> Tensor:
    """Rows back in their places; atoms that do not reach the box get zero."""
    out = torch.zeros_like(like)
    out.view(-1, like.shape[-1])[order] = values
    return out


def gaussian_density(
    grid: Grid,
    coords: Float[Tensor, "*k m 3"],
    amplitude: Float[Tensor, "*k m j"],
    alpha: Float[Tensor, "*k m j"],
    *,
    cutoff: float = 1e-5,
) -> Float[Tensor, "*k nx ny nz"]:
    """``sum_mj amplitude_mj exp(-alpha_mj |r - x_m|^2)`` at the voxel centres r of a box.

    Differentiable once in ``coords``, ``amplitude`` and ``alpha``. The result does not depend on the
    order of the atoms except by rounding.

    Args:
        grid: the box.
        coords: positions in Å, shape=(m, 3), or (k, m, 3) for k separate densities.
        amplitude: heights of the Gaussians (e/Å^3 for X-ray), of any sign, shape=([k,] m, j).
        alpha: exponents in Å^-2, positive, shape=([k,] m, j).
        cutoff: a Gaussian is left out of voxels where it is below ``cutoff`` times the largest
            amplitude; the error at a voxel is below that times the Gaussians left out there.

    Returns:
        The density, shape=([k,] nx, ny, nz), in the unit of ``amplitude``.
    """
    if coords.dim() == 2:
        return gaussian_density(grid, coords[None], amplitude[None], alpha[None], cutoff=cutoff)[0]
    return _GaussianSum.apply(coords.contiguous(), amplitude.contiguous(), alpha.contiguous(), grid, cutoff)
