"""Atomic form factors as sums of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from densemble.errors import InputError


@dataclass(frozen=True, eq=False)
class FormFactors:
    """``f(s) = sum_j a_j exp(-b_j s^2 / 4)`` with s = 1/d in Å^-1, for n atoms.

    Attributes:
        a: electrons, shape=(n, j).
        b: Å^2, shape=(n, j). May be negative where the sum is only to be used with a B factor added.
    """

    a: np.ndarray
    b: np.ndarray

    def __call__(self, s: np.ndarray) -> np.ndarray:
        """f(s) in electrons, shape=(n, len(s))."""
        return (self.a[:, :, None] * np.exp(-self.b[:, :, None] * np.square(s) / 4)).sum(axis=1)


def xray_form_factors(elements: Sequence[str]) -> FormFactors:
    """Form factors of neutral atoms, four Gaussians and a constant (a fifth with b = 0).

    Source: International Tables for Crystallography C (1992), table 6.1.1.4, as carried by gemmi.

    Args:
        elements: element symbols, one for each atom.

    Raises:
        InputError: an element has no entry in the table.
    """
    table = {}
    for symbol in dict.fromkeys(elements):
        element = gemmi.Element(symbol)
        if element.name == "X" or element.it92 is None:
            raise InputError(
                f"no X-ray form factor is tabulated for element '{symbol}': "
                "correct the element column of the model or remove the atom"
            )
        table[symbol] = ([*element.it92.a, element.it92.c], [*element.it92.b, 0.0])
    pairs = np.array([table[symbol] for symbol in elements], dtype=np.float64).reshape(-1, 2, 5)
    return FormFactors(a=pairs[:, 0], b=pairs[:, 1])
