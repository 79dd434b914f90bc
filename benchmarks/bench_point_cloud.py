"""A map as a point cloud: our weighted k-means against others, in time and in tightness.

The question: what do the k-d tree and the bounds save at the size of paper 2 (60,000 voxels, 1,250
points), over a loop over the centroids and over scikit-learn's? ``python benchmarks/bench_point_cloud.py``:
all run in the same process on one thread; processor time counts, of each seed the least of three runs and of
the seeds the median, so ratios mean something on a busy machine. The loop is timed for one round, which is
taken as often as scikit-learn goes round. Takes some minutes, for scikit-learn.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from densemble.io.maps import read_map
from densemble.likelihood.cloud import cloud_size, point_cloud
from measuring import REPEATS, begin, clock, least, parser_of, timed, write


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


def compare(name: str, points: np.ndarray, weights: np.ndarray, count: int, seeds: int) -> dict[str, object]:
    """Print and return time and inertia of all, and their ratios."""
    times: dict[str, list[float]] = {"ours": [], "scikit-learn": [], "a round of the loop": []}
    sums: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    rounds = []
    for seed in range(seeds):
        start = KMeans(count, n_init=1, random_state=seed)
        fit = [timed(lambda start=start: start.fit(points, sample_weight=weights)) for _ in range(REPEATS)]
        own = [
            timed(lambda s=seed: point_cloud(points, weights, count=count, seed=s)) for _ in range(REPEATS)
        ]
        means, cloud = fit[-1][1], own[-1][1].points.numpy()
        times["ours"].append(min(seconds for seconds, _ in own))
        times["scikit-learn"].append(min(seconds for seconds, _ in fit))
        times["a round of the loop"].append(
            least(lambda cloud=cloud: loop_over_centroids(points, weights, cloud), REPEATS)
        )
        sums["ours"].append(inertia(points, weights, cloud))
        sums["scikit-learn"].append(inertia(points, weights, means.cluster_centers_))
        rounds.append(int(means.n_iter_))
    print(f"{name}: {len(points)} voxels, {count} points, {seeds} seeds")
    for way, found in times.items():
        print(f"  {way:20s} {clock()} s {np.median(found):7.2f}", end="")
        print(f"   best sum {min(sums[way]):.6g}" if way in sums else "")
    ours, theirs, loop = (float(np.median(found)) for found in times.values())
    loop *= float(np.median(rounds))
    tight = float(np.median(sums["ours"])) / min(sums["scikit-learn"])
    print(f"  over the loop, as many rounds as scikit-learn's {rounds}: a factor of {loop / ours:.0f}")
    print(f"  over scikit-learn: a factor of {theirs / ours:.1f}; median sum over its best: {tight:.4f}")
    return {
        "name": name,
        "voxels": len(points),
        "points": count,
        "seeds": seeds,
        "seconds": ours,
        "seconds_scikit_learn": theirs,
        "seconds_loop": loop,
        "rounds": rounds,
        "ratio_loop": loop / ours,
        "ratio_scikit_learn": theirs / ours,
        "sum_over_best_of_scikit_learn": tight,
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--map", help="an MRC map to compare on too")
    parser.add_argument("--contour", type=float, default=0.0147, help="of the map (EMD-3488's by default)")
    parser.add_argument("--atoms", type=int, default=4400, help="of the map's molecule")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(arguments)
    result = begin("point cloud", args.threads)
    with threadpool_limits(args.threads):
        rows = [compare("ball of atoms", *molecule(60_000, 5000), cloud_size(5000, 1.0), args.seeds)]
        if args.map:
            density = read_map(args.map)
            above = (density.values > args.contour).numpy()
            size = cloud_size(args.atoms, density.grid.voxel_volume ** (1 / 3))
            values = density.values.double().numpy()[above]
            rows.append(compare(args.map, density.grid.points()[above], values, size, args.seeds))
    write(result | {"repeats": REPEATS, "clouds": rows}, args.json)


if __name__ == "__main__":
    main()
