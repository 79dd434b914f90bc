"""Atoms to density."""
