"""Docking: where in a map a model stands, from any start, by the map alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch.nn.functional import avg_pool3d

from densemble.align.chains import Groups, chain_displacement, matched_rmsd
from densemble.align.overlap import Overlap, Spectrum, local_correlation
from densemble.align.points import Points, Poses
from densemble.align.rotations import rotation_grid
from densemble.align.search import ascend, sweep
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.likelihood.blur import gaussian_blur
from densemble.progress import Progress

STEP = 18.0
"""Degrees between the rotations tried."""
COARSE = 10.0
"""Å, resolution of the search over all poses; of the map, if that is lower."""
FINER = (7.0, 5.0)
"""Å, resolutions on the way from there to the map's own."""
SHAPE = 14.0
"""Å, resolution of placement by shape alone. Of 8, 10, 14 and 20 Å it came nearest to the least-squares
superposition in five of seven trials (six pairs of conformations, deformed haemoglobin)."""
ALIKE = 0.65
"""Local correlation at ``AGREEMENT`` Å from which a model has the conformation of the map. Measured: 0.81 for
5NI1 in EMD-3488; 0.36 to 0.56 for five models in another conformation, 3.4 to 7.1 Å away."""
AGREEMENT = 8.0
TOLERATED = 0.05
"""Overlaps in shape that differ by less do not tell which pose is right: two lobes may be exchanged."""
DISTINCT = 4.0
"""Å, Cα RMSD from which two poses are two."""
TOO_LARGE = 3.0
"""A model of more than so many times the volume of the density is refused."""
MUCH_MORE = 1.3
"""A map with more than so many times the volume of the model above its level holds much more than it."""
SIGNIFICANT = 3.0
"""Standard deviations between the best score and the next for the best to be clear."""
NAMES = ("the model", "the map")
_TRIED = (150, 40, 20, 10)  # poses at COARSE before and after the ascent, and after each of the next


