import gemmi
import numpy as np
import pytest
import torch
from scipy import constants

from densemble.errors import InputError
from densemble.forward.electron import VOLT_ANGSTROM2, ElectronDensity
from densemble.forward.scattering import electron_form_factors, xray_form_factors
from densemble.forward.truncation import truncated_profile
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid

ELEMENTS = ["C", "N", "O", "S", "Fe", "C"]
RNG = np.random.default_rng(5)
ATOMS = RNG.uniform(7, 12, size=(len(ELEMENTS), 3))
B_ISO = RNG.uniform(15, 60, size=len(ELEMENTS))
OCCUPANCY = RNG.uniform(0.3, 1.0, size=len(ELEMENTS))
GRID = Grid(origin=(0.0, 0.0, 0.0), spacing=(0.5, 0.5, 0.5), shape=(40, 40, 40))


def exact(grid, elements, **options):
    return ElectronDensity(grid, elements, cutoff=1e-12, dtype=torch.float64, **options)


def gemmi_potential():
    """gemmi's density of the same atoms, on the grid of a cell as large as the box."""
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(20, 20, 20, 90, 90, 90), "P 1"
    model, chain, residue = gemmi.Model("1"), gemmi.Chain("A"), gemmi.Residue()
    for x, b, q, symbol in zip(ATOMS, B_ISO, OCCUPANCY, ELEMENTS, strict=True):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = symbol, gemmi.Element(symbol), gemmi.Position(*x)
        atom.b_iso, atom.occ = float(b), float(q)
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min, calculator.rate, calculator.cutoff = 2.0, 2.0, 1e-9
    calculator.set_grid_cell_and_spacegroup(structure)
    calculator.put_model_density_on_grid(structure[0])
    return np.array(calculator.grid)


def test_is_gemmis_density_in_absolute_units():
    reference = gemmi_potential()
    assert reference.shape == GRID.shape
    model = exact(GRID, ELEMENTS, occupancy=torch.tensor(OCCUPANCY))
    ours = model(torch.tensor(ATOMS[None]), torch.ones(1, dtype=torch.float64), torch.tensor(B_ISO))
    assert reference.max() > 0.5
    np.testing.assert_allclose(ours.numpy(), reference, atol=1e-5 * reference.max())


def test_transform_is_that_of_the_form_factors():
    """By the discrete transform of a fine box, against ``sum f_e(s) exp(-B s^2 / 4) exp(2 pi i s x)``."""
    model = exact(GRID, ELEMENTS)
    rho = model(torch.tensor(ATOMS[None]), torch.ones(1, dtype=torch.float64), torch.tensor(B_ISO)).numpy()
    found = np.fft.fftn(rho).conj() * GRID.voxel_volume
    for index in [(0, 0, 0), (1, 0, 0), (2, 3, 1), (0, 4, 4), (5, 1, 3)]:
        s = np.array(index) / 20.0
        f = [gemmi.Element(e).c4322.calculate_sf(s @ s / 4) for e in ELEMENTS]
        expected = (f * np.exp(-B_ISO * (s @ s) / 4) * np.exp(2j * np.pi * (ATOMS @ s))).sum()
        assert found[index] == pytest.approx(expected, abs=1e-4 * sum(f))


def test_form_factors_obey_mott_and_bethe():
    """``f_e = 2 (Z - f_x) / (a_0 (2 pi s)^2)`` with Bohr's radius a_0: two tables compared."""
    elements, s = ["C", "N", "O", "S", "P"], np.linspace(0.5, 1.4, 10)
    z = np.array([gemmi.Element(e).atomic_number for e in elements])[:, None]
    bohr = constants.physical_constants["Bohr radius"][0] * 1e10
    expected = 2 * (z - xray_form_factors(elements)(s)) / (bohr * (2 * np.pi * s) ** 2)
    np.testing.assert_allclose(electron_form_factors(elements)(s), expected, rtol=0.02)


def test_volts():
    volts = constants.h**2 / (2 * np.pi * constants.m_e * constants.e) * 1e20
    assert pytest.approx(volts, rel=1e-6) == VOLT_ANGSTROM2


@pytest.mark.parametrize("d_min", [2.0, 3.5])
def test_truncated_atom(d_min):
    """Against the quadrature of the cut transform; the atom that is not cut is further off."""
    grid = Grid(origin=(0.0, 0.0, 0.0), spacing=(0.1, 1.0, 1.0), shape=(70, 1, 1))
    r, b = grid.points()[:, 0, 0, 0], 30.0
    for symbol in ("C", "O", "S"):
        expected = truncated_profile([symbol], d_min, b, r, table=electron_form_factors)[0]
        x, one = torch.zeros(1, 1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        cut, whole = (
            exact(grid, [symbol], **options)(x, one, b * one[0])[:, 0, 0].numpy()
            for options in ({"d_min": d_min}, {})
        )
        assert np.abs(cut - expected).max() < 0.04 * expected[0]
        assert np.abs(whole - expected).max() > 2 * np.abs(cut - expected).max()


def test_gradients():
    grid = Grid(origin=(5.0, 6.0, 7.0), spacing=(0.8, 0.9, 1.0), shape=(8, 7, 6))
    model = exact(grid, ELEMENTS, d_min=3.0)
    coords = torch.tensor(ATOMS[None], requires_grad=True)
    b_iso = torch.tensor(B_ISO, requires_grad=True)
    weights = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    probe = torch.randn(grid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w, b: (model(x, w, b) * probe).sum(), (coords, weights, b_iso), atol=1e-6
    )


def test_xray_density_is_another():
    x, one, b = torch.tensor(ATOMS[None]), torch.ones(1, dtype=torch.float64), torch.tensor(B_ISO)
    xray = XrayDensity(GRID, ELEMENTS, dtype=torch.float64)(x, one, b)
    assert float((xray - exact(GRID, ELEMENTS)(x, one, b)).abs().max()) > 0.5 * float(xray.max())


@pytest.mark.parametrize("symbol", ["Xx", "X", "Es"])
def test_unknown_element_is_named(symbol):
    with pytest.raises(InputError, match=f"no electron form factor is tabulated for element '{symbol}'"):
        electron_form_factors(["C", symbol])
