"""From a cryo-EM map and a starting model anywhere in space to the state in the map: the flow on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Region
from densemble.em.evaluation import Judge, Seen, check_reference, selected
from densemble.em.flexible import Flexible, RegionPlan, flexible, region_method
from densemble.em.folding import Fold, check_steps, fold_of, fold_steps, opened, record_of, unguided
from densemble.em.inputs import StateInputs, StateSettings, load
from densemble.em.problem import Standing, StateProblem, beyond, problem_of
from densemble.em.sampling import Samples, guided, sampled
from densemble.errors import InputError
from densemble.forward.cryoem import AtomForm
from densemble.io.maps import write_map
from densemble.io.models import read_model
from densemble.io.output import (
    MAP_FILE,
    TRACE_FILE,
    InputFile,
    check_output,
    device,
    prepare_output,
    versions,
    write_trace,
)
from densemble.io.state_results import (
    BEST_FILE,
    MODELS_FILE,
    OWN_STATE_FILES,
    RESIDUES_FILE,
    START_FILE,
    Fit,
    MapRecord,
    StateMember,
    StateResult,
    write_models,
    write_residues,
    write_state_result,
)
from densemble.modelling import OWN_MODEL_FILES
from densemble.progress import Clock, Progress
from densemble.run import Checkpoints, run_key

if TYPE_CHECKING:
    from densemble.priors.boltz.model import BoltzModel

CHECKPOINT_FILE = "checkpoint.pt"
FOLD, STANDING = "fold", "standing"
"""Under these names a checkpoint keeps what was folded without the map, and where the start stands."""
WORSE = 0.01
"""By how much the correlation of the best sample may be below the start's before that is said."""


