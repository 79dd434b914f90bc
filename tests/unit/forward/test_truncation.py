import gemmi
import numpy as np
import pytest

from densemble.forward.scattering import xray_form_factors
from densemble.forward.truncation import truncated_form_factors, truncated_profile

D_MIN = 1.85


def fitted_profile(factors, b_iso, r):
    width = factors.b[..., None] + b_iso
    return (factors.a[..., None] * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * r**2 / width)).sum(1)


def test_profile_without_truncation_is_the_sum_of_gaussians():
    r = np.linspace(0, 4, 41)
    expected = fitted_profile(xray_form_factors(["C", "S"]), 20.0, r)
    # exp(-20 s^2 / 4) is 1e-16 at 1/d_min = 2.7
    np.testing.assert_allclose(truncated_profile(["C", "S"], 0.37, 20.0, r), expected, atol=1e-10)


def test_profile_is_that_of_a_gemmi_fourier_synthesis():
    """One carbon atom in a large P1 cell: structure factors to d_min, transformed by gemmi."""
    cell, b_iso = gemmi.UnitCell(24, 24, 24, 90, 90, 90), 20.0
    n = 60
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P1"), D_MIN)
    s = np.sqrt(cell.calculate_1_d2_array(hkl))
    f = xray_form_factors(["C"])(s)[0] * np.exp(-b_iso * s**2 / 4)
    data = gemmi.ComplexAsuData(cell, gemmi.SpaceGroup("P1"), hkl, f.astype(np.complex64))
    grid = data.transform_f_phi_to_map(exact_size=[n, n, n])
    values = np.array(grid, copy=False)
    f000 = xray_form_factors(["C"])(np.zeros(1)).item()
    line = values[: n // 2, 0, 0] + f000 / cell.volume
    r = np.arange(n // 2) * 24 / n
    expected = truncated_profile(["C"], D_MIN, b_iso, r)[0]
    # The cell is finite: the sum over reflections is a cruder integral, and copies' ripples overlap.
    assert np.abs(line - expected)[r < 8].max() < 0.012 * expected[0]
    fit = fitted_profile(truncated_form_factors(["C"], D_MIN), b_iso, r)[0]
    assert np.abs(line - fit)[r < 8].max() < 0.025 * expected[0]


@pytest.mark.parametrize(("terms", "b_iso", "bound"), [
    (3, 10.0, 0.028), (3, 20.0, 0.019), (3, 30.0, 0.016), (3, 60.0, 0.016),
    (4, 10.0, 0.016), (4, 20.0, 0.011), (4, 30.0, 0.009),
])  # fmt: skip
def test_error_of_the_fit_at_1_85_angstrom(terms, b_iso, bound):
    elements = ["C", "N", "O", "S"]
    r = np.linspace(0, 4 * D_MIN, 400)
    exact = truncated_profile(elements, D_MIN, b_iso, r)
    error = np.abs(fitted_profile(truncated_form_factors(elements, D_MIN, terms=terms), b_iso, r) - exact)
    relative = error / exact[:, :1]
    assert relative[:, r < 2 * D_MIN].max() < bound
    assert relative[:, r >= 2 * D_MIN].max() < 0.013


@pytest.mark.parametrize("d_min", [1.2, 1.5, 2.5, 3.5])
def test_error_of_the_fit_at_other_resolutions(d_min):
    r = np.linspace(0, 4 * d_min, 400)
    exact = truncated_profile(["C", "O"], d_min, 20.0, r)
    fit = fitted_profile(truncated_form_factors(["C", "O"], d_min), 20.0, r)
    assert np.abs((fit - exact) / exact[:, :1]).max() < 0.04


@pytest.mark.parametrize("b_iso", [12.0, 20.0])
def test_the_fit_is_nearer_to_the_map_than_untruncated_atoms(b_iso):
    s = np.linspace(0, 3, 3000)
    untruncated = xray_form_factors(["C"])(s)[0]
    fit = truncated_form_factors(["C"], D_MIN)(s)[0]
    exact = untruncated * (s < 1 / D_MIN)

    def norm(f):
        return np.sqrt((s**2 * (f * np.exp(-b_iso * s**2 / 4)) ** 2).sum())

    assert norm(fit - exact) < 0.65 * norm(untruncated - exact)
    assert norm(fit - exact) < 0.2 * norm(exact)


def test_heights_do_not_cancel_catastrophically():
    """Single precision needs heights at the centre within a few tens of their sum."""
    factors = truncated_form_factors(["C", "N", "O", "S"], D_MIN)
    heights = factors.a * (4 * np.pi / (factors.b + 10.0)) ** 1.5
    assert (np.abs(heights).sum(1) < 30 * heights.sum(1)).all()
    assert (factors.b + 10.0 > 0).all()
