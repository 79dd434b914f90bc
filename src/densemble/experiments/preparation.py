"""From a job to a run: files found, sites checked, maps drawn (once a case), settings made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densemble.atoms import Region
from densemble.em.inputs import StateSettings
from densemble.errors import InputError
from densemble.experiments.crystals import simulate_crystal
from densemble.experiments.drawing import cut_zone, draw_map
from densemble.experiments.files import Files
from densemble.experiments.folded import fold_case, protein_chains, read_structure
from densemble.experiments.jobs import Job
from densemble.experiments.pairs import common, moved_at_random, with_side_chains
from densemble.inputs import Settings
from densemble.io.maps import read_map, write_map
from densemble.io.models import Model, read_model, require_cell
from densemble.io.output import write_text
from densemble.io.reflections import check_same_crystal, read_reflections
from densemble.priors.fold import FoldSettings
from densemble.recipes.state import load_state_recipe
from densemble.recipes.writing import toml_text
from densemble.suites import Crystal, Drawn, Keep, Map, Simulated, Variant
from densemble.suites.sites import find_site

_CRYSTAL, _STATE, _FOLD = ("embedded", "gaussian", "chroma"), ("embedded", "elastic"), ("boltz1", "boltz2")


@dataclass(frozen=True)
class Task:
    """A run that can begin.

    Attributes:
        job: which.
        settings: of the run.
        folder: run directory.
        reference: for evaluation.
        local: residues over which the distance from it is stated too.
        residues: of a crystal, in the author's numbers, and how they were found.
    """

    job: Job
    settings: Settings | StateSettings
    folder: Path
    reference: Path | None
    local: str | None = None
    residues: str = ""


def prepare(job: Job, files: Files, out: Path) -> Task:
    """Make a job ready to run.

    Raises:
        InputError: a file is not there, or the case or variant cannot be run, and why.
    """
    if isinstance(job.case, Crystal):
        return _crystal(job, job.case, files, out)
    return _map(job, job.case, files, out)


def _crystal(job: Job, case: Crystal, files: Files, out: Path) -> Task:
    variant = job.variant
    _check_prior(variant, _CRYSTAL)
    path = files.find(case.model)
    model = read_model(path, altloc=case.start_altloc)
    located = find_site(case.site, model.topology)
    region = located.region
    reference: Path | None
    if isinstance(case.data, Simulated):
        data, reference = _simulated(case, case.data, files, inputs_folder(job, out), model, region)
    else:
        data = files.find(case.data)
        reference = None if case.reference is None else files.find(case.reference)
    settings = Settings(
        model=path,
        data=data,
        region=region,
        start_altloc=case.start_altloc,
        members=variant.members,
        keep=variant.keep,
        guides=(variant.guide,),
        map=variant.map or case.map,
        seed=job.seed,
        steps=variant.steps,
        prior=variant.prior,  # type: ignore[arg-type]
        recipe=variant.recipe,
    )
    return Task(
        job, settings, job.folder(out), reference, residues=f"{region} {located.sequence}, {located.how}"
    )


def inputs_folder(job: Job, out: Path) -> Path:
    """Where what is made for a case is kept; emptied when it was made for another case, or version."""
    folder = out / "inputs" / job.case.id
    case_file, now = folder / "case.json", json.dumps(job.case_facts, sort_keys=True)
    if folder.is_dir() and not (case_file.is_file() and case_file.read_text(encoding="utf-8") == now):
        shutil.rmtree(folder)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_text(case_file, now)
    return folder


def _simulated(
    case: Crystal, how: Simulated, files: Files, folder: Path, model: Model, region: str
) -> tuple[Path, Path]:
    """Data and their truth, made once a case."""
    truth, data = folder / "truth.cif", folder / "data.mtz"
    real = files.find(how.like)
    states = None if how.states is None else files.find(how.states)
    if not data.is_file():  # it is written last
        require_cell(model)
        reflections = read_reflections(real)
        check_same_crystal(model.structure, reflections, name=str(model.path))
        simulate_crystal(
            model,
            reflections,
            Region.parse(region),
            occupancies=how.occupancies,
            states=states,
            apart=how.apart,
            d_min=how.resolution,
            seed=how.seed,
            truth=truth,
            data=data,
        )
    return data, truth


def _map(job: Job, case: Map, files: Files, out: Path) -> Task:
    variant = job.variant
    _check_prior(variant, _STATE + _FOLD)
    folder = inputs_folder(job, out)
    folds = variant.prior in _FOLD
    if folds and case.sequence is None:
        raise InputError(f"{variant.prior} folds, and the case has no sequence")
    if not folds and case.model is None:
        raise InputError(f"{variant.prior} needs a model to start from, and the case has none")
    reference = None if case.reference is None else files.find(case.reference)
    start = None if folds or case.model is None else files.find(case.model)
    if case.backbones:
        start, reference = _pair(case, files, folder)
    density = _density(case, files, folder, reference)
    fold, local = None, case.local
    if case.sequence is not None:
        folded = fold_case(
            files.find(case.sequence),
            reference,
            folder,
            start=None if folds else start,
            keep=_keep(case),
            local=case.local,
            alignments=[files.find(name) for name in case.alignments],
        )
        start, reference, local = folded.start, folded.reference, folded.local
        if folds:
            fold = FoldSettings(
                prior=variant.prior,  # type: ignore[arg-type]
                sequence=folded.sequences,
                step_scale=case.step_scale,
            )
    settings = StateSettings(
        map=density,
        model=start,
        resolution=case.resolution,
        members=variant.members,
        keep=variant.keep,
        fold=fold,
        recipe=recipe_with(variant.recipe, variant.stages, folder),
        forward=variant.forward or case.forward,
        steps=variant.steps,
        seed=job.seed,
        **({} if folds else {"prior": variant.prior}),  # type: ignore[arg-type]
    )
    return Task(job, settings, job.folder(out), reference, local)


def _keep(case: Map) -> Keep:
    """Which part of a model a case is about."""
    return case.map.keep if isinstance(case.map, Drawn) else "protein"


def _check_prior(variant: Variant, known: Sequence[str]) -> None:
    if variant.prior not in known:
        raise InputError(f"prior {variant.prior} is not for this kind of case; one of {', '.join(known)} is")


def _density(case: Map, files: Files, folder: Path, reference: Path | None) -> Path:
    """The map as it is fitted."""
    if isinstance(case.map, Drawn):
        path = folder / "map.ccp4"
        if not path.is_file():
            drawn = reference if case.backbones else None
            model = read_model(drawn or files.find(case.map.model))
            draw_map(
                _kept(model, case.map.keep),
                path,
                resolution=case.map.resolution,
                voxel=case.map.voxel,
                box=case.map.box,
                noise=case.map.noise,
            )
        return path
    deposited = files.find(case.map)
    if case.zone is None:
        return deposited
    path = folder / "zone.ccp4"
    if not path.is_file():
        zone = read_model(files.find(case.zone))
        cut = cut_zone(read_map(deposited), zone, radius=case.zone_radius, padding=case.padding)
        write_map(path, cut)
    return path


def _kept(model: Model, keep: Keep) -> Model:
    """The part of a model that a map is drawn of."""
    chains = None if keep != "fab" else protein_chains(read_structure(model.path), keep)
    residues = model.topology.residues
    return model.only(
        [
            r
            for r, residue in enumerate(residues)
            if keep == "all" or (residue.kind == "protein" and (chains is None or residue.id.chain in chains))
        ]
    )


def _pair(case: Map, files: Files, folder: Path) -> tuple[Path, Path]:
    """Start, in a random pose, and answer of a case whose models are backbones."""
    start, answer = folder / "start.cif", folder / "answer.cif"
    if not start.is_file():
        assert case.model is not None
        assert case.reference is not None
        first, second = common(*(read_model(files.find(name)) for name in (case.model, case.reference)))
        with_side_chains(second, answer, 2)
        moved_at_random(with_side_chains(first, folder / "first.cif", 1), start, 0)
    return start, answer


def recipe_with(name: str, stages: Sequence[str] | None, folder: Path) -> str:
    """A recipe for maps with some of its stages only, as a file; its name if it is to have them all."""
    if stages is None:
        return name
    values = load_state_recipe(name).model_dump(mode="json", exclude_none=True)
    values["stages"] = [stage for stage in values["stages"] if stage["term"] in stages]
    path = folder / f"{name}-{'-'.join(stages) or 'unguided'}.toml"
    return str(write_text(path, toml_text(values)))
