import math

import gemmi
import numpy as np
import pytest
import torch

from densemble.errors import InputError
from densemble.forward.cryoem import AtomForm
from densemble.forward.molmap import MolmapDensity
from densemble.grid import Grid
from densemble.likelihood.blur import gaussian_blur

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


def test_agrees_with_chimerax_up_to_its_normalisation():
    """ChimeraX writes ``Z (2 pi)^(-3/2) sigma^-3 exp(-r^2 / 2 sigma^2)`` out to 5 sigma, atom by atom."""
    resolution = 3.0
    density = MolmapDensity(GRID, ELEMENTS, resolution=resolution, dtype=torch.float64)  # its own cutoff
    sdev = resolution * (1 / (math.pi * 2**0.5))
    expected = np.zeros(GRID.shape)
    for x, symbol in zip(ATOMS[0], ELEMENTS, strict=True):
        for i, j, k in np.ndindex(*GRID.shape):
            voxel = [o + n * s for o, n, s in zip(GRID.origin, (i, j, k), GRID.spacing, strict=True)]
            r = math.dist(voxel, x)
            if r <= 5 * sdev:
                expected[i, j, k] += gemmi.Element(symbol).atomic_number * math.exp(-0.5 * (r / sdev) ** 2)
    expected *= (2 * math.pi) ** -1.5 * sdev**-3
    ours = exact(density, ATOMS[:1], [1.0]).numpy() / ((2 * math.pi) ** 1.5 * sdev**3)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * expected.max())


def test_members_make_up_the_ensemble():
    density = MolmapDensity(GRID, ELEMENTS, resolution=3.0, cutoff=1e-16, dtype=torch.float64)
    coords, weights = torch.as_tensor(ATOMS), torch.tensor([0.7, 0.2], dtype=torch.float64)
    for blur in (0.0, 1.3):
        members = density.members(coords, blur=blur)
        assert members.shape == (2, *GRID.shape)
        alone = density(coords[1:], torch.ones(1, dtype=torch.float64), blur=blur)
        torch.testing.assert_close(members[1], alone, atol=1e-11, rtol=0)
        summed = torch.einsum("kxyz,k->xyz", members, weights)
        torch.testing.assert_close(density(coords, weights, blur=blur), summed, atol=1e-11, rtol=0)


@pytest.mark.parametrize("blur", [0.4, 1.5])
def test_blur_is_convolution_with_a_gaussian_of_integral_one(blur):
    grid = Grid(origin=(-16.5, -12.4, -11.8), spacing=(0.5, 0.6, 0.55), shape=(58, 48, 52))
    density = MolmapDensity(grid, ELEMENTS, resolution=4.5, cutoff=1e-16, dtype=torch.float64)
    sharp = exact(density, ATOMS - 3, [0.5, 0.5])
    blurred = density(torch.as_tensor(ATOMS - 3), torch.tensor([0.5, 0.5], dtype=torch.float64), blur=blur)
    assert float((sharp - blurred).abs().max()) > 1e-2 * float(sharp.max())
    torch.testing.assert_close(blurred, gaussian_blur(sharp, grid, blur), atol=1e-6, rtol=0)
    assert float(blurred.sum()) == pytest.approx(float(sharp.sum()), rel=1e-6)


def test_width_is_that_of_the_resolution():
    """The transform of a Gaussian of s.d. sigma is exp(-2 pi^2 sigma^2 s^2): 1/e at s = 1/resolution."""
    sigma = MolmapDensity(GRID, ["C"], resolution=7.0).sigma
    assert 2 * math.pi**2 * sigma**2 / 7.0**2 == pytest.approx(1.0)


def test_gradients():
    density = MolmapDensity(GRID, ELEMENTS, resolution=3.0, cutoff=1e-16, dtype=torch.float64)
    coords = torch.tensor(ATOMS, requires_grad=True)
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
    probe = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for blur in (0.0, 0.8):
        assert torch.autograd.gradcheck(
            lambda x, w, blur=blur: (density(x, w, blur=blur) * probe).sum(), (coords, weights)
        )
    assert torch.autograd.gradcheck(lambda x: (density.members(x, blur=0.8) * probe).sum(), (coords,))


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


@pytest.mark.parametrize("kind", ["molmap", "electron"])
def test_a_form_with_b_factors_is_the_same_form(kind):
    """But for a constant: ``molmap`` gives a lone atom the height Z, a point spread by B has the charge Z."""
    form = AtomForm(kind, spread=5.0 if kind == "molmap" else 60.0, d_min=4.0)
    coords = torch.tensor(ATOMS, dtype=torch.float32)
    occupancy = torch.linspace(0.5, 1.0, len(ELEMENTS))
    forward, b_iso = form.with_b(GRID, ELEMENTS, occupancy=occupancy)
    found = forward.members(coords, torch.tensor(b_iso))
    expected = form.density(GRID, ELEMENTS, occupancy=occupancy).members(coords)
    constant = (4 * math.pi / b_iso) ** 1.5 if kind == "molmap" else 1.0
    torch.testing.assert_close(found, constant * expected, rtol=1e-4, atol=1e-4 * float(found.max()))
