"""Results out: the ensemble as one model with altlocs, its members, and ``result.json``.

Every file is written next to its final place and moved there when complete, so a killed run
leaves no half-written file behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import gemmi
import numpy as np
from pydantic import Field, model_validator

from densemble.atoms import Ensemble
from densemble.errors import InputError
from densemble.io.altlocs import build_structure
from densemble.io.model_results import FinalModel
from densemble.io.models import Model
from densemble.io.output import MAP_FILE, RESULT_FILE, TRACE_FILE, Record, RunRecord, write_record, write_text

SCHEMA: Literal["densemble.result/1"] = "densemble.result/1"

ENSEMBLE_FILE = "ensemble.cif"
MEMBERS_FOLDER = "members"


def member_file(number: int) -> str:
    """Of a member, in ``MEMBERS_FOLDER``."""
    return f"member_{number:02d}.cif"


OWN_FILES = (
    ENSEMBLE_FILE,
    MAP_FILE,
    RESULT_FILE,
    "checkpoint*.pt",
    TRACE_FILE,
    f"{MEMBERS_FOLDER}/member_*.cif",
)
"""What densemble writes into an output folder, and may replace there."""

_PDB_ATOMS = 99_999
_PDB_NUMBERS = (-999, 9999)
_PDB_NAME = 3


def forget_frame(structure: gemmi.Structure) -> None:
    """Remove what only held where a model was: cell, symmetry, assemblies, refinement records; in place.

    Links to symmetry copies go too. For models moved into the frame of a map.
    """
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(), ""
    structure.has_origx = False
    structure.ncs.clear()
    structure.assemblies.clear()
    structure.meta.refinement = []
    structure.raw_remarks = []
    structure.clear_conect()
    structure.connections = gemmi.ConnectionList(
        [link for link in structure.connections if link.asu != gemmi.Asu.Different]
    )


def write_structure(path: str | Path, structure: gemmi.Structure) -> Path:
    """Write a structure as mmCIF, or as PDB if the file's name ends in ``.pdb``.

    Raises:
        InputError: the structure does not fit the PDB format.
    """
    path = Path(path)
    if path.suffix.lower() == ".pdb":
        obstacle = pdb_obstacle(structure)
        if obstacle is not None:
            raise InputError(f"{path}: does not fit the PDB format ({obstacle}); write .cif instead")
        text = structure.make_pdb_string()
    else:
        # with the author's names of residues and atoms too, as wwPDB files have them
        groups = gemmi.MmcifOutputGroups(True, auth_all=True)
        text = structure.make_mmcif_document(groups).as_string()
    return write_text(path, text)


def pdb_obstacle(structure: gemmi.Structure) -> str | None:
    """What keeps a structure out of the PDB format (wwPDB 3.3), in words; None if it fits.

    Extensions that some programs know (hybrid-36 numbers, chains of two letters) do not count as fitting.
    """
    model = structure[0]
    terminations = len(model)  # TER records have serial numbers too
    if model.count_atom_sites() + terminations > _PDB_ATOMS:
        return f"{model.count_atom_sites()} atoms, where it numbers {_PDB_ATOMS}"
    for chain in model:
        if len(chain.name) != 1:
            return f"chain '{chain.name}', where it has room for one letter"
        for residue in chain:
            if not _PDB_NUMBERS[0] <= int(residue.seqid.num or 0) <= _PDB_NUMBERS[1]:
                return f"residue number {residue.seqid.num}, where it has room for four characters"
            if len(residue.name) > _PDB_NAME:
                return f"residue name {residue.name}, where it has room for {_PDB_NAME} letters"
    return None


def write_ensemble(directory: str | Path, model: Model, ensemble: Ensemble, region_atoms: np.ndarray) -> Path:
    """Write ``ensemble.cif``; see ``build_structure``."""
    return write_structure(Path(directory) / ENSEMBLE_FILE, build_structure(model, ensemble, region_atoms))


def write_members(
    directory: str | Path,
    model: Model,
    ensemble: Ensemble,
    region_atoms: np.ndarray,
    *,
    ids: Sequence[int] | None = None,
) -> list[Path]:
    """Write each member as a whole model of its own, ``members/member_01.cif`` and so on.

    Args:
        directory: the output folder.
        model: what was read.
        ensemble: K members, whatever their weights.
        region_atoms: as for ``build_structure``.
        ids: numbers of the members, as in ``result.json``; 1 to K if None.
    """
    folder = Path(directory) / MEMBERS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(1, len(ensemble) + 1) if ids is None else ids
    paths = []
    for k, number in zip(range(len(ensemble)), numbers, strict=True):
        alone = ensemble.select([k], weights=ensemble.weights.new_ones(1))
        structure = build_structure(model, alone, region_atoms)
        paths.append(write_structure(folder / member_file(number), structure))
    return paths


Subject = Literal["start", "ensemble", "none", "each"]
"""What a metric is of: the start, the resulting ensemble, or runs with ``guide`` none or each."""


class Metrics(Record):
    """Agreement with the map: RSCC and cosine of each subject, over the voxels described."""

    voxels: str
    rscc: dict[Subject, float]
    cosine: dict[Subject, float]

    @model_validator(mode="after")
    def _same_subjects(self) -> Metrics:
        if not {"start", "ensemble"} <= self.rscc.keys() == self.cosine.keys():
            raise ValueError("rscc and cosine need the same keys, start and ensemble among them")
        return self


class RFactor(Record):
    """R-work and R-free, as fractions."""

    r_work: float
    r_free: float


class RFactors(Record):
    """R factors of the start, the resulting ensemble and other guides' ensembles, on the same reflections."""

    start: RFactor
    ensemble: RFactor
    none: RFactor | None = None
    each: RFactor | None = None


class Member(Record):
    """One sampled member; RMSD in Å and bimodality are there when reference states were given."""

    id: Annotated[int, Field(ge=0)]
    selected: bool
    weight: Annotated[float, Field(ge=0)]
    rscc: float
    bimodality: float | None = None
    rmsd: dict[str, float] | None = None


class Result(RunRecord):
    """The contents of ``result.json``; ``model_failure`` says why a model that was asked for is not there."""

    schema_: Literal["densemble.result/1"] = Field(default=SCHEMA, alias="schema")
    region: str
    metrics: Metrics
    r_factors: RFactors | None = None
    members: list[Member]
    model: FinalModel | None = None
    model_failure: str | None = None


def write_result_json(path: str | Path, result: Result) -> Path:
    """Write ``result.json``."""
    return write_record(path, result)
