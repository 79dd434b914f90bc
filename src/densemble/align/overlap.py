"""How well poses of a model explain a map: the mean Fourier shell correlation, or the overlap of shapes.

With F the coefficients of the map and M those of the points of a model in a pose,

    score = sum_s g(s) Re F(s) M(s)* / sqrt(P_F(|s|) P_M(|s|)) / sum_s g(s),   g(s) = exp(-d^2 s^2),

where P are the mean squares of the coefficients in shells. It is the mean of the shells' Fourier shell
correlations (Harauz & van Heel 1986, Optik 73, 146), weighted with g, whatever the scale, the sharpening
and the falloff of the map. The division evens out the strong lowest resolutions, which almost any pose
explains; the effect is that of the Laplacian filter of Chacon & Wriggers (2002), J. Mol. Biol. 317, 375.
Without it (``even=False``) the score is the cosine of map and model when both are blurred with g,
less their means, which those lowest resolutions rule: the overlap of their shapes.

The sum is that of the points' weights times one filtered map at the points. So any number of
poses is scored by interpolation, and all translations of one rotation by one transform.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from densemble.align.points import Points
from densemble.grid import DensityMap

WORKERS = 2
FILLED = 0.1
"""A model fills the voxels in which it has at least this share of its highest density."""
BAND = 1.25
"""Coefficients beyond this many times 1 / resolution are left out: their weight g is below 0.21."""


class Spectrum:
    """The Fourier coefficients of a map in a box with an empty margin, in which poses may stick out.

    Attributes:
        shape: voxels of the padded box.
        edges: Å, shape=(3,).
        origin: Å, position of its voxel (0, 0, 0), shape=(3,).
        values: coefficients as ``scipy.fft.rfftn`` gives them.
    """

    def __init__(self, density: DensityMap, *, margin: float) -> None:
        """Transform a map less its median, which is the solvent's density in most maps.

        Args:
            density: the map.
            margin: Å of nothing added along each axis.
        """
        values = density.values.detach().cpu().numpy().astype(np.float32)
        spacing = np.array(density.grid.spacing)
        lengths = [n + math.ceil(margin / h) for n, h in zip(values.shape, spacing, strict=True)]
        self.shape = np.array([scipy.fft.next_fast_len(n, real=True) for n in lengths])
        self.edges = self.shape * spacing
        self.origin = np.array(density.grid.origin)
        self.values = scipy.fft.rfftn(values - np.median(values), s=self.shape.tolist(), workers=WORKERS)

    def sampled(self, spacing: float) -> tuple[np.ndarray, Complex[np.ndarray, "x y z"]]:
        """Shape and coefficients of the same box with voxels of about ``spacing`` Å, or its own if larger."""
        wanted = [scipy.fft.next_fast_len(math.ceil(edge / spacing), real=True) for edge in self.edges]
        shape = np.minimum(wanted, self.shape)
        values = self.values[..., : shape[2] // 2 + 1]
        for axis in (0, 1):
            # As many frequencies above as below zero; the unpaired one of an even length is beyond the band.
            n, half = self.shape[axis], (shape[axis] + 1) // 2
            keep = np.r_[0:half, n - (shape[axis] - half) : n]
            values = np.take(values, keep, axis=axis)
        return shape, values


class Overlap:
    """The score of a model's poses at one resolution.

    Attributes:
        points: the model.
        shape: voxels of the box.
        spacing: Å, shape=(3,).
        origin: Å, shape=(3,).
        filtered: coefficients of the map that is summed at the points.
    """

    def __init__(
        self, spectrum: Spectrum, points: Points, *, resolution: float, sampling: float, even: bool = True
    ) -> None:
        """Filter the map.

        Args:
            spectrum: the map.
            points: the model, no coarser than needed at the resolution.
            resolution: Å, at which the weight g is 1/e.
            sampling: voxels per resolution, at least ``2 BAND``.
            even: all shells count alike but for g.
        """
        self.resolution = resolution
        self.points = points
        self.shape, values = spectrum.sampled(resolution / sampling)
        self.spacing = spectrum.edges / self.shape
        self.origin = spectrum.origin
        square, attenuation = self._frequencies()
        weight = np.exp(-(resolution**2) * square) * ((square > 0) & (square < (BAND / resolution) ** 2))
        own = scipy.fft.rfftn(self.splat(torch.from_numpy(points.offsets).float()[None])[0]) / attenuation
        twice = np.full(weight.shape[-1], 2.0)  # coefficients and their conjugates, which rfftn leaves out
        twice[0] = 1.0
        if even:
            shell = np.rint(np.sqrt(square) * spectrum.edges.max()).astype(np.int32)
            norm = np.sqrt(_shell_means(values, shell, twice) * _shell_means(own, shell, twice))
            weight = weight / np.maximum(norm, 1e-12 * norm.max()) / (weight * twice).sum()
        else:
            weight = weight**2
            weight = weight / math.sqrt(
                (weight * twice * np.abs(values) ** 2).sum() * (weight * twice * np.abs(own) ** 2).sum()
            )
        self.filtered = (values * (weight * self.shape.prod() / attenuation)).astype(np.complex64)
        field = scipy.fft.irfftn(self.filtered, s=self.shape.tolist(), workers=WORKERS)
        self._field = torch.from_numpy(np.ascontiguousarray(field.transpose(2, 1, 0)))[None, None]

    def _frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """``s^2`` in Å^-2, and the factor by which linear interpolation attenuates each coefficient."""
        axes = [np.fft.fftfreq(n, h) for n, h in zip(self.shape[:2], self.spacing[:2], strict=True)]
        axes.append(np.fft.rfftfreq(self.shape[2], self.spacing[2]))
        x, y, z = np.meshgrid(*(f.astype(np.float32) for f in axes), indexing="ij", sparse=True)
        hx, hy, hz = self.spacing.astype(np.float32)
        return x**2 + y**2 + z**2, np.square(np.sinc(x * hx) * np.sinc(y * hy) * np.sinc(z * hz))

    def splat(self, offsets: Float[Tensor, "p n 3"]) -> Float[np.ndarray, "p nx ny nz"]:
        """The points' weights shared linearly among the eight voxels around each, periodic."""
        count = len(offsets)
        nx, ny, nz = self.shape.tolist()
        where = offsets / torch.from_numpy(self.spacing).float()
        low = where.floor()
        part = where - low
        weights = torch.from_numpy(self.points.weights).float()
        first = low.long()
        x, y, z = (
            torch.stack([first[..., k] % n, (first[..., k] + 1) % n], -1) for k, n in enumerate((nx, ny, nz))
        )
        fx, fy, fz = (torch.stack([1 - part[..., k], part[..., k]], -1) for k in range(3))
        fx = fx * weights[:, None]
        pose = torch.arange(count)[:, None, None] * (nx * ny * nz)
        index = (x * ny)[..., :, None] + y[..., None, :]
        index = pose[..., None, None] + (index * nz)[..., None] + z[..., None, None, :]
        value = fx[..., :, None, None] * fy[..., None, :, None] * fz[..., None, None, :]
        out = torch.zeros(count * nx * ny * nz)
        out.index_add_(0, index.reshape(-1), value.reshape(-1))
        return out.view(count, nx, ny, nz).numpy()

    def correlate(self, rotations: Float[Tensor, "p 3 3"]) -> Float[np.ndarray, "p nx ny nz"]:
        """Scores of rotations with the centre at every voxel."""
        offsets = torch.from_numpy(self.points.offsets).float() @ rotations.mT
        spectra = scipy.fft.rfftn(self.splat(offsets), axes=(1, 2, 3), workers=WORKERS)
        np.conjugate(spectra, out=spectra)
        spectra *= self.filtered
        return scipy.fft.irfftn(spectra, s=self.shape.tolist(), axes=(1, 2, 3), workers=WORKERS)

    def score(
        self, rotations: Float[Tensor, "p 3 3"], positions: Float[Tensor, "p 3"]
    ) -> Float[Tensor, " p"]:
        """Scores of poses, differentiable; a point outside the padded box adds nothing."""
        kind = rotations.dtype
        offsets = torch.from_numpy(self.points.offsets).to(kind)
        x = offsets @ rotations.mT + (positions - torch.from_numpy(self.origin).to(kind))[:, None]
        last = torch.from_numpy(self.spacing * (self.shape - 1)).to(kind)
        grid = (2 * x / last - 1)[None, None]
        values = grid_sample(self._field.to(kind), grid, align_corners=True)
        return values[0, 0, 0] @ torch.from_numpy(self.points.weights).to(kind)


