"""Stereochemistry: target values, restraints, the differentiable objective, validation."""
