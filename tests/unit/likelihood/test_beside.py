"""A member beside a known conformation: against least squares, and what it is blind and drawn to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

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
    """Least squares by scipy, of the (blurred) target; only the constant may be negative."""
    root = beside.mask.sqrt().numpy().ravel()
    y = root * gaussian_blur(beside.target.values, GRID, blur).numpy().ravel()
    one = np.ones_like(root)
    design = np.stack([one, -one, *(c.numpy().ravel() for c in columns)], 1) * root[:, None]
    solution, norm = nnls(design, y)
    return solution[2:], norm**2


@pytest.mark.parametrize("blur", [0.0, 0.6])
@pytest.mark.parametrize("sign", [1, -1])
def test_gain_is_that_of_least_squares_with_occupancies_that_are_not_negative(blur, sign):
    beside, states = setting()
    beside = replace(beside, target=DensityMap(GRID, sign * beside.target.values))
    true, near = states[1], states[0] + 0.02 * (states[1] - states[0])
    trials = torch.stack([true, true + 0.4, true - 0.9, near, 0.7 * states[0] + 0.3 * true, states[0] - 0.2])
    known = beside.density.members(states[:1], B, blur=blur)[0]
    found = beside(trials, blur=blur)
    _, alone = residual(beside, [known], blur)
    kinds = set()
    for trial, gain in zip(trials, found, strict=True):
        member = beside.density.members(trial[None], B, blur=blur)[0]
        weights, both = residual(beside, [known, member], blur)
        assert float(gain) == pytest.approx(
            (alone - both) / (2 * 0.7**2), rel=1e-8, abs=2e-5
        )  # nnls takes less for nothing
        kinds.add(tuple(weights > 0))
    if sign > 0:
        assert kinds >= {(True, True), (False, True)}
    else:
        assert (True, True) not in kinds


def test_a_near_copy_explains_no_more_than_standing_in_its_place_would():
    """Not by a large occupancy less another: two copies differ as any small error does."""
    beside, states = setting(noise=0.0)
    off = states[0] + torch.tensor([0.05, 0.0, 0.0], dtype=torch.float64)
    shifted = replace(
        beside, known=off, target=DensityMap(GRID, beside.density(states[:1], torch.ones(1).double(), B))
    )
    trials = torch.stack([states[0], off + 0.01 * (states[0] - off)])
    gain = shifted(trials)
    known = beside.density.members(off[None], B)[0]
    assert float(gain[0]) == pytest.approx(residual(shifted, [known], 0.0)[1] / (2 * 0.7**2), rel=1e-6)
    assert float(gain[1]) < 0.1 * float(gain[0])


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
