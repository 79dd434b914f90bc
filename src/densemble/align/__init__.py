"""Placing a model in a map: rotations, the search over poses, chains that may be exchanged."""
