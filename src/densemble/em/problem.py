"""The start in the map, the map made ready, and how the two are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from densemble.align.docking import Docking
from densemble.docking import dock_model
from densemble.em.inputs import StateInputs, StateSettings
from densemble.em.preparation import PreparedMap, boxed, prepare
from densemble.em.state import (
    ATOM_VOLUME,
)
from densemble.grid import DensityMap
from densemble.io.models import Model
from densemble.io.state_results import (
    Placement,
)
from densemble.likelihood.state import StateLikelihood
from densemble.progress import Progress

STANDING = Placement(
    docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0], score=None, clear=None
)
"""The start as it was given."""
MASK_REACH = 8.0
"""Å from the density above the contour within which map and model are compared."""


@dataclass(frozen=True, eq=False)
class StateProblem:
    """The start in the map, the map made ready, and how they are compared.

    Attributes:
        model: the start, in the frame of the map.
        placement: how it came there.
        prepared: contour, mask and box of the map.
        likelihood: of the map given all atoms of a member.
        held_out: the half map to judge by, in the same box.
        messages: what the user should know.
    """

    model: Model
    placement: Placement
    prepared: PreparedMap
    likelihood: StateLikelihood
    held_out: DensityMap | None
    messages: tuple[str, ...]

    @property
    def elements(self) -> tuple[str, ...]:
        """Of all atoms."""
        return self.model.topology.elements


def problem_of(settings: StateSettings, inputs: StateInputs, tell: Progress) -> StateProblem:
    """Contour the map, bring the start into it, and make the likelihood.

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
    model, placement, messages = inputs.model, STANDING, prepared.messages
    if not settings.placed:
        tell.message(f"docking {settings.model.name} into {settings.target.name}")
        docking = dock_model(
            model, prepared.density, resolution=inputs.resolution, level=settings.level, progress=tell
        )
        best = docking.poses[0]
        model, placement = replace(model, coords=best.apply(model.coords)), placement_of(docking)
        messages += docking.messages
    likelihood = StateLikelihood(
        prepared.density,
        prepared.mask,
        model.topology.elements,
        resolution=inputs.resolution,
        volume=ATOM_VOLUME * len(model.topology),
    )
    held_out = None if inputs.held_out is None else boxed(inputs.held_out, prepared.density.grid)
    return StateProblem(model, placement, prepared, likelihood, held_out, messages)


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
