import dataclasses

import numpy as np
import pytest
from crystals import crystal, reflections, unique_hkl
from scipy.integrate import trapezoid

from densemble.crystal.sigmaa import figure_of_merit, fit_sigma_a, log_rice, model_error


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
