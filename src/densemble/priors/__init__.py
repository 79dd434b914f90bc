"""Diffusion models of protein structure, behind one protocol."""
