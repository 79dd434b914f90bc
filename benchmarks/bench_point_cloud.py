"""A map as a point cloud: our weighted k-means against others, in time and in tightness.

The question: what do the k-d tree and the bounds save at the size of paper 2 (60,000 voxels, 1,250
points), over a loop over the centroids and over scikit-learn's? ``python benchmarks/bench_point_cloud.py``:
all run in the same process, one thread, and CPU time counts, so ratios mean something on a busy machine.
Takes some minutes, for scikit-learn.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from densemble.io.maps import read_map
from densemble.likelihood.cloud import cloud_size, point_cloud


def inertia(points: np.ndarray, weights: np.ndarray, centroids: np.ndarray) -> float:
    """Weighted sum of squared distances to the nearest centroid."""
    return float((weights * np.square(cKDTree(centroids).query(points)[0])).sum())


def molecule(voxels: int, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """The densest voxels, 1 Å apart, of atoms thrown into a ball at the density of protein, 2 Å blur."""
    rng = np.random.default_rng(0)
    radius = (atoms * 17.0 * 3 / (4 * np.pi)) ** (1 / 3)
    centres = rng.normal(size=(atoms, 3))
    centres *= (radius * rng.random(atoms) ** (1 / 3) / np.linalg.norm(centres, axis=1))[:, None]
    edge = np.arange(-int(radius) - 6, int(radius) + 7, dtype=float)
    points = np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), axis=-1).reshape(-1, 3)
    found, _ = cKDTree(centres).query(points, k=8)
    density = np.exp(-np.square(found) / 8).sum(axis=1)
    kept = np.argsort(density)[-voxels:]
    return points[kept], density[kept]


def loop_over_centroids(points: np.ndarray, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """One round of Lloyd's iteration, written plainly."""
    least, own = np.full(len(points), np.inf), np.zeros(len(points), dtype=int)
    for j, centroid in enumerate(start):
        distance = np.square(points - centroid).sum(axis=1)
        nearer = distance < least
        least[nearer], own[nearer] = distance[nearer], j
    totals = np.bincount(own, weights, len(start))
    sums = [np.bincount(own, weights * points[:, axis], len(start)) for axis in range(3)]
    return np.stack(sums, axis=1) / np.maximum(totals, 1e-12)[:, None]


def compare(name: str, points: np.ndarray, weights: np.ndarray, count: int, seeds: int) -> None:
    """Print time and inertia of both, and their ratios."""
    times: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    sums: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    for seed in range(seeds):
        begin = time.process_time()
        cloud = point_cloud(points, weights, count=count, seed=seed)
        times["ours"].append(time.process_time() - begin)
        sums["ours"].append(inertia(points, weights, cloud.points.numpy()))
        begin = time.process_time()
        means = KMeans(count, n_init=1, random_state=seed).fit(points, sample_weight=weights)
        times["scikit-learn"].append(time.process_time() - begin)
        sums["scikit-learn"].append(inertia(points, weights, means.cluster_centers_))
    begin = time.process_time()
    loop_over_centroids(points, weights, cloud.points.numpy())
    loop = time.process_time() - begin
    print(f"{name}: {len(points)} voxels, {count} points, {seeds} seeds")
    for way in times:
        print(f"  {way:13s} CPU s {np.median(times[way]):7.2f}   best sum {min(sums[way]):.6g}")
    speed = np.median(times["scikit-learn"]) / np.median(times["ours"])
    tight = np.median(sums["ours"]) / min(sums["scikit-learn"])
    ratio = loop / np.median(times["ours"])
    rounds = means.n_iter_
    print(f"  loop over centroids, {rounds} rounds as scikit-learn's: a factor of {ratio * rounds:.0f} saved")
    print(f"  over scikit-learn: a factor of {speed:.1f}; median sum over scikit-learn's best: {tight:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--map", help="an MRC map to compare on too")
    parser.add_argument("--contour", type=float, default=0.0147, help="of the map (EMD-3488's by default)")
    parser.add_argument("--atoms", type=int, default=4400, help="of the map's molecule")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, one thread")
    with threadpool_limits(1):
        compare("ball of atoms", *molecule(60_000, 5000), cloud_size(5000, 1.0), arguments.seeds)
        if arguments.map:
            density = read_map(arguments.map)
            above = (density.values > arguments.contour).numpy()
            size = cloud_size(arguments.atoms, density.grid.voxel_volume ** (1 / 3))
            values = density.values.double().numpy()[above]
            compare(arguments.map, density.grid.points()[above], values, size, arguments.seeds)
