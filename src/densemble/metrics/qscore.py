"""Q-score: how well resolved each atom of a model is in a map.

Pintilie, G. et al. (2020). Nat. Methods 17, 328-334. About each atom the map is sampled on spheres of
radius 0, 0.1, ... 2.0 Å, at eight points each that are nearer to the atom than to any other atom. Q is the
correlation about the mean of these values with a Gaussian of the distance, sigma 0.6 Å. The paper gives this
Gaussian a height and an offset from mean and standard deviation of the map; a correlation about the
mean does not depend on either, so neither appears here.

What the paper leaves open is decided thus. Each sphere has the same 128 directions (a golden spiral), ordered
so that every one is as far as possible from those before it, and the first eight that are free of other
atoms are used. Where fewer are free those are used; where none is, the sphere is left out. The atom's
own position counts as eight points. Points outside the map do not count. The map is interpolated
trilinearly. The other atoms are those given, so give all of them (heavy atoms).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from densemble.atoms import Topology
from densemble.grid import DensityMap

SIGMA = 0.6
"""Å, of the reference Gaussian."""
RADII = np.arange(21) / 10
"""Å, of the spheres."""
POINTS = 8
"""On each sphere."""
_DIRECTIONS = 128
_BLOCK = 1024  # atoms at a time, which bounds the memory


@dataclass(frozen=True, eq=False)
class QScores:
    """Between -1 and 1; NaN where the map is constant, the atom outside it or not known.

    Attributes:
        atoms: of each atom.
        residues: mean over the atoms of each residue of the topology.
        overall: mean over all atoms.
    """

    atoms: Float[np.ndarray, " n"]
    residues: Float[np.ndarray, " r"]
    overall: float


def q_scores(density: DensityMap, topology: Topology, coords: Float[np.ndarray, "n 3"]) -> QScores:
    """Q-scores of a model.

    Args:
        density: the map, in any units.
        topology: the atoms; all of them keep points free of each other.
        coords: Å, in the frame of the map; NaN where an atom is not known.

    Raises:
        ValueError: coordinates of another number of atoms.
    """
    if len(coords) != len(topology):
        raise ValueError(f"q_scores: {len(topology)} atoms and {len(coords)} coordinates")
    atoms = np.full(len(coords), np.nan)
    known = np.flatnonzero(np.isfinite(coords).all(axis=1))
    atoms[known] = atom_q(density, coords[known])
    judged = np.isfinite(atoms)
    count, total = (
        np.bincount(topology.residue_index[judged], weights, minlength=len(topology.residues))
        for weights in (None, atoms[judged])
    )
    residues = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return QScores(atoms, residues, float(atoms[judged].mean()) if judged.any() else float("nan"))


def atom_q(density: DensityMap, coords: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Q-score of each atom; coordinates in Å, all finite."""
    tree = cKDTree(coords)
    blocks = [np.arange(start, min(start + _BLOCK, len(coords))) for start in range(0, len(coords), _BLOCK)]
    return np.concatenate([np.zeros(0), *(_block_q(density, coords, tree, block) for block in blocks)])


def expected_q(resolution: float) -> float:
    """Mean Q of well-fitted protein models in maps of a resolution in Å: the trend that the paper fitted."""
    return 1.119 - 0.178 * resolution


def _block_q(
    density: DensityMap, coords: Float[np.ndarray, "n 3"], tree: cKDTree, block: Int[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    free = _free_radius(coords, tree, block)[:, None, :] > RADII[:, None]
    order = np.argsort(~free, axis=-1, kind="stable")[..., :POINTS]
    used = np.take_along_axis(free, order, axis=-1)
    points = coords[block, None, None] + RADII[:, None, None] * _directions()[order]
    place = (points - density.grid.origin) / density.grid.spacing
    values = map_coordinates(
        density.values.detach().cpu().numpy(),
        place.reshape(-1, 3).T,
        order=1,
        output=np.float64,
        mode="constant",
        cval=np.nan,
    ).reshape(used.shape)
    used &= np.isfinite(values)
    reference = np.broadcast_to(np.exp(-(RADII[:, None] ** 2) / (2 * SIGMA**2)), used.shape)
    return _correlation(np.where(used, values, 0.0), reference * used, used)


def _free_radius(
    coords: Float[np.ndarray, "n 3"], tree: cKDTree, block: Int[np.ndarray, " b"]
) -> Float[np.ndarray, "b d"]:
    """How far from an atom along each direction one can go before another atom is nearer, Å.

    ``r d`` is nearer to the origin than to ``v`` as long as ``r < |v|^2 / (2 d.v)`` where ``d.v > 0``.
    """
    pairs = cKDTree(coords[block]).sparse_distance_matrix(tree, 2 * RADII[-1], output_type="ndarray")
    pairs = pairs[block[pairs["i"]] != pairs["j"]]
    pairs = pairs[np.argsort(pairs["i"], kind="stable")]
    towards = coords[pairs["j"]] - coords[block[pairs["i"]]]
    along = 2 * towards @ _directions().T
    square = np.broadcast_to((towards**2).sum(axis=1)[:, None], along.shape)
    reach = np.divide(square, along, out=np.full(along.shape, np.inf), where=along > 0)
    free = np.full((len(block), _DIRECTIONS), np.inf)
    owners, first = np.unique(pairs["i"], return_index=True)
    if len(owners):
        free[owners] = np.minimum.reduceat(reach, first, axis=0)
    return free


@cache
def _directions() -> Float[np.ndarray, "d 3"]:
    """Unit vectors of a golden spiral, each as far as possible from those before it."""
    place = np.arange(_DIRECTIONS) + 0.5
    z, turn = 1 - 2 * place / _DIRECTIONS, np.pi * (3 - np.sqrt(5)) * place
    across = np.sqrt(1 - z**2)
    spiral = np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)
    order, nearest = [0], spiral @ spiral[0]
    while len(order) < _DIRECTIONS:
        nearest[order[-1]] = np.inf
        order.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, spiral @ spiral[order[-1]])
    return np.asarray(spiral[order])


def _correlation(
    x: Float[np.ndarray, "b s p"], y: Float[np.ndarray, "b s p"], used: np.ndarray
) -> Float[np.ndarray, " b"]:
    """Pearson's coefficient over the points used of each atom; x and y are zero elsewhere."""
    count = np.maximum(used.sum(axis=(1, 2)), 1)[:, None, None]
    size = (x**2).sum(axis=(1, 2))
    x, y = ((v - v.sum(axis=(1, 2), keepdims=True) / count) * used for v in (x, y))
    variance, product = (x**2).sum(axis=(1, 2)), (x * y).sum(axis=(1, 2))
    norm = np.sqrt(variance * (y**2).sum(axis=(1, 2)))
    # rounding leaves a constant map a tiny variance, which must not pass for a signal
    defined = (variance > 1e-24 * size) & (norm > 0)
    return np.divide(product, norm, out=np.full(len(x), np.nan), where=defined)
