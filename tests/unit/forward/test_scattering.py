import gemmi
import numpy as np
import pytest

from densemble.errors import InputError
from densemble.forward.scattering import xray_form_factors


def test_form_factors_are_gemmis():
    elements = ["C", "N", "O", "S", "Se", "Zn", "Ca", "C"]
    s = np.linspace(0, 1.5, 31)
    expected = [[gemmi.Element(e).it92.calculate_sf(v**2 / 4) for v in s] for e in elements]
    np.testing.assert_allclose(xray_form_factors(elements)(s), expected, rtol=2e-6)  # gemmi: float32


def test_charge_is_the_atomic_number():
    for symbol in ("C", "N", "O", "S", "P", "Fe"):
        f0 = xray_form_factors([symbol])(np.zeros(1)).item()
        assert f0 == pytest.approx(gemmi.Element(symbol).atomic_number, abs=0.05)


@pytest.mark.parametrize("symbol", ["Xx", "X", "Es", ""])
def test_unknown_element_is_named(symbol):
    with pytest.raises(InputError, match=f"'{symbol}'"):
        xray_form_factors(["C", symbol])
