import dataclasses

import numpy as np
import pytest
from crystals import crystal, reflections, unique_hkl
from scipy.integrate import trapezoid

from densemble.crystal.sigmaa import (
    LEAST_FREE,
    error_variance,
    figure_of_merit,
    fit_sigma_a,
    free_gain,
    log_rice,
    model_error,
)


def draw(sigma_a, n, centric, rng):
    """Normalised true and model structure factors that correlate by sigma_A."""

    def normal():
        real = rng.normal(size=n)
        return np.where(centric, real, (real + 1j * rng.normal(size=n)) / np.sqrt(2))

    model = normal()
    return sigma_a * model + np.sqrt(1 - sigma_a**2) * normal(), model


@pytest.mark.parametrize("sigma_a", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("centric", [False, True])
def test_sigma_a_of_drawn_structure_factors(sigma_a, centric):
    n = 20_000
    flags = np.full(n, centric)
    true, model = draw(sigma_a, n, flags, np.random.default_rng(1))
    assert fit_sigma_a(np.abs(true), np.abs(model), flags) == pytest.approx(sigma_a, abs=0.02)


@pytest.fixture(scope="module")
def data():
    structure = crystal("P 31 2 1")
    hkl = unique_hkl(structure, 1.25)
    return reflections(structure, np.ones(len(hkl)), hkl)


def test_m_is_the_mean_cosine_of_the_phase_error(data):
    rng = np.random.default_rng(2)
    true, model = draw(0.8, len(data), data.centric, rng)
    true, model = 50 * np.sqrt(data.epsilon) * true, 20 * np.sqrt(data.epsilon) * model
    m, d = figure_of_merit(data, np.abs(true), model)
    cosine = np.cos(np.angle(true) - np.angle(model))
    for subset in (data.centric & ~data.free, ~data.centric & ~data.free):
        for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1)):
            inside = subset & (m >= low) & (m < high)
            assert inside.sum() > 30
            assert m[inside].mean() == pytest.approx(cosine[inside].mean(), abs=4 / np.sqrt(inside.sum()))
    np.testing.assert_allclose(d, 0.8 * 50 / 20, rtol=0.15)
    assert (m[data.free] == 0).all()


def test_perfect_model(data):
    _, model = draw(0.5, len(data), data.centric, np.random.default_rng(3))
    m, d = figure_of_merit(data, np.abs(model), model)
    np.testing.assert_allclose(d, 1, atol=2e-3)
    assert m[~data.free].mean() > 0.98


