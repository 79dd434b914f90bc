"""A map as a cloud of points: weighted k-means of its voxels (paper 2, appendix A.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.errors import InputError
from densemble.grid import DensityMap

_BITS = 21  # per axis of the space-filling curve
_SETTLED = 0.01  # root mean square shift of the centroids, over the width of a cluster
_ROUNDS = 100


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Weighted points that stand for the density.

    Attributes:
        points: Å, map frame, shape=(k, 3).
        weights: density gathered by each point, positive, shape=(k,).
    """

    points: Float[Tensor, "k 3"]
    weights: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape != (len(self.weights), 3):
            raise ValueError(
                f"PointCloud: points {tuple(self.points.shape)} and weights {tuple(self.weights.shape)} "
                "do not agree"
            )

    def __len__(self) -> int:
        return len(self.points)

    def equal(self) -> PointCloud:
        """The same points with a share each, as paper 2 compares them (appendix A.4: columns sum to 1/M)."""
        return PointCloud(self.points, torch.ones_like(self.weights))


def cloud_size(atoms: int, voxel: float) -> int:
    """How many points paper 2 takes: ``floor(atoms / (4 voxel^3))``.

    Args:
        atoms: heavy atoms of the model.
        voxel: Å, edge of a voxel.

    Raises:
        InputError: that is no point at all.
    """
    size = math.floor(atoms / (4 * voxel**3))
    if size < 1:
        raise InputError(
            f"a cloud of floor({atoms} atoms / (4 x {voxel:.3g}^3 Å^3)) = 0 points; voxels too coarse "
            "for so few atoms; give a finer map, or the number of points"
        )
    return size


def cloud_of_map(
    density: DensityMap, mask: Bool[Tensor, "nx ny nz"], *, atoms: int, seed: int = 0
) -> PointCloud:
    """The cloud of the voxels of a mask, weighted by their density, of as many points as paper 2 takes.

    Args:
        density: the map.
        mask: voxels to use, usually those above the contour without dust, shape=(nx, ny, nz).
        atoms: heavy atoms of the model.
        seed: see ``point_cloud``.

    Raises:
        InputError: the mask is empty or reaches voxels without positive density, or holds fewer voxels
            than the cloud would have points.
    """
    chosen = mask.cpu().numpy()
    if chosen.shape != density.grid.shape:
        raise ValueError(f"cloud_of_map: mask {chosen.shape} on a grid of shape {density.grid.shape}")
    weights = density.values.double().cpu().numpy()[chosen]
    if len(weights) == 0 or weights.min() <= 0:
        raise InputError(
            f"{len(weights)} voxels of the map are above the contour, {int((weights <= 0).sum())} of them "
            "without positive density; set the contour above zero and below the density of the molecule"
        )
    count = cloud_size(atoms, density.grid.voxel_volume ** (1 / 3))
    if count > len(weights):
        raise InputError(
            f"{len(weights)} voxels of the map are above the contour, too few for the {count} points that "
            f"{atoms} atoms ask for; lower the contour"
        )
    return point_cloud(density.grid.points()[chosen], weights, count=count, seed=seed)


def point_cloud(
    points: Float[np.ndarray, "n 3"], weights: Float[np.ndarray, " n"], *, count: int, seed: int = 0
) -> PointCloud:
    """Weighted k-means: ``count`` points that least change the weighted squared distance to the nearest.

    Lloyd's iteration, with the bounds of Hamerly (2010, SIAM Int. Conf. Data Mining, 130-140), under which
    only points whose nearest centroid may have changed are looked up again, in a k-d tree. Seeds are drawn
    one from each of ``count`` strata along a space-filling curve, of equal share of ``weight^(3/5)``, which
    is how the centroids of the best quantiser are spread in three dimensions (Zador 1982, IEEE Trans. Inf.
    Theory 28, 139). A centroid left without points goes to a point that contributes most to the sum. It
    ends when centroids move by less than one hundredth of the width of a cluster (root mean squares).

    The result does not depend on the order of the points, and is in order along the curve of the seeds.

    Args:
        points: Å, shape=(n, 3).
        weights: not negative, shape=(n,).
        count: points of the cloud.
        seed: of the draw.

    Raises:
        ValueError: shapes do not agree, a weight is negative or not finite, or fewer than ``count``
            different points have positive weight.
    """
    if points.ndim != 2 or points.shape != (len(weights), 3):
        raise ValueError(f"point_cloud: points {points.shape} and weights {weights.shape} do not agree")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("point_cloud: negative weights, or weights that are not numbers")
    x, w = points[weights > 0].astype(np.float64), weights[weights > 0].astype(np.float64)
    if not 1 <= count <= len(w):
        raise ValueError(f"point_cloud: {count} centroids of {len(w)} points with positive weight")
    order = np.lexsort(x.T)
    order = order[np.argsort(_curve(x[order]), kind="stable")]
    x, w = x[order], w[order]
    centroids = x[_strata(w**0.6, count, np.random.default_rng(seed))]
    centroids, nearest = _lloyd(x, w, centroids)
    gathered = np.bincount(nearest, w, count)
    if gathered.min() == 0:
        raise ValueError(f"point_cloud: fewer than {count} different points with positive weight")
    return PointCloud(torch.from_numpy(centroids), torch.from_numpy(gathered))


