"""The likelihood of a map given one conformation: in cryo-EM a map is one state (paper 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from densemble.forward.cryoem import AtomForm, FormKind, StateDensity
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.blur import gaussian_blur
from densemble.likelihood.width import BlurSearch, fit_form

SPACING_PER_WIDTH = 0.8
"""Voxels of a blurred target, over the standard deviation of an atom in it: aliasing below one per cent."""
NARROWEST, WIDEST = 0.75, 2.0
"""Resolutions at which ``molmap`` may draw atoms whose B is solved, over that of the map."""
_PERFECT = 0.9999  # correlation beyond which the likelihood does not grow


@dataclass(frozen=True, eq=False)
class _Level:
    """The target blurred, on voxels no finer than it needs."""

    density: StateDensity
    narrow: MolmapDensity
    target: Tensor
    weights: Tensor
    data: float
    most: float

    @cached_property
    def best_blurs(self) -> BlurSearch:
        """Of densities drawn narrow, up to ``most`` Å."""
        return BlurSearch(self.target, self.weights, self.narrow.grid, most=self.most)

    def correlation(self, model: Float[Tensor, "k nx ny nz"]) -> Float[Tensor, " k"]:
        """Of each density with the target."""
        return weighted_correlation(self.target, model, self.weights)

    def log_likelihood(self, r: Tensor) -> Tensor:
        """``-(n / 2) log(1 - r^2)``, flat below r = 0."""
        return -0.5 * self.data * torch.log1p(-r.clamp(0.0, _PERFECT).square())


def weighted_correlation(
    target: Float[Tensor, "nx ny nz"], model: Float[Tensor, "k nx ny nz"], weights: Float[Tensor, "nx ny nz"]
) -> Float[Tensor, " k"]:
    """Pearson's coefficient of a map with each of several densities, over weighted voxels; differentiable."""
    total, voxels = weights.sum(), (-3, -2, -1)
    y = target - (weights * target).sum() / total
    x = model - ((weights * model).sum(voxels) / total)[..., None, None, None]
    power = (weights * x.square()).sum(voxels) * (weights * y.square()).sum()
    return (weights * y * x).sum(voxels) / power.clamp_min(torch.finfo(model.dtype).tiny).sqrt()


