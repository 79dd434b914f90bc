"""How alike two maps are, over a stated region of voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.atoms import Topology
from densemble.grid import Grid


def voxels_near(grid: Grid, coords: Float[Tensor, "*n 3"], radius: float) -> Bool[Tensor, "nx ny nz"]:
    """The voxels whose centres lie within ``radius`` Å of any of the atoms.

    Figures of map fit differ widely with the region: say which atoms and which radius were used. The
    voxels also hold the density of neighbours that are not among the atoms given.

    Args:
        grid: the box.
        coords: Å, shape=(..., 3); all leading dimensions count, so that several states can be given.
        radius: Å.
    """
    tree = cKDTree(coords.detach().reshape(-1, 3).double().cpu().numpy())
    distance, _ = tree.query(grid.points().reshape(-1, 3), distance_upper_bound=np.nextafter(radius, np.inf))
    return torch.as_tensor(np.isfinite(distance).reshape(grid.shape), device=coords.device)


def cosine(
    a: Float[Tensor, "nx ny nz"], b: Float[Tensor, "nx ny nz"], region: Bool[Tensor, "nx ny nz"]
) -> float:
    """``<a, b> / (|a| |b|)`` over the voxels of the region: 1 for maps that differ by a positive factor.

    The measure of paper 1. Unlike ``rscc`` it depends on the offset of the maps.

    Raises:
        ValueError: the region has no voxels, or a map is zero there.
    """
    x, y = _values(a, region), _values(b, region)
    norm = float(x.norm() * y.norm())
    if norm == 0:
        raise ValueError("cosine: a map is zero in the region")
    return float(x @ y) / norm


def rscc(
    a: Float[Tensor, "nx ny nz"], b: Float[Tensor, "nx ny nz"], region: Bool[Tensor, "nx ny nz"]
) -> float:
    """Real-space correlation: Pearson's coefficient of the two maps over the voxels of the region.

    Raises:
        ValueError: the region has fewer than two voxels, or a map is constant there.
    """
    x, y = _values(a, region), _values(b, region)
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    if len(x) < 2 or norm == 0:
        raise ValueError("rscc: a map is constant in the region")
    return float(x @ y) / norm


def blocks_of(grid: Grid, inside: Bool[Tensor, "nx ny nz"], edge: float) -> Int[np.ndarray, " v"]:
    """The block, with edges of about ``edge`` Å, that each voxel of a region is in, numbered without gaps."""
    size = [max(round(edge / h), 1) for h in grid.spacing]
    place = np.argwhere(inside.numpy()) // size
    return np.unique(place, axis=0, return_inverse=True)[1].ravel()


def rscc_gain_error(
    first: Float[Tensor, "nx ny nz"],
    second: Float[Tensor, "nx ny nz"],
    target: Float[Tensor, "nx ny nz"],
    region: Bool[Tensor, "nx ny nz"],
    block: Int[np.ndarray, " v"],
) -> float:
    """Standard error of ``rscc(second, target) - rscc(first, target)``: jackknife over blocks of voxels.

    ``sqrt((B - 1) / B sum_b (d_b - mean d)^2)`` over the B differences d_b without block b (Efron, B. &
    Stein, C. (1981). Ann. Stat. 9, 586-596). NaN where there are fewer than two blocks.

    Args:
        first: one map.
        second: another.
        target: with which both are compared.
        region: the voxels.
        block: of each of these, in their order (``blocks_of``), shape=(v,).
    """
    count = int(block.max()) + 1
    if count < 2:
        return float("nan")
    y = _values(target, region).numpy()
    values = [_without(x, y, block, count) for x in (_values(m, region).numpy() for m in (first, second))]
    change = values[1] - values[0]
    return float(np.sqrt((count - 1) / count * ((change - change.mean()) ** 2).sum()))


def _without(x: np.ndarray, y: np.ndarray, block: np.ndarray, count: int) -> Float[np.ndarray, " b"]:
    """Pearson's coefficient of all voxels but those of a block, for each block."""
    x, y = x - x.mean(), y - y.mean()  # for the digits: the coefficient does not change

    def left(values: np.ndarray) -> np.ndarray:
        return values.sum() - np.bincount(block, values, minlength=count)

    n, sx, sy = left(np.ones(len(x))), left(x), left(y)
    covariance = left(x * y) - sx * sy / n
    return np.asarray(covariance / np.sqrt((left(x * x) - sx**2 / n) * (left(y * y) - sy**2 / n)))


