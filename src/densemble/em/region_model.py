"""The final model of a region in a cryo-EM map: its states, counted in one half map and held to the other.

As for a crystal, with voxels in place of amplitudes, and with two differences. The noise that a state more
has to beat is not that of the map alone: errors of the model are the same in both half maps, and a state
that explains them would be confirmed by the half map held out. So it is what all members together leave of
the fitted map where their atoms are, as the error is estimated from the largest model in Mallows's criterion
(1973, Technometrics 15, 661-675), and not less than what the atoms around the region, of which there is one
state, leave there. And the half map held out has as many data as the one that was fitted, so that it has
more than a veto: it must be better explained with a state more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.em.rest import Rest
from densemble.evaluation import NEAR
from densemble.grid import DensityMap
from densemble.likelihood.density import effective_sigma
from densemble.metrics.maps import blocks_of, rscc, rscc_gain_error, voxels_near
from densemble.modelling import Modelled, model_of_states, write_files
from densemble.part_search import Counting
from densemble.problem import RegionProblem
from densemble.progress import Progress
from densemble.region import GuideRun
from densemble.selection.number import Normal
from densemble.selection.voxels import MapJudge

EDGE = 1.0
"""Of the blocks of voxels that are taken for independent, in units of the resolution."""
COUNTING = Counting(veto=0.0)
"""What a half map held out does not explain better is not taken."""


def judge_of(
    problem: RegionProblem,
    rest: Rest,
    run: GuideRun,
    other: DensityMap | None,
    *,
    resolution: float,
) -> MapJudge:
    """What the map, and the half map held out, say of states of a region.

    Args:
        problem: the region.
        rest: all else.
        run: the members.
        other: what the region adds to the half map held out, if there is one.
        resolution: Å.
    """
    noise = max(rest.noise(problem.target), left_by_all(problem, run))
    return MapJudge(
        forward=problem.forward,
        target=problem.target,
        other=other,
        inside=problem.mask > 0.5,
        sigma=effective_sigma(problem.target.grid, noise, resolution),
        edge=EDGE * resolution,
    )


def left_by_all(problem: RegionProblem, run: GuideRun) -> float:
    """Root mean square of what all members, as they best add up, leave of the target near those kept.

    Near the atoms, for it is there that the model has errors; elsewhere is the noise of the map alone.
    """
    everyone = torch.cat([problem.stretches.start[None], run.final])
    b_iso = run.ensemble.b_iso[0].clamp(min=problem.forward.b_min)
    densities, target = problem.voxel_values(everyone, b_iso)
    weights, _ = Normal.of(densities, target, offset=True).weights(range(len(densities)))
    left = target - weights @ densities
    near = voxels_near(problem.target.grid, run.ensemble.coords[run.ensemble.weights > 0], NEAR)
    return float(np.sqrt(np.square((left - left.mean())[near[problem.mask > 0.5].numpy()]).mean()))


def region_model(
    folder: Path,
    problem: RegionProblem,
    members: Float[Tensor, "k n 3"],
    judge: MapJudge,
    *,
    resolution: float,
    cycles: int,
    references: dict[str, np.ndarray],
    tell: Progress,
) -> Modelled:
    """Make the model and write its files; see ``modelling.write_files``.

    Args:
        folder: of the run.
        problem: the region.
        members: Å, those sampled, shape=(K, N, 3).
        judge: the map.
        resolution: Å.
        cycles: of refinement.
        references: coordinates of known states, each shape=(N, 3); evaluation only.
        tell: told what was found.
    """
    made = model_of_states(
        problem,
        members,
        judge,
        resolution=resolution,
        reflections=None,
        counting=COUNTING,
        cycles=cycles,
        references=references,
        tell=tell,
    )
    if judge.other is not None:
        made = _held_to(made, judge.other, judge.edge)
    write_files(folder, made, amplitudes=False, tell=tell)
    return made


def _held_to(made: Modelled, other: DensityMap, edge: float) -> Modelled:
    """The same, with how both models agree with the half map held out."""
    models = (made.start, made.built)
    inside = voxels_near(other.grid, torch.cat([built.coords.reshape(-1, 3) for built in models]), NEAR)
    first, second = (built.density for built in models)
    error = rscc_gain_error(first, second, other.values, inside, blocks_of(other.grid, inside, edge))
    found = {
        "held_out_rscc": (rscc(first, other.values, inside), rscc(second, other.values, inside)),
        "held_out_error": None if math.isnan(error) else error,
    }
    assert made.record.refinement is not None
    refinement = made.record.refinement.model_copy(update=found)
    return replace(made, record=made.record.model_copy(update={"refinement": refinement}))