class StateLikelihood:
    """How likely a map is, given each member alone.

    ``log p = -(n / 2) log(1 - r^2)`` up to a constant, r the weighted correlation over voxels of the map with
    the density of the member and n the number of data: the Gaussian log-likelihood with scale, offset and
    noise level all at their most likely values. To be ascended.

    A map blurred with a Gaussian holds fewer data, and needs fewer voxels: the comparison is made on a grid
    as coarse as the blur allows.

    Blurred comparisons draw atoms as ``molmap`` does; the sharp one as ``form`` says.

    Attributes:
        target: the map.
        mask: voxel weights, shape=(nx, ny, nz).
        resolution: Å, of the map.
        form: how atoms look in it.
        volume: Å^3 that hold the density; ``4 pi volume / (3 d^3)`` data at resolution d.
        elements: of the atoms.
        occupancy: of each atom, shape=(n,); 1 if None.
    """

    def __init__(
        self,
        target: DensityMap,
        mask: Float[Tensor, "nx ny nz"],
        elements: Sequence[str],
        *,
        resolution: float,
        volume: float,
        form: AtomForm | None = None,
        occupancy: Float[Tensor, " n"] | None = None,
    ) -> None:
        """Keep the map; levels of blur are prepared when they are first asked for.

        Raises:
            ValueError: the mask has another shape than the map, negative weights or none above zero.
        """
        if tuple(mask.shape) != target.grid.shape or bool((mask < 0).any()) or not bool((mask > 0).any()):
            raise ValueError(f"StateLikelihood: mask {tuple(mask.shape)} and map {target.grid.shape}: no fit")
        self.target, self.mask = target, mask
        self.resolution, self.volume = resolution, volume
        self.form = form or AtomForm.of("molmap", resolution)
        self.elements, self.occupancy = tuple(elements), occupancy
        self._levels: dict[float, _Level] = {}

    def to(self, device: torch.device | str) -> StateLikelihood:
        """The same with its map, its mask and its atoms on a device, where coordinates must be then."""
        if torch.device(device) == self.target.values.device:
            return self
        return self._with(
            target=DensityMap(self.target.grid, self.target.values.to(device)),
            mask=self.mask.to(device),
            occupancy=None if self.occupancy is None else self.occupancy.to(device),
        )

    def _with(self, **changes: Any) -> StateLikelihood:
        """The same but for some attributes."""
        names = ("target", "mask", "elements", "resolution", "volume", "form", "occupancy")
        return StateLikelihood(**({name: getattr(self, name) for name in names} | changes))

    def __call__(
        self, coords: Float[Tensor, "k n 3"], *, blur: float = 0.0, solve_b: bool = False
    ) -> Float[Tensor, " k"]:
        """Log-likelihood of the map for each member; differentiable.

        Args:
            coords: Å, shape=(k, n, 3).
            blur: Å, see ``correlation``.
            solve_b: likewise.
        """
        return self._level(blur).log_likelihood(self.correlation(coords, blur=blur, solve_b=solve_b))

    def correlation(
        self, coords: Float[Tensor, "k n 3"], *, blur: float = 0.0, solve_b: bool = False
    ) -> Float[Tensor, " k"]:
        """Weighted correlation of the map with the density of each member; differentiable.

        Args:
            coords: Å, shape=(k, n, 3).
            blur: Å; compare both convolved with a Gaussian of this standard deviation. Reuse the same
                values: what belongs to each is kept.
            solve_b: draw each member with the one B factor under which it correlates best, see ``spread``,
                and not with the form. There the derivative by B vanishes, so the gradient of the whole is
                the one at the B found.
        """
        level = self._level(blur)
        if not solve_b:
            return level.correlation(level.density.members(coords))
        return level.correlation(level.narrow.members(coords, blur=self.spread(coords, blur=blur)))

    def spread(self, coords: Float[Tensor, "k n 3"], *, blur: float = 0.0) -> Float[Tensor, " k"]:
        """By how much, Å, each member is best blurred that ``molmap`` draws at ``NARROWEST`` d.

        With d the resolution of the map, B is then ``4 (NARROWEST d)^2 + 8 pi^2 spread^2``, and at most
        ``4 (WIDEST d)^2``.
        """
        level = self._level(blur)
        with torch.no_grad():
            return level.best_blurs(level.narrow.members(coords))

    def together(
        self,
        coords: Float[Tensor, "k n 3"],
        weights: Float[Tensor, " k"],
        *,
        blur: float = 0.0,
        solve_b: bool = False,
    ) -> Float[Tensor, ""]:
        """Log-likelihood of the map given the ensemble: the density of all members, summed with weights.

        Paper 1's likelihood (Eq. 2) for a map that averages over conformations. Differentiable.

        Args:
            coords: Å, shape=(k, n, 3).
            weights: occupancies, shape=(k,).
            blur: Å, see ``correlation``.
            solve_b: likewise, with one B factor for all members.
        """
        level = self._level(blur)
        if solve_b:
            with torch.no_grad():
                spread = float(level.best_blurs(level.narrow(coords, weights)[None])[0])
            density = level.narrow(coords, weights, blur=spread)
        else:
            density = level.density(coords, weights)
        return level.log_likelihood(level.correlation(density[None]))[0]

    @property
    def data(self) -> float:
        """Number of data in the map as it is, not blurred."""
        return _data(self.volume, self.resolution)

    def fitted(self, coords: Float[Tensor, "n 3"], kind: FormKind) -> StateLikelihood:
        """The same with the form of atoms under which a conformation fits the sharp map best.

        Args:
            coords: Å, shape=(n, 3).
            kind: of form.
        """
        first = AtomForm.of(kind, self.resolution)
        one = coords.new_ones(1)
        form = fit_form(
            first, self.target, self.mask, self.elements, coords[None], one, occupancy=self.occupancy
        )
        return self._with(form=form)

    def _level(self, blur: float) -> _Level:
        if blur not in self._levels:
            self._levels[blur] = self._make(blur)
        return self._levels[blur]

    def _make(self, blur: float) -> _Level:
        values, weights, grid = self.target.values, self.mask.to(self.target.values), self.target.grid
        most = math.sqrt(WIDEST**2 - NARROWEST**2) * _sigma(self.resolution)
        if blur == 0:
            density = self.form.density(
                grid, self.elements, occupancy=self.occupancy, dtype=values.dtype, device=values.device
            )
            return _Level(density, self._narrow(grid, 0.0), values, weights, self.data, most)
        width = math.hypot(_sigma(self.resolution), blur)
        finest = width * math.pi * math.sqrt(2)
        values = gaussian_blur(values, grid, blur)
        coarse = _coarser(grid, SPACING_PER_WIDTH * width)
        if coarse != grid:
            values, weights = _resample(values, grid, coarse, 3), _resample(weights, grid, coarse, 1)
        drawn = MolmapDensity(
            coarse,
            self.elements,
            resolution=finest,
            occupancy=self.occupancy,
            dtype=values.dtype,
            device=values.device,
        )
        return _Level(drawn, self._narrow(coarse, blur), values, weights, _data(self.volume, finest), most)

    def _narrow(self, grid: Grid, blur: float) -> MolmapDensity:
        """Atoms as narrow as they may be in a map blurred by ``blur`` Å."""
        return MolmapDensity(
            grid,
            self.elements,
            resolution=math.hypot(NARROWEST * _sigma(self.resolution), blur) * math.pi * math.sqrt(2),
            occupancy=self.occupancy,
            dtype=self.target.values.dtype,
            device=self.target.values.device,
        )


def _sigma(resolution: float) -> float:
    """Å, standard deviation of an atom that ``molmap`` draws at a resolution."""
    return resolution / (math.pi * math.sqrt(2))


def _data(volume: float, resolution: float) -> float:
    """Degrees of freedom of a map, one for each reciprocal-lattice point of the volume; at least one."""
    return max(volume * 4 * math.pi / (3 * resolution**3), 1.0)


def _coarser(grid: Grid, spacing: float) -> Grid:
    """The same box with voxels of at most ``spacing`` Å along each axis, or its own if those are larger."""
    length = np.array(grid.spacing) * (np.array(grid.shape) - 1)
    nx, ny, nz = np.minimum(grid.shape, np.ceil(length / spacing).astype(int) + 1).tolist()
    sx, sy, sz = np.where(length > 0, length / np.maximum([nx - 1, ny - 1, nz - 1], 1), grid.spacing).tolist()
    return Grid(grid.origin, (sx, sy, sz), (nx, ny, nz))


def _resample(values: Tensor, grid: Grid, coarse: Grid, order: int) -> Tensor:
    """Values at the voxels of another grid over the same box, by splines."""
    axes = [
        (np.asarray(to) - origin) / step
        for to, origin, step in zip(coarse.axes(torch.float64), grid.origin, grid.spacing, strict=True)
    ]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    found = map_coordinates(values.double().cpu().numpy(), where, order=order, mode="nearest")
    return torch.as_tensor(found).to(values)
