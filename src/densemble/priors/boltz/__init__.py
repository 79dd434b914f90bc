"""Boltz-1 and Boltz-2 (Wohlwend et al. 2024; Passaro et al. 2025), the released package, as priors."""
