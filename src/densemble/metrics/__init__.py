"""Figures of merit of maps, coordinates and populations."""
