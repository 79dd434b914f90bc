"""The start in the map, the map made ready, and how the two are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.align.docking import Docking, envelope
from densemble.docking import dock_model, shown
from densemble.em.folding import Fold
from densemble.em.inputs import StateInputs, StateSettings
from densemble.em.preparation import PreparedMap, boxed, prepare
from densemble.em.state import ATOM_VOLUME
from densemble.errors import InputError
from densemble.grid import DensityMap, Grid
from densemble.io.models import Model
from densemble.io.state_results import Placement
from densemble.likelihood.mask import reach_mask
from densemble.likelihood.state import StateLikelihood
from densemble.progress import Progress

STANDING = Placement(
    docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0], score=None, clear=None
)
"""The start as it was given."""
MASK_REACH = 8.0
"""Å from the density above the contour within which map and model are compared."""
MUCH_MORE = 2.2
"""A map that encloses more than so many times the model's volume (at 8 Å, where a whole model's own map
encloses 0.9 to 1.6 times) shows much more than the model."""
ZONE = 6.0
"""Å from the docked start within which voxels count, where the map shows much more than the model."""
IN_BOX = 0.5
"""Share of the atoms of a start said to be placed that must lie in the box."""


@dataclass(frozen=True, eq=False)
class StateProblem:
    """The start in the map, the map made ready, and how they are compared.

    Attributes:
        model: the start, in the frame of the map.
        placement: how it came there.
        prepared: contour, mask and box of the map.
        likelihood: of the map given all atoms of a member.
        voxels: which are compared, in words.
        held_out: the half map to judge by, in the same box.
        messages: what the user should know.
    """

    model: Model
    placement: Placement
    prepared: PreparedMap
    likelihood: StateLikelihood
    voxels: str
    held_out: DensityMap | None
    messages: tuple[str, ...]


def problem_of(
    settings: StateSettings, inputs: StateInputs, tell: Progress, *, fold: Fold | None = None
) -> StateProblem:
    """Contour the map, bring the start into it, and make the likelihood.

    Of a fold, the model that was given is docked, or itself if there is none; all its atoms are then there.

    Raises:
        InputError: no density stands out of the map, or the model does not fit into it.
    """
    prepared = prepare(
        inputs.density,
        resolution=inputs.resolution,
        level=settings.level,
        source=settings.target.name,
        dilation=MASK_REACH,
    )
    given = inputs.model if fold is None or inputs.model is not None else fold.model
    assert given is not None
    model, placement, messages = given, STANDING, prepared.messages
    if not settings.placed:
        tell.message(f"docking {settings.start} into {settings.target.name}")
        docking = dock_model(
            model,
            prepared.density,
            resolution=inputs.resolution,
            level=settings.level,
            source=f"map {settings.target}",
            progress=tell,
        )
        best = docking.poses[0]
        model, placement = replace(model, coords=best.apply(model.coords)), placement_of(docking)
        messages += docking.messages
    else:
        check_inside(model, prepared.density.grid, settings)
    if fold is not None:
        model = fold.standing(model)
    mask, voxels, more = compared(prepared, model, inputs.resolution)
    likelihood = StateLikelihood(
        less(prepared.density, prepared.solvent),
        mask,
        model.topology.elements,
        resolution=inputs.resolution,
        volume=ATOM_VOLUME * len(model.topology),
        occupancy=torch.from_numpy(shown(model)).float(),
    )
    held_out = None if inputs.held_out is None else boxed(inputs.held_out, prepared.density.grid)
    return StateProblem(model, placement, prepared, likelihood, voxels, held_out, messages + more)


def less(density: DensityMap, solvent: float) -> DensityMap:
    """A map in which the solvent is zero, as a cloud of its points and an FSC under a mask need it."""
    return DensityMap(density.grid, density.values - solvent)


def check_inside(model: Model, grid: Grid, settings: StateSettings) -> None:
    """See that a start said to be placed stands in the map.

    Raises:
        InputError: most of its atoms are outside the density.
    """
    low = np.array(grid.origin)
    high = low + np.array(grid.spacing) * (np.array(grid.shape) - 1)
    inside = ((model.coords >= low) & (model.coords <= high)).all(axis=1).mean()
    if inside < IN_BOX:
        raise InputError(
            f"{settings.model} is said to be --placed, but {1 - inside:.0%} of its atoms are away from the "
            f"density of {settings.target}; leave --placed out to dock it"
        )


def compared(
    prepared: PreparedMap, start: Model, resolution: float
) -> tuple[Float[Tensor, "nx ny nz"], str, tuple[str, ...]]:
    """The weights of the voxels at which map and model are compared, in words too, and what to know of them.

    A map of the whole model is compared wherever it has density. In one that shows much more, what is
    not modelled would pull on the model: there only what is near the docked start counts.
    """
    volume = ATOM_VOLUME * len(start.topology)
    ratio = envelope(prepared.density, resolution) / volume
    if ratio <= MUCH_MORE:
        return prepared.mask, f"within {MASK_REACH:g} Å of density above the level", ()
    zone = reach_mask(prepared.density.grid, start.coords, ZONE)
    said = (
        f"the map encloses {ratio:.1f} times the volume of the model; they are compared within {ZONE:g} Å of "
        "the docked start alone, and what moves further is not followed; give all chains, or a map of these"
    )
    return prepared.mask * zone, f"within {ZONE:g} Å of the docked start, where there is density", (said,)


def placement_of(docking: Docking) -> Placement:
    """The best pose, for ``result.json``."""
    best = docking.poses[0]
    return Placement(
        docked=True,
        rotation=best.rotation.tolist(),
        translation=best.translation.tolist(),
        score=best.score,
        clear=docking.clear,
    )