@dataclass(frozen=True, eq=False)
class ModelFit:
    """Real-space correlations of a model.

    Attributes:
        residues: of each residue of the topology, over the voxels near its atoms; NaN where there are
            fewer than two, or a map is constant there.
        voxels: how many there are near each residue.
        overall: over the voxels near any atom.
    """

    residues: Float[np.ndarray, " r"]
    voxels: Int[np.ndarray, " r"]
    overall: float


def model_fit(
    observed: Float[Tensor, "nx ny nz"],
    calculated: Float[Tensor, "nx ny nz"],
    grid: Grid,
    topology: Topology,
    coords: Float[np.ndarray, "n 3"],
    *,
    radius: float,
) -> ModelFit:
    """RSCC of each residue and of the whole model, in maps of any size.

    The calculated density is that of all atoms, so that what neighbours put near a residue is on both
    sides of the comparison. A voxel near two residues counts for both, and once overall.

    Args:
        observed: values on the grid.
        calculated: of the whole model, on the same grid.
        grid: the box.
        topology: the atoms.
        coords: Å, in the frame of the map; NaN where an atom is not known.
        radius: Å; voxels whose centres are this near to an atom count (state it with the figures).

    Raises:
        ValueError: no voxel is near the model, or a map is constant there.
    """
    known = np.flatnonzero(np.isfinite(coords).all(axis=1))
    atom, voxel = _pairs_near(grid, coords[known], radius)
    count, size = len(topology.residues), int(np.prod(grid.shape))
    owner, place = np.divmod(np.unique(topology.residue_index[known][atom] * size + voxel), size)
    x, y = (m.detach().cpu().double().numpy().reshape(-1) for m in (observed, calculated))
    everywhere = np.unique(place)
    overall = _pearson(x[everywhere], y[everywhere], np.zeros(len(everywhere), dtype=np.int64), 1)
    if not np.isfinite(overall).all():
        raise ValueError("model_fit: no voxel is near the model, or a map is constant there")
    return ModelFit(
        residues=_pearson(x[place], y[place], owner, count),
        voxels=np.bincount(owner, minlength=count),
        overall=float(overall[0]),
    )


def _pairs_near(
    grid: Grid, coords: Float[np.ndarray, "n 3"], radius: float
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Atoms and the (flat) voxels whose centres are within the radius of them."""
    spacing, shape = np.array(grid.spacing), np.array(grid.shape)
    reach = np.ceil(radius / spacing).astype(int) + 1
    around = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    # the nearest voxel is at most half a diagonal away
    around = around[np.linalg.norm(around * spacing, axis=1) <= radius + np.linalg.norm(spacing) / 2 + 1e-6]
    place = (coords - grid.origin) / spacing
    found: list[tuple[np.ndarray, np.ndarray]] = []
    block = max(1, 2_000_000 // len(around))
    for start in range(0, len(coords), block):
        here = place[start : start + block, None]
        voxel = np.rint(here).astype(np.int64) + around
        square = (((voxel - here) * spacing) ** 2).sum(axis=-1)
        near = (square <= radius**2 * (1 + 1e-12)) & ((voxel >= 0) & (voxel < shape)).all(axis=-1)
        atom, _ = near.nonzero()
        found.append((atom + start, np.ravel_multi_index(tuple(voxel[near].T), grid.shape)))
    atoms, voxels = zip(*found, strict=True) if found else ((), ())
    none = np.zeros(0, dtype=np.int64)
    return np.concatenate([none, *atoms]), np.concatenate([none, *voxels])


def _pearson(
    x: Float[np.ndarray, " p"], y: Float[np.ndarray, " p"], owner: Int[np.ndarray, " p"], count: int
) -> Float[np.ndarray, " r"]:
    """Pearson's coefficient of the values of each owner; NaN where it is not defined."""

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, minlength=count)

    number = np.maximum(np.bincount(owner, minlength=count), 1)
    size = total(x**2), total(y**2)
    x, y = (v - (total(v) / number)[owner] for v in (x, y))
    variance = total(x**2), total(y**2)
    # rounding leaves a constant map a tiny variance, which must not pass for a signal
    defined = (variance[0] > 1e-24 * size[0]) & (variance[1] > 1e-24 * size[1])
    norm = np.sqrt(variance[0] * variance[1])
    return np.divide(total(x * y), norm, out=np.full(count, np.nan), where=defined & (norm > 0))


def _values(values: Tensor, region: Tensor) -> Tensor:
    """The region's voxels in double precision."""
    if not bool(region.any()):
        raise ValueError("the region has no voxels")
    return values.detach()[region].double()
