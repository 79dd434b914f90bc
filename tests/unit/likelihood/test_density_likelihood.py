from dataclasses import replace

import numpy as np
import pytest
import torch

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.bfactor import fit_b
from densemble.likelihood.density import DensityLikelihood, effective_sigma

GRID = Grid((0.0, 0.0, 0.0), (0.8, 0.7, 0.9), (12, 13, 10))
ELEMENTS = ["C", "N", "O"]


def problem(seed=0, **options):
    """A likelihood with a random target, mask and context, and an ensemble of three members."""
    g = torch.Generator().manual_seed(seed)
    density = XrayDensity(GRID, ELEMENTS, dtype=torch.float64, cutoff=1e-14)
    coords = 4.5 + torch.randn(3, 3, 3, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    noise, mask, context = torch.rand(3, *GRID.shape, generator=g, dtype=torch.float64)
    b_iso = torch.tensor(20.0, dtype=torch.float64)
    target = 0.8 * (density(coords + 0.3, weights, b_iso) + context) + noise
    likelihood = DensityLikelihood(
        density=density,
        target=DensityMap(GRID, target),
        mask=mask,
        b_iso=b_iso,
        sigma=0.7,
        **{"context": context, **options},
    )
    return likelihood, coords, weights


def least_squares(likelihood, model):
    """Scale, offset and residual by numpy, for the options of the likelihood."""
    root = likelihood.mask.sqrt().numpy().ravel()
    columns = []
    y = likelihood.target.values.numpy().ravel().copy()
    if likelihood.fit_scale:
        columns.append(model.ravel())
    else:
        y -= model.ravel()
    if likelihood.fit_offset:
        columns.append(np.ones_like(y))
    if not columns:
        return np.zeros(0), float(((root * y) ** 2).sum())
    A = np.stack(columns, 1) * root[:, None]
    solution, *_ = np.linalg.lstsq(A, root * y, rcond=None)
    return solution, float(((A @ solution - root * y) ** 2).sum())


OPTIONS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("fit_scale", "fit_offset"), OPTIONS)
def test_ensemble_is_least_squares_over_the_mask(fit_scale, fit_offset):
    likelihood, coords, weights = problem(fit_scale=fit_scale, fit_offset=fit_offset)
    model = likelihood.density(coords, weights, likelihood.b_iso) + likelihood.context
    solution, residual = least_squares(likelihood, model.numpy())
    fit = likelihood.fit(coords, weights)
    expected = iter(solution)
    assert float(fit.scale) == pytest.approx(next(expected) if fit_scale else 1.0)
    assert float(fit.offset) == pytest.approx(next(expected) if fit_offset else 0.0)
    assert float(fit.residual) == pytest.approx(residual)
    assert float(likelihood(coords, weights)) == pytest.approx(-residual / (2 * 0.7**2))
    assert likelihood.rms(coords, weights) == pytest.approx((residual / float(likelihood.mask.sum())) ** 0.5)


@pytest.mark.parametrize(("fit_scale", "fit_offset"), OPTIONS)
def test_each_is_the_sum_of_separate_fits(fit_scale, fit_offset):
    likelihood, coords, weights = problem(mode="each", fit_scale=fit_scale, fit_offset=fit_offset)
    residuals = []
    for k in range(3):
        one = likelihood.density(coords[k : k + 1], weights.sum()[None], likelihood.b_iso)
        residuals.append(least_squares(likelihood, (one + likelihood.context).numpy())[1])
    np.testing.assert_allclose(likelihood.fit(coords, weights).residual.numpy(), residuals)
    assert float(likelihood(coords, weights)) == pytest.approx(-np.sum(residuals) / (2 * 0.7**2))
    rms = (np.mean(residuals) / float(likelihood.mask.sum())) ** 0.5
    assert likelihood.rms(coords, weights) == pytest.approx(rms)


