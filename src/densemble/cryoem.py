"""From a cryo-EM map and a starting model anywhere in space to the state in the map: the flow on one page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from densemble.align.docking import Docking
from densemble.docking import dock_model
from densemble.em.evaluation import Judge
from densemble.em.halfmaps import check_same_grid, estimate_resolution
from densemble.em.preparation import PreparedMap, boxed, prepare
from densemble.em.state import (
    ATOM_VOLUME,
    cloud_term,
    density_term,
    ensemble_term,
    refined,
    stages_of,
)
from densemble.errors import InputError
from densemble.grid import DensityMap
from densemble.guidance.guided import AllAtom, Completion
from densemble.guidance.stage import Term
from densemble.io.maps import read_map, write_map
from densemble.io.models import Model, read_model
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
    Placement,
    StateResult,
    write_models,
    write_residues,
    write_state_result,
)
from densemble.likelihood.cloud import cloud_of_map
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.pipeline import versions
from densemble.priors.chain_graph import Trust
from densemble.priors.edm import EDM
from densemble.priors.elastic import ElasticPrior
from densemble.priors.protocol import Prior
from densemble.priors.whole_chain import WholeChainPrior
from densemble.progress import Clock, Progress
from densemble.recipes.state import StateRecipe, load_state_recipe
from densemble.rounds import Pass
from densemble.run import Checkpoints, sample_members
from densemble.selection.pursuit import matching_pursuit
from densemble.sidechains.carried import CarriedAtoms

STANDING = Placement(
    docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0], score=None, clear=None
)
"""The start as it was given."""
ELASTIC_WIDTHS = 25.0
"""First noise level of the elastic prior, over the expected motion; as for the embedded one."""
MASK_REACH = 8.0
"""Å from the density above the contour within which map and model are compared."""
TOGETHER = 2048
"""Residues times members that are denoised in one call: bounds memory. Part of a run's identity, since the
random numbers of a batch belong to it as a whole."""


@dataclass(frozen=True)
class StateSettings:
    """Everything that a run depends on, but for the files' contents.

    Attributes:
        map: the map, CCP4 or MRC.
        model: the start, mmCIF or PDB, in any pose.
        resolution: Å; estimated from the half maps if None.
        half1: half map to fit, instead of ``map``.
        half2: half map that takes no part in the fit, to judge it by.
        level: contour level; chosen from the map if None (``densemble.em.preparation``).
        placed: the start stands in the map already; no docking.
        members: independent samples.
        prior: ``embedded`` (the packaged network) or ``elastic`` (normal modes of an elastic network).
        recipe: name of one of the package's, or a TOML file.
        steps: of the reverse diffusion; the recipe's if None.
        ensemble: the members together explain the map (paper 1), instead of each alone.
        keep: of an ensemble, at most so many.
        seed: of all randomness.
        fit_in_b: write each residue's map correlation into the B column, times 100.
    """

    map: Path
    model: Path
    resolution: float | None = None
    half1: Path | None = None
    half2: Path | None = None
    level: float | None = None
    placed: bool = False
    members: int = 4
    prior: Literal["embedded", "elastic"] = "embedded"
    recipe: str = "densemble"
    steps: int | None = None
    ensemble: bool = False
    keep: int = 5
    seed: int = 0
    fit_in_b: bool = False

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        return [f for f in (self.model, self.map, self.half1, self.half2) if f is not None]

    @property
    def target(self) -> Path:
        """The map that is fitted."""
        return self.half1 or self.map

    def record(self) -> dict[str, JsonValue]:
        """Plain values, files by name, for ``result.json``."""
        values = asdict(self)
        return values | {k: v.name for k, v in values.items() if isinstance(v, Path)}


@dataclass(frozen=True, eq=False)
class StateInputs:
    """The files as read and found consistent.

    Attributes:
        model: the start as read.
        density: the map to fit.
        held_out: the half map to judge by.
        resolution: Å.
        resolution_source: where it comes from.
        recipe: the method.
        files: all inputs with their hashes.
    """

    model: Model
    density: DensityMap
    held_out: DensityMap | None
    resolution: float
    resolution_source: str
    recipe: StateRecipe
    files: list[InputFile]


def load(settings: StateSettings) -> StateInputs:
    """Read and check all input; nothing is written.

    Raises:
        InputError: says which file or option is wrong and what to do.
    """
    if (settings.half1 is None) != (settings.half2 is None):
        raise InputError("--half1 and --half2 go together: one is fitted, the other judges")
    if settings.resolution is None and settings.half1 is None:
        raise InputError(f"{settings.map} does not say its resolution; give --resolution in Å, or half maps")
    if settings.resolution is not None and not 0 < settings.resolution < float("inf"):
        raise InputError(f"--resolution {settings.resolution:g} Å: must be above zero")
    recipe = load_state_recipe(settings.recipe)
    model = read_model(settings.model)
    density = read_map(settings.target)
    held_out = None if settings.half2 is None else read_map(settings.half2)
    resolution, source = settings.resolution, "given"
    if held_out is not None:
        sources = (str(settings.half1), str(settings.half2))
        check_same_grid(density, held_out, sources=sources)
        if resolution is None:
            resolution, source = estimate_resolution(density, held_out).resolution, "half maps, FSC 0.143"
    if resolution is None or not np.isfinite(resolution):
        raise InputError("the half maps do not agree at any resolution; give --resolution in Å")
    files = [InputFile.of(path) for path in settings.files]
    return StateInputs(model, density, held_out, resolution, source, recipe, files)


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


def terms_of(settings: StateSettings, problem: StateProblem, recipe: StateRecipe) -> dict[str, Term]:
    """The objectives that the recipe's stages name."""
    wanted = {stage.term for stage in recipe.stages}
    terms: dict[str, Term] = {}
    if "density" in wanted:
        make = ensemble_term if settings.ensemble else density_term
        terms["density"] = make(problem.likelihood, recipe.target)
    if "cloud" in wanted:
        prepared = problem.prepared
        cloud = cloud_of_map(prepared.density, prepared.inside, atoms=len(problem.elements))
        terms["cloud"] = cloud_term(SinkhornDivergence(cloud))
    return terms


