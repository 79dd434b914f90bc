"""From sampled members to the final model of a region: states, altlocs, refinement, validation."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import BACKBONE, Ensemble, Topology
from densemble.evaluation import ensemble_density, residue_rows, start_ensemble
from densemble.inputs import Inputs
from densemble.io.altlocs import letters_of
from densemble.io.model_results import (
    ALTERNATIVE_FILE,
    MODEL_FILE,
    FinalModel,
    Interval,
    Part,
    State,
    States,
    Validation,
)
from densemble.io.output import write_text
from densemble.io.reflections import Reflections
from densemble.io.state_results import RESIDUES_FILE, write_residues
from densemble.metrics.coordinates import rmsd
from densemble.metrics.validation import name_of, validate_structure
from densemble.part_search import Counting
from densemble.problem import CrystalProblem, RegionProblem, Stretches
from densemble.progress import Progress
from densemble.refinement import programs
from densemble.refinement.built import BuiltModel
from densemble.refinement.programs import PDB_FILE, PHENIX_FILE, REFMAC_FILE
from densemble.refinement.refine import compare
from densemble.refinement.split import sources
from densemble.refinement.waters import Displaced
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.selection.intervals import bootstrap, widened
from densemble.selection.judge import Judge
from densemble.states import find_states, same_within

FAILURE_FILE = "model.log"
"""Where a final model failed, line by line."""
OWN_MODEL_FILES = (
    MODEL_FILE,
    PDB_FILE,
    ALTERNATIVE_FILE,
    ALTERNATIVE_FILE.replace(".cif", ".pdb"),
    PHENIX_FILE,
    REFMAC_FILE,
    RESIDUES_FILE,
    FAILURE_FILE,
)
"""What a final model adds to the folder of a run, and may replace there."""
MOST_NAMED = 5
"""Held residues that clash with the model, at most."""


@dataclass(frozen=True, eq=False)
class Modelled:
    """The final model.

    Attributes:
        record: for ``result.json``.
        start: one state, refined.
        built: the model, refined alike; what states share stands once in its parts.
    """

    record: FinalModel
    start: BuiltModel
    built: BuiltModel


def final_model(
    inputs: Inputs,
    problem: CrystalProblem,
    judge: AmplitudeJudge,
    members: Float[Tensor, "k n 3"],
    *,
    cycles: int,
    references: dict[str, np.ndarray],
    tell: Progress,
) -> Modelled:
    """The final model of a crystal's region: ``model_of_states`` by its amplitudes."""
    reflections = inputs.reflections
    return model_of_states(
        problem,
        members,
        judge,
        resolution=reflections.d_min,
        reflections=reflections,
        counting=Counting(),
        cycles=cycles,
        references=references,
        tell=tell,
    )


def model_of_states(
    problem: RegionProblem,
    members: Float[Tensor, "k n 3"],
    judge: Judge,
    *,
    resolution: float,
    reflections: Reflections | None,
    counting: Counting,
    cycles: int,
    references: dict[str, np.ndarray],
    tell: Progress,
) -> Modelled:
    """How many states the members and the data make, and a model of them, refined as the start is.

    Args:
        problem: the density of the region.
        members: Å, those sampled, without the start, shape=(K, N, 3).
        judge: the data by which states are counted.
        resolution: Å, of the data.
        reflections: amplitudes to refine against; the region's density if None.
        counting: how states are counted.
        cycles: of refinement.
        references: coordinates of known states, each shape=(N, 3); evaluation only.
        tell: told what was found.
    """
    stretches, same = problem.stretches, same_within(resolution)
    pool = torch.cat([stretches.start[None], members])
    states, found = find_states(problem, pool, judge, same=same, counting=counting, on_step=tell.message)
    tell.message(f"refining the start and the model of states, {cycles} cycles each")
    first, built, refinement = compare(
        problem,
        [start_ensemble(problem)],
        found,
        coordinate_error=same,
        reflections=reflections,
        cycles=cycles,
    )
    for name, waters in (("start", first.displaced), ("model of states", built.displaced)):
        _tell_displaced(name, waters, tell)
    validation, clashes = validated(first, built, stretches)
    record = FinalModel(
        states=restated(states, found, built.parts, judge, stretches.topology, references),
        refinement=refinement,
        validation=validation,
        waters_displaced=[str(water) for water in built.displaced.removed],
        waters_partial=[str(water) for water in built.displaced.partial],
        clashes_with_held=clashes,
    )
    return Modelled(record, first, built)


def validated(
    first: BuiltModel, built: BuiltModel, stretches: Stretches
) -> tuple[dict[str, Validation], list[str]]:
    """Figures of the start and of the model; and the held residues that clash with the model's region only.

    What is held stands as it did beside the one state of the start. Where it is in the way of another state
    it may have another conformation itself, as side chains around a loop often have.
    """
    start, model = (validate_structure(each.structure, region=stretches.region) for each in (first, built))
    known = {name_of(residue) for residue in stretches.topology.residues} | set(start.outside)
    clashes = [name for name in model.outside if name not in known]
    return {"start": start.totals, "model": model.totals}, clashes[:MOST_NAMED]


def _tell_displaced(name: str, waters: Displaced, tell: Progress) -> None:
    """Say which waters made room."""
    for what, which in (
        ("removed, too near to all states", waters.removed),
        ("in some states only, too near to the others", waters.partial),
    ):
        if which:
            tell.message(f"waters of the {name} {what}: {', '.join(map(str, which))}")


