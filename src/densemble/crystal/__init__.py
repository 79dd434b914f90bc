"""Crystallography: from a model and amplitudes to R factors and to maps in e/Å^3."""
