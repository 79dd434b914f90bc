import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densemble.grid import DensityMap, Grid


def test_voxel_centres_are_origin_plus_index_times_spacing():
    grid = Grid(origin=(1.0, -2.0, 0.5), spacing=(0.5, 1.0, 2.0), shape=(3, 4, 2))
    points = grid.points()
    assert points.shape == (3, 4, 2, 3)
    np.testing.assert_allclose(points[0, 0, 0], [1.0, -2.0, 0.5])
    np.testing.assert_allclose(points[2, 3, 1], [2.0, 1.0, 2.5])
    np.testing.assert_allclose(points[1, 0, 0] - points[0, 0, 0], [0.5, 0, 0])
    assert grid.voxel_volume == pytest.approx(1.0)


def test_axes_are_the_points_along_each_edge():
    grid = Grid(origin=(1.0, -2.0, 0.5), spacing=(0.5, 1.0, 2.0), shape=(3, 4, 2))
    points = grid.points()
    for axis, along in zip(
        grid.axes(torch.float64), (points[:, 0, 0, 0], points[0, :, 0, 1], points[0, 0, :, 2]), strict=True
    ):
        np.testing.assert_array_equal(axis.numpy(), along)
    assert grid.axes()[0].dtype == torch.float32


def test_the_far_end_of_a_long_axis_is_not_smeared():
    # Positions come from the index, not from a running sum: exact to one rounding in float64.
    grid = Grid(origin=(0.0, 0.0, 0.0), spacing=(0.1, 0.1, 0.1), shape=(10_001, 1, 1))
    assert grid.axes(torch.float64)[0][-1].item() == pytest.approx(1000.0, abs=1e-12)


coordinate = st.floats(-200, 200)


@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=5),
    st.floats(0, 5),
    st.floats(0.2, 2),
)
def test_a_box_around_points_covers_them_and_is_not_larger_than_needed(points, margin, spacing):
    x = np.array(points)
    grid = Grid.around(x, margin=margin, spacing=spacing)
    low = np.array(grid.origin)
    high = low + spacing * (np.array(grid.shape) - 1)
    tolerance = 1e-9
    assert (low <= x.min(axis=0) - margin + tolerance).all()
    assert (high >= x.max(axis=0) + margin - tolerance).all()
    assert (low > x.min(axis=0) - margin - spacing - tolerance).all()
    assert (high < x.max(axis=0) + margin + spacing + tolerance).all()


def test_boxes_of_one_spacing_share_their_lattice():
    # So that two boxes can be compared voxel by voxel.
    rng = np.random.default_rng(1)
    for _ in range(5):
        grid = Grid.around(rng.normal(size=(4, 3)) * 20, margin=3.0, spacing=0.5)
        np.testing.assert_allclose(
            np.array(grid.origin) / 0.5, np.round(np.array(grid.origin) / 0.5), atol=1e-9
        )


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((0.5, 0.5, 0.0), (2, 2, 2)), ((0.5, -1.0, 0.5), (2, 2, 2)), ((0.5,) * 3, (2, 0, 2))],
)
def test_boxes_without_voxels_are_refused(spacing, shape):
    with pytest.raises(ValueError, match="must be positive"):
        Grid(origin=(0.0, 0.0, 0.0), spacing=spacing, shape=shape)


def test_a_map_has_one_value_for_each_voxel():
    grid = Grid(origin=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0), shape=(2, 3, 4))
    assert DensityMap(grid, torch.zeros(2, 3, 4)).values.shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"values \(4, 3, 2\) on a grid of shape \(2, 3, 4\)"):
        DensityMap(grid, torch.zeros(4, 3, 2))


@pytest.mark.parametrize("order", [1, 3])
def test_values_of_a_map_at_points(order):
    """At voxels those of the voxels; between them, of a plane, those of the plane; zero outside."""
    grid = Grid(origin=(3.0, -2.0, 1.0), spacing=(0.5, 1.0, 0.8), shape=(24, 23, 22))
    slope, points = np.array([2.0, -1.0, 0.5]), grid.points()
    density = DensityMap(grid, torch.as_tensor(points @ slope))
    np.testing.assert_allclose(density.at(points, order=order), points @ slope, atol=1e-9)
    middle = points[12, 11, 10] + np.random.default_rng(0).uniform(-0.5, 0.5, size=(7, 3))
    np.testing.assert_allclose(density.at(middle, order=order), middle @ slope, atol=1e-4)
    assert density.at(points[:1, 0, 0] - 2.0, order=order).tolist() == [0.0]
