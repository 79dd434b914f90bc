import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from densemble.em.halfmaps import (
    check_same_grid,
    estimate_resolution,
    resolution_of_half_maps,
)
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid

GRID = Grid(origin=(4.0, -3.0, 0.0), spacing=(1.0, 1.2, 0.9), shape=(60, 50, 64))


def half_maps(grid=GRID):
    """SNR 10 exp(-(s / 0.12)^2) in each: FSC 0.143, SNR 0.1669, at s = 0.12 sqrt(ln 59.9) = 0.2428."""
    axes = [np.fft.fftfreq(n, h) for n, h in zip(grid.shape, grid.spacing, strict=True)]
    s = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    signal, first, second = np.random.default_rng(0).normal(size=(3, *grid.shape))
    signal = np.fft.ifftn(np.fft.fftn(signal) * math.sqrt(10) * np.exp(-((s / 0.12) ** 2) / 2)).real
    return tuple(DensityMap(grid, torch.from_numpy(signal + noise)) for noise in (first, second))


def test_resolution_is_where_the_known_fsc_falls_below_the_threshold():
    found = estimate_resolution(*half_maps())
    expected = 1 / (0.12 * math.sqrt(math.log(10 / (0.143 / 0.857))))
    assert expected == pytest.approx(4.12, abs=0.01)
    assert found.resolution == pytest.approx(expected, rel=0.03)
    assert found.curve.fsc[1] > 0.8


def test_mask_takes_part():
    first, second = half_maps()
    corner = torch.zeros(GRID.shape)
    corner[:30, :25, :32] = 1
    other = DensityMap(GRID, second.values * corner + first.values.flip(0) * (1 - corner))
    assert estimate_resolution(first, other).resolution > 4.3
    masked = estimate_resolution(first, other, mask=corner)
    np.testing.assert_allclose(
        masked.curve.fsc, estimate_resolution(first, second, mask=corner).curve.fsc, atol=1e-9
    )


WIDE = Grid(origin=(4.0, -3.0, 0.0), spacing=(1.0, 1.2, 0.9), shape=(80, 70, 96))


def molecules(seed, radius=22.0):
    """The same SNR in each half, 1/10 more in the mean, within a soft ball, and noise everywhere."""
    axes = [np.fft.fftfreq(n, h) for n, h in zip(WIDE.shape, WIDE.spacing, strict=True)]
    s = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    signal, first, second = np.random.default_rng(seed).normal(size=(3, *WIDE.shape))
    signal = np.fft.ifftn(np.fft.fftn(signal) * math.sqrt(10) * np.exp(-((s / 0.12) ** 2) / 2)).real
    centre = np.array(WIDE.origin) + np.array(WIDE.shape) * WIDE.spacing / 2
    depth = radius - np.linalg.norm(WIDE.points() - centre, axis=-1).reshape(WIDE.shape)
    signal = (signal + 1) / (1 + np.exp(-depth))
    return tuple(DensityMap(WIDE, torch.from_numpy(signal + noise)) for noise in (first, second))


def corrected(halves, seed=0):
    return resolution_of_half_maps(*halves, generator=torch.Generator().manual_seed(seed), sources=("a", "b"))


@pytest.mark.parametrize("seed", [0, 1])
def test_resolution_within_the_molecule_is_told_from_that_of_the_box(seed):
    halves = molecules(seed)
    inside = 1 / (0.12 * math.sqrt(math.log(10 / (0.143 / 0.857))))
    box = 4 / 3 * math.pi * 22**3 / np.prod(np.multiply(WIDE.shape, WIDE.spacing))
    whole = 1 / (0.12 * math.sqrt(math.log(10 * box / (0.143 / 0.857))))
    assert (inside, whole) == (pytest.approx(4.12, abs=0.01), pytest.approx(6.74, abs=0.01))
    found, without = corrected(halves).resolution, estimate_resolution(*halves).resolution
    assert without > 0.95 * whole
    assert 0.95 * inside < found < inside + 0.5 * (whole - inside)
    other = [DensityMap(WIDE, 0.02 * half.values - 7) for half in halves]
    assert corrected(other).resolution == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_resolution(seed):
    noise = np.random.default_rng(seed).normal(size=(2, *GRID.shape)) + 3
    halves = [DensityMap(GRID, torch.from_numpy(values)) for values in noise]
    if math.isinf(estimate_resolution(*halves).resolution):
        assert math.isinf(corrected(halves).resolution)
    else:  # the few coefficients of the first shell agree by chance
        with pytest.raises(InputError, match="the average of a and b: no density stands out"):
            corrected(halves)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("size", {"shape": (60, 50, 63)}),
        ("voxel size", {"spacing": (1.0, 1.21, 0.9)}),
        ("origin", {"origin": (4.0, -3.0, 0.4)}),
    ],
)
def test_half_maps_must_have_the_same_voxels(what, change):
    first = DensityMap(GRID, torch.ones(GRID.shape))
    grid = replace(GRID, **change)
    other = DensityMap(grid, torch.ones(grid.shape))
    with pytest.raises(InputError, match=f"a.mrc and b.mrc differ in {what}, .*; give two half maps"):
        estimate_resolution(first, other, sources=("a.mrc", "b.mrc"))


def test_rounding_in_a_header_is_no_difference():
    first = DensityMap(GRID, torch.ones(GRID.shape))
    grid = replace(GRID, spacing=(1.00001, 1.2, 0.9), origin=(4.0001, -3.0, 0.0))
    check_same_grid(first, DensityMap(grid, torch.ones(grid.shape)))
