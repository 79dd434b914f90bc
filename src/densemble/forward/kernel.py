"""Sums of isotropic Gaussians on a box, as matrix products.

On an axis-aligned box a Gaussian factorises,

    exp(-alpha |r - x|^2) = exp(-alpha (r_x - x_x)^2) exp(-alpha (r_y - x_y)^2) exp(-alpha (r_z - x_z)^2),

so the density of a set of Gaussians is one product X^T (Y * Z) whose contraction index runs over
atoms, Gaussians per atom and ensemble members alike. To keep it cheap, atoms are sorted into leaves of
neighbours, and each leaf writes only to the window of voxels that its atoms reach. The backward pass
recomputes the factors and consists of two such products. ``docs/speed.md`` has the counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from densemble.forward.leaves import kd_leaves
from densemble.grid import Grid

CUTOFF = 2e-6
"""Of the largest amplitude: where a Gaussian is below it, it is left out (``gaussian_density``)."""
LEAF = 48, 80  # Gaussians in a leaf. Measured for 1, 3 and 5 an atom: within a tenth of the least time
VECTOR = 16  # single-precision numbers in a vector of a processor: rows that fill them are a fifth faster
BATCH = 1 << 19  # Gaussians x voxels of the y-z face of their window in one batch. Measured: flat from 2^18


@dataclass(frozen=True)
class _Batch:
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
class _Plan:
    """Which atoms are evaluated together, and where.

    Attributes:
        atoms: of each leaf, as indices into the atoms of all members in a row, which have one more that
            stands for no atom, shape=(l, p).
        corner: Å, the first voxel of each leaf's window, shape=(l, 3).
        batches: of leaves whose windows are about as large.
    """

    atoms: Int[Tensor, "l p"]
    corner: Float[Tensor, "l 3"]
    batches: list[_Batch]

    @classmethod
    def of(cls, grid: Grid, coords: Tensor, amplitude: Tensor, alpha: Tensor, cutoff: float) -> _Plan:
        """For the atoms of K members (K, M, ...) that reach the box. Shapes are data: it waits for a GPU."""
        count, terms = amplitude.shape[1:]
        if not bool(torch.isfinite(coords).all()):
            raise ValueError("gaussian_density: coordinates that are not finite")
        size = torch.tensor(grid.shape, device=coords.device)
        origin, spacing = coords.new_tensor(grid.origin), coords.new_tensor(grid.spacing)
        voxel = (coords - origin) / spacing
        reach = _reach(amplitude, alpha, cutoff)[..., None]
        low = (voxel - reach / spacing).ceil().long().clamp(min=0)
        high = torch.minimum((voxel + reach / spacing).floor().long() + 1, size)
        inside = (low < high).all(-1) & (reach[..., 0] > 0)
        atoms = kd_leaves(coords, inside, sizes=_leaf_sizes(terms))
        low = pad(low.flatten(0, 1), (0, 0, 0, 1), value=max(grid.shape))[atoms].amin(1)
        high = pad(high.flatten(0, 1), (0, 0, 0, 1), value=0)[atoms].amax(1)
        extent, n = high - low, atoms.shape[1] * terms
        # leaves whose windows are about as large go together, sorted as atoms are: by their extents as places
        face = float((extent[:, 1] * extent[:, 2]).double().mean()) if len(extent) else 1.0
        groups = kd_leaves(
            extent[None].to(coords.dtype),
            torch.ones_like(extent[None, :, 0], dtype=torch.bool),
            sizes=[max(int(BATCH / (n * face)), 1)],
        )
        real = groups < len(extent)
        order = groups[real]
        member = atoms.amin(1) // max(count, 1)
        table = torch.cat([member[:, None], low, extent], 1)[order].cpu().numpy()
        batches = _batches(grid, table, real.sum(1).cpu().tolist())
        first = torch.from_numpy(table[:, 1:4]).to(coords.device)  # as moved
        return cls(atoms[order], origin + first * spacing, batches)


def _reach(amplitude: Float[Tensor, "k m j"], alpha: Tensor, cutoff: float) -> Float[Tensor, "k m"]:
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


def _batches(grid: Grid, table: Int[np.ndarray, "l 7"], sizes: list[int]) -> list[_Batch]:
    """Of leaves (member, low, extent), so many in each; ``low`` is moved in place to keep windows inside."""
    batches, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        shape = table[rows, 4:].max(0)
        table[rows, 1:4] = np.minimum(table[rows, 1:4], np.array(grid.shape) - shape)
        nx, ny, nz = grid.shape
        first = table[rows, :4] @ np.array([nx * ny * nz, ny * nz, nz, 1])
        batches.append(_Batch(rows, (int(shape[0]), int(shape[1]), int(shape[2])), first.tolist()))
        start = rows.stop
    return batches


class _Workspace:
    """Memory for the intermediate results of one batch after another: fresh pages cost more than the sums."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor of any content; of each name one at a time."""
        size = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = self._like.new_empty(size + size // 4)  # batches differ a little
        return self._buffers[name][:size].view(shape)


@dataclass(frozen=True, eq=False)
class _Gaussians:
    """The Gaussians of all leaves, in the order of a plan: ``amplitude exp2(-(root r - root x)^2)``.

    Attributes:
        centre: -root times the place along x, y and z, from the first voxel of the window, each shape=(l, n).
        root: square root of alpha / log 2, in Å^-1, shape=(l, n).
        amplitude: zero in places to spare, shape=(l, n).
        places: Å, of the voxels along x, y and z from the first one, each shape=(n_axis, 1).
    """

    centre: tuple[Float[Tensor, "l n"], ...]
    root: Float[Tensor, "l n"]
    amplitude: Float[Tensor, "l n"]
    places: tuple[Tensor, ...]

    @classmethod
    def of(cls, grid: Grid, plan: _Plan, coords: Tensor, amplitude: Tensor, alpha: Tensor) -> _Gaussians:
        """Gathered from the atoms of K members (K, M, ...)."""
        terms = amplitude.shape[2]
        place = pad(coords.flatten(0, 1), (0, 0, 0, 1))[plan.atoms] - plan.corner[:, None]
        rate = pad(alpha.flatten(0, 1) / math.log(2), (0, 0, 0, 1), value=1.0)
        root = rate.sqrt()[plan.atoms].flatten(1)
        height = pad(amplitude.flatten(0, 1), (0, 0, 0, 1))[plan.atoms].flatten(1)
        centre = tuple(place[..., axis].repeat_interleave(terms, 1) * -root for axis in range(3))
        places = tuple(
            h * torch.arange(n, dtype=coords.dtype, device=coords.device)[:, None]
            for h, n in zip(grid.spacing, grid.shape, strict=True)
        )
        return cls(centre, root, height, places)

    def factors(self, batch: _Batch, space: _Workspace) -> tuple[Tensor, Tensor]:
        """Distances t = root (r - x) and factors exp2(-t^2) along x, then y, then z, (b, wx + wy + wz, n).

        No factor is let below a floor (7e-13 in single precision), so that products of three stay normal
        numbers: arithmetic on denormal ones is many times slower. exp2 is three times as fast as exp.
        """
        root = self.root[batch.rows][:, None]
        t = space("distances", len(root), sum(batch.shape), root.shape[2])
        for part, r, centre in zip(t.split(batch.shape, 1), self.places, self.centre, strict=True):
            torch.addcmul(centre[batch.rows][:, None], r[: part.shape[1]], root, out=part)
        limit = math.sqrt(-math.log2(torch.finfo(t.dtype).tiny) / 3 - 2)
        t.clamp_(-limit, limit)
        squares = torch.addcmul(t.new_zeros(()), t, t, value=-1, out=space("factors", *t.shape))
        return t, squares.exp2_()


def _faces(y: Tensor, z: Tensor, space: _Workspace) -> Float[Tensor, "b f n"]:
    """The products of the factors along y and z."""
    yz = space("faces", len(y), y.shape[1], z.shape[1], y.shape[2])
    return torch.mul(y[:, :, None], z[:, None], out=yz).flatten(1, 2)


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a type and device; on a CPU, memory that is not written to is never touched.

    A molecule fills a small part of a large box, and to fill the rest with zeros can cost more than the
    molecule. numpy asks the system for pages that are zero, torch writes them.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(shape, dtype=like.detach()[:0].numpy().dtype))


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
        plan = _Plan.of(grid, coords, amplitude, alpha, cutoff)
        ctx.save_for_backward(coords, amplitude, alpha)
        ctx.grid, ctx.plan = grid, plan
        gaussians = _Gaussians.of(grid, plan, coords, amplitude, alpha)
        density = _zeros(coords, (len(coords), *grid.shape))
        space = _Workspace(density)
        for batch in plan.batches:
            x, y, z = gaussians.factors(batch, space)[1].split(batch.shape, 1)
            x.mul_(gaussians.amplitude[batch.rows][:, None])
            product = space("windows", len(x), *batch.shape)
            torch.bmm(x, _faces(y, z, space).mT, out=product.flatten(2))
            torch._foreach_add_(batch.windows(density), product.unbind())
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        plan: _Plan = ctx.plan
        coords, amplitude, alpha = ctx.saved_tensors
        gaussians = _Gaussians.of(ctx.grid, plan, coords, amplitude, alpha)
        zeroth, second = torch.empty_like(gaussians.root), torch.empty_like(gaussians.root)
        first = gaussians.root.new_empty(*gaussians.root.shape, 3)
        grad, space = grad.contiguous(), _Workspace(grad)
        for batch in plan.batches:
            t, factors = gaussians.factors(batch, space)
            windows = space("windows", len(t), *batch.shape)
            torch.stack(batch.windows(grad), out=windows)
            weighted = _line_integrals(windows, factors, batch.shape, space)
            zeroth[batch.rows] = weighted[:, : batch.shape[0]].sum(1)
            weighted *= t
            for axis, part in enumerate(weighted.split(batch.shape, 1)):
                first[batch.rows, :, axis] = part.sum(1)
            second[batch.rows] = weighted.mul_(t).sum(1)
        # moments of the incoming gradient under each Gaussian, in units of its width
        slope = (2 * math.log(2)) * gaussians.amplitude * gaussians.root
        results = (
            (slope[..., None] * first).unflatten(1, (-1, alpha.shape[2])).sum(2),
            zeroth.unflatten(1, (-1, alpha.shape[2])),
            (-gaussians.amplitude / gaussians.root.square() * second).unflatten(1, (-1, alpha.shape[2])),
        )
        grads = [_at_atoms(v, r, plan.atoms) for v, r in zip(ctx.saved_tensors, results, strict=True)]
        return (*grads, None, None)


