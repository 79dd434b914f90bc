"""Electrostatic potential of an ensemble from electron form factors, as in cryo-EM."""

from __future__ import annotations

from densemble.forward.scattering import FormFactorTable, electron_form_factors
from densemble.forward.xray import XrayDensity

VOLT_ANGSTROM2 = 47.87764
"""V Å^2, ``h^2 / (2 pi m_e e)``: the potential in V is the density in Å^-2 times this."""


class ElectronDensity(XrayDensity):
    """What ``XrayDensity`` is, with electron form factors in place of those for X-rays.

    The transform of ``f_e(s) exp(-B s^2 / 4)``, in Å^-2: its integral over an atom is ``f_e(0)`` in Å. It is
    the electrostatic potential in V (of neutral atoms, with non-relativistic electron mass) when multiplied
    by ``VOLT_ANGSTROM2``. Cryo-EM maps have an arbitrary scale, which ``DensityLikelihood`` fits.

    With ``d_min`` the atoms of a map that ends there are fitted, as for X-rays. Errors with the defaults for
    C, N, O and S at B = 60, within 2 d_min of the centre and relative to the peak: 0.014 at 2 Å, 0.025 at
    3 Å, 0.037 at 4 Å, where atoms that are not truncated are off by 0.041, 0.41, 1.2; in the norm of an
    atom: 0.05, 0.15, 0.21, where those are off by 0.025, 0.23, 0.54. At B above 60 and 2 Å they are the
    better ones: leave ``d_min`` out where the map fades before it ends.
    """

    _table: FormFactorTable = staticmethod(electron_form_factors)
