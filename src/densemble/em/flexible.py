"""A flexible region of a state: the few conformations of it that together make up the map, the rest held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from densemble.atoms import Ensemble, Region
from densemble.em.inputs import StateInputs, StateSettings
from densemble.em.problem import StateProblem, less
from densemble.em.region_model import judge_of, region_model
from densemble.em.rest import Rest
from densemble.errors import InputError
from densemble.evaluation import map_fit, map_fits, member_records, reference_states, start_ensemble
from densemble.forward.cryoem import FormKind
from densemble.grid import DensityMap
from densemble.io.models import Model
from densemble.io.results import Subject, write_ensemble, write_members
from densemble.io.state_results import RegionRecord, models_structure
from densemble.method import Method
from densemble.modelling import Modelled, made_or_failure, model_rows
from densemble.problem import RegionProblem, Stretches, Surroundings
from densemble.progress import Progress
from densemble.recipes import Recipe, load_recipe
from densemble.region import Draw, GuideRun, run_guide
from densemble.run import Checkpoints, passes_of

ANY_B = 30.0
"""Å^2, of all atoms until the map has been asked; nothing depends on it."""


def standing(model: Model, coords: Float[np.ndarray, "n 3"], b_iso: float) -> Model:
    """A model at other coordinates in the map, in no crystal, with one B factor in Å^2 for all atoms."""
    column = np.full(len(coords), b_iso)
    structure = models_structure(model, [coords], b_iso=[column])
    return replace(model, structure=structure, coords=coords, b_iso=column)


@dataclass(frozen=True, eq=False)
class RegionPlan:
    """What is to be done about a region once the state is found.

    Attributes:
        region: stretches of chain.
        method: what its members are drawn by.
        states: its atoms in the altlocs of a reference, by letter; evaluation only.
        source: of these, a file's name.
    """

    region: Region
    method: Method
    states: dict[str, np.ndarray]
    source: str

    @classmethod
    def of(cls, settings: StateSettings, method: Method, start: Model, reference: Path | None) -> RegionPlan:
        """See that what is asked for can be done.

        Args:
            settings: of the run, with a region.
            method: what its members are drawn by.
            start: the model, in any pose.
            reference: a model whose altlocs the result is compared with.

        Raises:
            InputError: the region is not one of the model's, or not one that the prior can move; the
                reference has nothing of it.
        """
        assert settings.region is not None
        region = Region.parse(settings.region)
        placed = standing(start, start.coords, ANY_B)
        stretches = Stretches.of(placed, region, window=method.recipe.sidechains.window)
        method.prior_of(stretches)
        states = reference_states(reference, stretches)
        return cls(region, method, states, "" if reference is None else reference.name)

    @property
    def recipe(self) -> Recipe:
        """The numbers of the sampling."""
        return self.method.recipe

    @property
    def steps(self) -> int:
        """Of the reverse diffusion, in all passes."""
        return sum(this.steps for this in passes_of("ensemble", None, self.recipe))


def region_method(settings: StateSettings) -> Method | None:
    """What the members of a region are drawn by; None where no region is asked for.

    Raises:
        InputError: a region without an ensemble, or what is said of one without a region; it has no meaning;
            the recipe is not made for the prior; see also ``Method.of``.
    """
    if settings.region is None:
        _check_unused(settings)
        return None
    if not settings.ensemble:
        raise InputError(f"--region {settings.region} says what --ensemble samples; give both")
    Region.parse(settings.region)
    return Method.of(
        settings.region_prior,
        load_recipe(settings.region_recipe_name),
        weights_backbone=settings.weights_backbone,
        weights_design=settings.weights_design,
    )


def _check_unused(settings: StateSettings) -> None:
    """See that nothing is said of a region where there is none.

    Raises:
        InputError: names the option.
    """
    said = {
        "--region-prior": settings.region_prior != "embedded",
        "--region-recipe": settings.region_recipe is not None,
        "--weights-backbone": settings.weights_backbone is not None,
        "--weights-design": settings.weights_design is not None,
        "--no-states": not settings.states,
        "--cycles": settings.cycles != StateSettings.cycles,
    }
    for option in (option for option, given in said.items() if given):
        raise InputError(f"{option} says how a region is sampled; give --ensemble and --region, or not it")


def region_problem(
    density: DensityMap,
    state: Model,
    region: Region,
    recipe: Recipe,
    *,
    kind: FormKind,
    resolution: float,
) -> tuple[RegionProblem, Rest]:
    """The density of a region in a cryo-EM map and the model of it, as for a crystal; and the rest.

    Args:
        density: the map, its solvent at zero.
        state: the fitted model, which stays outside the region.
        region: stretches of chain.
        recipe: of the region's sampling.
        kind: how atoms look in the map.
        resolution: Å, of the map.

    Raises:
        InputError: see ``Stretches.of`` and ``Rest.taken_out``.
    """
    free = Stretches.of(state, region, window=recipe.sidechains.window)
    rest = Rest.of(
        density, state, free.model_atoms, kind=kind, resolution=resolution, margin=recipe.density.margin
    )
    forward, b_iso = rest.form.with_b(rest.density.grid, free.topology.elements)
    placed = standing(state, state.coords, max(b_iso, forward.b_min))
    stretches = Stretches.of(placed, region, window=recipe.sidechains.window)
    around = Surroundings.of(stretches, reach=recipe.density.margin + 3.0)
    target = rest.taken_out(density)
    problem = RegionProblem.within(stretches, around, target, forward, recipe.density, d_min=resolution)
    return problem, rest


@dataclass(frozen=True, eq=False)
class Flexible:
    """The conformations of a region.

    Attributes:
        problem: its density and the model of it.
        run: members, those kept and their weights.
        record: what ``result.json`` says of them.
        modelled: the final model, if one was made.
    """

    problem: RegionProblem
    run: GuideRun
    record: RegionRecord
    modelled: Modelled | None

    def residues(self, rows: list[dict[str, str | float]]) -> list[dict[str, str | float]]:
        """Rows of all residues with, in the region, the fit of the model and of what it is compared with."""
        if self.modelled is None:
            return rows
        own = {row["residue"]: row for row in model_rows(self.problem, self.run.ensemble, self.modelled)}
        columns = [name for name in next(iter(own.values())) if name not in ("residue", "name")]
        nothing: dict[str, str | float] = dict.fromkeys(columns, float("nan"))
        return [row | own.get(row["residue"], nothing) for row in rows]

    def write(self, folder: Path) -> None:
        """The state with the region's altlocs, and each member as a whole model."""
        stretches, run = self.problem.stretches, self.run
        write_ensemble(folder, stretches.model, run.ensemble, stretches.model_atoms)
        b_iso = run.ensemble.b_iso[:1].expand(len(run.members), -1)
        equal = run.members.new_full((len(run.members),), 1 / len(run.members))
        members = Ensemble(stretches.topology, run.final, equal, b_iso)
        write_members(folder, stretches.model, members, stretches.model_atoms)


