"""Cryo-EM maps: preparing them for a fit, and half maps."""
