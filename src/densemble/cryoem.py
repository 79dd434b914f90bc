"""From a cryo-EM map and a starting model anywhere in space to the state in the map: the flow on one page."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.em.evaluation import Judge
from densemble.em.inputs import StateInputs, StateSettings, load
from densemble.em.preparation import PreparedMap
from densemble.em.problem import StateProblem, problem_of
from densemble.em.sampling import fitted_to_best, guided, order_of, sampled
from densemble.forward.cryoem import AtomForm
from densemble.io.maps import write_map
from densemble.io.models import read_model
from densemble.io.results import (
    MAP_FILE,
    TRACE_FILE,
    InputFile,
    check_output,
    prepare_output,
    write_trace,
)
from densemble.io.state_results import (
    BEST_FILE,
    MODELS_FILE,
    OWN_STATE_FILES,
    RESIDUES_FILE,
    START_FILE,
    MapRecord,
    Mixture,
    StateResult,
    write_models,
    write_residues,
    write_state_result,
)
from densemble.pipeline import versions
from densemble.progress import Clock, Progress
from densemble.run import Checkpoints
from densemble.selection.pursuit import matching_pursuit


def mixture_of(settings: StateSettings, judge: Judge, members: Float[Tensor, "k n 3"]) -> Mixture:
    """The members kept and their weights, by matching pursuit on the map that was fitted."""
    found = matching_pursuit(*judge.voxel_values(members), keep=settings.keep)
    return judge.mixture(members, found.members, found.weights)


def run_key(settings: StateSettings, inputs: StateInputs) -> str:
    """Identifies a run: a checkpoint is only good for the same inputs, settings and recipe."""
    what = [settings.record(), [f.model_dump() for f in inputs.files], inputs.recipe.model_dump()]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def map_record(inputs: StateInputs, prepared: PreparedMap, form: AtomForm) -> MapRecord:
    """The map as it was used, for ``result.json``."""
    return MapRecord(
        forward=form.kind,
        fitted=form.spread,
        resolution=inputs.resolution,
        resolution_source=inputs.resolution_source,
        level=prepared.level,
        rule=prepared.rule,
        volume=prepared.volume,
        noise=prepared.noise,
        box=list(prepared.density.grid.shape),
        spacing=list(prepared.density.grid.spacing),
    )


def write_results(
    folder: Path,
    settings: StateSettings,
    problem: StateProblem,
    judge: Judge,
    members: Float[np.ndarray, "k n 3"],
    trace: list[dict[str, float]],
    result: StateResult,
) -> None:
    """The start as placed, all models by rank, the best one, its residues, the trace and ``result.json``."""
    model = problem.model
    residues = [judge.residues(torch.from_numpy(x).float()) for x in members]
    columns = None
    if settings.fit_in_b:
        columns = [
            np.array([100 * row["rscc"] for row in rows])[model.topology.residue_index] for rows in residues
        ]
    write_models(folder / START_FILE, model, [model.coords])
    write_models(folder / MODELS_FILE, model, list(members), b_iso=columns)
    write_models(folder / BEST_FILE, model, [members[0]], b_iso=None if columns is None else columns[:1])
    write_residues(folder / RESIDUES_FILE, residues[0])
    write_trace(folder / TRACE_FILE, trace)
    write_state_result(folder, result)


def run_cryoem(
    settings: StateSettings,
    out: Path,
    *,
    reference: Path | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> StateResult:
    """From files to files: dock, sample, refine, rank, judge, write.

    Args:
        settings: what to do.
        out: output folder.
        reference: a model in the map that the result is compared with; evaluation only.
        force: replace an earlier result in ``out``.
        resume: go on with an interrupted run in ``out``.
        progress: told of every part and step.

    Returns:
        What is in ``result.json``.

    Raises:
        InputError: says which input is wrong and what to do; ``out`` is then as it was.
    """
    clock, tell = Clock(), progress or Progress()
    check_output(out, force=force, resume=resume)
    with clock("read"):
        inputs = load(settings)
        known = None if reference is None else read_model(reference)
    for message in inputs.model.messages:
        tell.message(message)
    with clock("map and docking"):
        problem = problem_of(settings, inputs, tell)
    for message in problem.messages:
        tell.message(message)
    sampling = guided(settings, inputs, problem)  # what cannot be done is said before anything is written
    folder = prepare_output(out, force=force, resume=resume, own=OWN_STATE_FILES)
    checkpoints = Checkpoints(folder / "checkpoint.pt", run_key(settings, inputs))
    if resume:
        checkpoints.load()
    write_map(folder / MAP_FILE, problem.prepared.density)
    with clock("samples"):
        members, trace = sampled(settings, inputs, problem, sampling, checkpoints=checkpoints, tell=tell)
    with clock("evaluate"):
        tell.message("map fit")
        likelihood = fitted_to_best(problem.likelihood, members, settings.forward)
        judge = Judge(problem.model.topology, likelihood, problem.held_out, known)
        order = order_of(likelihood, members)
        records = [judge.member(members[i], number=i + 1, rank=k + 1) for k, i in enumerate(order)]
    result = StateResult(
        inputs=inputs.files if reference is None else [*inputs.files, InputFile.of(reference)],
        settings=settings.record() | {"recipe_values": inputs.recipe.model_dump(mode="json")},
        seed=settings.seed,
        versions=versions(),
        device=f"cpu, {torch.get_num_threads()} threads",
        timings=clock.seconds,
        messages=[*inputs.model.messages, *problem.messages],
        map=map_record(inputs, problem.prepared, likelihood.form),
        placement=problem.placement,
        start=judge.fit(torch.from_numpy(problem.model.coords).float()),
        start_reference=judge.distance(problem.model.coords),
        reference_fit=judge.reference_fit(),
        ensemble=mixture_of(settings, judge, members) if settings.ensemble else None,
        members=records,
    )
    write_results(folder, settings, problem, judge, members[order].double().numpy(), trace, result)
    checkpoints.path.unlink(missing_ok=True)
    return result