def _line_integrals(grad: Tensor, factors: Tensor, shape: tuple[int, int, int], space: _Workspace) -> Tensor:
    """The incoming gradient (b, wx, wy, wz) times a Gaussian, summed over all axes but x, then y, then z.

    Returns:
        As ``factors``, shape=(b, wx + wy + wz, n).
    """
    sums = space("sums", *factors.shape)
    (x, y, z), (along_x, along_y, along_z) = factors.split(shape, 1), sums.split(shape, 1)
    grad, yz = grad.flatten(2), _faces(y, z, space)
    torch.bmm(grad, yz, out=along_x).mul_(x)
    planes = torch.bmm(grad.mT, x, out=space("planes", *yz.shape)).mul_(yz).unflatten(1, shape[1:])
    torch.sum(planes, 2, out=along_y)
    torch.sum(planes, 1, out=along_z)
    return sums


def _at_atoms(like: Float[Tensor, "k m c"], values: Float[Tensor, "l p c"], atoms: Tensor) -> Tensor:
    """Rows of the leaves back at their atoms, (K, M, ...); zero where an atom does not reach the box."""
    out = like.new_zeros(like.shape[0] * like.shape[1] + 1, like.shape[2])
    out[atoms.flatten()] = values.flatten(0, 1)
    return out[:-1].view_as(like)


