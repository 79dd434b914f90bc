import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble.align.rotations import rotation_grid, rotation_matrices


def nearest(grid, others):
    """Degrees from each of the others to the nearest of the grid."""
    traces = others.reshape(-1, 9) @ grid.reshape(-1, 9).T
    return np.degrees(np.arccos(np.clip((traces.max(axis=1) - 1) / 2, -1, 1)))


@pytest.mark.parametrize("step", [10.0, 18.0, 30.0])
def test_no_rotation_is_far_from_the_grid(step):
    others = Rotation.random(2000, random_state=1).as_matrix()
    away = nearest(rotation_grid(step), others)
    assert away.max() < 0.95 * step
    assert away.mean() > 0.3 * step  # no finer than it says


def test_are_rotations_and_always_the_same():
    grid = rotation_grid(30.0)
    np.testing.assert_allclose(
        grid @ grid.transpose(0, 2, 1), np.broadcast_to(np.eye(3), grid.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(grid), 1.0)
    assert len(grid) == math.ceil(8 * math.pi**2 / math.radians(30) ** 3)
    np.testing.assert_array_equal(grid, rotation_grid(30.0))


def test_spiral_constant_solves_its_equation():
    from densemble.align import rotations

    assert pytest.approx(rotations._PSI + 4, rel=1e-14) == rotations._PSI**4


@pytest.mark.parametrize("step", [0.0, -5.0, 200.0, float("nan")])
def test_step_must_make_sense(step):
    with pytest.raises(ValueError, match="degrees"):
        rotation_grid(step)


def test_matrices_of_rotation_vectors():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(rotation_matrices(torch.from_numpy(vectors)).numpy(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(
        rotation_matrices, torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    )
