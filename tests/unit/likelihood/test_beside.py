"""A member beside a known conformation: against least squares, and what it is blind and drawn to."""

import numpy as np
import pytest
import torch

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.beside import BesideKnown
from densemble.likelihood.blur import gaussian_blur
from densemble.likelihood.density import DensityLikelihood

GRID = Grid((0.0, 0.0, 0.0), (0.8, 0.7, 0.9), (14, 15, 12))
B = torch.tensor(20.0, dtype=torch.float64)


def setting(seed=0, noise=1.0):
    """Two states of three atoms in a map, with noise; the first is known."""
    g = torch.Generator().manual_seed(seed)
    density = XrayDensity(GRID, ["C", "N", "O"], dtype=torch.float64, cutoff=1e-14)
    states = 5.0 + torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3], dtype=torch.float64)
    error, mask = torch.rand(2, *GRID.shape, generator=g, dtype=torch.float64)
    mask = torch.where(mask < 0.1, 0.0, mask)
    target = DensityMap(GRID, 0.8 * density(states, weights, B) + noise * error)
    return BesideKnown(density, target, mask, states[0], B, sigma=0.7), states


def residual(beside, columns, blur):
    """Least squares by numpy, of the (blurred) target."""
    root = beside.mask.sqrt().numpy().ravel()
    y = root * gaussian_blur(beside.target.values, GRID, blur).numpy().ravel()
    design = np.stack([np.ones_like(root), *(c.numpy().ravel() for c in columns)], 1) * root[:, None]
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    return solution, float(((y - design @ solution) ** 2).sum())


@pytest.mark.parametrize("blur", [0.0, 0.6])
def test_gain_is_that_of_least_squares(blur):
    beside, states = setting()
    trials = torch.stack([states[1], states[1] + 0.4, states[1] - 0.9])
    known = beside.density.members(states[:1], B, blur=blur)[0]
    found = beside(trials, blur=blur)
    _, alone = residual(beside, [known], blur)
    checked = 0
    for trial, gain in zip(trials, found, strict=True):
        member = beside.density.members(trial[None], B, blur=blur)[0]
        solution, both = residual(beside, [known, member], blur)
        expected = (alone - both) / (2 * 0.7**2) if solution[2] > 0 else 0.0
        assert float(gain) == pytest.approx(expected, rel=1e-8, abs=1e-12)
        checked += solution[2] > 0
    assert checked  # not all of them are zero


def test_gain_is_that_of_the_ensemble_likelihood_at_its_best_weights():
    """The same number as Eq. 2 gives for the two states, less that for one, where weights are free."""
    beside, states = setting(noise=0.0)
    joint = DensityLikelihood(beside.density, beside.target, beside.mask, b_iso=B, sigma=0.7)
    one = torch.ones(1, dtype=torch.float64)
    two = torch.tensor([0.5, 0.3], dtype=torch.float64)
    expected = joint(states, two) - joint(states[:1], one)
    assert float(beside(states[1:])[0]) == pytest.approx(float(expected), rel=1e-8)


def test_the_other_state_gains_most_and_the_known_one_nothing():
    beside, states = setting(noise=0.05)
    trials = torch.stack([states[1], states[0], states[1] + 0.5, states[1] + 1.0])
    gain = beside(trials)
    assert int(gain.argmax()) == 0
    assert float(gain[1]) < 1e-6 * float(gain[0])
    assert bool(torch.isfinite(torch.autograd.functional.jacobian(beside, trials)).all())


def test_density_that_is_missing_gains_nothing():
    beside, states = setting(noise=0.0)
    inverted = BesideKnown(
        beside.density,
        DensityMap(GRID, -beside.target.values),
        beside.mask,
        states[0],
        B,
    )
    assert float(inverted(states[1:])[0]) == 0.0


def test_members_do_not_see_each_other():
    beside, states = setting()
    trials = torch.stack([states[1] + 0.3, states[1] - 0.2]).requires_grad_()
    (gradient,) = torch.autograd.grad(beside(trials)[0], trials)
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0
    assert float(beside(trials[:1])[0].detach()) == pytest.approx(float(beside(trials)[0].detach()))


def test_gradient_is_that_of_the_value():
    beside, states = setting()
    trial = (states[1:] + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: beside(x, blur=0.3), (trial,), atol=1e-6)