@dataclass(frozen=True, eq=False)
class Judged:
    """All that is known of the members when they are done.

    Attributes:
        members: Å, best first, shape=(K, N, 3).
        records: of each.
        seen: how each agrees with the map, by residue.
        start: fit of the start where it was docked.
        plddt: the network's confidence in each residue, 0 to 1, shape=(K, R); None if it has none.
    """

    members: Float[Tensor, "k n 3"]
    records: list[StateMember]
    seen: list[Seen]
    start: Fit
    plddt: Float[Tensor, "k r"] | None

    @property
    def start_is_better(self) -> bool:
        """Whether no sample fits the map as well as the docked start does."""
        return self.seen[0].fit.correlation < self.start.correlation - WORSE

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know."""
        if not self.start_is_better:
            return ()
        return ("no sample fits the map as well as the docked start does; do not use them",)


def judged(judge: Judge, samples: Samples) -> Judged:
    """Members ranked by their correlation with the map that was fitted."""
    members = samples.members
    found = [judge.see(x) for x in members]
    order = sorted(range(len(members)), key=lambda i: -found[i].fit.correlation)
    seen = [found[i] for i in order]
    records = [
        judge.member(members[i], found[i].fit, sample=i + 1, model=k + 1).model_copy(
            update={"confidence": samples.confidence_of(i)}
        )
        for k, i in enumerate(order)
    ]
    start = judge.fit(torch.from_numpy(judge.start.coords).float())
    plddt = samples.confidence.get("plddt")
    return Judged(members[order], records, seen, start, None if plddt is None else plddt[order])


def map_record(inputs: StateInputs, problem: StateProblem, form: AtomForm) -> MapRecord:
    """The map as it was used, for ``result.json``."""
    prepared = problem.prepared
    return MapRecord(
        mask=problem.voxels,
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


def begun(
    settings: StateSettings, inputs: StateInputs, boltz: BoltzModel, checkpoints: Checkpoints, tell: Progress
) -> Fold:
    """The fold without the map, as it was when an interrupted run began, or anew.

    Raises:
        InputError: sampling diverged.
    """
    assert settings.fold is not None
    if FOLD not in checkpoints.finished:
        whole = fold_steps(inputs.recipe)
        # Steps from little noise are not those of a fold, which only gives what the model lacks.
        steps = whole if settings.fold.from_noise is not None else settings.steps or whole
        checkpoints.finished[FOLD] = unguided(boltz, steps=steps, seed=settings.seed, tell=tell)
    return fold_of(settings, boltz, checkpoints.finished[FOLD])


def write_results(
    folder: Path,
    settings: StateSettings,
    problem: StateProblem,
    judge: Judge,
    found: Judged,
    region: Flexible | None,
    trace: list[dict[str, float]],
    result: StateResult,
) -> None:
    """The start as placed, all models by rank, the best one, its residues, the trace and ``result.json``.

    And the conformations of a region, if it has an ensemble of its own.
    """
    model = problem.model
    residue, columns = model.topology.residue_index, None
    if settings.fit_in_b:
        columns = [np.nan_to_num(100 * seen.rscc)[residue] for seen in found.seen]
    elif found.plddt is not None:
        columns = [100 * row[residue] for row in found.plddt.double().numpy()]
    coords = list(found.members.double().numpy())
    write_models(folder / START_FILE, model, [model.coords])
    write_models(folder / MODELS_FILE, model, coords, b_iso=columns)
    write_models(folder / BEST_FILE, model, coords[:1], b_iso=None if columns is None else columns[:1])
    rows = judge.residues(found.seen[0])
    if region is not None:
        region.write(folder)
        rows = region.residues(rows)
        trace = [*trace, *region.run.trace]
    write_residues(folder / RESIDUES_FILE, rows)
    write_trace(folder / TRACE_FILE, trace)
    write_state_result(folder, result)


def run_cryoem(
    settings: StateSettings,
    out: Path,
    *,
    reference: Path | None = None,
    selection: str | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> StateResult:
    """From files to files: dock, sample, refine, rank, judge, write.

    Args:
        settings: what to do.
        out: output folder.
        reference: a model in the map that the result is compared with; evaluation only.
        selection: residues over which the distance from it is stated too, for example ``H:100-112``.
        force: replace an earlier result in ``out``.
        resume: go on with an interrupted run in ``out``.
        progress: told of every part and step.

    Returns:
        What is in ``result.json``.

    Raises:
        InputError: says which input is wrong and what to do; ``out`` is then as it was.
    """
    if selection is not None and reference is None:
        raise InputError("--selection says where the distance from --reference is stated; give --reference")
    over = None if selection is None else Region.parse(selection)
    clock, tell = Clock(), progress or Progress()
    check_output(out, force=force, resume=resume)
    with clock("read"):
        inputs = load(settings)
        known = None if reference is None else read_model(reference)
        drawn_by = region_method(settings)
    boltz = None
    if settings.fold is not None:
        check_steps(settings.steps or fold_steps(inputs.recipe))
        with clock("trunk"):
            boltz = opened(settings, inputs.model, tell=tell)
    described = settings.record() | {"recipe_values": inputs.recipe.model_dump(mode="json")}
    files = inputs.files
    if drawn_by is not None:
        described["region_recipe_values"] = drawn_by.recipe.model_dump(mode="json")
        files = files + drawn_by.files
    folded = None if boltz is None else record_of(boltz)
    key = run_key(
        described if folded is None else described | {"fold_record": folded.model_dump()},
        files,
        inputs.recipe,
    )
    checkpoints = Checkpoints(out / CHECKPOINT_FILE, key)
    if resume:
        checkpoints.load()
    fold = None
    if boltz is not None:
        with clock("fold"):
            fold = begun(settings, inputs, boltz, checkpoints, tell)
    start = inputs.model if fold is None else fold.model
    assert start is not None  # load has seen to it
    chosen = [] if over is None or known is None else selected(over, start, known)
    plan = None if drawn_by is None else RegionPlan.of(settings, drawn_by, start, reference)
    with clock("map and docking"):
        kept = checkpoints.finished.get(STANDING)
        standing = None if kept is None else Standing.kept(kept)
        problem = problem_of(settings, inputs, tell, fold=fold, standing=standing)
        if known is not None:
            check_reference(problem.model, known)
    # What cannot be done is said before anything is written.
    sampling = guided(settings, inputs, problem, fold=fold)
    messages = [*inputs.messages, *(fold.messages if fold is not None else ())]
    messages += [*problem.messages, *sampling.messages, *(drawn_by.messages if drawn_by is not None else ())]
    for message in messages:
        tell.message(message)
    folder = prepare_output(out, force=force, resume=resume, own=(*OWN_STATE_FILES, *OWN_MODEL_FILES))
    if STANDING not in checkpoints.finished:
        checkpoints.finish(STANDING, problem.standing.state_dict())
    write_map(folder / MAP_FILE, problem.prepared.density)
    with clock("samples"):
        samples = sampled(settings, inputs, problem, sampling, checkpoints=checkpoints, tell=tell)
    with clock("evaluate"):
        tell.message("map fit")
        judge = Judge(
            problem.model,
            problem.likelihood,
            kind=settings.forward,
            held_out=problem.held_out,
            reference=known,
            selection=chosen,
        )
        found = judged(judge, samples)
    afterwards = [*found.messages, *beyond(problem, found.members[0].double().numpy())]
    for message in afterwards:
        tell.message(message)
    region = None
    if plan is not None:
        with clock("region"):
            best = found.members[0].double().numpy()
            state = problem.model.coords if found.start_is_better else best
            region = flexible(
                plan, settings, inputs, problem, state, folder=folder, checkpoints=checkpoints, tell=tell
            )
    result = StateResult(
        inputs=files if reference is None else [*files, InputFile.of(reference)],
        settings=described,
        seed=settings.seed,
        versions={
            **versions(),
            **(boltz.versions if boltz else {}),
            **(drawn_by.versions if drawn_by else {}),
        },
        device=device(boltz.device if boltz is not None else None if drawn_by is None else drawn_by.device),
        timings=clock.seconds,
        messages=[*messages, *afterwards],
        map=map_record(inputs, problem, found.seen[0].form),
        placement=problem.standing.placement,
        fold=folded,
        start=found.start,
        start_reference=judge.distance(problem.model.coords),
        selection=None if over is None else str(over),
        reference_fit=judge.reference_fit(),
        ensemble=judge.mixture(found.members, keep=settings.keep) if settings.whole_ensemble else None,
        region=None if region is None else region.record,
        members=found.records,
    )
    write_results(folder, settings, problem, judge, found, region, samples.trace, result)
    checkpoints.path.unlink(missing_ok=True)
    return result
