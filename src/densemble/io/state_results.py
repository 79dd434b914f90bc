"""Results of a fit to a cryo-EM map: models, the best one, and ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import gemmi
import numpy as np
from jaxtyping import Float
from pydantic import Field

from densemble.io.model_results import FinalModel
from densemble.io.models import Model
from densemble.io.output import (
    MAP_FILE,
    RESULT_FILE,
    TRACE_FILE,
    InputFile,
    Record,
    RunRecord,
    write_record,
    write_text,
)
from densemble.io.results import (
    ENSEMBLE_FILE,
    MEMBERS_FOLDER,
    Member,
    Metrics,
    Subject,
    forget_frame,
    write_structure,
)

SCHEMA: Literal["densemble.cryoem/1"] = "densemble.cryoem/1"

BEST_FILE = "best.cif"
MODELS_FILE = "models.cif"
START_FILE = "start.cif"
RESIDUES_FILE = "residues.csv"
OWN_STATE_FILES = (
    BEST_FILE,
    MODELS_FILE,
    START_FILE,
    RESIDUES_FILE,
    MAP_FILE,
    TRACE_FILE,
    RESULT_FILE,
    ENSEMBLE_FILE,
    f"{MEMBERS_FOLDER}/member_*.cif",
    "checkpoint.pt",
)
"""What ``densemble cryoem`` writes into an output folder, and may replace there."""


class MapRecord(Record):
    """The map as it was used. Lengths in Å, level and noise in the unit of the map.

    ``forward`` says how atoms were drawn in the sharp map, and ``fitted`` how wide for the best model: the
    resolution of ``molmap`` in Å, or the B factor with ``electron`` in Å^2 (``forward.cryoem.AtomForm``).
    ``mask`` says which voxels were compared.
    """

    resolution: float
    resolution_source: str
    forward: str
    fitted: float
    mask: str
    level: float
    rule: str
    volume: float
    noise: float
    box: list[int]
    spacing: list[float]


class Placement(Record):
    """How the start came into the map: ``x -> rotation x + translation``, and the docking score."""

    docked: bool
    rotation: list[list[float]]
    translation: list[float]
    score: float | None = None
    clear: bool | None = None


class Fit(Record):
    """How well a model agrees with the map, with atoms as wide as suits that model best.

    Attributes:
        correlation: over the mask; by it members are ranked.
        rscc: over the voxels within 2 Å of the model's atoms.
        held_out_rscc: the same in the half map that was not used.
        q_score: mean over atoms.
        fsc_05: Å where the Fourier shell correlation of map and model falls below 0.5.
    """

    correlation: float
    rscc: float
    held_out_rscc: float | None = None
    q_score: float
    fsc_05: float | None = None


class Geometry(Record):
    """Stereochemistry of the protein; see ``densemble.geometry.validation.GeometryReport``.

    Which residues are bonded is taken from the start. None where there is nothing to judge.
    """

    bond_rmsz: float | None
    angle_rmsz: float | None
    favoured: int
    allowed: int
    outliers: int
    cis: int
    twisted: int
    wrong_hand: int
    clashes: int


class Distance(Record):
    """From the reference, in Å, for evaluation only.

    Chains of the same sequence are exchanged where that is nearer. After superposition of the CA atoms, but
    for ``ca_rmsd_in_place``, which pose and conformation make up together. The TM-score is normalised by
    the CA atoms of the whole reference. ``local_rmsd`` is that of the backbone of the result's
    ``selection``, after superposition on all other CA atoms; ``local_ca_rmsd`` that of its CA atoms after
    superposition on all CA atoms, these too (as paper 2 has it).
    """

    ca_rmsd: float
    ca_rmsd_in_place: float
    all_atom_rmsd: float
    tm_score: float
    local_rmsd: float | None = None
    local_ca_rmsd: float | None = None


class StateMember(Record):
    """One sampled model: its number in ``models.cif``, best first, and the order in which it was sampled.

    ``confidence`` is that of a network that folds, by its own names; models are not ranked by it.
    """

    model: Annotated[int, Field(ge=1)]
    sample: Annotated[int, Field(ge=1)]
    fit: Fit
    confidence: dict[str, float] | None = None
    geometry: Geometry
    reference: Distance | None = None


class Mixture(Record):
    """Members that together explain the map.

    Attributes:
        members: their numbers in ``models.cif``, in the order in which they were picked.
        weights: occupancies, summing to one.
        correlation: of the map that was fitted with their summed density, over the mask.
        held_out: the same with the half map that was not used.
        best_alone: correlation of the one member that fits best.
        best_alone_held_out: the same with the half map that was not used.
    """

    members: list[int]
    weights: list[float]
    correlation: float
    held_out: float | None = None
    best_alone: float
    best_alone_held_out: float | None = None


class RegionRecord(Record):
    """A flexible region, as an ensemble of conformations beside the one state of the rest.

    Attributes:
        region: its stretches.
        metrics: of the state that is held (``start``: the best model, or the docked start where that fits
            better) and of the ensemble, with the map less all that stays.
        held_out: RSCC of the same, over the same voxels, in the half map that was not used.
        b_around: Å^2, B factor of the atoms around the region. Of ``molmap``, that of a point that spreads
            as far as its Gaussians do.
        b_iso: Å^2, of the region's.
        members: all that were sampled; distances are in place, chains are not exchanged.
        model: of as many states as the map supports; None where it was not asked for or could not be made.
        model_failure: why a model that was asked for is not there.
    """

    region: str
    metrics: Metrics
    held_out: dict[Subject, float] | None = None
    b_around: float
    b_iso: float
    members: list[Member]
    model: FinalModel | None = None
    model_failure: str | None = None


class FoldRecord(Record):
    """What a network that folds was made of; part of a run's identity.

    Attributes:
        prior: which network.
        weights: the checkpoint that was loaded.
        input: SHA-256 in hexadecimal of its features: of sequences, ligands, alignments and templates.
        recycling: rounds of the trunk after the first.
        step_scale: of the sampler, also where it is the network's own.
        potentials: whether the network's own potentials were applied.
    """

    prior: str
    weights: InputFile
    input: str
    recycling: int
    step_scale: float
    potentials: bool


class StateResult(RunRecord):
    """The contents of ``result.json`` of ``densemble cryoem``.

    ``selection`` names the residues that each ``local_rmsd`` is over. Like the reference itself it is
    evaluation only, and no part of a run's identity.
    """

    schema_: Literal["densemble.cryoem/1"] = Field(default=SCHEMA, alias="schema")
    messages: list[str]
    map: MapRecord
    placement: Placement
    fold: FoldRecord | None = None
    start: Fit
    start_reference: Distance | None = None
    selection: str | None = None
    reference_fit: Fit | None = None
    ensemble: Mixture | None = None
    region: RegionRecord | None = None
    members: list[StateMember]

    @property
    def best(self) -> StateMember:
        """The first model."""
        return self.members[0]


def write_state_result(folder: Path, result: StateResult) -> Path:
    """Write ``result.json``."""
    return write_record(folder / RESULT_FILE, result)


def models_structure(
    model: Model,
    members: Sequence[Float[np.ndarray, "n 3"]],
    *,
    b_iso: Sequence[Float[np.ndarray, " n"]] | None = None,
) -> gemmi.Structure:
    """The start with new coordinates, one model of the file for each member, in the frame of the map.

    Unit cell, refinement statistics and anisotropic B factors are left out: they describe the start.

    Args:
        model: the start.
        members: Å, the same atoms in the same order.
        b_iso: Å^2 or whatever the B column is to hold, for each member; as in the start if None.
    """
    structure = model.structure.clone()
    forget_frame(structure)
    first = structure[0].clone()
    del structure[0]
    for k, coords in enumerate(members):
        added = structure.add_model(first)
        column = model.b_iso if b_iso is None else b_iso[k]
        atoms = (atom for chain in added for residue in chain for atom in residue)
        for atom, position, value in zip(atoms, coords, column, strict=True):
            atom.pos, atom.b_iso = gemmi.Position(*position.tolist()), float(value)
            atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    structure.renumber_models()
    structure.assign_serial_numbers()
    return structure


def write_models(
    path: Path,
    model: Model,
    members: Sequence[Float[np.ndarray, "n 3"]],
    *,
    b_iso: Sequence[Float[np.ndarray, " n"]] | None = None,
) -> Path:
    """Write members as the models of one file; see ``models_structure``."""
    return write_structure(path, models_structure(model, members, b_iso=b_iso))


def write_residues(path: Path, rows: Sequence[dict[str, str | float]]) -> Path:
    """Write one line for each residue as CSV; empty where there is no figure."""
    lines = [",".join(rows[0])]
    for row in rows:
        cells = [v if isinstance(v, str) else ("" if np.isnan(v) else f"{v:.4f}") for v in row.values()]
        lines.append(",".join(cells))
    return write_text(path, "\n".join(lines) + "\n")
