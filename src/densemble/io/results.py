"""Results out: the ensemble as one model with altlocs, its members, and ``result.json``.

Every file is written next to its final place and moved there when complete, so a killed run
leaves no half-written file behind.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import gemmi
import numpy as np
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from densemble.atoms import Ensemble, ResidueId
from densemble.errors import InputError
from densemble.io.model_results import FinalModel
from densemble.io.models import NO_ALTLOC, Model
from densemble.io.output import MAP_FILE, RESULT_FILE, TRACE_FILE, Record, RunRecord, write_record, write_text

SCHEMA: Literal["densemble.result/1"] = "densemble.result/1"

ENSEMBLE_FILE = "ensemble.cif"
MEMBERS_FOLDER = "members"
OWN_FILES = (
    ENSEMBLE_FILE,
    MAP_FILE,
    RESULT_FILE,
    "checkpoint.pt",
    TRACE_FILE,
    f"{MEMBERS_FOLDER}/member_*.cif",
)
"""What densemble writes into an output folder, and may replace there."""

_LETTERS = string.ascii_uppercase
_CENTS = 100  # PDB files have two decimals for the occupancy; mmCIF is written with the same


def occupancies(weights: Float[Tensor, " k"]) -> Float[np.ndarray, " k"]:
    """Weights normalised and rounded to hundredths whose sum is exactly 1.

    The hundredths left after rounding down go to the largest remainders (Hamilton's method of
    apportionment). A weight under a hundredth of the sum may so become zero.

    Raises:
        ValueError: no weight is above zero.
    """
    w = weights.detach().cpu().double().numpy()
    if not (np.isfinite(w).all() and w.sum() > 0):
        raise ValueError("occupancies: at least one weight must be above zero, and all must be numbers")
    share = w / w.sum() * _CENTS
    cents = np.floor(share).astype(int)
    for i in np.argsort(cents - share, kind="stable")[: _CENTS - cents.sum()]:
        cents[i] += 1
    return cents / _CENTS


def build_structure(model: Model, ensemble: Ensemble, region_atoms: np.ndarray) -> gemmi.Structure:
    """The model with some of its atoms replaced by an ensemble, as altlocs A, B, C, ...

    Everything else (other atoms, cell, entities, links) is as in the model. Refinement statistics
    are left out: they describe the model as it was. A single member has no altloc letter and full
    occupancy. Coordinates are rounded to 0.001 Å and B factors to 0.01 Å^2, as in the file.

    Args:
        model: what was read.
        ensemble: members whose ``occupancies`` are above zero are written. Its atoms are matched with the
            model's by residue and atom name; they may include atoms that the model lacks.
        region_atoms: indices into ``model.topology`` of the atoms that the ensemble replaces;
            those that the ensemble does not have are removed.

    Raises:
        ValueError: the ensemble has a residue that the region has not, or an atom that the model
            has outside ``region_atoms``; there are more than 26 members.
    """
    occupancy = occupancies(ensemble.weights)
    members = np.flatnonzero(occupancy > 0).tolist()
    if len(members) > len(_LETTERS):
        raise ValueError(f"build_structure: {len(members)} members, but altlocs have {len(_LETTERS)} letters")
    letters = list(_LETTERS[: len(members)]) if len(members) > 1 else [NO_ALTLOC]
    by_residue = _match(model, ensemble, region_atoms)
    structure = model.structure.clone()
    replaced = set(region_atoms.tolist())
    conformers = _Conformers(ensemble, members, occupancy, letters)
    start = 0
    residues = (residue for chain in structure[0] for residue in chain)
    for r, residue in enumerate(residues):
        n = len(residue)
        if r in by_residue:
            conformers.replace(residue, [i for i in range(n) if start + i in replaced], by_residue[r])
        start += n
    _update_links(structure, {model.topology.residues[r].id for r in by_residue}, letters)
    structure.meta.refinement = []
    structure.raw_remarks = []
    structure.clear_conect()
    structure.assign_serial_numbers()
    return structure


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
        try:
            text = structure.make_pdb_string()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: does not fit the PDB format ({error}); write .cif instead") from error
    else:
        text = structure.make_mmcif_document().as_string()
    return write_text(path, text)


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
        paths.append(write_structure(folder / f"member_{number:02d}.cif", structure))
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
    """The contents of ``result.json``."""

    schema_: Literal["densemble.result/1"] = Field(default=SCHEMA, alias="schema")
    region: str
    metrics: Metrics
    r_factors: RFactors | None = None
    members: list[Member]
    model: FinalModel | None = None


def write_result_json(path: str | Path, result: Result) -> Path:
    """Write ``result.json``."""
    return write_record(path, result)


def read_result_json(path: str | Path) -> Result:
    """Read ``result.json`` back.

    Raises:
        InputError: there is no such file, or it does not follow the schema.
    """
    try:
        return Result.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"result {path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"result {path}: does not follow {SCHEMA}: {where}: {first['msg']}") from error


def _match(model: Model, ensemble: Ensemble, region_atoms: np.ndarray) -> dict[int, list[int]]:
    """Atoms of the ensemble by residue of the model; every residue of the region has an entry."""
    topology, own = model.topology, ensemble.topology
    by_residue: dict[int, list[int]] = {r: [] for r in topology.residue_index[region_atoms].tolist()}
    index = {topology.residues[r].id: r for r in by_residue}
    replaced = set(region_atoms.tolist())
    for i, (s, name) in enumerate(zip(own.residue_index.tolist(), own.names, strict=True)):
        rid = own.residues[s].id
        if rid not in index:
            raise ValueError(f"build_structure: the ensemble has residue {rid}, which the region has not")
        if topology.atom_index.get((index[rid], name), region_atoms[0]) not in replaced:
            raise ValueError(f"build_structure: atom {name} of {rid} is in the ensemble and in its context")
        by_residue[index[rid]].append(i)
    return by_residue


class _Conformers:
    """The members of an ensemble as gemmi atoms with altlocs and occupancies."""

    def __init__(
        self, ensemble: Ensemble, members: list[int], occupancy: np.ndarray, letters: list[str]
    ) -> None:
        self.topology = ensemble.topology
        self.coords = ensemble.coords.detach().cpu().double().numpy().round(3)
        self.b_iso = ensemble.b_iso.detach().cpu().double().numpy().round(2)
        self.members = list(zip(members, letters, occupancy[members].tolist(), strict=True))

    def replace(self, residue: gemmi.Residue, gone: list[int], indices: list[int]) -> None:
        """Remove some atoms of a residue and add those of the ensemble."""
        templates = {residue[i].name: residue[i].clone() for i in gone}
        for i in reversed(gone):
            del residue[i]
        for atom in self.atoms(indices, templates):
            residue.add_atom(atom)

    def atoms(self, indices: list[int], templates: dict[str, gemmi.Atom]) -> Iterator[gemmi.Atom]:
        """Atom by atom, each with all its altlocs, as the wwPDB writes them."""
        for i in indices:
            name = self.topology.names[i]
            for k, letter, occupancy in self.members:
                atom = templates[name].clone() if name in templates else gemmi.Atom()
                atom.name, atom.altloc, atom.occ = name, letter, occupancy
                atom.element = gemmi.Element(self.topology.elements[i])
                atom.pos = gemmi.Position(*self.coords[k, i])
                atom.b_iso = float(self.b_iso[k, i])
                atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
                yield atom


def _update_links(structure: gemmi.Structure, region: set[ResidueId], letters: list[str]) -> None:
    """A link to a split atom becomes one for each altloc; links to removed atoms go.

    Records of cis peptides in the region go too, because members may differ in them.
    """

    def within(chain: str, seqid: gemmi.SeqId) -> bool:
        return ResidueId(chain, seqid.num or 0, seqid.icode.strip()) in region

    links = []
    for link in list(structure.connections):
        ends = (link.partner1, link.partner2)
        split = any(within(end.chain_name, end.res_id.seqid) for end in ends)
        for letter in letters if split and len(letters) > 1 else [NO_ALTLOC]:
            copy = _with_altloc(structure[0], link, letter)
            if copy is not None:
                links.append(copy)
    structure.connections = gemmi.ConnectionList(links)
    structure.cispeps = [
        cis
        for cis in structure.cispeps
        if not any(within(p.chain_name, p.res_id.seqid) for p in (cis.partner_c, cis.partner_n))
    ]


def _with_altloc(model: gemmi.Model, link: gemmi.Connection, letter: str) -> gemmi.Connection | None:
    """The link between the atoms of one altloc (or shared atoms); None if there are no such atoms."""
    copy = gemmi.Connection()
    copy.name = link.name + letter.strip(NO_ALTLOC)
    copy.link_id, copy.type, copy.asu = link.link_id, link.type, link.asu
    copy.reported_distance = link.reported_distance
    for end in ("partner1", "partner2"):
        old = getattr(link, end)
        new = gemmi.AtomAddress(old.chain_name, old.res_id.seqid, old.res_id.name, old.atom_name, letter)
        atom = model.find_cra(new).atom  # of this letter, or one without altloc
        if atom is None:
            return None
        new.altloc = atom.altloc
        setattr(copy, end, new)
    return copy
