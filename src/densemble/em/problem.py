"""The start in the map, the map made ready, and how the two are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
from densemble.io.state_results import BEST_FILE, Placement
from densemble.likelihood.mask import reach_mask
from densemble.likelihood.state import StateLikelihood
from densemble.progress import Progress

MASK_REACH = 8.0
"""Å from the density above the contour within which map and model are compared."""
MUCH_MORE = 2.2
"""A map that encloses more than so many times the model's volume (at 8 Å, where a whole model's own map
encloses 0.9 to 1.6 times) shows much more than the model."""
ZONE = 6.0
"""Å from the docked start within which voxels count, where the map shows much more than the model."""
ASTRAY = 10.0
"""Å more where the start does not fit the map: parts of it may stand where the truth does not. As far as a
point cloud draws atoms (the reach of paper 2's divergence)."""
BEYOND = 0.02
"""Share of the atoms of a sample that may lie in density outside of that."""
IN_BOX = 0.5
"""Share of the atoms of a start said to be placed that must lie in the box."""


@dataclass(frozen=True)
class Standing:
    """How the start came into the map.

    Attributes:
        placement: for ``result.json``.
        messages: what the user should know of it.
        agrees: whether it seems to have the conformation of the map, see ``Docking``.
    """

    placement: Placement
    messages: tuple[str, ...] = ()
    agrees: bool = True

    @classmethod
    def kept(cls, state: dict[str, Any]) -> Standing:
        """From what ``state_dict`` gave."""
        return cls(Placement(**state["placement"]), tuple(state["messages"]), state["agrees"])

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "placement": self.placement.model_dump(),
            "messages": list(self.messages),
            "agrees": self.agrees,
        }

    def apply(self, model: Model) -> Model:
        """The start, brought there."""
        if not self.placement.docked:
            return model
        rotation, translation = np.array(self.placement.rotation), np.array(self.placement.translation)
        return replace(model, coords=model.coords @ rotation.T + translation)


GIVEN = Standing(
    Placement(docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0], score=None, clear=None)
)
"""As it was given."""


@dataclass(frozen=True, eq=False)
class StateProblem:
    """The start in the map, the map made ready, and how they are compared.

    Attributes:
        model: the start, in the frame of the map.
        standing: how it came there.
        prepared: contour, mask and box of the map.
        likelihood: of the map given all atoms of a member.
        voxels: which are compared, in words.
        held_out: the half map to judge by, in the same box.
        messages: what the user should know.
    """

    model: Model
    standing: Standing
    prepared: PreparedMap
    likelihood: StateLikelihood
    voxels: str
    held_out: DensityMap | None
    messages: tuple[str, ...]


def problem_of(
    settings: StateSettings,
    inputs: StateInputs,
    tell: Progress,
    *,
    fold: Fold | None = None,
    standing: Standing | None = None,
) -> StateProblem:
    """Contour the map, bring the start into it, and make the likelihood.

    Of a fold, the model that was given is docked, or itself if there is none; all its atoms are then there.

    Args:
        settings: of the run.
        inputs: files as read.
        tell: told of what is done.
        fold: of a network that folds.
        standing: where the start is known to stand; docked if None, or as given if the settings say so.

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
    if settings.placed:
        check_inside(given, prepared.density.grid, settings)
        standing = GIVEN
    if standing is None:
        standing = docked(settings, inputs, given, prepared, tell)
    model = standing.apply(given)
    if fold is not None:
        model = fold.standing(model)
    mask, voxels, more = compared(prepared, model, inputs.resolution, zone=zone_of(standing))
    likelihood = StateLikelihood(
        less(prepared.density, prepared.solvent),
        mask,
        model.topology.elements,
        resolution=inputs.resolution,
        volume=ATOM_VOLUME * len(model.topology),
        occupancy=torch.from_numpy(shown(model)).float(),
    )
    held_out = None if inputs.held_out is None else boxed(inputs.held_out, prepared.density.grid)
    messages = prepared.messages + standing.messages + more
    return StateProblem(model, standing, prepared, likelihood, voxels, held_out, messages)


def docked(
    settings: StateSettings, inputs: StateInputs, model: Model, prepared: PreparedMap, tell: Progress
) -> Standing:
    """The best pose of a model in the map.

    Raises:
        InputError: they do not go together.
    """
    tell.message(f"docking {settings.start} into {settings.target.name}")
    docking = dock_model(
        model,
        prepared.density,
        resolution=inputs.resolution,
        level=settings.level,
        source=f"map {settings.target}",
        progress=tell,
    )
    return Standing(placement_of(docking), docking.messages, docking.agrees)


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


def zone_of(standing: Standing) -> float:
    """Å from the start within which a map of much more is compared: more where it is of another state."""
    return ZONE if standing.agrees else ZONE + ASTRAY


def compared(
    prepared: PreparedMap, start: Model, resolution: float, *, zone: float = ZONE
) -> tuple[Float[Tensor, "nx ny nz"], str, tuple[str, ...]]:
    """The weights of the voxels at which map and model are compared, in words too, and what to know of them.

    A map of the whole model is compared wherever it has density. In one that shows much more, what is
    not modelled would pull on the model: there only what is near the docked start counts.

    Args:
        prepared: the map.
        start: the model where it stands.
        resolution: Å, of the map.
        zone: Å, see ``zone_of``.
    """
    volume = ATOM_VOLUME * len(start.topology)
    ratio = envelope(prepared.density, resolution) / volume
    if ratio <= MUCH_MORE:
        return prepared.mask, f"within {MASK_REACH:g} Å of density above the level", ()
    near = reach_mask(prepared.density.grid, start.coords, zone)
    said = (
        f"the map encloses {ratio:.1f} times the volume of the model; they are compared within {zone:g} Å of "
        "the docked start alone, and what moves further is not followed; give all chains, or a map of these"
    )
    return prepared.mask * near, f"within {zone:g} Å of the docked start, where there is density", (said,)


def beyond(problem: StateProblem, coords: Float[np.ndarray, "n 3"]) -> tuple[str, ...]:
    """What to know of a sample that went to where the map is not compared, though it has density there."""
    grid = problem.prepared.density.grid
    index = np.rint((coords - np.array(grid.origin)) / np.array(grid.spacing)).astype(int)
    index = index[((index >= 0) & (index < grid.shape)).all(axis=1)]
    cut = (problem.prepared.inside & (problem.likelihood.mask < 0.5)).numpy()
    count = int(cut[tuple(index.T)].sum())
    if count <= BEYOND * len(coords):
        return ()
    zone = zone_of(problem.standing)
    return (
        f"{count} of {len(coords)} atoms of the best sample are in density more than {zone:g} Å from the "
        f"docked start, which was not compared; go on from it with --model {BEST_FILE} --placed",
    )


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