def _curve(x: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """Place of each point along a Z-order curve: the bits of its coordinates, interleaved."""
    low, extent = x.min(axis=0), max(float(np.ptp(x, axis=0).max()), 1e-12)
    cells = ((x - low) / extent * (2**_BITS - 1)).astype(np.uint64)
    code = np.zeros(len(x), dtype=np.uint64)
    for bit in range(_BITS):
        for axis in range(3):
            digit = (cells[:, axis] >> np.uint64(bit)) & np.uint64(1)
            code |= digit << np.uint64(3 * bit + axis)
    return code.astype(np.int64)


def _strata(mass: Float[np.ndarray, " n"], count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices, all different, one drawn by mass from each of ``count`` stretches of equal mass."""
    total = np.cumsum(mass)
    drawn = (np.arange(count) + generator.random(count)) * (total[-1] / count)
    index = np.searchsorted(total, drawn).clip(max=len(mass) - 1)
    # A point may be heavier than a stretch and be drawn twice: move on to the next free ones.
    index = np.maximum.accumulate(index - np.arange(count)) + np.arange(count)
    return np.minimum(index, len(mass) - count + np.arange(count))


def _lloyd(
    x: Float[np.ndarray, "n 3"], w: Float[np.ndarray, " n"], centroids: Float[np.ndarray, "k 3"]
) -> tuple[Float[np.ndarray, "k 3"], Int[np.ndarray, " n"]]:
    """Centroids that have settled, each the mean of its points, and the index of each point's own."""
    k = len(centroids)
    nearest = np.zeros(len(x), dtype=np.int64)
    upper, lower = np.full(len(x), np.inf), np.zeros(len(x))
    for _ in range(_ROUNDS):
        _look_up(x, centroids, nearest, upper, lower)
        moved = _means(x, w, nearest, centroids)
        step = np.linalg.norm(moved - centroids, axis=1)
        centroids = moved
        upper += step[nearest]
        lower -= step.max()
        width = math.sqrt((w * np.square(x - centroids[nearest]).sum(axis=1)).sum() / w.sum())
        if math.sqrt(np.square(step).mean()) <= _SETTLED * width and len(np.unique(nearest)) == k:
            break
    return centroids, nearest


def _look_up(
    x: np.ndarray, centroids: np.ndarray, nearest: np.ndarray, upper: np.ndarray, lower: np.ndarray
) -> None:
    """Renew, in place, the nearest centroid and the bounds on its distance and on the next one's."""
    open_ = np.flatnonzero(upper >= lower)
    distance = np.linalg.norm(x[open_] - centroids[nearest[open_]], axis=1)
    upper[open_] = distance
    open_ = open_[distance >= lower[open_]]
    if len(open_) == 0:
        return
    if len(centroids) == 1:
        nearest[open_], lower[open_] = 0, np.inf
        return
    found, index = cKDTree(centroids).query(x[open_], k=2)
    nearest[open_], upper[open_], lower[open_] = index[:, 0], found[:, 0], found[:, 1]


def _means(x: np.ndarray, w: np.ndarray, nearest: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Weighted mean of each centroid's points; one without points goes where the sum is largest."""
    k = len(centroids)
    total = np.bincount(nearest, w, k)
    sums = np.stack([np.bincount(nearest, w * x[:, axis], k) for axis in range(3)], axis=1)
    empty = np.flatnonzero(total == 0)
    means = sums / np.where(total > 0, total, 1.0)[:, None]
    if len(empty):
        worst = w * np.square(x - means[nearest]).sum(axis=1)
        means[empty] = x[np.argpartition(-worst, len(empty) - 1)[: len(empty)]]
    return means
