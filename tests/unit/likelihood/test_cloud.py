import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from shared_data import SHARED, needs
from sklearn.cluster import KMeans

from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map
from densemble.likelihood.cloud import cloud_of_map, cloud_size, point_cloud

EMD_3488 = SHARED / "data" / "cryoem" / "emd_3488.mrc"


def inertia(points, weights, centroids):
    return float((weights * cdist(points, centroids, "sqeuclidean").min(axis=1)).sum())


def blobs(n=3000, seed=0):
    """Voxels of a lumpy density on a grid of 1 Å, with weights of a wide range."""
    rng = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    centres = rng.uniform(4, 20, (12, 3))
    density = np.exp(-cdist(points, centres, "sqeuclidean") / 18).sum(axis=1)
    kept = np.argsort(density)[-n:]
    return points[kept], density[kept]


@pytest.mark.parametrize("count", [1, 7, 60, 300])
def test_as_tight_as_scikit_learn(count):
    points, weights = blobs()
    cloud = point_cloud(points, weights, count=count, seed=1)
    best = min(
        KMeans(count, n_init=1, random_state=seed).fit(points, sample_weight=weights).inertia_
        for seed in range(3)
    )
    assert inertia(points, weights, cloud.points.numpy()) < 1.03 * best


@needs(EMD_3488, "the voxels of EMD-3488")
def test_a_real_map_leaves_little_to_improve():
    density = read_map(EMD_3488)
    mask = density.values > 0.0147
    cloud = cloud_of_map(density, mask, atoms=4400)
    assert len(cloud) == cloud_size(4400, 1.05) == 950
    points, weights = density.grid.points()[mask.numpy()], density.values.double().numpy()[mask.numpy()]
    assert float(cloud.weights.sum()) == pytest.approx(weights.sum(), rel=1e-9)
    ours = inertia(points, weights, cloud.points.numpy())
    further = KMeans(950, init=cloud.points.numpy(), n_init=1, max_iter=2).fit(points, sample_weight=weights)
    assert ours < 1.005 * further.inertia_
    rng = np.random.default_rng(0)
    drawn = points[rng.choice(len(points), 950, replace=False)]
    assert ours < 0.75 * inertia(points, weights, drawn)


def test_each_point_is_the_mean_of_its_voxels_and_carries_their_weight():
    points, weights = blobs()
    cloud = point_cloud(points, weights, count=50)
    own = cdist(points, cloud.points.numpy()).argmin(axis=1)
    total = np.bincount(own, weights, 50)
    means = np.stack([np.bincount(own, weights * axis, 50) for axis in points.T], axis=1) / total[:, None]
    assert np.abs(means - cloud.points.numpy()).max() < 0.1
    np.testing.assert_allclose(cloud.weights.numpy(), total, rtol=0.2)
    assert float(cloud.weights.sum()) == pytest.approx(weights.sum(), rel=1e-12)
    centre = (cloud.weights[:, None] * cloud.points).sum(0) / cloud.weights.sum()
    np.testing.assert_allclose(centre, np.average(points, axis=0, weights=weights), rtol=1e-12)


def test_the_same_seed_gives_the_same_cloud_whatever_the_order_of_the_points():
    points, weights = blobs()
    order = np.random.default_rng(3).permutation(len(points))
    first = point_cloud(points, weights, count=40, seed=5)
    again = point_cloud(points[order], weights[order], count=40, seed=5)
    other = point_cloud(points, weights, count=40, seed=6)
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.points, other.points)


def test_weights_pull_the_points():
    points = np.array([[0.0, 0, 0], [1.0, 0, 0], [10.0, 0, 0], [11.0, 0, 0]])
    cloud = point_cloud(points, np.array([3.0, 1.0, 1.0, 1.0]), count=2)
    np.testing.assert_allclose(cloud.points[:, 0].sort().values, [0.25, 10.5])
    assert sorted(cloud.weights.tolist()) == [2.0, 4.0]


@pytest.mark.parametrize("seed", range(5))
def test_no_point_is_left_without_voxels(seed):
    # one voxel outweighs all others, so that most strata lie in it
    points, weights = blobs(200)
    weights = weights.copy()
    weights[17] = 1e6
    cloud = point_cloud(points, weights, count=60, seed=seed)
    assert float(cloud.weights.min()) > 0
    assert len(np.unique(cloud.points.numpy(), axis=0)) == 60


def test_as_many_points_as_voxels_gives_the_voxels():
    points, weights = blobs(30)
    cloud = point_cloud(points, weights, count=30)
    order, own = np.lexsort(points.T), np.lexsort(cloud.points.numpy().T)
    np.testing.assert_allclose(cloud.points.numpy()[own], points[order], atol=1e-12)
    np.testing.assert_allclose(cloud.weights.numpy()[own], weights[order])


def test_points_without_weight_do_not_count():
    points, weights = blobs(100)
    weights = np.where(points[:, 0] > 12, weights, 0.0)
    cloud = point_cloud(points, weights, count=5)
    assert float(cloud.points[:, 0].min()) > 12


def test_bad_points_are_refused():
    points, weights = blobs(10)
    for bad in (-weights, np.full(10, np.nan)):
        with pytest.raises(ValueError, match="negative"):
            point_cloud(points, bad, count=2)
    with pytest.raises(ValueError, match="11 centroids of 10 points"):
        point_cloud(points, weights, count=11)
    with pytest.raises(ValueError, match="3 different points"):
        point_cloud(points[[0, 0, 0, 1]], weights[:4], count=3)


def test_size_is_that_of_the_paper():
    assert cloud_size(5000, 1.0) == 1250
    assert cloud_size(4400, 1.05) == 950  # 950.2
    with pytest.raises(InputError, match="too coarse"):
        cloud_size(100, 4.0)


def test_cloud_of_a_map_lies_in_its_frame_and_takes_the_mean_voxel():
    grid = Grid((5.0, -3.0, 2.0), (1.0, 1.0, 1.331), (12, 12, 12))
    values = torch.zeros(grid.shape)
    values[2:9, 2:9, 2:9] = 1.0
    values[0, 0, 0] = 100.0
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[2:9, 2:9, 2:9] = True
    cloud = cloud_of_map(DensityMap(grid, values), mask, atoms=60)
    assert len(cloud) == cloud_size(60, 1.1) == 11
    low, high = torch.tensor([7.0, -1.0, 4.662]), torch.tensor([13.0, 5.0, 12.648])
    assert bool(((cloud.points >= low) & (cloud.points <= high)).all())
    middle = (cloud.weights[:, None] * cloud.points).sum(0) / cloud.weights.sum()
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-5)


def test_bad_masks_are_refused():
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
    density = DensityMap(grid, torch.ones(grid.shape))
    none, every = torch.zeros(grid.shape, dtype=torch.bool), torch.ones(grid.shape, dtype=torch.bool)
    with pytest.raises(InputError, match="0 voxels"):
        cloud_of_map(density, none, atoms=40)
    with pytest.raises(InputError, match="64 of them without positive density"):
        cloud_of_map(DensityMap(grid, -density.values), every, atoms=40)
    with pytest.raises(InputError, match="too few for the 100 points"):
        cloud_of_map(density, every, atoms=400)
