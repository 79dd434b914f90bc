"""How well an ensemble explains a measurement, as a differentiable log-likelihood."""