def local_correlation(
    spectrum: Spectrum,
    points: Points,
    rotation: Float[np.ndarray, "3 3"],
    position: Float[np.ndarray, " 3"],
    *,
    resolution: float,
    map_resolution: float,
) -> float:
    """Pearson correlation of map and model in the voxels that the model fills, both at one resolution.

    Args:
        spectrum: the map.
        points: the model.
        rotation: of the pose.
        position: Å, of the model's centre in the map.
        resolution: Å, to which both are blurred as ``molmap`` does.
        map_resolution: Å, which the map has already.
    """
    frame = Overlap(spectrum, points, resolution=resolution, sampling=3.0)
    square, attenuation = frame._frequencies()
    shape, values = spectrum.sampled(resolution / 3.0)
    own = (points.offsets @ rotation.T + position - spectrum.origin)[None]
    model = scipy.fft.rfftn(frame.splat(torch.from_numpy(own).float())[0])
    model = scipy.fft.irfftn(model * np.exp(-(resolution**2) * square) / attenuation, s=shape.tolist())
    blur = max(resolution**2 - map_resolution**2, 0.0)
    target = scipy.fft.irfftn(values * np.exp(-blur * square), s=shape.tolist())
    filled = model > FILLED * model.max()
    return float(np.corrcoef(model[filled], target[filled])[0, 1])


def _shell_means(values: np.ndarray, shell: np.ndarray, multiplicity: np.ndarray) -> np.ndarray:
    """Mean of ``|values|^2`` in the shell of each coefficient."""
    power = np.bincount(shell.ravel(), (multiplicity * np.abs(values) ** 2).ravel())
    count = np.bincount(shell.ravel(), np.broadcast_to(multiplicity, shell.shape).ravel())
    return np.asarray((power / np.maximum(count, 1))[shell])
