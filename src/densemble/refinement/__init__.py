"""Refinement to finish: the states of a region, jointly, against the data."""
