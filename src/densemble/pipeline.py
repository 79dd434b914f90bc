"""From reflections and one model to an ensemble: the whole flow on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densemble.atoms import Ensemble
from densemble.crystal.scaling import r_factors, r_factors_of
from densemble.evaluation import map_fits, member_records, reference_states, start_ensemble
from densemble.inputs import Inputs, Settings, draw_of, load, problem_of
from densemble.io.altlocs import build_structure
from densemble.io.maps import write_map
from densemble.io.model_results import FinalModel
from densemble.io.output import (
    MAP_FILE,
    RESULT_FILE,
    TRACE_FILE,
    InputFile,
    check_output,
    device,
    prepare_output,
    versions,
    write_trace,
)
from densemble.io.results import (
    OWN_FILES,
    Member,
    Metrics,
    Result,
    RFactor,
    RFactors,
    Subject,
    write_ensemble,
    write_members,
    write_result_json,
)
from densemble.modelling import OWN_MODEL_FILES, Modelled, final_model, made_or_failure, write_model
from densemble.problem import CrystalProblem, Guide
from densemble.progress import Clock, Progress
from densemble.region import GuideRun, sample_guide, select_guide
from densemble.run import Checkpoints, passes_of, run_key
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.side_process import SideProcess

OWN = (*OWN_FILES, *OWN_MODEL_FILES)
"""What a run writes into an output folder, and may replace there."""


@dataclass(frozen=True)
class Evaluation:
    """What ``result.json`` says of a result."""

    metrics: Metrics
    r_factors: RFactors
    members: list[Member]


def evaluate(
    inputs: Inputs,
    problem: CrystalProblem,
    runs: dict[Guide, GuideRun],
    states: dict[str, np.ndarray],
    source: str,
) -> Evaluation:
    """Start and ensembles on the same voxels and reflections, of which free ones had no part in any of them.

    Under ``ensemble`` stands the last guide's result, which is the one that is written.
    """
    last = list(runs)[-1]
    ensembles: dict[Subject, Ensemble] = {
        "start": start_ensemble(problem),
        **{guide: run.ensemble for guide, run in runs.items()},
        "ensemble": runs[last].ensemble,
    }
    metrics, voxels = map_fits(problem, ensembles, states, source)
    model, atoms = inputs.model, inputs.stretches.model_atoms
    scaled, reflections = problem.models, inputs.reflections
    start = scaled.scale.k * np.abs(scaled.whole[:-1])  # the map has scaled it
    factors = {"start": r_factors_of(start, reflections)} | {
        name: r_factors(build_structure(model, e, atoms), reflections)
        for name, e in ensembles.items()
        if name != "start"
    }
    coords, run = runs[last].final, runs[last]
    weights = dict(zip(run.selected, run.ensemble.weights.tolist(), strict=True))
    members = member_records(problem, voxels, coords, weights, run.ensemble.b_iso[0], states)
    recorded = {name: RFactor(r_work=r.r_work, r_free=r.r_free) for name, r in factors.items()}
    return Evaluation(metrics=metrics, r_factors=RFactors(**recorded), members=members)


def write_sampled(folder: Path, inputs: Inputs, run: GuideRun) -> None:
    """The ensemble as one model, every member as a model of its own, and the trace."""
    model, atoms = inputs.model, inputs.stretches.model_atoms
    write_ensemble(folder, model, run.ensemble, atoms)
    b_iso = run.ensemble.b_iso[:1].expand(len(run.members), -1)
    equal = run.members.new_full((len(run.members),), 1 / len(run.members))
    write_members(folder, model, Ensemble(run.ensemble.topology, run.final, equal, b_iso), atoms)
    write_trace(folder / TRACE_FILE, run.trace)


def model_or_failure(
    folder: Path,
    inputs: Inputs,
    problem: CrystalProblem,
    judge: AmplitudeJudge,
    run: GuideRun,
    *,
    cycles: int,
    references: dict[str, np.ndarray],
    tell: Progress,
) -> tuple[FinalModel | None, str | None]:
    """Make and write the final model; where that fails, why, in words. The ensemble stands without it."""

    def make() -> Modelled:
        made = final_model(inputs, problem, judge, run.final, cycles=cycles, references=references, tell=tell)
        write_model(folder, problem, run.ensemble, made, tell=tell)
        return made

    made, failure = made_or_failure(folder, make, tell=tell)
    return None if made is None else made.record, failure


def run_xray(
    settings: Settings,
    out: Path,
    *,
    reference: Path | None = None,
    force: bool = False,
    resume: bool = False,
    side_by_side: bool = False,
    progress: Progress | None = None,
) -> Result:
    """From files to files: sample, select, evaluate, count states, refine, write.

    Args:
        settings: what to do.
        out: output folder.
        reference: a model whose altlocs the result is compared with; evaluation only.
        force: replace an earlier result in ``out``.
        resume: go on with an interrupted run in ``out``.
        side_by_side: sample with all guides but the last in a second process, if there is a core for it.
        progress: told of every part and step.

    Returns:
        What is in ``result.json``.

    Raises:
        InputError: says which input is wrong and what to do; ``out`` is then as it was.
    """
    clock, tell = Clock(), progress or Progress()
    check_output(out, force=force, resume=resume)
    with clock("read"):
        inputs = load(settings, progress=tell)
        states = reference_states(reference, inputs.stretches)
    for message in inputs.messages:
        tell.warning(message)
    with clock("map"):
        tell.message(f"calculating the {settings.map} map of {settings.region}")
        problem = problem_of(settings, inputs)
        judge = AmplitudeJudge.of(problem.models, inputs.stretches.topology, inputs.reflections)
    folder = prepare_output(out, force=force, resume=resume, own=OWN)
    described = settings.record() | inputs.method.described
    checkpoints = Checkpoints(folder / "checkpoint.pt", run_key(described, inputs.files, inputs.recipe))
    if resume:
        checkpoints.load()
    write_map(folder / MAP_FILE, problem.target)
    side = None
    if side_by_side:
        side = SideProcess(settings, settings.guides[:-1], checkpoints, resume=resume)
    draw = draw_of(settings, inputs)
    runs: dict[Guide, GuideRun] = {}

    def take(guide: Guide) -> None:
        if guide not in checkpoints.finished:
            steps = sum(p.steps for p in passes_of(guide, settings.steps, inputs.recipe))
            with clock(f"guide {guide}"), tell.steps(f"guide: {guide}", steps) as on_step:
                sample_guide(problem, draw, guide, checkpoints=checkpoints, on_step=on_step)
        with clock(f"guide {guide}"):
            done = checkpoints.finished[guide]
            runs[guide] = select_guide(problem, draw, guide, done, judge=judge)

    *others, chosen = settings.guides
    for guide in settings.guides if side is None else [chosen]:
        take(guide)
    last, model, failure = runs[chosen], None, None
    write_sampled(folder, inputs, last)
    if settings.states:
        with clock("states"):
            tell.message("states and their number")
            model, failure = model_or_failure(
                folder, inputs, problem, judge, last, cycles=settings.cycles, references=states, tell=tell
            )
    if side is not None:
        tell.message(f"waiting for what it is compared with: {', '.join(others)}")
        with clock("waiting for the side process"):
            checkpoints.finished |= side.outcomes()
        for guide in others:
            take(guide)
    with clock("evaluate"):
        tell.message("R factors")
        compared = {guide: runs[guide] for guide in settings.guides}
        found = evaluate(inputs, problem, compared, states, "" if reference is None else reference.name)
    result = Result(
        inputs=inputs.files if reference is None else [*inputs.files, InputFile.of(reference)],
        settings=described | {"recipe_values": inputs.recipe.model_dump(mode="json")},
        seed=settings.seed,
        versions=versions() | inputs.method.versions,
        device=device(inputs.method.device),
        timings=clock.seconds,
        region=str(inputs.stretches.region),
        metrics=found.metrics,
        r_factors=found.r_factors,
        members=found.members,
        model=model,
        model_failure=failure,
    )
    write_result_json(folder / RESULT_FILE, result)
    checkpoints.path.unlink(missing_ok=True)
    if side is not None:
        side.clean()
    return result
