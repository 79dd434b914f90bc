"""A made-up compact chain, unlike its mirror image, and its map."""

import math

import numpy as np
import torch

from densemble.atoms import Residue, ResidueId, Topology
from densemble.forward.kernel import gaussian_density
from densemble.grid import DensityMap, Grid


def chain(count=100, seed=0):
    """Points 3.8 Å apart, at least 3.8 Å from each other, drawn to the centre; Å, shape=(count, 3)."""
    rng = np.random.default_rng(seed)
    x = [np.zeros(3)]
    while len(x) < count:
        steps = rng.normal(size=(200, 3))
        trials = x[-1] + 3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True)
        away = np.linalg.norm(trials[:, None] - np.array(x), axis=-1).min(axis=1) > 3.79
        stretched = (trials - np.mean(x, axis=0)) / [1.0, 1.5, 2.0]
        x.append(trials[away][np.linalg.norm(stretched[away], axis=1).argmin()])
    return np.array(x)


def density_of(coords, resolution=5.0, margin=10.0, spacing=1.7):
    """As ``molmap`` draws points of equal weight."""
    grid = Grid.around(coords, margin=margin, spacing=spacing)
    x = torch.from_numpy(np.ascontiguousarray(coords)).float()
    one = torch.ones(len(coords), 1)
    return DensityMap(grid, gaussian_density(grid, x, one, one * (math.pi / resolution) ** 2))


def topology(*chains):
    """Cα alone; chains given as (name, numbers, residue name)."""
    residues = [Residue(ResidueId(name, k), kind) for name, numbers, kind in chains for k in numbers]
    n = len(residues)
    return Topology(("CA",) * n, ("C",) * n, np.arange(n), tuple(residues))
