<<<<<<< HEAD
"""Boltz-1 and Boltz-2 (Wohlwend et al. 2024; Passaro et al. 2025), the released package, as priors."""
=======
"""Boltz-1 and Boltz-2 (Wohlwend et al. 2024; Passaro et al. 2025) as priors, on the released package.

All of it needs the package boltz; without it, importing any module here raises an ``InputError`` that says
how to install it.
"""

from densemble.priors.boltz.package import require_boltz

require_boltz()
>>>>>>> 867d2e6 (Boltz: features from FASTA, Boltz YAML and models, through Boltz's own parser)
