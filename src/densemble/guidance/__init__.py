"""Bending a prior toward a measurement and toward sound chemistry."""
