"""Files to files: a model and a map, to the model placed in the map and a record of the poses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Field, JsonValue

from densemble.align.chains import chain_groups
from densemble.align.docking import COARSE, NAMES, SHAPE, STEP, Docking, Pose, dock
from densemble.errors import InputError, check_resolution
from densemble.grid import DensityMap
from densemble.io.maps import read_map
from densemble.io.models import Model, read_model
from densemble.io.output import InputFile, Record, check_output_file, versions, write_text
from densemble.io.results import forget_frame, write_structure
from densemble.progress import Progress
from densemble.report import table

SCHEMA: Literal["densemble.docking/1"] = "densemble.docking/1"


class PoseRecord(Record):
    """One pose; ``matrix`` has three rows (rotation, translation in Å): ``x -> matrix (x, 1)``."""

    matrix: list[list[float]]
    score: float
    correlation: float
    inside: float


class DockingRecord(Record):
    """The contents of the JSON file beside the placed model."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.docking/1"] = Field(default=SCHEMA, alias="schema")
    inputs: list[InputFile]
    settings: dict[str, JsonValue]
    seed: None = None
    """Nothing is random."""
    versions: dict[str, str]
    basis: Literal["detail", "shape"]
    agrees: bool
    clear: bool
    detail_score: float
    mirror_score: float
    wrong_hand: bool
    messages: list[str]
    poses: list[PoseRecord]


def shown(model: Model) -> Float[np.ndarray, " n"]:
    """How much of each atom a map shows: its occupancy; 0 for water, which maps seldom show."""
    topology = model.topology
    dry = np.array([topology.residues[r].kind != "water" for r in topology.residue_index])
    return model.occupancy * dry


def scattering(model: Model) -> Float[np.ndarray, " n"]:
    """Atomic number of each atom times how much of it a map shows."""
    numbers = np.array([gemmi.Element(e).atomic_number for e in model.topology.elements], dtype=float)
    return numbers * shown(model)


def dock_model(
    model: Model,
    density: DensityMap,
    *,
    resolution: float,
    level: float | None = None,
    source: str = NAMES[1],
    progress: Progress | None = None,
) -> Docking:
    """``dock`` of a model as read, with its atomic numbers, and copies of a chain interchangeable.

    Args:
        model: as read.
        density: the map.
        resolution: Å, of the map.
        level: contour of the map, for checks.
        source: what errors call the map: its file name.
        progress: what is told of it.

    Raises:
        InputError: they do not go together, see ``check_dockable``.
    """
    groups = chain_groups(model.topology)
    return dock(
        model.coords,
        scattering(model),
        density,
        resolution=resolution,
        level=level,
        groups=groups or None,
        names=(f"model {model.path}", source),
        progress=progress,
    )


def placed_structure(path: Path, pose: Pose) -> gemmi.Structure:
    """The first model of a file with everything in it, altlocs and hydrogens too, moved by a pose.

    ANISOU tensors turn along. What only held in the old frame is left out: cell, space group,
    symmetry operators and links to symmetry copies, assemblies, refinement records.
    """
    structure = gemmi.read_structure(str(path))
    del structure[1:]
    move = gemmi.Transform()
    move.mat.fromlist(pose.rotation.tolist())
    move.vec.fromlist(pose.translation.tolist())
    structure[0].transform_pos_and_adp(move)
    forget_frame(structure)
    structure.setup_entities()
    structure.assign_label_seq_id(structure.input_format == gemmi.CoorFormat.Pdb)
    return structure


def dock_files(
    model_path: Path,
    map_path: Path,
    *,
    resolution: float,
    level: float | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> DockingRecord:
    """Place a model in a map and write it, with a record of the poses beside it (``.json``).

    Args:
        model_path: mmCIF or PDB, anywhere in space.
        map_path: CCP4 or MRC.
        resolution: Å, of the map.
        level: contour of the map, for checks.
        out: file of the placed model, ``.cif`` or ``.pdb``; nothing is written if None.
        force: replace files that exist.
        progress: what is told of it.

    Raises:
        InputError: a file cannot be read, they do not go together (see ``check_dockable``), or the output
            exists or cannot be written.
    """
    tell = progress or Progress()
    check_resolution(resolution)
    if out is not None:
        for path in (out, out.with_suffix(".json")):
            check_output_file(path, force=force)
        if out.suffix.lower() not in (".cif", ".pdb"):
            raise InputError(f"{out}: give a name that ends in .cif or .pdb")
    model, density = read_model(model_path), read_map(map_path)
    for message in (*model.messages, *_coarse_voxels(density, resolution)):
        tell.warning(message)
    source = f"map {map_path}"
    docking = dock_model(model, density, resolution=resolution, level=level, source=source, progress=tell)
    record = _record(docking, [model_path, map_path], resolution=resolution, level=level)
    if out is not None:
        write_structure(out, placed_structure(model_path, docking.poses[0]))
        write_text(out.with_suffix(".json"), record.model_dump_json(by_alias=True, indent=2) + "\n")
    return record


def summary(record: DockingRecord) -> str:
    """The poses as a table, and what to know about them."""
    rows = [
        [str(k), f"{pose.score:.3f}", f"{pose.correlation:.3f}", f"{pose.inside:.0%}"]
        for k, pose in enumerate(record.poses, start=1)
    ]
    lines = table(["pose", "score", "correlation", "inside"], rows)
    lines.append(f"Mirror image: {record.mirror_score:.3f}, against {record.detail_score:.3f}.")
    verdict = "clearly better than the next" if record.clear else "NOT clearly better than the next"
    return "\n".join([*lines, f"The best pose is {verdict}.", *(f"Warning: {m}." for m in record.messages)])


def _coarse_voxels(density: DensityMap, resolution: float) -> list[str]:
    widest = max(density.grid.spacing)
    if resolution >= 2 * widest:
        return []
    return [
        f"Warning: a resolution of {resolution:g} Å is finer than twice the voxels of {widest:.3g} Å; "
        "is it right?"
    ]


def _record(docking: Docking, inputs: list[Path], **given: JsonValue) -> DockingRecord:
    settings = given | {"contour": docking.level, "step": STEP, "coarse": COARSE, "shape": SHAPE}
    return DockingRecord(
        inputs=[InputFile.of(path) for path in inputs],
        settings=settings,
        versions=versions(),
        basis=docking.basis,
        agrees=docking.agrees,
        clear=docking.clear,
        detail_score=docking.detail_score,
        mirror_score=docking.mirror_score,
        wrong_hand=docking.wrong_hand,
        messages=list(docking.messages),
        poses=[
            PoseRecord(
                matrix=np.column_stack([pose.rotation, pose.translation]).tolist(),
                score=pose.score,
                correlation=pose.correlation,
                inside=pose.inside,
            )
            for pose in docking.poses
        ],
    )
