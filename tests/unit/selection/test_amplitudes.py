from dataclasses import replace

import gemmi
import numpy as np
import pytest
from scipy.integrate import quad

from densemble.crystal.direct import DirectFactors
from densemble.crystal.sigmaa import error_variance, log_rice, slopes
from densemble.forward.scattering import xray_form_factors
from densemble.io.reflections import Reflections
from densemble.selection.amplitudes import AmplitudeJudge, choosing_half, hashed
from densemble.selection.judge import fit_shares

CELL, GROUP = gemmi.UnitCell(30, 34, 38, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")
RNG = np.random.default_rng(11)
COUNT = 12


def reflections(f, hkl, free=None):
    free = np.zeros(len(f), dtype=bool) if free is None else free
    return Reflections(np.asarray(hkl, dtype=np.int32), f, np.ones(len(f)), free, CELL, GROUP)


def indices(d_min=2.0):
    hkl = gemmi.make_miller_array(CELL, GROUP, dmin=d_min)
    return hkl[~np.asarray(GROUP.operations().systematic_absences(hkl), dtype=bool)]


def judge(weights, noise, *, seed=0):
    """A region of two states of 12 atoms and a rest of random phases, ten times as strong."""
    rng = np.random.default_rng(seed)
    hkl = indices()
    states = rng.uniform(5, 25, size=(2, COUNT, 3))
    b_iso = np.full((2, COUNT), 20.0)
    factors = DirectFactors(xray_form_factors(("C", "N", "O") * 4), hkl, CELL, GROUP)
    signals = np.array([factors(np.arange(COUNT), x, b) for x, b in zip(states, b_iso, strict=True)])
    data = reflections(np.ones(len(hkl)), hkl)
    sd = np.sqrt(np.mean(np.abs(signals) ** 2) * data.epsilon)
    phase = np.where(data.centric, np.pi * rng.integers(2, size=len(hkl)), rng.uniform(0, 7, size=len(hkl)))
    rest = 3 * sd * np.sqrt(rng.exponential(size=len(hkl))) * np.exp(1j * phase)
    error = (
        noise * sd * np.exp(1j * rng.uniform(0, 7, size=len(hkl))) * np.sqrt(rng.exponential(size=len(hkl)))
    )
    f = np.abs(rest + np.array(weights) @ signals + error)
    data = reflections(f, hkl, rng.uniform(size=len(f)) < 0.1)
    variance = np.maximum(noise * sd, 0.05 * sd) ** 2
    return AmplitudeJudge(data, f, rest, variance, factors), states, b_iso, signals


def test_the_hash_is_that_of_a_reflection_not_of_its_setting():
    hkl = indices()
    ops = [op for op in GROUP.operations().sym_ops]
    found = hashed(hkl, GROUP)
    for op in ops:
        turned = np.array([op.apply_to_hkl(list(map(int, h))) for h in hkl])
        assert np.array_equal(hashed(turned, GROUP), found)
        assert np.array_equal(hashed(-turned, GROUP), found)
    half = choosing_half(reflections(np.ones(len(hkl)), hkl, np.ones(len(hkl), dtype=bool)))
    assert abs(half.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(hkl))
    assert len(np.unique(found)) == len(found)
    assert not choosing_half(reflections(np.ones(len(hkl)), hkl)).any()


def test_the_hash_is_the_same_for_ever():
    """Another one would choose by what an earlier run was judged by."""
    found = hashed(np.array([[1, 2, 3], [4, 0, 7]]), GROUP)
    assert found.tolist() == [1748607912, 521736080]


@pytest.mark.parametrize("centric", [True, False])
@pytest.mark.parametrize("model", [0.0, 0.5, 6.0])
def test_amplitude_densities_integrate_to_one_and_have_their_slopes(centric, model):
    def density(f):
        values = np.array([f]), np.array([model]), np.array([1.3]), np.array([centric])
        return float(np.exp(log_rice(*values))[0])

    assert quad(density, 1e-9, 40, points=[model + 1e-6], limit=200)[0] == pytest.approx(1, abs=1e-6)
    f, variance, kind = np.array([0.3, 1.7, 5.0]), np.full(3, 1.3), np.full(3, centric)
    x, step = np.full(3, model + 0.01), 1e-4
    values = [log_rice(f, x + s, variance, kind) for s in (-step, 0, step)]
    first, second = slopes(f, x, variance, kind)
    assert first == pytest.approx((values[2] - values[0]) / (2 * step), rel=1e-4, abs=1e-5)
    assert second == pytest.approx(-(values[2] - 2 * values[1] + values[0]) / step**2, rel=1e-3, abs=1e-4)


def test_an_amplitude_measured_as_zero_compares_models_as_a_tiny_one_does():
    """It is in many files; a log-likelihood of minus infinity under every model tells none from another."""
    model, variance = np.array([0.5, 2.0]), np.array([1.3, 1.3])
    for centric in (True, False):
        kind = np.full(2, centric)
        zero, tiny = (log_rice(np.full(2, f), model, variance, kind) for f in (0.0, 1e-5))
        assert np.isfinite(zero).all()
        assert zero[0] - zero[1] == pytest.approx(tiny[0] - tiny[1], abs=1e-4)


@pytest.mark.parametrize("count", [0, 1, 19])
def test_a_handful_of_free_reflections_is_nothing_to_choose_by(count):
    found, *_ = judge((0.3, 0.7), 1.0)
    few = np.zeros(len(found.f_obs), dtype=bool)
    few[np.flatnonzero(found.reflections.free)[:count]] = True
    assert found.holds_out
    assert "which nothing was fitted to" in found.rule
    other = replace(found, reflections=replace(found.reflections, free=few))
    assert not other.holds_out
    assert "of the working reflections" in other.rule
    assert "AIC" in other.rule


def test_the_error_of_a_model_is_found():
    rng = np.random.default_rng(3)
    hkl = indices(1.6)
    data = reflections(np.ones(len(hkl)), hkl)
    phase = np.where(data.centric, 0.0, rng.uniform(0, 7, size=len(hkl)))
    model = 10 * np.sqrt(data.epsilon * rng.exponential(size=len(hkl))) * np.exp(1j * phase)
    wild = rng.normal(size=(2, len(hkl)))
    error = np.where(data.centric, wild[0], (wild[0] + 1j * wild[1]) / np.sqrt(2)) * 3 * np.sqrt(data.epsilon)
    f = np.abs(model + error)
    found = error_variance(reflections(f, hkl), f, np.abs(model)) / data.epsilon
    assert found.mean() == pytest.approx(9, rel=0.06)
    assert found == pytest.approx(np.full(len(f), 9.0), rel=0.4)


def test_occupancies_are_recovered_exactly_without_noise():
    found, *_, signals = judge((0.3, 0.7), 0.0)
    w = fit_shares(found, signals, np.array([0.5, 0.5]), np.zeros(2, dtype=int))
    assert w == pytest.approx([0.3, 0.7], abs=5e-3)
    assert w.sum() == pytest.approx(1)


def test_occupancies_are_recovered_from_noise_and_are_the_likeliest():
    errors = []
    for seed in range(8):
        found, *_, signals = judge((0.3, 0.7), 1.0, seed=seed)
        w = fit_shares(found, signals, np.array([0.5, 0.5]), np.zeros(2, dtype=int))
        best = found.fitted(signals, w)
        for step in (-0.01, 0.01):
            assert found.fitted(signals, w + np.array([step, -step])) < best + 1e-6
        errors.append(w[0] - 0.3)
    assert np.abs(np.median(errors)) < 0.02
    assert np.std(errors) < 0.05


def test_what_is_fitted_and_what_is_held_out_are_different_reflections():
    found, states, b_iso, signals = judge((0.3, 0.7), 0.5)
    assert np.allclose(found.signals(np.arange(COUNT), states, b_iso), signals)
    changed = np.where(found.reflections.free, 2 * found.f_obs, found.f_obs)
    other = replace(found, f_obs=changed)
    w = np.array([0.4, 0.6])
    assert other.fitted(signals, w) == found.fitted(signals, w)
    assert np.array_equal(other.blocks(signals, w).gram, found.blocks(signals, w).gram)
    assert (other.held_out(signals, w) != found.held_out(signals, w)).all()
    assert len(found.held_out(signals, w)) == found.reflections.free.sum()
    assert "of the 293 free reflections" in found.rule
    assert found.holds_out
