"""Gaussian blurring of sampled maps."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import dctn, idctn
from torch import Tensor

from densemble.grid import Grid


def gaussian_blur(values: Float[Tensor, "nx ny nz"], grid: Grid, blur: float) -> Float[Tensor, "nx ny nz"]:
    """Convolve a map with an isotropic Gaussian of standard deviation ``blur`` Å and integral 1.

    The map is continued by reflection at the faces of the box, so that a constant stays itself and nothing
    is lost or wrapped around; within about ``2 blur`` of a face the result is a guess. Done by a cosine
    transform, in which the Gaussian is a factor ``exp(-2 pi^2 blur^2 s^2)``: exact for whatever the voxels
    resolve, however small the blur.

    Args:
        values: shape=(nx, ny, nz).
        grid: its box.
        blur: Å, 0 for none.
    """
    if blur == 0:
        return values
    spectrum = dctn(values.detach().double().cpu().numpy(), type=2, norm="ortho")
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        s = np.arange(n) / (2 * n * h)
        spectrum *= np.expand_dims(
            np.exp(-2 * (np.pi * blur * s) ** 2), tuple(i for i in range(3) if i != axis)
        )
    return torch.as_tensor(idctn(spectrum, type=2, norm="ortho")).to(values)
