import math

import gemmi
import numpy as np
import pytest
import torch

from densemble.errors import InputError
from densemble.forward.molmap import MolmapDensity
from densemble.grid import Grid

GRID = Grid(origin=(-3.0, 1.0, 2.0), spacing=(0.5, 0.6, 0.7), shape=(17, 14, 11))
ELEMENTS = ("C", "N", "S", "Fe", "C")
ATOMS = np.random.default_rng(3).uniform([-2, 2, 3], [4, 8, 8], size=(2, 5, 3))


def exact(density, coords, weights):
    return density(torch.as_tensor(coords), torch.as_tensor(weights, dtype=torch.float64))


def test_is_the_sum_of_the_definition():
    weights, occupancy, resolution = [0.7, 0.2], [1.0, 1.0, 0.5, 1.0, 0.25], 4.0
    density = MolmapDensity(
        GRID,
        ELEMENTS,
        resolution=resolution,
        occupancy=torch.tensor(occupancy),
        cutoff=1e-16,
        dtype=torch.float64,
    )
    expected = np.zeros(GRID.shape)
    for member, weight in zip(ATOMS, weights, strict=True):
        for x, z, occ in zip(member, (6, 7, 16, 26, 6), occupancy, strict=True):
            r2 = ((GRID.points() - x) ** 2).sum(axis=-1)
            expected += weight * occ * z * np.exp(-r2 * np.pi**2 / resolution**2)  # 1/(2 sigma^2)
    np.testing.assert_allclose(exact(density, ATOMS, weights).numpy(), expected, atol=1e-11)


def test_width_is_that_of_the_resolution():
    """The transform of a Gaussian of s.d. sigma is exp(-2 pi^2 sigma^2 s^2): 1/e at s = 1/resolution."""
    sigma = MolmapDensity(GRID, ["C"], resolution=7.0).sigma
    assert 2 * math.pi**2 * sigma**2 / 7.0**2 == pytest.approx(1.0)


def test_gradients():
    density = MolmapDensity(GRID, ELEMENTS, resolution=3.0, cutoff=1e-16, dtype=torch.float64)
    coords = torch.tensor(ATOMS, requires_grad=True)
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
    probe = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: (density(x, w) * probe).sum(), (coords, weights))


@pytest.mark.parametrize("resolution", [0.0, -1.0, float("nan")])
def test_resolution_must_be_positive(resolution):
    with pytest.raises(ValueError, match="resolution"):
        MolmapDensity(GRID, ELEMENTS, resolution=resolution)


def test_elements_must_be_known_and_heavy():
    assert gemmi.Element("Qq").atomic_number == 0
    with pytest.raises(InputError, match="'Qq'"):
        MolmapDensity(GRID, ["C", "Qq"], resolution=3.0)
    with pytest.raises(ValueError, match="hydrogens"):
        MolmapDensity(GRID, ["H"], resolution=3.0)