def restated(
    states: States,
    found: Sequence[Ensemble],
    refined: Sequence[Ensemble],
    judge: Judge,
    topology: Topology,
    references: dict[str, np.ndarray],
) -> States:
    """The record of states with the letters and occupancies that they have after refinement.

    Intervals are drawn anew, with the refined states. States that refinement has brought together are one.

    Args:
        states: as found.
        found: the ensembles that go with its parts, and perhaps more.
        refined: those that ``refinement.refine`` made of them.
        judge: the data.
        topology: the region's N atoms.
        references: coordinates of known states, each shape=(N, 3).
    """
    atoms = [topology.places_of(part.topology) for part in refined]
    signals = np.concatenate(
        [
            judge.signals(own, part.coords.double().numpy(), part.b_iso.double().numpy())
            for own, part in zip(atoms, refined, strict=True)
        ]
    )
    weights = torch.cat([part.weights for part in refined]).double().numpy()
    groups = np.repeat(np.arange(len(refined)), [len(part) for part in refined])
    blocks = judge.blocks(signals, weights)
    moved = weights - blocks.shares(groups)  # by refinement of all else
    low, high = widened(weights, *(ends + moved for ends in bootstrap(blocks, groups)))
    parts = []
    for part, before in zip(states.parts, found, strict=False):
        own = {residue.id for residue in before.topology.residues}
        several = [
            i for i, e in enumerate(refined) if len(e) > 1 and {r.id for r in e.topology.residues} <= own
        ]
        if len(part.states) < 2 or not several:
            members = [m for state in part.states for m in state.members]
            parts.append(
                part.model_copy(update={"states": [State(label="", occupancy=1.0, members=members)]})
            )
            continue
        i = several[0]
        rows = np.flatnonzero(groups == i)
        ends = [Interval(low=float(low[r]), high=float(high[r])) for r in rows]
        distances = _to_references(refined[i], atoms[i], references)
        parts.append(part.model_copy(update={"states": _matched(part, before, refined[i], ends, distances)}))
    return states.model_copy(update={"parts": parts})


def _matched(
    part: Part, before: Ensemble, after: Ensemble, ends: list[Interval], distances: list[dict[str, float]]
) -> list[State]:
    """The states of a part after refinement, each with the members of the one that it was before."""
    source = sources(after, before)
    return [
        State(
            label=letter,
            occupancy=float(weight),
            interval=ends[k],
            members=part.states[source[k]].members,
            rmsd=distances[k] or None,
        )
        for k, (letter, weight) in enumerate(zip(letters_of(after), after.weights.double(), strict=True))
    ]


def _to_references(
    part: Ensemble, atoms: np.ndarray, references: dict[str, np.ndarray]
) -> list[dict[str, float]]:
    """Å, backbone RMSD in place of each state of a part to each reference that has all of it."""
    backbone = np.isin(part.topology.names, BACKBONE)
    coords = part.coords.double().numpy()[:, backbone]
    known = {name: x[atoms[backbone]] for name, x in references.items()}
    to = {name: rmsd(coords, x) for name, x in known.items() if len(x) and np.isfinite(x).all()}
    return [{name: float(values[k]) for name, values in to.items()} for k in range(len(part))]


def write_model(
    folder: Path, problem: CrystalProblem, ensemble: Ensemble, modelled: Modelled, *, tell: Progress
) -> None:
    """The final model of a crystal's region, where it fits as PDB too, and what goes on from it.

    ``model.cif`` and ``model.pdb``, parameters for phenix.refine and REFMAC5, and ``residues.csv``.
    """
    write_files(folder, modelled, amplitudes=True, tell=tell)
    write_residues(folder / RESIDUES_FILE, model_rows(problem, ensemble, modelled))


def write_files(folder: Path, modelled: Modelled, *, amplitudes: bool, tell: Progress) -> None:
    """The model that is advised, what it was compared with, and parameters to go on with.

    Where the states are not supported (``Part.supported_by``), what is advised is the start, refined alike.
    Of one state there is nothing else. See ``refinement.programs.write_model``.
    """
    record = modelled.record
    models = {MODEL_FILE: modelled.built if record.advised else modelled.start}
    if record.several:
        models[ALTERNATIVE_FILE] = modelled.start if record.advised else modelled.built
    obstacles = {}
    for file, each in models.items():
        _, obstacles[file] = programs.write_model(
            folder, each.structure, each.displaced, each.parts, file=file, amplitudes=amplitudes
        )
    if (obstacle := obstacles[MODEL_FILE]) is not None:
        tell.warning(f"no {PDB_FILE}: the model does not fit the PDB format ({obstacle}); use {MODEL_FILE}")


def model_rows(
    problem: RegionProblem, ensemble: Ensemble, modelled: Modelled
) -> list[dict[str, str | float]]:
    """The fit of each residue of a region in the start, the ensemble and the model; see ``residue_rows``."""
    start, built = start_ensemble(problem), modelled.built
    densities = {
        "start": ensemble_density(problem.forward, start),
        "ensemble": ensemble_density(problem.forward, ensemble),
        "model": built.density,
    }
    coords = torch.cat([start.coords, ensemble.coords[ensemble.weights > 0], built.coords])
    return residue_rows(problem, densities, coords)


def made_or_failure(
    folder: Path, make: Callable[[], Modelled], *, tell: Progress
) -> tuple[Modelled | None, str | None]:
    """A model and its files; where that fails, why, in words, the traceback in a file, and no files of it.

    The hours of sampling before it are not lost: the ensemble stands without a model.

    Args:
        folder: of the run.
        make: makes it and writes its files there.
        tell: told why.
    """
    try:
        return make(), None
    except Exception as error:  # whatever it is
        for name in OWN_MODEL_FILES:
            (folder / name).unlink(missing_ok=True)
        write_text(folder / FAILURE_FILE, traceback.format_exc())
        why = f"{type(error).__name__}: {error}"
        tell.warning(f"No final model was made ({why}); see {FAILURE_FILE}. The ensemble stands without it.")
        return None, why
