import dataclasses

import gemmi
import numpy as np
import pytest
from crystals import crystal, reflections, unique_hkl

from densemble.crystal.fcalc import atom_factors, solvent_factors, solvent_mask
from densemble.crystal.scaling import (
    bulk_solvent,
    fit_scale,
    model_factors,
    r_factors,
    r_free_error,
    resolution_shells,
    scaled_amplitudes,
)

D_MIN, K_SOL, B_SOL = 1.8, 0.36, 45.0


@pytest.fixture(scope="module")
def structure():
    return crystal("P 21 21 21", residues=14)


@pytest.fixture(scope="module")
def data(structure):
    """Amplitudes of atoms and solvent, on another scale and falling off anisotropically."""
    hkl = unique_hkl(structure, D_MIN)
    s2 = structure.cell.calculate_1_d2_array(hkl)
    atoms = atom_factors(structure, hkl, d_min=D_MIN)
    solvent = solvent_factors(solvent_mask(structure), hkl)
    model = np.abs(atoms + K_SOL * np.exp(-B_SOL * s2 / 4) * solvent)
    edges = np.array(structure.cell.parameters[:3])
    tensor = np.array([4.0, -3.0, 1.0])  # Å^2, its trace not zero: some isotropic B too
    fall_off = np.exp(-((hkl / edges) ** 2 @ tensor) / 4)
    return reflections(structure, 7.5 * fall_off * model, hkl)


def test_r_factors_of_the_true_model_vanish(structure, data):
    result = r_factors(structure, data)
    assert result.r_work < 1e-4
    assert result.r_free < 1e-4


def test_r_factors_are_sums_over_their_own_reflections(structure, data):
    """Free amplitudes a tenth too low make R-free 0.1 / 0.9; R-work does not see them."""
    low = dataclasses.replace(data, f=np.where(data.free, 0.9 * data.f, data.f))
    exact, result = r_factors(structure, data), r_factors(structure, low)
    assert result.r_work == exact.r_work
    assert result.r_free == pytest.approx(1 / 9, abs=1e-4)


def test_scale_and_solvent_are_recovered(structure, data):
    atoms, solvent = model_factors(structure, data)
    scale = fit_scale(data, atoms, solvent)
    model = np.abs(atoms + scale.k_mask * solvent)
    np.testing.assert_allclose(scale.k * model, data.f, rtol=1e-3, atol=1e-5 * data.f.mean())
    assert scale.k_mask_0 == pytest.approx(K_SOL, abs=0.01)
    expected = K_SOL * np.exp(-B_SOL * data.inverse_d2 / 4)
    np.testing.assert_allclose(scale.k_mask, expected, atol=0.01)
    found = bulk_solvent(data, scale)
    assert (found.density, found.b) == pytest.approx((K_SOL, B_SOL), rel=0.05)
    np.testing.assert_allclose(found.at(data.inverse_d2), expected, atol=0.01)


def test_r_factors_do_not_depend_on_the_scale_of_the_data(structure, data):
    scaled = dataclasses.replace(data, f=data.f * 0.013, sigma=data.sigma * 0.013)
    a, b = r_factors(structure, data), r_factors(structure, scaled)
    assert (a.r_work, a.r_free) == pytest.approx((b.r_work, b.r_free), abs=2e-4)


def test_a_displaced_model_is_worse(structure, data):
    wrong = structure.clone()
    for atom in wrong[0]["A"][3]:
        atom.pos.x += 1.0
    exact, result = r_factors(structure, data), r_factors(wrong, data)
    assert result.r_work > exact.r_work + 0.03
    assert result.r_free > exact.r_free + 0.03


def test_free_amplitudes_do_not_enter_the_scale(structure, data):
    atoms, solvent = model_factors(structure, data)
    changed = dataclasses.replace(data, f=np.where(data.free, 3 * data.f + 10, data.f))
    a, b = (fit_scale(d, atoms, solvent) for d in (data, changed))
    np.testing.assert_array_equal(a.k, b.k)
    np.testing.assert_array_equal(a.k_mask, b.k_mask)


def test_shells_are_ordered_and_well_filled(data):
    shells = resolution_shells(data)
    assert set(shells) == set(range(shells.max() + 1))
    assert shells.max() >= 3
    assert np.bincount(shells[~data.free]).min() >= 300
    order = np.argsort(data.inverse_d2)
    assert (np.diff(shells[order]) >= 0).all()


def test_few_reflections_share_one_shell(structure, data):
    few = dataclasses.replace(
        data, **{name: getattr(data, name)[:100] for name in ("hkl", "f", "sigma", "free")}
    )
    np.testing.assert_array_equal(resolution_shells(few), np.zeros(100))


def test_error_of_the_difference_of_two_r_free_is_its_scatter_over_free_sets(structure, data):
    rng = np.random.default_rng(7)
    models = [moved(structure, 0.2, rng), moved(structure, 0.22, rng)]
    changes, errors = [], []
    for _ in range(30):
        drawn = dataclasses.replace(data, free=rng.uniform(size=len(data)) < 0.1)
        before, after = (r_factors(model, drawn).r_free for model in models)
        changes.append(after - before)
        errors.append(r_free_error(*(scaled_amplitudes(model, drawn) for model in models), drawn))
    # a tenth of one population is drawn without putting back, which takes sqrt(0.9) off the scatter
    assert np.std(changes, ddof=1) == pytest.approx(np.sqrt(0.9) * np.mean(errors), rel=0.35)
    found = [scaled_amplitudes(model, data) for model in models]
    assert r_free_error(found[0], found[0], data) == 0
    one = dataclasses.replace(data, free=np.arange(len(data)) == 5)
    assert np.isnan(r_free_error(*found, one))


def moved(structure, sd, rng):
    found = structure.clone()
    for site in found[0].all():
        site.atom.pos += gemmi.Position(*rng.normal(scale=sd, size=3))
    return found