def test_each_member_has_the_gradient_that_it_has_alone():
    """Not that of a share of the map: however many members there are, each is pulled as a run of one is."""
    likelihood, coords, _ = problem(mode="each")
    alone = replace(likelihood, mode="ensemble")

    def gradient(function, x):
        x = x.clone().requires_grad_()
        function(x, x.new_full((len(x),), 1 / len(x))).backward()
        return x.grad

    together = gradient(likelihood, coords)
    apart = torch.cat([gradient(alone, x[None]) for x in coords])
    assert float(apart.abs().max()) > 1
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    twice = gradient(likelihood, torch.cat([coords, coords]))
    torch.testing.assert_close(twice, torch.cat([apart, apart]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["ensemble", "each"])
@pytest.mark.parametrize(("fit_scale", "fit_offset"), [(True, True), (False, False)])
@pytest.mark.parametrize("blur", [0.0, 0.6])
def test_gradients(mode, fit_scale, fit_offset, blur):
    likelihood, coords, weights = problem(mode=mode, fit_scale=fit_scale, fit_offset=fit_offset)
    inputs = (coords.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: likelihood(x, w, blur=blur), inputs)


def test_gradients_couple_members_in_the_ensemble_only():
    for mode in ("ensemble", "each"):
        likelihood, coords, weights = problem(mode=mode)

        def gradient(x, likelihood=likelihood, weights=weights):
            x = x.clone().requires_grad_()
            likelihood(x, weights).backward()
            return x.grad

        moved = coords.clone()
        moved[1] += 0.7
        change = (gradient(moved) - gradient(coords)).abs().amax((1, 2))
        assert float(change[1]) > 1e-3
        if mode == "each":
            assert float(change[[0, 2]].max()) < 1e-12
        else:
            assert float(change[[0, 2]].min()) > 1e-4


@pytest.mark.parametrize("mode", ["ensemble", "each"])
def test_scale_is_not_negative(mode):
    likelihood, coords, weights = problem(mode=mode, context=None)
    inverted = -likelihood.density(coords, weights, likelihood.b_iso)
    likelihood = replace(likelihood, target=DensityMap(GRID, inverted))
    if mode == "ensemble":
        fit = likelihood.fit(coords, weights)
        assert float(fit.scale) == 0.0
        mean = (likelihood.mask * inverted).sum() / likelihood.mask.sum()
        assert float(fit.offset) == pytest.approx(float(mean))
    assert float(likelihood.fit(coords, weights).scale.min()) >= 0.0


def test_members_outside_the_box_give_finite_values_and_no_gradient():
    likelihood, coords, weights = problem(context=None)
    far = (coords + 100).requires_grad_()
    value = likelihood(far, weights)
    value.backward()
    assert torch.isfinite(value)
    assert float(far.grad.abs().max()) == 0.0


def test_the_truth_is_most_likely_and_scale_and_offset_are_found():
    """A two-state truth in arbitrary units: the ensemble explains it, neither member alone does."""
    likelihood, coords, _ = problem(seed=1)
    coords, weights = coords[:2], torch.tensor([0.6, 0.4], dtype=torch.float64)
    truth = likelihood.density(coords, weights, likelihood.b_iso) + likelihood.context
    likelihood = replace(likelihood, target=DensityMap(GRID, 2.5 * truth - 0.3))
    fit = likelihood.fit(coords, weights)
    assert float(fit.scale) == pytest.approx(2.5)
    assert float(fit.offset) == pytest.approx(-0.3)
    assert float(fit.residual) == pytest.approx(0.0, abs=1e-12)
    assert float(replace(likelihood, mode="each")(coords, weights)) < -1.0
    assert float(likelihood(coords + 0.1, weights)) < -1e-3


def test_blurred_comparison_is_of_target_and_model_alike():
    """Truth in the middle of the box: with the target blurred as sampled and the model analytically."""
    grid = Grid((-7.0,) * 3, (0.5,) * 3, (29,) * 3)
    density = XrayDensity(grid, ["C", "O"], d_min=1.85)
    coords, weights = torch.tensor([[[0.2, 0.1, -0.4], [1.2, 0.8, 0.3]]]), torch.ones(1)
    b_iso = torch.tensor(20.0)
    likelihood = DensityLikelihood(
        density=density,
        target=DensityMap(grid, density(coords, weights, b_iso)),
        mask=torch.ones(grid.shape),
        b_iso=b_iso,
    )
    size = float(density(coords, weights, b_iso, blur=0.8).square().mean().sqrt())
    assert likelihood.rms(coords, weights, blur=0.8) < 2e-3 * size
    assert likelihood.rms(coords + 0.3, weights, blur=0.8) > 0.05 * size


@pytest.mark.parametrize("true_b", [15.0, 42.0])
def test_fitted_b(true_b):
    likelihood, coords, weights = problem(seed=2)
    b = torch.tensor(true_b, dtype=torch.float64)
    truth = likelihood.density(coords, weights, b) + likelihood.context
    likelihood = replace(likelihood, target=DensityMap(GRID, 1.7 * truth + 0.1))
    fitted = fit_b(likelihood, coords, weights)
    assert fitted.shape == ()
    assert float(fitted) == pytest.approx(true_b, abs=0.3)
    base = b + torch.tensor([-12.0, -10.0, -8.0], dtype=torch.float64)
    assert fit_b(likelihood, coords, weights, base=base).mean().item() == pytest.approx(true_b, abs=1.0)


def test_fitted_b_stays_where_the_form_factors_hold():
    likelihood, coords, weights = problem(seed=2, context=None)
    truncated = XrayDensity(GRID, ELEMENTS, d_min=1.85, b_min=12.0, dtype=torch.float64)
    target = likelihood.density(coords, weights, torch.tensor(5.0, dtype=torch.float64))
    likelihood = replace(likelihood, density=truncated, target=DensityMap(GRID, target))
    base = torch.tensor([5.0, 12.0, 30.0], dtype=torch.float64)
    assert float(fit_b(likelihood, coords, weights, base=base).min()) >= 12.0


def test_effective_sigma_makes_log_p_independent_of_the_spacing():
    """The same truth and the same misfit on grids of different spacing."""
    values = []
    coords, weights, b_iso = torch.tensor([[[0.1, 0.2, -0.3]]]), torch.ones(1), torch.tensor(25.0)
    for spacing, n in ((0.5, 25), (0.25, 49)):
        grid = Grid((-6.0,) * 3, (spacing,) * 3, (n,) * 3)
        density = XrayDensity(grid, ["C"], d_min=2.0)
        likelihood = DensityLikelihood(
            density=density,
            target=DensityMap(grid, density(coords, weights, b_iso)),
            mask=torch.ones(grid.shape),
            b_iso=b_iso,
            sigma=effective_sigma(grid, 0.1, 2.0),
        )
        values.append(float(likelihood(coords + 0.2, weights)))
    assert values[0] < -0.1
    assert values[1] == pytest.approx(values[0], rel=0.01)


def test_effective_sigma_does_not_invent_data():
    assert effective_sigma(Grid((0.0,) * 3, (3.0,) * 3, (4,) * 3), 0.1, 2.0) == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(GRID.shape)}, "mask"),
        ({"mask": -torch.ones(GRID.shape)}, "mask"),
        ({"mask": torch.ones(2, 2, 2), "context": None}, "do not agree"),
        (
            {"target": DensityMap(Grid((0.1, 0.0, 0.0), GRID.spacing, GRID.shape), torch.ones(GRID.shape))},
            "agree",
        ),
        ({"sigma": 0.0}, "sigma"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(problem()[0], **change)
