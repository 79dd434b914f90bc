import numpy as np
import torch

from densemble.grid import Grid
from densemble.likelihood.mask import reach_mask

GRID = Grid((-6.0, -6.0, -6.0), (0.5, 0.5, 0.5), (25, 25, 25))
START = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
CONTEXT = np.array([[-1.5, 0.0, 0.0]])


def distance(atoms):
    return np.linalg.norm(GRID.points()[..., None, :] - atoms, axis=-1).min(-1)


def test_one_within_reach_zero_beyond_and_monotonic_between():
    mask = reach_mask(GRID, START, 3.0, softness=1.0).numpy()
    d = distance(START)
    assert (mask[d <= 3.0] == 1).all()
    assert (mask[d >= 4.0] == 0).all()
    between = (d > 3.05) & (d < 3.95)
    assert ((mask[between] > 0) & (mask[between] < 1)).all()
    order = np.argsort(d.ravel())
    assert (np.diff(mask.ravel()[order]) <= 1e-6).all()


def test_voxels_of_the_context_do_not_count():
    mask = reach_mask(GRID, START, 3.0, exclude=CONTEXT, exclude_radius=1.5, softness=0.5).numpy()
    free = reach_mask(GRID, START, 3.0, softness=0.5).numpy()
    d = distance(CONTEXT)
    assert (mask[d <= 1.5] == 0).all()
    np.testing.assert_array_equal(mask[d >= 2.0], free[d >= 2.0])
    assert (mask <= free).all()


def test_sharp_edges():
    mask = reach_mask(GRID, START, 3.1, exclude=CONTEXT, exclude_radius=1.6, softness=0.0)
    expected = (distance(START) < 3.1) & (distance(CONTEXT) > 1.6)
    np.testing.assert_array_equal(mask.numpy() == 1, expected)
    assert set(torch.unique(mask).tolist()) == {0.0, 1.0}
