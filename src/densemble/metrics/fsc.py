"""Fourier shell correlation of two maps, and the resolution up to which they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import irfftn, rfftn
from torch import Tensor

from densemble.grid import Grid

HALF_MAPS = 0.143
"""Where the FSC of half maps says that the average map ends (Rosenthal and Henderson, 2003)."""
RANDOMISED = 0.8
"""Where the unmasked FSC of half maps lies from which on phases are randomised (Chen et al., 2013)."""
MAP_MODEL = 0.5
"""Where the FSC of a map and a model says so."""


@dataclass(frozen=True, eq=False)
class ShellCorrelation:
    """FSC against 1/d.

    Attributes:
        s: 1/Å, mean of 1/d over each shell, increasing; shape=(m,).
        fsc: the correlation, from -1 to 1; 0 where a map has nothing in the shell; shape=(m,).
        count: Fourier coefficients in the shell, Friedel mates counted once; shape=(m,). Under no
            correlation the standard deviation of ``fsc`` is ``1 / sqrt(2 count)``, if every voxel counts.
    """

    s: np.ndarray
    fsc: np.ndarray
    count: np.ndarray


def fourier_shell_correlation(
    a: Float[Tensor, "nx ny nz"],
    b: Float[Tensor, "nx ny nz"],
    grid: Grid,
    *,
    mask: Float[Tensor, "nx ny nz"] | None = None,
    width: float | None = None,
) -> ShellCorrelation:
    """``Re sum A conj(B) / sqrt(sum |A|^2 sum |B|^2)`` over shells of 1/d.

    Harauz, G. and van Heel, M. (1986). Optik 73, 146-156. Shells are in 1/Å, so that boxes need not be
    cubes, nor voxels. They end where the coarsest axis has its last frequency, and the mean of the maps
    (1/d = 0) is in none.

    A mask multiplies both maps. It should be soft: its transform correlates what it is multiplied with,
    so a tight or sharp mask raises the FSC at high resolution, also of noise; nothing is subtracted for
    that here, but see ``mask_corrected_correlation``. Maps under a mask should be near zero in the solvent.

    Args:
        a: a map; shape=(nx, ny, nz).
        b: another on the same grid.
        grid: the box of both.
        mask: weights, shape=(nx, ny, nz); 1 everywhere if left out.
        width: 1/Å of a shell; that of one period over the shortest edge of the box if left out.

    Raises:
        ValueError: shapes that do not agree with the grid.
    """
    if not a.shape == b.shape == grid.shape or (mask is not None and mask.shape != grid.shape):
        raise ValueError(
            f"fourier_shell_correlation: maps {tuple(a.shape)} and {tuple(b.shape)} on {grid}, mask "
            f"{None if mask is None else tuple(mask.shape)}"
        )
    fa, fb = (_transform(v, mask) for v in (a, b))
    s = _frequency(grid)
    width = width or 1 / min(n * h for n, h in zip(grid.shape, grid.spacing, strict=True))
    limit = min((n // 2) / (n * h) for n, h in zip(grid.shape, grid.spacing, strict=True))
    shell = np.rint(s / width).astype(np.int64)
    last = math.floor(limit / width + 1e-6)
    mates = np.full(s.shape, 2.0)  # the half spectrum holds one of each pair, but both on its end planes
    mates[..., 0] = 1.0
    if grid.shape[2] % 2 == 0:
        mates[..., -1] = 1.0

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell.ravel(), (mates * values).ravel(), minlength=last + 1)[1 : last + 1]

    product = summed((fa * fb.conj()).real)
    norm = np.sqrt(summed(np.square(np.abs(fa))) * summed(np.square(np.abs(fb))))
    count = summed(np.ones(s.shape))
    filled = count > 0
    return ShellCorrelation(
        s=(summed(s)[filled] / count[filled]),
        fsc=np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)[filled],
        count=np.rint(count[filled] / 2).astype(np.int64),
    )


def mask_corrected_correlation(
    a: Float[Tensor, "nx ny nz"],
    b: Float[Tensor, "nx ny nz"],
    grid: Grid,
    *,
    mask: Float[Tensor, "nx ny nz"],
    generator: torch.Generator,
) -> ShellCorrelation:
    """The FSC of half maps under a mask, without what the mask adds to it.

    Chen, S. et al. (2013). Ultramicroscopy 135, 24-35. Beyond the resolution at which the FSC without mask
    falls below 0.8 the phases of both maps are randomised, so that what correlates under the mask there
    comes from the mask: ``FSC_n``. With the FSC of the masked maps ``FSC_t`` the corrected one is ``(FSC_t -
    FSC_n) / (1 - FSC_n)``. It is used from the third shell beyond that resolution on, and ``FSC_t`` before:
    into the first two the transform of the mask carries what is not randomised.

    It does not undo that a mask was drawn around the noise itself: make masks from a blurred map.

    Args:
        a: a half map; shape=(nx, ny, nz).
        b: the other.
        grid: the box of both.
        mask: weights, shape=(nx, ny, nz).
        generator: of the phases.

    Raises:
        ValueError: shapes that do not agree with the grid.
    """
    start = 1 / resolution_at(fourier_shell_correlation(a, b, grid), RANDOMISED)
    masked = fourier_shell_correlation(a, b, grid, mask=mask)
    first, second = (phase_randomised(v, grid, beyond=start, generator=generator) for v in (a, b))
    noise = fourier_shell_correlation(first, second, grid, mask=mask).fsc
    corrected = (masked.fsc - noise) / np.maximum(1 - noise, 1e-6)
    kept = int(np.searchsorted(masked.s, start)) + 2 if start > 0 else 0
    fsc = np.where(np.arange(len(noise)) < kept, masked.fsc, np.clip(corrected, -1, 1))
    return ShellCorrelation(masked.s, fsc, masked.count)


def phase_randomised(
    values: Float[Tensor, "nx ny nz"], grid: Grid, *, beyond: float, generator: torch.Generator
) -> Float[Tensor, "nx ny nz"]:
    """A map of the same Fourier amplitudes, with random phases where 1/d is above ``beyond``, in 1/Å.

    The phases are those of white noise, so that the map is real. Double precision.
    """
    noise = rfftn(torch.randn(grid.shape, generator=generator, dtype=torch.float64).numpy())
    size = np.abs(noise)
    turn = np.divide(noise, size, out=np.ones_like(noise), where=size > 0)
    turn[_frequency(grid) <= beyond] = 1
    own = rfftn(values.detach().cpu().double().numpy())
    return torch.from_numpy(irfftn(own * turn, s=grid.shape))


def resolution_at(curve: ShellCorrelation, threshold: float) -> float:
    """Å where the FSC first falls below a threshold, on straight lines between shells.

    Returns:
        ``1 / s`` of the last shell if the FSC stays above it, which is then all that the voxels can show;
        infinity if it is below from the first shell on.
    """
    below = np.flatnonzero(curve.fsc < threshold)
    if len(below) == 0:
        return float(1 / curve.s[-1])
    j = int(below[0])
    if j == 0:
        return math.inf
    s, fsc = curve.s[j - 1 : j + 1], curve.fsc[j - 1 : j + 1]
    return float(1 / (s[0] + (fsc[0] - threshold) / (fsc[0] - fsc[1]) * (s[1] - s[0])))


def map_model_resolution(
    observed: Float[Tensor, "nx ny nz"],
    model: Float[Tensor, "nx ny nz"],
    grid: Grid,
    *,
    mask: Float[Tensor, "nx ny nz"] | None = None,
) -> float:
    """Å where the FSC of a map and the density of a model falls below 0.5; see the two functions above.

    State the mask with the figure. One made from the map alone (``densemble.em.preparation``) also holds
    what the model lacks.
    """
    return resolution_at(fourier_shell_correlation(observed, model, grid, mask=mask), MAP_MODEL)


def _transform(values: Tensor, mask: Tensor | None) -> np.ndarray:
    weighted = values.detach() if mask is None else values.detach() * mask
    return np.asarray(rfftn(weighted.cpu().numpy()))


def _frequency(grid: Grid) -> np.ndarray:
    """1/d in 1/Å of the half spectrum's coefficients."""
    (nx, ny, nz), (hx, hy, hz) = grid.shape, grid.spacing
    x, y, z = np.fft.fftfreq(nx, hx), np.fft.fftfreq(ny, hy), np.fft.rfftfreq(nz, hz)
    return np.asarray(np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2))