def make_prior(
    settings: StateSettings, problem: StateProblem, recipe: StateRecipe
) -> tuple[Prior, Completion, np.ndarray]:
    """The diffusion model around the start, what completes its samples, and its atoms among all."""
    topology, coords, trust = problem.model.topology, problem.model.coords, recipe.trust
    if settings.prior == "elastic":
        process = EDM(
            center=torch.from_numpy(coords).float(),
            sigma_max=ELASTIC_WIDTHS * trust.domains,
            churn=recipe.sampling.churn,
        )
        elastic = ElasticPrior(
            topology, coords, amplitude=trust.domains, residual=trust.local, process=process
        )
        return elastic, AllAtom(), np.arange(len(topology))
    prior = WholeChainPrior(topology, coords, trust=Trust(**trust.model_dump()), churn=recipe.sampling.churn)
    backbone = topology.backbone(prior.residues)
    return prior, CarriedAtoms(topology, coords, backbone, prior.atoms), prior.atoms


def batches(members: int, residues: int) -> list[range]:
    """Members that are sampled together, counted from 1."""
    size = max(1, TOGETHER // residues)
    return [range(first, min(first + size, members + 1)) for first in range(1, members + 1, size)]


def sampled(
    settings: StateSettings,
    inputs: StateInputs,
    problem: StateProblem,
    *,
    checkpoints: Checkpoints,
    tell: Progress,
) -> tuple[Float[Tensor, "k n 3"], list[dict[str, float]]]:
    """All atoms of all members, refined, and the trace of every objective; each batch is kept when done."""
    recipe, topology = inputs.recipe, problem.model.topology
    prior, completion, atoms = make_prior(settings, problem, recipe)
    stages = stages_of(recipe, terms_of(settings, problem, recipe), inputs.resolution)
    steps = settings.steps or recipe.sampling.steps
    together = batches(settings.members, len(topology.residues))
    if settings.ensemble:
        together = [range(1, settings.members + 1)]

    def finish(members: Tensor) -> Tensor:
        likelihood = fitted_to_best(problem.likelihood, members)
        groups = [members] if settings.ensemble else list(members[:, None])
        return torch.cat([refined(topology, x, likelihood, recipe.finish) for x in groups])

    with tell.steps("samples", steps * len(together)) as on_step:
        for index, batch in enumerate(together):
            name = f"members {batch[0]}-{batch[-1]}"
            if name in checkpoints.finished:
                continue
            members, trace = sample_members(
                prior,
                stages,
                completion,
                guide=name,
                passes=[Pass(steps)],
                backbone=atoms,
                finish=finish,
                score=None,
                members=len(batch),
                seed=settings.seed * 10_000 + batch[0],
                checkpoints=checkpoints,
                on_step=partial(_after, on_step, steps * index),
            )
            checkpoints.finish(name, {"atoms": members, "trace": trace})
    done = [checkpoints.finished[f"members {b[0]}-{b[-1]}"] for b in together]
    rows = [row | {"batch": i + 1} for i, d in enumerate(done) for row in d["trace"]]
    return torch.cat([d["atoms"] for d in done]), rows


def _after(on_step: Callable[[int], None], before: int, done: int) -> None:
    on_step(before + done)


def order_of(likelihood: StateLikelihood, members: Float[Tensor, "k n 3"]) -> list[int]:
    """Members by falling correlation with the map that was fitted."""
    with torch.no_grad():
        found = torch.cat([likelihood.correlation(x[None]) for x in members])
    return found.argsort(descending=True, stable=True).tolist()


def fitted_to_best(likelihood: StateLikelihood, members: Float[Tensor, "k n 3"]) -> StateLikelihood:
    """The likelihood with atoms as wide as suits the member that fits the map best."""
    return likelihood.fitted(members[order_of(likelihood, members)[0]])


def mixture_of(settings: StateSettings, judge: Judge, members: Float[Tensor, "k n 3"]) -> Mixture:
    """The members kept and their weights, by matching pursuit on the map that was fitted."""
    found = matching_pursuit(*judge.voxel_values(members), keep=settings.keep)
    return judge.mixture(members, found.members, found.weights)


def run_key(settings: StateSettings, inputs: StateInputs) -> str:
    """Identifies a run: a checkpoint is only good for the same inputs, settings and recipe."""
    what = [settings.record(), [f.model_dump() for f in inputs.files], inputs.recipe.model_dump()]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def map_record(inputs: StateInputs, prepared: PreparedMap, width: float) -> MapRecord:
    """The map as it was used, for ``result.json``."""
    return MapRecord(
        fitted_resolution=width,
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
    folder = prepare_output(out, force=force, resume=resume, own=OWN_STATE_FILES)
    checkpoints = Checkpoints(folder / "checkpoint.pt", run_key(settings, inputs))
    if resume:
        checkpoints.load()
    write_map(folder / MAP_FILE, problem.prepared.density)
    with clock("samples"):
        members, trace = sampled(settings, inputs, problem, checkpoints=checkpoints, tell=tell)
    with clock("evaluate"):
        tell.message("map fit")
        likelihood = fitted_to_best(problem.likelihood, members)
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
        map=map_record(inputs, problem.prepared, likelihood.resolution),
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
