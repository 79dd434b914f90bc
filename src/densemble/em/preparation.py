"""A cryo-EM map made ready for a fit: contour, dust, mask, noise and a box around the contents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from densemble.em.contour import (
    DUST_VOXELS,
    Solvent,
    check_stands_out,
    choose_level,
    first_solvent,
    solvent_beside,
    stands_out,
    without_dust,
)
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.likelihood.mask import soft_edge

PADDING = 10.0
"""Å between the contents of a map and the faces of its box, or as much as the mask needs."""
_PASSES = 2  # of solvent and level, each from the other


@dataclass(frozen=True, eq=False)
class PreparedMap:
    """A map cut to its contents, with what is known about it from itself alone.

    Attributes:
        density: the map around its contents; voxel size and positions are those of the map given.
        level: the contour level, in the unit of the map.
        rule: where the level comes from: ``given``, or the automatic rule in words.
        inside: the voxels at or above the level, without dust; shape=(nx, ny, nz).
        mask: weights from 0 to 1 for a likelihood: 1 within ``dilation`` of a voxel inside, falling to 0 on
            a cosine over ``softness`` further out, and 0 where the map given has no voxels; shape=(nx, ny,
            nz), single precision.
        noise: robust standard deviation (1.4826 times the median absolute deviation) of the solvent, of
            voxels beyond the mask's reach from the density, in the unit of the map. Voxels at the constant
            value that masked and simulated maps have outside do not count; 0 if nothing else is there.
            Neighbouring voxels of a map are correlated.
        solvent: the value of the map where there is no density, in its unit: the one value it has outside a
            mask, or else the median of the voxels that ``noise`` is of. A density of atoms alone is to be
            compared with the map less this.
        volume: Å^3 inside.
        messages: what a user should know, one sentence each.
    """

    density: DensityMap
    level: float
    rule: str
    inside: Bool[Tensor, "nx ny nz"]
    mask: Float[Tensor, "nx ny nz"]
    noise: float
    solvent: float
    volume: float
    messages: tuple[str, ...]


def prepare(
    density: DensityMap,
    *,
    resolution: float,
    source: str,
    level: float | None = None,
    dilation: float | None = None,
    softness: float = 2.0,
) -> PreparedMap:
    """Contour a map, drop the dust, cut a box around the rest and make a mask; no model takes part.

    Without a level, it is chosen in two passes: solvent and noise are estimated, a level set above them,
    and both anew with the solvent from beside the density. Pieces that nowhere rise 5 standard deviations of
    the noise above the solvent count as dust then. See ``PreparedMap.rule`` for the numbers. The box has
    ``PADDING`` around the contents; where the map ends before, it goes on with the value of the solvent.

    Args:
        density: the map as read.
        resolution: Å.
        source: what errors call the map: its file name.
        level: contour level in the unit of the map; chosen if left out.
        dilation: Å from the voxels inside to where the mask starts to fall; the resolution if left out.
        softness: Å over which it falls to 0.

    Raises:
        InputError: nothing stands out from the noise; the level is at or above the map's maximum, or only
            dust is above it.
        ValueError: a length that is not positive.
    """
    dilation = resolution if dilation is None else dilation
    if not min(resolution, dilation) > 0 or not softness >= 0:
        raise ValueError("prepare: resolution and dilation must be positive, softness not negative")
    grid, values = density.grid, density.values.detach().cpu().numpy()
    reach = dilation + softness

    solvent, rule, peaks = first_solvent(values), "given", None
    if level is None:
        for _ in range(_PASSES):
            level, rule = choose_level(values, solvent, source)
            inside = without_dust(values >= level, stands_out(values, solvent))
            solvent = solvent_beside(values, _near(inside, grid, reach), solvent)
        level, rule = choose_level(values, solvent, source)
        check_stands_out(values, solvent, max(int(resolution**3 / grid.voxel_volume), DUST_VOXELS), source)
        peaks = stands_out(values, solvent)
    inside = _contoured(values, level, peaks, source)
    solvent = solvent_beside(values, _near(inside, grid, reach), solvent)

    low, high = _bounds(inside)
    margin = np.ceil(max(PADDING, reach) / np.array(grid.spacing)).astype(int)
    cut = _cut(grid, low - margin, high + margin)
    inside_cut = _copied(inside, low - margin, cut.shape, 0.0)
    measured = _copied(np.ones(values.shape, dtype=bool), low - margin, cut.shape, 0.0)
    distance = ndimage.distance_transform_edt(~inside_cut, sampling=grid.spacing)
    return PreparedMap(
        density=DensityMap(cut, torch.from_numpy(_copied(values, low - margin, cut.shape, solvent.mean))),
        level=level,
        rule=rule,
        inside=torch.from_numpy(inside_cut),
        mask=torch.from_numpy((measured * soft_edge(reach - distance, softness)).astype(np.float32)),
        noise=solvent.noise,
        solvent=solvent.mean,
        volume=float(inside.sum()) * grid.voxel_volume,
        messages=_messages(grid, resolution, level, solvent, inside),
    )


def boxed(density: DensityMap, grid: Grid, *, background: float | None = None) -> DensityMap:
    """Another map of the same voxels, cut or continued to the box of a prepared one.

    Args:
        density: the map; its voxels fall on those of ``grid``.
        grid: the box.
        background: value where the map has none; its own solvent, from outside the box if the map goes on
            there, if left out.
    """
    low = np.rint((np.array(grid.origin) - density.grid.origin) / grid.spacing).astype(int)
    values = density.values.detach().cpu().numpy()
    if background is None:
        box = _copied(np.ones(grid.shape, dtype=bool), -low, values.shape, 0.0)
        background = solvent_beside(values, box, first_solvent(values)).mean
    return DensityMap(grid, torch.from_numpy(_copied(values, low, grid.shape, background)))


def _contoured(values: np.ndarray, level: float, peaks: np.ndarray | None, source: str) -> np.ndarray:
    """The voxels at or above the level, without dust."""
    highest = float(values.max())
    if level >= highest:
        raise InputError(
            f"{source}: the level {level:g} is not below the map's maximum, {highest:g}; lower it"
        )
    inside = without_dust(values >= level, peaks)
    if not inside.any():
        raise InputError(
            f"{source}: at the level {level:g} there is only dust, pieces of fewer than {DUST_VOXELS} "
            "voxels; lower the level"
        )
    return inside


def _bounds(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index and one past the last of the true voxels along each axis."""
    lines = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([line[0] for line in lines]), np.array([line[-1] + 1 for line in lines])