def gaussian_density(
    grid: Grid,
    coords: Float[Tensor, "*k m 3"],
    amplitude: Float[Tensor, "*k m j"],
    alpha: Float[Tensor, "*k m j"],
    *,
    cutoff: float = CUTOFF,
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
        return gaussian_density(grid, coords[None], amplitude[None], alpha[None], cutoff=cutoff).squeeze(0)
    return _GaussianSum.apply(coords.contiguous(), amplitude.contiguous(), alpha.contiguous(), grid, cutoff)


def count_operations(
    grid: Grid,
    coords: Float[Tensor, "m 3"],
    amplitude: Float[Tensor, "m j"],
    alpha: Float[Tensor, "m j"],
    *,
    cutoff: float = CUTOFF,
) -> dict[str, int]:
    """What ``gaussian_density`` does, forward and backward to the coordinates.

    Returns:
        ``product_flops``: of the three matrix products, two a multiplication and addition;
        ``other_flops``: of the faces, made twice, their products with planes, and two sums over these;
        ``exponentials``; ``window_bytes``: of the windows added and read; ``leaves``; ``batches``.
    """
    plan = _Plan.of(grid, coords[None], amplitude[None], alpha[None], cutoff)
    n = plan.atoms.shape[1] * amplitude.shape[1]
    windows = [(len(b.first), *b.shape) for b in plan.batches]
    return {
        "product_flops": sum(6 * n * leaves * wx * wy * wz for leaves, wx, wy, wz in windows),
        "other_flops": sum(5 * n * leaves * wy * wz for leaves, _, wy, wz in windows),
        "exponentials": sum(2 * n * leaves * (wx + wy + wz) for leaves, wx, wy, wz in windows),
        "window_bytes": sum(3 * 4 * leaves * wx * wy * wz for leaves, wx, wy, wz in windows),
        "leaves": len(plan.atoms),
        "batches": len(plan.batches),
    }
