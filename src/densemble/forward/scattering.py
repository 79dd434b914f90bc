"""Atomic form factors as sums of Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from densemble.errors import InputError


@dataclass(frozen=True, eq=False)
class FormFactors:
    """``f(s) = sum_j a_j exp(-b_j s^2 / 4)`` with s = 1/d in Å^-1, for n atoms.

    Attributes:
        a: electrons (X-rays) or Å (electrons), shape=(n, j).
        b: Å^2, shape=(n, j). May be negative where the sum is only to be used with a B factor added.
    """

    a: np.ndarray
    b: np.ndarray

    def __call__(self, s: np.ndarray) -> np.ndarray:
        """f(s) in the unit of ``a``, shape=(n, len(s))."""
        return (self.a[:, :, None] * np.exp(-self.b[:, :, None] * np.square(s) / 4)).sum(axis=1)


FormFactorTable = Callable[[Sequence[str]], FormFactors]
"""Form factors of elements: ``xray_form_factors`` or ``electron_form_factors``."""


def xray_form_factors(elements: Sequence[str]) -> FormFactors:
    """Form factors of neutral atoms, four Gaussians and a constant (a fifth with b = 0).

    Source: International Tables for Crystallography C (1992), table 6.1.1.4, as carried by gemmi.

    Args:
        elements: element symbols, one for each atom.

    Raises:
        InputError: an element has no entry in the table.
    """
    return _looked_up(elements, "X-ray", _xray_entry)


def electron_form_factors(elements: Sequence[str]) -> FormFactors:
    """Form factors of neutral atoms for electrons, five Gaussians, in Å (first Born approximation).

    Source: Peng, L.-M., Ren, G., Dudarev, S. L. and Whelan, M. J. (1996). Acta Cryst. A52, 257-276, fitted
    up to s = 4 Å^-1; International Tables for Crystallography C, table 4.3.2.2, as carried by gemmi.

    Args:
        elements: element symbols, one for each atom.

    Raises:
        InputError: an element has no entry in the table.
    """
    return _looked_up(elements, "electron", _electron_entry)


def _xray_entry(element: gemmi.Element) -> tuple[list[float], list[float]] | None:
    entry = element.it92
    return None if entry is None else ([*entry.a, entry.c], [*entry.b, 0.0])


def _electron_entry(element: gemmi.Element) -> tuple[list[float], list[float]] | None:
    entry = element.c4322
    return None if entry is None else (list(entry.a), list(entry.b))


def _looked_up(
    elements: Sequence[str],
    kind: str,
    entry_of: Callable[[gemmi.Element], tuple[list[float], list[float]] | None],
) -> FormFactors:
    table = {}
    for symbol in dict.fromkeys(elements):
        element = gemmi.Element(symbol)
        entry = None if element.name == "X" else entry_of(element)
        if entry is None:
            raise InputError(
                f"no {kind} form factor is tabulated for element '{symbol}': "
                "correct the element column of the model or remove the atom"
            )
        table[symbol] = entry
    pairs = np.array([table[symbol] for symbol in elements], dtype=np.float64).reshape(-1, 2, 5)
    return FormFactors(a=pairs[:, 0], b=pairs[:, 1])
