"""Poses found in made-up maps."""

import numpy as np
import pytest
import torch
from globule import chain, density_of
from scipy.spatial.transform import Rotation

from densemble.align.docking import check_dockable, default_level, dock, occupied
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid

COORDS = chain(100)
ONES = np.ones(len(COORDS))
QUICK = {"resolution": 5.0, "step": 40.0}


def started(coords, seed):
    turn = Rotation.random(random_state=seed).as_matrix()
    return coords @ turn.T + np.random.default_rng(seed).uniform(-60, 60, 3)


def noisy(density, seed=0, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    noise = share * density.values.max() * torch.randn(density.values.shape, generator=generator)
    return DensityMap(density.grid, density.values + noise)


def error(found, start, truth=COORDS):
    return np.sqrt(((found.apply(start) - truth) ** 2).sum(1).mean())


def test_finds_the_pose_from_any_start():
    density = noisy(density_of(COORDS))
    for seed in (1, 2):
        start = started(COORDS, seed)
        found = dock(start, ONES, density, **QUICK)
        assert error(found.poses[0], start) < 0.25
        assert found.clear
        assert found.agrees
        assert found.basis == "detail"
        assert not found.wrong_hand
        assert found.poses[0].inside > 0.9
        assert found.messages == ()
        assert np.linalg.det(found.poses[0].rotation) == pytest.approx(1)


def test_wrong_hand_is_said():
    density = density_of(COORDS)
    found = dock(started(COORDS, 3), ONES, DensityMap(density.grid, density.values.flip(0)), **QUICK)
    assert found.wrong_hand
    assert found.mirror_score > 0.9
    assert "wrong hand" in found.messages[0]


def test_exchanged_copies_are_no_rivals():
    half = COORDS[:60] - COORDS[:60].mean(0) + [13.0, 0, 0]
    dimer = np.concatenate([half, half * [-1, -1, 1]])
    density, start = noisy(density_of(dimer)), started(dimer, 4)
    groups = [[np.arange(60), np.arange(60, 120)]]
    found = dock(start, np.ones(120), density, groups=groups, **QUICK)
    swapped = np.concatenate([dimer[60:], dimer[:60]])
    assert min(error(found.poses[0], start, truth) for truth in (dimer, swapped)) < 0.3
    assert found.clear
    without = dock(start, np.ones(120), density, **QUICK)
    assert not without.clear
    assert sorted(error(p, start, dimer) < 0.3 for p in without.poses[:2]) == [False, True]


def test_part_of_what_the_map_shows():
    """And atoms of no weight do not count."""
    rest = chain(100, seed=5) + np.array([35.0, 0, 0])
    density, start = density_of(np.concatenate([COORDS, rest])), started(COORDS, 6)
    more, weights = np.concatenate([start, start[:5] + 500]), np.r_[ONES, np.zeros(5)]
    found = dock(more, weights, density, groups=[[np.arange(100)]], **QUICK)
    assert error(found.poses[0], start) < 0.3
    assert found.clear
    assert found.agrees


def test_another_conformation_is_placed_by_shape():
    """Two halves, of which one is turned by 60 degrees: a rigid fit to detail would take one of them."""
    other = np.concatenate([COORDS, chain(60, seed=7) + np.array([24.0, 0, 0])])
    hinge = COORDS[-1] + [10.0, 0, 0]
    turn = Rotation.from_rotvec(np.deg2rad(60) * np.array([0, 0.6, 0.8])).as_matrix()
    model = np.concatenate([COORDS, (other[100:] - hinge) @ turn.T + hinge])
    fit, _ = Rotation.align_vectors(other - other.mean(0), model - model.mean(0))
    truth = (model - model.mean(0)) @ fit.as_matrix().T + other.mean(0)
    assert np.sqrt(((truth - other) ** 2).sum(1).mean()) > 4
    start = started(model, 8)
    found = dock(start, np.ones(160), density_of(other), **QUICK)
    assert found.basis == "shape"
    assert not found.agrees
    assert error(found.poses[0], start, truth) < 3
    assert any("conformation" in m for m in found.messages)


def test_what_does_not_go_together():
    density = density_of(COORDS)
    highest = float(density.values.max())
    many = np.random.default_rng(0).uniform(0, 120, size=(1000, 3))
    for resolution in (0.0, -3.0, float("nan")):
        with pytest.raises(InputError, match="above zero"):
            check_dockable(COORDS, ONES, density, resolution=resolution, level=None)
    with pytest.raises(InputError, match="lower level"):
        check_dockable(COORDS, ONES, density, resolution=5.0, level=2 * highest)
    with pytest.raises(InputError, match="higher level"):
        check_dockable(COORDS, ONES, density, resolution=5.0, level=-1.0)
    with pytest.raises(InputError, match="no atoms"):
        check_dockable(COORDS, 0 * ONES, density, resolution=5.0, level=None)
    with pytest.raises(InputError, match="much larger"):
        check_dockable(many, np.ones(1000), density, resolution=5.0, level=None)
    assert check_dockable(COORDS, ONES, density, resolution=5.0, level=None) == default_level(density)
    assert 0 < default_level(density) < highest


def test_empty_space_is_left_out():
    grid = Grid((-10.0, 0.0, 5.0), (1.0, 2.0, 1.0), (60, 30, 60))
    values = torch.zeros(grid.shape)
    values[20:28, 10:14, 40:48] = 1.0
    values[3, 3, 3] = 2.0  # noise
    part = occupied(DensityMap(grid, values), 0.5)
    assert part.grid == Grid((0.0, 10.0, 35.0), (1.0, 2.0, 1.0), (28, 14, 28))
    assert float(part.values.sum()) == 8 * 4 * 8
    assert occupied(DensityMap(grid, values), 3.0).grid == grid