@dataclass(frozen=True, eq=False)
class Pose:
    """A place of the model: ``x -> rotation x + translation``.

    Attributes:
        rotation: shape=(3, 3).
        translation: Å, shape=(3,).
        score: mean Fourier shell correlation, see ``densemble.align.overlap``: at the resolution of the map;
            if placed by shape, at ``COARSE`` Å, where climbing from the pose leads.
        correlation: Pearson's, of map and model in the voxels that the model fills, at ``AGREEMENT`` Å.
        inside: share of the weights within 2 Å of a voxel above the level.
    """

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]
    score: float
    correlation: float
    inside: float

    def apply(self, coords: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Coordinates in Å, placed."""
        return coords @ self.rotation.T + self.translation


@dataclass(frozen=True, eq=False)
class Docking:
    """What docking found.

    Attributes:
        poses: distinct ones, best first; at least one.
        basis: ``detail``: the model has the map's conformation, and poses are judged at the resolution of
            the map. ``shape``: it differs, and poses are those whose shape, blurred to ``SHAPE`` Å, overlaps
            best, near the least-squares superposition; at the map's resolution one domain alone would fit.
            Which of several such is right, the score says that climbing from there at ``COARSE`` Å reaches.
        agrees: whether the model seems to have the conformation of the map, see ``ALIKE``. If it does not and
            the map holds much more than the model, so that shapes say nothing, the basis is ``detail`` still.
        clear: the best score is better than the next by ``SIGNIFICANT`` standard deviations.
        detail_score: best mean Fourier shell correlation at the resolution of the map.
        mirror_score: the same of the model's mirror image.
        wrong_hand: the mirror image fits clearly better: the map is likely of the wrong hand.
        level: contour, as given or found.
    """

    poses: tuple[Pose, ...]
    basis: Literal["detail", "shape"]
    agrees: bool
    clear: bool
    detail_score: float
    mirror_score: float
    wrong_hand: bool
    level: float

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        said = []
        if self.wrong_hand:
            said.append(
                f"the mirror image of the model fits better ({self.mirror_score:.3f}) than the model "
                f"({self.detail_score:.3f}): the map has the wrong hand; flip it"
            )
        if not self.agrees:
            how = "its overall shape" if self.basis == "shape" else "the part of it that fits best"
            said.append(
                "the model does not fit well (another conformation, or not what the map shows); "
                f"it is placed by {how}"
            )
        if not self.clear:
            said.append("the best pose is not clearly better than the next; look at them all")
        if self.poses[0].inside < 0.7:
            said.append(f"only {self.poses[0].inside:.0%} of the model is in density above the level")
        return tuple(said)


def default_level(density: DensityMap) -> float:
    """A contour where none is given: a tenth of the way from the median to the highest thousandth."""
    values = density.values.detach().cpu().numpy()
    middle, high = np.quantile(values, [0.5, 0.999])
    return float(middle + 0.1 * (high - middle))


def room(density: DensityMap, level: float) -> float:
    """Volume above a level, Å^3."""
    return int((density.values > level).sum()) * density.grid.voxel_volume


def envelope(density: DensityMap, resolution: float) -> float:
    """Volume that a map encloses at ``default_level`` when blurred to ``AGREEMENT`` Å, Å^3.

    At high resolution a contour runs around each atom and encloses a part of the molecule only.
    """
    blur = math.sqrt(max(AGREEMENT**2 - resolution**2, 0)) / (math.pi * math.sqrt(2))
    blurred = DensityMap(density.grid, gaussian_blur(density.values, density.grid, blur))
    return room(blurred, default_level(blurred))


def occupied(density: DensityMap, level: float) -> DensityMap:
    """The part of a box where the mean of blocks of about 4 Å is above a level, with 10 Å around it.

    All of it, if that is nowhere. Single voxels of noise above the level do not count.
    """
    values, spacing = density.values, np.array(density.grid.spacing)
    block = [max(1, min(round(4.0 / h), n)) for h, n in zip(spacing, values.shape, strict=True)]
    means = avg_pool3d(values[None, None].float(), block)[0, 0]
    found = torch.nonzero(means > level).cpu().numpy()
    if len(found) == 0:
        return density
    margin = np.ceil(10.0 / spacing).astype(int)
    low = np.maximum(found.min(axis=0) * block - margin, 0)
    high = np.minimum((found.max(axis=0) + 1) * block + margin, values.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    ox, oy, oz = (np.array(density.grid.origin) + low * spacing).tolist()
    part = values[x, y, z]
    nx, ny, nz = part.shape
    return DensityMap(Grid((ox, oy, oz), density.grid.spacing, (nx, ny, nz)), part)


def check_dockable(
    coords: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"],
    density: DensityMap,
    *,
    resolution: float,
    level: float | None,
    names: tuple[str, str] = NAMES,
) -> float:
    """See that a model and a map go together; the contour level, as given or ``default_level``.

    Args:
        coords: Å.
        weights: of the atoms; those of weight zero do not count.
        density: the map.
        resolution: Å, of the map.
        level: contour.
        names: of model and map, for messages.

    Raises:
        InputError: the resolution is not positive; the level is above all density, or so low that it
            holds more than half of the box; no atom has a weight; the model is much larger than the
            density above the level.
    """
    model, name = names
    if not 0 < resolution < math.inf:
        raise InputError(f"resolution {resolution:g} Å: must be above zero")
    highest = float(density.values.max())
    if level is not None and not level < highest:
        raise InputError(f"level {level:g}: {name} has no density above {highest:g}; give a lower level")
    threshold = default_level(density) if level is None else level
    above = float((density.values > threshold).double().mean())
    if level is not None and above > 0.5:
        raise InputError(f"level {level:g}: {above:.0%} of {name} is above it; give a higher level")
    if not (weights > 0).any():
        raise InputError(f"{model} has no atoms to dock: nothing but water, or none with an occupancy")
    volume = Points.of(coords[weights > 0], weights[weights > 0]).volume()
    available = envelope(density, resolution) if level is None else room(density, level)
    if volume > TOO_LARGE * available:
        where = "" if level is None else f" above {level:.3g}"
        raise InputError(
            f"{model} ({volume:.3g} Å^3) is much larger than the density of {name}{where} "
            f"({available:.3g} Å^3); give a part of the model, another map or a lower level"
        )
    return threshold


def dock(
    coords: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"],
    density: DensityMap,
    *,
    resolution: float,
    level: float | None = None,
    groups: Groups | None = None,
    poses: int = 5,
    step: float = STEP,
    names: tuple[str, str] = NAMES,
    progress: Progress | None = None,
) -> Docking:
    """Find where a rigid model stands in a map. The same input gives the same result; nothing is random.

    All rotations of a grid are tried with all translations at ``COARSE`` Å, and the best poses climb the
    score there, at ``FINER`` and at the map's resolution; the same for the model's mirror image. If the best
    then fits badly, the model's conformation differs and the poses are those of best overlap in shape.

    Args:
        coords: Å, anywhere, shape=(n, 3).
        weights: what each atom adds to the density, e.g. its atomic number; zero leaves it out.
        density: the map. It may hold more than the model.
        resolution: Å, of the map.
        level: contour of the map; ``default_level`` if None. It serves checks, not the search.
        groups: which atoms may stand in for which, see ``chain_groups``; also those that tell
            poses apart. All atoms as one chain if None.
        poses: kept at most.
        step: degrees between the rotations tried; a small model needs fewer.
        names: of model and map, for messages.
        progress: what is told of it.

    Raises:
        InputError: see ``check_dockable``.
    """
    chosen = weights > 0
    level = check_dockable(coords, weights, density, resolution=resolution, level=level, names=names)
    points = Points.of(coords[chosen], weights[chosen])
    spectrum = Spectrum(occupied(density, level), margin=points.radius)
    judge = _Judge(spectrum, points, resolution, density, level)
    rows, groups = _renumbered([[np.arange(len(coords))]] if groups is None else groups)
    offsets = coords[rows] - points.centre
    search = _Search(spectrum, resolution, groups, rotation_grid(step), progress or Progress())
    coarse, fine = search.run("dock: poses", points, offsets, tried=_TRIED[0])
    _, mirror = search.run("dock: mirror images", points.mirrored(), -offsets, tried=_TRIED[1])
    detail, mirrored = float(fine.scores[0]), float(mirror.scores[0])
    volume = points.volume()
    count = volume * 4 * math.pi / 3
    agrees = judge(fine, 0).correlation >= ALIKE
    by_shape = not agrees and room(density, level) < MUCH_MORE * volume
    found = search.by_shape(points, offsets, coarse) if by_shape else fine
    kept = [judge(found, k) for k in range(min(poses, len(found)))]
    own = max(COARSE, resolution) if by_shape else resolution
    return Docking(
        poses=tuple(kept),
        basis="shape" if by_shape else "detail",
        agrees=agrees,
        clear=len(kept) < 2 or _clearly(kept[0].score, kept[1].score, count / own**3),
        detail_score=detail,
        mirror_score=mirrored,
        wrong_hand=_clearly(mirrored, detail, count / resolution**3),
        level=level,
    )


def _clearly(best: float, other: float, count: float) -> bool:
    """Whether one correlation is above another by ``SIGNIFICANT`` standard deviations.

    By Fisher's z, as Volkmann & Hanein (1999), J. Struct. Biol. 125, 176, with the number of independent
    Fourier coefficients of the model's volume as the number of data.
    """
    z = np.arctanh(np.clip([best, other], -0.999, 0.999))
    return bool(z[0] - z[1] > SIGNIFICANT * math.sqrt(2 / max(count - 3, 1)))


@dataclass(frozen=True, eq=False)
class _Search:
    spectrum: Spectrum
    resolution: float
    groups: Groups
    rotations: Float[np.ndarray, "r 3 3"]
    progress: Progress

    def _overlap(
        self, points: Points, resolution: float, *, sampling: float = 4.0, even: bool = True
    ) -> Overlap:
        thin = points.thinned(resolution / 3)
        return Overlap(self.spectrum, thin, resolution=resolution, sampling=sampling, even=even)

    def run(self, name: str, points: Points, offsets: np.ndarray, *, tried: int) -> tuple[Poses, Poses]:
        """Distinct poses at the resolution of the search, and at that of the map; best first."""
        coarse = max(COARSE, self.resolution)
        overlap = self._overlap(points, coarse, sampling=3.0)
        with self.progress.steps(name, len(self.rotations)) as done:
            found = sweep(overlap, self.rotations, done=done).best(tried)
        found = ascend(overlap, found, step=coarse / 4, tolerance=0.1)
        first = found = self._distinct(found, offsets, _TRIED[1])
        levels = [d for d in FINER if self.resolution < d < coarse] + [self.resolution]
        for d, count in zip(levels, (*_TRIED[2:], *[_TRIED[-1]] * len(levels)), strict=False):
            found = ascend(self._overlap(points, d), found, step=d / 4, tolerance=0.02)
            found = self._distinct(found, offsets, count)
        return first, self._unrelated(found, offsets)

    def by_shape(self, points: Points, offsets: np.ndarray, start: Poses) -> Poses:
        """Distinct poses of about the best overlap in shape, by the score of the search above them."""
        d, coarse = max(SHAPE, self.resolution), max(COARSE, self.resolution)
        found = ascend(self._overlap(points, d, even=False), start, step=d / 5, tolerance=0.02)
        found = self._distinct(found, offsets, _TRIED[1])
        found = found.select(found.scores > found.scores[0] - TOLERATED)
        above = ascend(self._overlap(points, coarse), found, step=coarse / 4, tolerance=0.1)
        return self._unrelated(replace(found, scores=above.scores).best(_TRIED[-1]), offsets)

    def _distinct(self, poses: Poses, offsets: np.ndarray, count: int) -> Poses:
        """The best of each cluster, best first."""
        poses = poses.best(len(poses))
        x, left = poses.apply(offsets), np.arange(len(poses))
        kept: list[int] = []
        while len(left) and len(kept) < count:
            kept.append(int(left[0]))
            left = left[matched_rmsd(x[left], x[left[0]], self.groups) >= DISTINCT]
        return poses.select(np.array(kept))

    def _unrelated(self, poses: Poses, offsets: np.ndarray) -> Poses:
        """Without those that a better one becomes by exchanging chains, though they be deformed."""
        x, kept = poses.apply(offsets), [0]
        for k in range(1, len(poses)):
            if all(chain_displacement(x[k], x[j], self.groups) >= DISTINCT for j in kept):
                kept.append(k)
        return poses.select(np.array(kept))


def _renumbered(groups: Groups) -> tuple[np.ndarray, Groups]:
    """The atoms that are in groups, and the groups as indices into those."""
    rows = np.unique(np.concatenate([atoms for group in groups for atoms in group]))
    return rows, [[np.searchsorted(rows, atoms) for atoms in group] for group in groups]


class _Judge:
    """Correlation and share inside of poses."""

    def __init__(
        self, spectrum: Spectrum, points: Points, resolution: float, density: DensityMap, level: float
    ) -> None:
        self.spectrum, self.points, self.resolution = spectrum, points, resolution
        voxels = np.argwhere((density.values > level).cpu().numpy())
        self._tree = cKDTree(voxels * np.array(density.grid.spacing) + np.array(density.grid.origin))

    def __call__(self, poses: Poses, k: int) -> Pose:
        rotation, position = poses.rotations[k], poses.positions[k]
        correlation = local_correlation(
            self.spectrum,
            self.points,
            rotation,
            position,
            resolution=max(self.resolution, AGREEMENT),
            map_resolution=self.resolution,
        )
        near, _ = self._tree.query(self.points.offsets @ rotation.T + position, distance_upper_bound=2.0)
        inside = float(self.points.weights[np.isfinite(near)].sum())
        translation = position - rotation @ self.points.centre
        return Pose(rotation, translation, float(poses.scores[k]), correlation, inside)
