"""Boltz-1 and Boltz-2 (Wohlwend et al. 2024; Passaro et al. 2025) as priors, on the released package.

All of it needs the package boltz; without it, importing any module here raises an ``InputError`` that says
how to install it.
"""

from densemble.priors.boltz.package import require_boltz

require_boltz()