def flexible(
    plan: RegionPlan,
    settings: StateSettings,
    inputs: StateInputs,
    problem: StateProblem,
    state: Float[np.ndarray, "n 3"],
    *,
    folder: Path,
    checkpoints: Checkpoints,
    tell: Progress,
) -> Flexible:
    """Sample a region as an ensemble that explains the map together, everything else held at the state.

    And make the final model of it, of as many states as the map supports, if the settings ask for it.

    Args:
        plan: the region and how.
        settings: of the run.
        inputs: of the run.
        problem: the map, and the start in it.
        state: Å, the fitted model (the docked start where that fits better), shape=(n, 3).
        folder: of the run, where the final model is written.
        checkpoints: of the run.
        tell: told of the steps and of what was found.

    Raises:
        InputError: the map does not show what is around the region, or nothing of the region.
    """
    placed = standing(problem.model, state, ANY_B)
    found, rest = region_problem(
        problem.likelihood.target,
        placed,
        plan.region,
        plan.recipe,
        kind=settings.forward,
        resolution=inputs.resolution,
    )
    draw = Draw(
        prior=plan.method.prior_of(found.stretches),
        packer=plan.method.packer_of(found.stretches),
        recipe=plan.recipe,
        members=settings.region_members,
        keep=settings.keep,
        steps=None,
        seed=settings.seed,
    )
    with tell.steps(f"region {plan.region}", plan.steps) as on_step:
        run = run_guide(found, draw, "ensemble", checkpoints=checkpoints, on_step=on_step)
    other = None
    if problem.held_out is not None:
        other = rest.taken_out(less(problem.held_out, problem.prepared.solvent))
    record = _record(plan, found, run, other)
    if not settings.states:
        return Flexible(found, run, record, None)
    tell.message("states and their number")

    def make() -> Modelled:
        return region_model(
            folder,
            found,
            run.final,
            judge_of(found, rest, run, other, resolution=inputs.resolution),
            resolution=inputs.resolution,
            cycles=settings.cycles,
            references=plan.states,
            tell=tell,
        )

    modelled, failure = made_or_failure(folder, make, tell=tell)
    said = {"model": None if modelled is None else modelled.record, "model_failure": failure}
    return Flexible(found, run, record.model_copy(update=said), modelled)


def _record(
    plan: RegionPlan, problem: RegionProblem, run: GuideRun, other: DensityMap | None
) -> RegionRecord:
    """Fit of the state and of the ensemble, over the same voxels, and all members.

    ``other`` is what the region adds to the half map held out, if there is one.
    """
    ensembles: dict[Subject, Ensemble] = {"start": start_ensemble(problem), "ensemble": run.ensemble}
    metrics, voxels = map_fits(problem, ensembles, plan.states, plan.source)
    weights = dict(zip(run.selected, run.ensemble.weights.tolist(), strict=True))
    b_iso = run.ensemble.b_iso[0]
    held_out: dict[Subject, float] | None = None
    if other is not None:
        held_out = {name: map_fit(problem.forward, other, voxels, e).rscc for name, e in ensembles.items()}
    return RegionRecord(
        region=str(plan.region),
        metrics=metrics,
        held_out=held_out,
        b_around=float(problem.b_start.mean()),
        b_iso=float(b_iso.mean()),
        members=member_records(problem, voxels, run.final, weights, b_iso, plan.states),
    )
