"""The density of a region alone in a cryo-EM map: the map less the atoms that stay, on their scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.docking import shown
from densemble.em.preparation import boxed
from densemble.errors import InputError
from densemble.forward.cryoem import AtomForm, FormKind
from densemble.grid import DensityMap, Grid
from densemble.io.models import Model
from densemble.likelihood.width import fit_form

AROUND = 5.0
"""Å from the atoms that stay within which voxels tell how atoms look around the region."""


@dataclass(frozen=True, eq=False)
class Rest:
    """All but the region, as the map shows it around the region.

    Attributes:
        form: how atoms look there.
        density: of the atoms that stay, on the region's box, in the unit of ``AtomForm.with_b``.
        weights: of the voxels by which map and model are brought to one scale, shape=(nx, ny, nz).
    """

    form: AtomForm
    density: DensityMap
    weights: Float[Tensor, "nx ny nz"]

    @classmethod
    def of(
        cls,
        density: DensityMap,
        model: Model,
        region: np.ndarray,
        *,
        kind: FormKind,
        resolution: float,
        margin: float,
    ) -> Rest:
        """The box of a region, and what stays in it.

        How wide atoms are, and the scale of the map, differ from place to place: they are taken from the
        voxels around what stays, further than ``resolution`` from the region's own atoms.

        Args:
            density: the map.
            model: in the map, all atoms.
            region: indices of the atoms that will move.
            kind: of form.
            resolution: Å, of the map.
            margin: Å between the region's atoms and the faces of the box.

        Raises:
            InputError: nothing stays around the region.
        """
        grid = box_around(density.grid, model.coords[region], margin)
        occupancy = shown(model)
        stays = np.setdiff1d(np.flatnonzero(occupancy > 0), region)
        coords, elements = model.coords[stays], [model.topology.elements[i] for i in stays]
        points = grid.points()
        beside = cKDTree(coords).query(points)[0] < AROUND
        beside &= cKDTree(model.coords[region]).query(points)[0] > resolution
        if not beside.any():
            raise InputError(
                "nothing of the model is left around the region and the window of its side chains, by which "
                "the map could be brought to scale; choose a shorter region"
            )
        weights = torch.from_numpy(beside).float()
        x, one = torch.from_numpy(coords).float()[None], torch.ones(1)
        filled = torch.from_numpy(occupancy[stays]).float()
        first, target = AtomForm.of(kind, resolution), boxed(density, grid, background=0.0)
        form = fit_form(first, target, weights, elements, x, one, occupancy=filled)
        forward, b_iso = form.with_b(grid, elements, occupancy=filled)
        with torch.no_grad():
            values = forward(x, one, x.new_tensor(b_iso))
        return cls(form, DensityMap(grid, values), weights)

    def taken_out(self, density: DensityMap) -> DensityMap:
        """What the region adds to a map: the map on the scale of the model, less the atoms that stay.

        Raises:
            InputError: the map does not show those atoms at all.
        """
        values = boxed(density, self.density.grid, background=0.0).values
        w = self.weights / self.weights.sum()
        model = self.density.values
        x, y = model - (w * model).sum(), values - (w * values).sum()
        scale = float((w * x * y).sum() / (w * x * x).sum())
        if not scale > 0:
            raise InputError("the map does not show the atoms around the region; see how the model fits it")
        offset = float((w * values).sum() - scale * (w * model).sum())
        return DensityMap(self.density.grid, (values - offset) / scale - model)

    def noise(self, left: DensityMap) -> float:
        """Root mean square, around the atoms that stay, of what ``taken_out`` left of a map.

        Noise of the map and error of the model together, where one state is known to do.
        """
        return float(((self.weights * left.values.square()).sum() / self.weights.sum()).sqrt())


def box_around(grid: Grid, coords: Float[np.ndarray, "n 3"], margin: float) -> Grid:
    """The box on the voxels of a grid, or their continuation, that holds some points and a margin in Å."""
    origin, spacing = np.array(grid.origin), np.array(grid.spacing)
    low = np.floor((coords.min(axis=0) - margin - origin) / spacing).astype(int)
    high = np.ceil((coords.max(axis=0) + margin - origin) / spacing).astype(int)
    (ox, oy, oz), (nx, ny, nz) = (origin + low * spacing).tolist(), (high - low + 1).tolist()
    return Grid((ox, oy, oz), grid.spacing, (nx, ny, nz))
