import math

import numpy as np
import pytest
import torch

from densemble.forward.cryoem import AtomForm
from densemble.forward.electron import ElectronDensity
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.bfactor import fit_b
from densemble.likelihood.blur import gaussian_blur
from densemble.likelihood.density import DensityLikelihood
from densemble.likelihood.state import weighted_correlation
from densemble.likelihood.width import BlurSearch, fit_form

GRID = Grid(origin=(-12.0, -12.0, -12.0), spacing=(1.0, 0.9, 1.1), shape=(25, 27, 22))
ATOMS = torch.as_tensor(np.random.default_rng(2).uniform(-6, 6, size=(2, 40, 3)))
ELEMENTS = ["C", "N", "O", "C"] * 10
WEIGHTS = torch.tensor([0.7, 0.3], dtype=torch.float64)
MASK = torch.ones(GRID.shape)


def fit_resolution(target, mask, *, d_min=4.0):
    return fit_form(AtomForm("molmap", d_min, d_min), target, mask, ELEMENTS, ATOMS, WEIGHTS).spread


@pytest.mark.parametrize("resolution", [2.7, 4.0, 6.3])
def test_resolution_of_a_simulated_map_is_found(resolution):
    density = MolmapDensity(GRID, ELEMENTS, resolution=resolution, dtype=torch.float64)
    target = DensityMap(GRID, 0.03 * density(ATOMS, WEIGHTS) - 0.4)
    assert fit_resolution(target, MASK) == pytest.approx(resolution, rel=0.01)


def test_resolution_of_a_blurred_map_is_lower():
    density = MolmapDensity(GRID, ELEMENTS, resolution=4.0, dtype=torch.float64)
    target = DensityMap(GRID, gaussian_blur(density(ATOMS, WEIGHTS), GRID, 0.8))
    expected = math.pi * math.sqrt(2) * math.hypot(density.sigma, 0.8)
    assert fit_resolution(target, MASK) == pytest.approx(expected, rel=0.02)


def test_what_the_mask_leaves_out_does_not_matter():
    values, coarse = (
        MolmapDensity(GRID, ELEMENTS, resolution=resolution, dtype=torch.float64)(ATOMS, WEIGHTS)
        for resolution in (4.0, 12.0)
    )
    mask = MASK.clone()
    values[:12], mask[:12] = coarse[:12], 0.0
    target = DensityMap(GRID, values)
    assert fit_resolution(target, mask) == pytest.approx(4.0, rel=0.01)
    assert fit_resolution(target, MASK) != pytest.approx(4.0, rel=0.1)


def test_bounds_hold():
    density = MolmapDensity(GRID, ELEMENTS, resolution=9.0, dtype=torch.float64)
    target = DensityMap(GRID, density(ATOMS, WEIGHTS))
    found = fit_resolution(target, MASK, d_min=3.0)
    assert found == pytest.approx(6.0, rel=0.02)
    assert found <= 6.0


def test_a_map_without_contents_is_refused():
    flat = DensityMap(GRID, torch.zeros(GRID.shape))
    for target, mask in ((flat, MASK), (flat, 0 * MASK)):
        with pytest.raises(ValueError, match="fit_form"):
            fit_resolution(target, mask)


@pytest.mark.parametrize("b_iso", [25.0, 70.0])
def test_b_factor_of_an_electron_map_is_found(b_iso):
    density = ElectronDensity(GRID, ELEMENTS, d_min=3.0, dtype=torch.float64)
    target = DensityMap(GRID, 0.2 * density(ATOMS, WEIGHTS, torch.tensor(b_iso).double()) + 3.0)
    form = fit_form(AtomForm.of("electron", 3.0), target, MASK, ELEMENTS, ATOMS, WEIGHTS)
    assert form.spread == pytest.approx(b_iso, rel=0.02)


def test_b_factors_with_electron_form_factors_are_found():
    """``fit_b`` on a map of arbitrary scale, as cryo-EM gives: for all atoms, and as a shift."""
    density = ElectronDensity(GRID, ELEMENTS, dtype=torch.float64)
    base = torch.as_tensor(np.random.default_rng(3).uniform(20, 60, size=40))
    for b_iso, options in ((torch.tensor(90.0).double(), {}), (base + 35, {"base": base})):
        target = DensityMap(GRID, 7 * density(ATOMS, WEIGHTS, b_iso) + 2)
        likelihood = DensityLikelihood(density=density, target=target, mask=MASK.double(), b_iso=base)
        fitted = fit_b(likelihood, ATOMS, WEIGHTS, **options)
        np.testing.assert_allclose(fitted.numpy(), b_iso.numpy(), atol=0.3)


def test_best_blur_is_the_best_of_all_that_are_tried(generator):
    """Against the correlation written out with the density drawn anew at every blur."""
    narrow = MolmapDensity(GRID, ELEMENTS, resolution=3.0, dtype=torch.float64)
    true = torch.tensor([0.0, 1.1], dtype=torch.float64)
    most = 2.0
    for member, blur in zip(ATOMS / 2, true, strict=True):
        target = 0.3 * narrow.members(member[None], blur=float(blur))[0] - 0.2
        noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
        target = target + 0.1 * target.std() * gaussian_blur(noise, GRID, 1.0)
        mask = (narrow.members(member[None], blur=2.5)[0] > 0.01).double()
        found = BlurSearch(target, mask, GRID, most=most)(narrow.members(member[None]))
        trials = np.sqrt(np.linspace(0, most**2, 65))
        drawn = torch.cat([narrow.members(member[None], blur=float(b)) for b in trials])
        expected = trials[int(weighted_correlation(target, drawn, mask).argmax())]
        assert float(found) == pytest.approx(expected, abs=0.1)
        assert float(found) == pytest.approx(float(blur), abs=0.15)