def _near(inside: np.ndarray, grid: Grid, radius: float) -> np.ndarray:
    """The voxels about a cube of ``2 radius`` Å around one inside: no ball is needed to leave them out.

    Computed on blocks of eight voxels, of which those with any voxel inside count.
    """
    blocks = np.pad(inside, [(0, n % 2) for n in inside.shape])
    blocks = blocks[::2] | blocks[1::2]
    blocks = blocks[:, ::2] | blocks[:, 1::2]
    blocks = blocks[:, :, ::2] | blocks[:, :, 1::2]
    near = ndimage.maximum_filter(blocks, size=[2 * math.ceil(radius / (2 * h)) + 1 for h in grid.spacing])
    near = near.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    return np.asarray(near[tuple(slice(n) for n in inside.shape)])


def _cut(grid: Grid, low: np.ndarray, high: np.ndarray) -> Grid:
    """The box from voxel ``low`` to before ``high``, which may lie outside the grid."""
    (ox, oy, oz), (nx, ny, nz) = (
        (np.array(grid.origin) + low * np.array(grid.spacing)).tolist(),
        (high - low).tolist(),
    )
    return Grid((ox, oy, oz), grid.spacing, (nx, ny, nz))


def _copied(values: np.ndarray, low: np.ndarray, shape: tuple[int, ...], background: float) -> np.ndarray:
    """The values from index ``low`` on, ``background`` where there are none."""
    out = np.full(shape, background, dtype=values.dtype)
    start, end = np.maximum(low, 0), np.minimum(low + shape, values.shape)
    source = tuple(slice(a, b) for a, b in zip(start.tolist(), end.tolist(), strict=True))
    target = tuple(slice(a, b) for a, b in zip((start - low).tolist(), (end - low).tolist(), strict=True))
    out[target] = values[source]
    return out


def _messages(
    grid: Grid, resolution: float, level: float, solvent: Solvent, inside: np.ndarray
) -> tuple[str, ...]:
    """What a user should know."""
    messages = []
    if resolution < 2 * max(grid.spacing):
        messages.append(
            f"The resolution of {resolution:g} Å is finer than twice the voxel size of "
            f"{max(grid.spacing):g} Å, which is all that the voxels can show."
        )
    if level <= solvent.mean:
        messages.append(f"The level {level:g} is not above the map's solvent, {solvent.mean:.4g}.")
    if not solvent.beside and solvent.noise:
        messages.append(
            "Too few voxels of solvent are away from the density; the noise is that of the values below the "
            "solvent's, an upper limit."
        )
    if solvent.noise == 0:
        messages.append("The solvent is flat, as in a simulated map: there is no noise to be estimated.")
    elif solvent.fill is not None and solvent.beside:
        messages.append(
            f"The map is masked: {solvent.fill:g} wherever there is nothing. The soft edge of such a mask "
            "damps the noise beside the density, so the noise stated is a lower limit."
        )
    if any(inside.take(end, axis=axis).any() for axis in range(3) for end in (0, -1)):
        messages.append("Density reaches a face of the map's box and may be cut off there.")
    return tuple(messages)
