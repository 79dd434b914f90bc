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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from densemble.forward.plan import Batch, Plan
from densemble.grid import Grid

CUTOFF = 2e-6
"""Of the largest amplitude: where a Gaussian is below it, it is left out (``gaussian_density``)."""


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
    def of(cls, grid: Grid, plan: Plan, coords: Tensor, amplitude: Tensor, alpha: Tensor) -> _Gaussians:
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

    def factors(self, batch: Batch, space: _Workspace) -> tuple[Tensor, Tensor]:
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


def _add(windows: list[Tensor], parts: tuple[Tensor, ...]) -> None:
    """Add to windows that may overlap, one after another.

    On a CPU one call does it in this order; on a GPU that call may add to several tensors at once, which
    loses what two windows write to the same voxel.
    """
    if windows[0].device.type == "cpu":
        torch._foreach_add_(windows, parts)
        return
    for window, part in zip(windows, parts, strict=True):
        window.add_(part)


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


def _sum(grid: Grid, plan: Plan, coords: Tensor, amplitude: Tensor, alpha: Tensor) -> Tensor:
    """Density of K members, (K, M, ...) -> (K, nx, ny, nz)."""
    gaussians = _Gaussians.of(grid, plan, coords, amplitude, alpha)
    density = _zeros(coords, (len(coords), *grid.shape))
    space = _Workspace(density)
    for batch in plan.batches:
        x, y, z = gaussians.factors(batch, space)[1].split(batch.shape, 1)
        x.mul_(gaussians.amplitude[batch.rows][:, None])
        product = space("windows", len(x), *batch.shape)
        torch.bmm(x, _faces(y, z, space).mT, out=product.flatten(2))
        _add(batch.windows(density), product.unbind())
    return density


def _gradients(
    grid: Grid,
    plan: Plan,
    coords: Tensor,
    amplitude: Tensor,
    alpha: Tensor,
    grad: Tensor,
    asked: Sequence[bool] = (True, True, True),
) -> list[Tensor | None]:
    """By coordinates, amplitudes and exponents, from that by the density; None where it is not asked for."""
    by_coords, by_amplitude, by_alpha = asked
    gaussians = _Gaussians.of(grid, plan, coords, amplitude, alpha)
    # moments of the incoming gradient under each Gaussian, in units of its width
    zeroth, second = torch.empty_like(gaussians.root), torch.empty_like(gaussians.root)
    first = gaussians.root.new_empty(*gaussians.root.shape, 3)
    grad, space = grad.contiguous(), _Workspace(grad)
    for batch in plan.batches:
        t, factors = gaussians.factors(batch, space)
        windows = space("windows", len(t), *batch.shape)
        torch.stack(batch.windows(grad), out=windows)
        weighted = _line_integrals(windows, factors, batch.shape, space)
        if by_amplitude:
            zeroth[batch.rows] = weighted[:, : batch.shape[0]].sum(1)
        if by_coords or by_alpha:
            weighted *= t
        if by_coords:
            for axis, part in enumerate(weighted.split(batch.shape, 1)):
                first[batch.rows, :, axis] = part.sum(1)
        if by_alpha:
            second[batch.rows] = weighted.mul_(t).sum(1)
    terms, found = alpha.shape[2], list[Tensor | None]([None, None, None])
    if by_coords:
        slope = (2 * math.log(2)) * gaussians.amplitude * gaussians.root
        each = (slope[..., None] * first).unflatten(1, (-1, terms)).sum(2)
        found[0] = _at_atoms(coords, each, plan.atoms)
    if by_amplitude:
        found[1] = _at_atoms(amplitude, zeroth.unflatten(1, (-1, terms)), plan.atoms)
    if by_alpha:
        each = (-gaussians.amplitude / gaussians.root.square() * second).unflatten(1, (-1, terms))
        found[2] = _at_atoms(alpha, each, plan.atoms)
    return found


class _GaussianSum(torch.autograd.Function):
    """The density and its gradients; both go by one plan."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        coords: Tensor,
        amplitude: Tensor,
        alpha: Tensor,
        grid: Grid,
        cutoff: float,
    ) -> Tensor:
        ctx.grid, ctx.plan = grid, Plan.of(grid, coords, amplitude, alpha, cutoff)
        ctx.save_for_backward(coords, amplitude, alpha)
        return _sum(grid, ctx.plan, coords, amplitude, alpha)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        coords, amplitude, alpha = ctx.saved_tensors
        asked = ctx.needs_input_grad[:3]
        return (*_gradients(ctx.grid, ctx.plan, coords, amplitude, alpha, grad, asked), None, None)


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
    coords, amplitude, alpha = coords.contiguous(), amplitude.contiguous(), alpha.contiguous()
    if torch.compiler.is_compiling():
        box = list(grid.origin), list(grid.spacing), list(grid.shape)
        density: Tensor = torch.ops.densemble.gaussian_sum(coords, amplitude, alpha, *box, cutoff)
        return density
    return _GaussianSum.apply(coords, amplitude, alpha, grid, cutoff)


# Sizes of leaves and windows are data, which no compiler can follow: to ``torch.compile`` the density is one
# operation, and its gradient another, which makes its plan anew.
_GIVEN = (
    "Tensor coords, Tensor amplitude, Tensor alpha, "
    "float[] origin, float[] spacing, int[] shape, float cutoff"
)
torch.library.define("densemble::gaussian_sum", f"({_GIVEN}) -> Tensor")
torch.library.define("densemble::gaussian_slopes", f"({_GIVEN}, Tensor grad) -> (Tensor, Tensor, Tensor)")


@torch.library.impl("densemble::gaussian_sum", "CompositeExplicitAutograd")
def _compiled_sum(*given: Any) -> Tensor:
    coords, amplitude, alpha, *box, cutoff = given
    grid = _grid(*box)
    plan = Plan.of(grid, coords, amplitude, alpha, cutoff)
    return _sum(grid, plan, coords, amplitude, alpha)


@torch.library.impl("densemble::gaussian_slopes", "CompositeExplicitAutograd")
def _compiled_slopes(*given: Any) -> tuple[Tensor | None, ...]:
    coords, amplitude, alpha, *box, cutoff, grad = given
    grid = _grid(*box)
    plan = Plan.of(grid, coords, amplitude, alpha, cutoff)
    return tuple(_gradients(grid, plan, coords, amplitude, alpha, grad))


@torch.library.register_fake("densemble::gaussian_sum")
def _shape_of_sum(*given: Any) -> Tensor:
    coords, shape = given[0], given[5]
    return coords.new_empty((len(coords), *shape))


@torch.library.register_fake("densemble::gaussian_slopes")
def _shape_of_slopes(*given: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(v) for v in given[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:3])
    ctx.box = inputs[3:]


def _pass_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    found = torch.ops.densemble.gaussian_slopes(*ctx.saved_tensors, *ctx.box, grad)
    return (*found, None, None, None, None)


torch.library.register_autograd("densemble::gaussian_sum", _pass_back, setup_context=_keep)


def _grid(origin: Sequence[float], spacing: Sequence[float], shape: Sequence[int]) -> Grid:
    return Grid(tuple(origin), tuple(spacing), tuple(shape))  # type: ignore[arg-type]


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
    plan = Plan.of(grid, coords[None], amplitude[None], alpha[None], cutoff)
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