def test_free_amplitudes_do_not_enter(data):
    true, model = draw(0.8, len(data), data.centric, np.random.default_rng(4))
    f = np.abs(true)
    first = figure_of_merit(data, f, model)
    second = figure_of_merit(data, np.where(data.free, 1e3, f), model)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_amplitudes_of_the_data_object_are_not_used(data):
    true, model = draw(0.8, len(data), data.centric, np.random.default_rng(5))
    other = dataclasses.replace(data, f=data.f * 17)
    for a, b in zip(*(figure_of_merit(d, np.abs(true), model) for d in (data, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variance_is_that_of_the_true_structure_factors_about_the_model(data):
    rng = np.random.default_rng(4)
    true, model = draw(0.8, len(data), data.centric, rng)
    true, model = 50 * np.sqrt(data.epsilon) * true, 20 * np.sqrt(data.epsilon) * model
    error = model_error(data, np.abs(true), model)
    off = np.abs(true - error.d * model) ** 2 / data.epsilon
    assert off.mean() == pytest.approx(error.variance.mean(), rel=0.05)
    assert error.variance.mean() == pytest.approx(50**2 * (1 - 0.8**2), rel=0.05)


def test_likelihood_is_a_distribution_of_amplitudes(data):
    """Of each reflection alone, over all amplitudes it integrates to one."""
    rng = np.random.default_rng(4)
    true, model = draw(0.6, len(data), data.centric, rng)
    true, model = 50 * np.sqrt(data.epsilon) * true, 20 * np.sqrt(data.epsilon) * model
    error = model_error(data, np.abs(true), model)
    centric = np.flatnonzero(data.centric & ~data.free)[:2]
    acentric = np.flatnonzero(~data.centric & ~data.free)[:2]
    for i in (*centric, *acentric):
        spread, mean = error.variance[i] * data.epsilon[i], error.d[i] * np.abs(model[i])
        f = np.linspace(0, 10 * np.sqrt(spread) + 2 * mean, 2001)
        density = np.exp(log_rice(f, np.full(2001, mean), np.full(2001, spread), data.centric[[i] * 2001]))
        assert float(trapezoid(density, f)) == pytest.approx(1.0, rel=1e-3)


def measured(data, noise=4.0, seed=5):
    """Amplitudes of a truth, and of two models of which the first is 1.5 times as far from it."""
    rng = np.random.default_rng(seed)
    true, wrong = (draw(0, len(data), data.centric, rng)[1] * np.sqrt(data.epsilon) for _ in range(2))
    true, wrong = 50 * true, noise * wrong
    with_data = dataclasses.replace(data, f=np.abs(true), free=np.arange(len(data)) % 10 == 3)
    return with_data, np.abs(true + 1.5 * wrong), np.abs(true + wrong)


def test_gain_of_free_reflections_is_in_closed_form_and_has_the_sign_of_the_better_model(data):
    """Far from zero an amplitude is nearly normal about the model's: squares over the variance differ."""
    found, worse, better = measured(data)
    gain, error = free_gain(worse, better, found)
    free = found.free
    variance = error_variance(found, found.f, worse)[free]
    squares = (found.f - worse)[free] ** 2 - (found.f - better)[free] ** 2
    by_squares = squares / variance * np.where(found.centric[free], 0.5, 1)
    by_size = np.where(found.centric[free], 0, 0.5 * np.log(worse[free] / better[free]))  # of Rice's density
    strong = found.f[free] > 20
    terms = []
    for i in np.flatnonzero(free):
        one = dict(variance=variance[free[:i].sum()][None], centric=found.centric[i][None])
        terms += [
            float(log_rice(found.f[i][None], better[i][None], **one)[0])
            - float(log_rice(found.f[i][None], worse[i][None], **one)[0])
        ]
    assert np.array(terms)[strong] == pytest.approx((by_squares + by_size)[strong], abs=0.05)
    assert gain == pytest.approx(sum(terms))
    assert error == pytest.approx(np.sqrt(len(terms)) * np.std(terms, ddof=1))
    assert gain > 4 * error > 0


def test_gain_the_other_way_round_has_the_other_sign_and_the_variance_of_the_first(data):
    found, worse, better = measured(data)
    there, back = free_gain(worse, better, found), free_gain(better, worse, found)
    assert there[0] > 0 > back[0]
    assert abs(back[0]) > 1.5 * there[0], "the errors of the better model are smaller: 1.5 squared"
    # two models that differ in free reflections only have one variance: nothing but the sign differs
    other = np.where(found.free, worse, better)
    (gain, error), (loss, same) = free_gain(other, better, found), free_gain(better, other, found)
    assert (gain, error) == pytest.approx((-loss, same), rel=1e-12)
    assert gain > 0
    assert free_gain(better, better, found) == (0.0, 0.0)


def test_gain_is_of_free_reflections_and_needs_some(data):
    found, worse, better = measured(data)
    mixed = np.where(found.free, better, worse)
    assert free_gain(worse, mixed, found) == free_gain(worse, better, found)
    assert free_gain(worse, np.where(found.free, worse, better), found) == (0.0, 0.0)
    for count in (0, LEAST_FREE - 1, LEAST_FREE):
        few = np.zeros(len(data), dtype=bool)
        few[np.flatnonzero(found.free)[:count]] = True
        known = free_gain(worse, better, dataclasses.replace(found, free=few))
        assert (known is None) == (count < LEAST_FREE)


def test_error_of_the_gain_is_its_scatter_over_free_sets(data):
    """Of models that are as good as each other, and of free sets drawn at random."""
    rng = np.random.default_rng(8)
    truth, *_ = measured(data)
    models = [measured(data, seed=seed)[2] for seed in (5, 6)]
    models[1] = np.abs(truth.f + rng.permutation(models[0] - truth.f))
    found = []
    for _ in range(40):
        drawn = dataclasses.replace(truth, free=rng.uniform(size=len(data)) < 0.1)
        found.append(free_gain(*models, drawn))
    gains, errors = np.array(found).T
    # a tenth of one population is drawn without putting back, which takes sqrt(0.9) off the scatter
    assert np.std(gains, ddof=1) == pytest.approx(np.sqrt(0.9) * np.mean(errors), rel=0.35)
