"""Where the density of a map begins: its solvent, its noise and a contour level, from the map alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from densemble.errors import InputError

STANDS_OUT = 5.0  # noise s.d. above the solvent: what is higher is density
SIGNAL_FRACTION = 0.1  # of the density's typical height; encloses 1.21 Å^3/Da on a protein's molmap at 4 Å
DUST_VOXELS = 5  # connected pieces of fewer voxels are dust (paper 2)
_SAMPLE = 2**20  # voxels that statistics are made of
_ENOUGH = 1000  # voxels of solvent for a standard deviation
_FLAT = 1e-6  # of the density's height: a spread below is rounding or the tails of Gaussians


@dataclass(frozen=True)
class Solvent:
    """What a map holds where there is no density.

    Attributes:
        mean: in the unit of the map.
        noise: robust standard deviation, in the unit of the map; 0 if the solvent is flat.
        fill: the one value that the map has outside a mask; None if there is no such value.
        beside: whether mean and noise are those of voxels away from the density.
    """

    mean: float
    noise: float
    fill: float | None
    beside: bool


def first_solvent(values: np.ndarray) -> Solvent:
    """An estimate before anything is known of where the density is.

    The mean is the fill value, or else the mode; the noise is that of the values below the mean, which no
    density has raised. Sharpening leaves ripples among them, so the noise is an upper limit.
    """
    sample = _sampled(values, values.shape)
    fill = _fill(sample)
    if fill is not None:
        sample = sample[sample != fill]
    mean = _half_sample_mode(sample) if fill is None else fill
    below = sample[sample < mean]
    noise = 1.4826 * float(np.median(mean - below)) if len(below) else 0.0
    return Solvent(mean, _noise(noise, values, mean), fill, beside=False)


def solvent_beside(values: np.ndarray, density: np.ndarray, before: Solvent) -> Solvent:
    """The solvent from the voxels that ``density`` (bool) leaves, if they are enough; else as ``before``.

    Voxels at the fill value say nothing about the noise and are left out, unless there are no others.
    """
    outside = values[~density]
    varied = outside if before.fill is None else outside[outside != before.fill]
    if len(varied) >= _ENOUGH:
        varied = _sampled(varied, values.shape)
        mean = float(np.median(varied))
        noise = 1.4826 * float(np.median(np.abs(varied - mean)))
        mean = mean if before.fill is None else before.fill
        return Solvent(mean, _noise(noise, values, mean), before.fill, beside=True)
    return before


def choose_level(values: np.ndarray, solvent: Solvent, source: str) -> tuple[float, str]:
    """The contour level and the rule that gave it.

    Raises:
        InputError: nothing stands out from the solvent.
    """
    height = _height(values, solvent)
    if height == 0:
        raise InputError(f"{source}: {_nothing(solvent)}")
    above = max(STANDS_OUT * solvent.noise, SIGNAL_FRACTION * height)
    rule = (
        f"automatic: above the solvent ({solvent.mean:.4g}) by the larger of {STANDS_OUT:g} noise s.d. "
        f"({solvent.noise:.3g}) and {SIGNAL_FRACTION:g} of the density's typical height ({height:.3g})"
    )
    return solvent.mean + above, rule


def without_dust(inside: np.ndarray, peaks: np.ndarray | None = None) -> np.ndarray:
    """The voxels of connected pieces (through faces) of at least ``DUST_VOXELS``.

    With ``peaks`` (bool), of those pieces only that hold one of them.
    """
    labels, number = ndimage.label(inside)
    label_of = labels[inside]
    keep = np.bincount(label_of, minlength=number + 1) >= DUST_VOXELS
    if peaks is not None:
        keep &= np.bincount(labels[inside & peaks], minlength=number + 1) > 0
    out = np.zeros_like(inside)
    out[inside] = keep[label_of]
    return out


def stands_out(values: np.ndarray, solvent: Solvent) -> np.ndarray:
    """The voxels that the noise does not explain."""
    return np.asarray(values > solvent.mean + STANDS_OUT * solvent.noise)


def check_stands_out(values: np.ndarray, solvent: Solvent, least: int, source: str) -> None:
    """That there is density at all: at least that many voxels, in pieces that are not dust.

    Raises:
        InputError: there is not, as in a map of pure noise.
    """
    if without_dust(stands_out(values, solvent)).sum() < least:
        raise InputError(f"{source}: {_nothing(solvent)}")


def _nothing(solvent: Solvent) -> str:
    return (
        f"no density stands out: almost nothing is {STANDS_OUT:g} standard deviations of the noise "
        f"({solvent.noise:.3g}) above the solvent ({solvent.mean:.3g}); give a map with density in "
        "it, or a level"
    )


def _height(values: np.ndarray, solvent: Solvent) -> float:
    """The typical height of density above the solvent: its mean weighted by itself; 0 if there is none."""
    rise = values[stands_out(values, solvent)].astype(np.float64) - solvent.mean
    return float(np.square(rise).sum() / rise.sum()) if len(rise) else 0.0


def _noise(noise: float, values: np.ndarray, mean: float) -> float:
    return noise if noise > _FLAT * (float(values.max()) - mean) else 0.0


def _sampled(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """About a million of the values of a map of that shape, or of those of its voxels that were selected.

    Evenly spaced in the file, by a step that has no factor in common with an axis: one of 128 voxels along
    an axis of 512 would meet four of its planes only.
    """
    step = max(values.size // _SAMPLE, 1)
    while math.gcd(step, math.prod(shape)) > 1:
        step += 1
    return values.ravel()[::step].astype(np.float64)


def _fill(sample: np.ndarray) -> float | None:
    """The value outside a mask: over 1 % of the voxels have it, ten times as many as have any other.

    The second condition is for maps of small integers, in which every value is common.
    """
    values, counts = np.unique(sample, return_counts=True)
    order = np.argsort(counts)
    second = counts[order[-2]] if len(order) > 1 else 0
    most = counts[order[-1]]
    return float(values[order[-1]]) if most > max(10 * second, 0.01 * len(sample)) else None


def _half_sample_mode(sample: np.ndarray) -> float:
    """The mode, by halving to the densest half until little is left.

    Bickel, D. R. and Frühwirth, R. (2006). Comput. Stat. Data Anal. 50, 3500-3530.
    """
    x = np.sort(sample)
    while len(x) > 3:
        half = (len(x) + 1) // 2
        width = x[half - 1 :] - x[: len(x) - half + 1]
        first = int(np.argmin(width))
        x = x[first : first + half]
    return float(x.mean())
