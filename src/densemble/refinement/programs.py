"""The final model as files, and parameters with which other refinement programs go on from it.

These say which altlocs share an occupancy. A part's states are constrained together: one occupancy for all
atoms of a state, and a sum of one. For phenix.refine as PHIL parameters; for REFMAC5 and for servalcat, which
reads the same, as keywords of REFMAC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gemmi

from densemble.atoms import Ensemble, ResidueId
from densemble.io.altlocs import letters_of
from densemble.io.model_results import MODEL_FILE
from densemble.io.naming import residue_id
from densemble.io.output import write_text
from densemble.io.results import pdb_obstacle, write_structure
from densemble.refinement.waters import Displaced, PartialWater

PDB_FILE = "model.pdb"
PHENIX_FILE = "phenix.eff"
REFMAC_FILE = "refmac.txt"


@dataclass(frozen=True)
class Run:
    """Residues of one chain that follow each other in the model, all of a part."""

    first: ResidueId
    last: ResidueId


@dataclass(frozen=True)
class OccupancyGroup:
    """The states of a part.

    Attributes:
        runs: residues that have all of its altlocs.
        altlocs: of the states.
        waters: by altloc, residues that have some of the altlocs only.
    """

    runs: tuple[Run, ...]
    altlocs: tuple[str, ...]
    waters: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)

    def runs_of(self, altloc: str) -> tuple[Run, ...]:
        """The residues that have an altloc."""
        return (*self.runs, *self.waters.get(altloc, ()))


def occupancy_groups(
    structure: gemmi.Structure, parts: Sequence[Ensemble], waters: Sequence[PartialWater] = ()
) -> list[OccupancyGroup]:
    """The parts of several states, as they are found in the model written.

    A run ends where the next residue of the chain is not of the part, and at residues with insertion codes,
    which make runs of their own, for programs have no ranges of these.

    Args:
        structure: the model (``waters.model_structure``).
        parts: those that it was built of (``split.split_where_different``).
        waters: those that stand in some states of a part only.
    """
    order = [residue_id(chain, residue) for chain in structure[0] for residue in chain]
    groups = []
    for part in parts:
        letters = tuple(x for x in letters_of(part) if x)
        if len(letters) < 2:
            continue
        own = {residue.id for residue in part.topology.residues}
        beside = [water for water in waters if water.beside in own]
        alone = {
            letter: tuple(_runs(order, {water.water for water in beside if letter in water.altlocs}))
            for letter in letters
        }
        groups.append(OccupancyGroup(tuple(_runs(order, own)), letters, alone))
    return groups


def write_model(
    directory: str | Path,
    structure: gemmi.Structure,
    waters: Displaced,
    parts: Sequence[Ensemble],
    *,
    file: str = MODEL_FILE,
    amplitudes: bool = True,
) -> tuple[list[Path], str | None]:
    """Write ``model.cif``, ``model.pdb`` where that format has room, and ``write_parameters``.

    Args:
        directory: the output folder.
        structure: the model (``waters.model_structure``).
        waters: those that made room in it.
        parts: that it was built of, as ``refine`` or ``split.split_where_different`` returns them.
        file: name of the mmCIF file; the PDB file has the same but for its ending.
        amplitudes: whether it is of a crystal.

    Returns:
        The files, and why there is no PDB file, in words, if there is none.
    """
    folder = Path(directory)
    files = [write_structure(folder / file, structure)]
    obstacle = pdb_obstacle(structure)
    if obstacle is None:
        files.append(write_structure((folder / file).with_suffix(".pdb"), structure))
    more = write_parameters(folder, structure, parts, waters.partial, amplitudes=amplitudes)
    return [*files, *more], obstacle


def write_parameters(
    directory: str | Path,
    structure: gemmi.Structure,
    parts: Sequence[Ensemble],
    waters: Sequence[PartialWater] = (),
    *,
    amplitudes: bool = True,
) -> list[Path]:
    """Write ``phenix.eff`` and ``refmac.txt``; nothing where no part has several states.

    Of a model of a map ``refmac.txt`` alone, for servalcat: phenix.refine takes amplitudes.
    """
    groups = occupancy_groups(structure, parts, waters)
    if not groups:
        return []
    folder = Path(directory)
    keywords = [write_text(folder / REFMAC_FILE, refmac_keywords(groups))]
    if not amplitudes:
        return keywords
    return [write_text(folder / PHENIX_FILE, phenix_parameters(groups)), *keywords]


def phenix_parameters(groups: Sequence[OccupancyGroup]) -> str:
    """Parameters of phenix.refine: sites, B factors and occupancies, the groups' constrained.

    ``phenix.refine model.cif data.mtz phenix.eff``.
    """
    lines = [
        "refinement.refine {",
        "  strategy = *individual_sites *individual_adp *occupancies",
        "  occupancies {",
    ]
    for group in groups:
        lines.append("    constrained_group {")
        for letter in group.altlocs:
            where = " or ".join(_phenix_run(run) for run in group.runs_of(letter))
            lines.append(f"      selection = ({where}) and altloc {letter}")
        lines.append("    }")
    return "\n".join([*lines, "  }", "}"]) + "\n"


def refmac_keywords(groups: Sequence[OccupancyGroup]) -> str:
    """Keywords of REFMAC5, which servalcat takes too (``--keyword_file refmac.txt``)."""
    lines = []
    number = 0
    for group in groups:
        ids = range(number + 1, number + 1 + len(group.altlocs))
        number = ids[-1]
        for i, letter in zip(ids, group.altlocs, strict=True):
            lines += [
                f"occupancy group id {i} {_refmac_run(run)} alt {letter}" for run in group.runs_of(letter)
            ]
        lines.append(f"occupancy group alts complete {' '.join(map(str, ids))}")
    return "\n".join([*lines, "occupancy refine"]) + "\n"


def _runs(order: Sequence[ResidueId], own: set[ResidueId]) -> list[Run]:
    runs: list[Run] = []
    before: ResidueId | None = None
    for rid in order:
        if rid in own:
            follows = before in own and before is not None and before.chain == rid.chain
            if runs and follows and not rid.icode and not runs[-1].last.icode:
                runs[-1] = Run(runs[-1].first, rid)
            else:
                runs.append(Run(rid, rid))
        before = rid
    return runs


def _phenix_run(run: Run) -> str:
    """Ranges go by number, whatever the insertion code: so that is said for each end."""
    chain, first, last = f"chain '{run.first.chain}'", run.first, run.last
    numbers = f"{first.number}" if first == last else f"{first.number}:{last.number}"
    return f"({chain} and resseq {numbers} and icode '{first.icode or ' '}')"


def _refmac_run(run: Run) -> str:
    chain, first, last = f"chain {run.first.chain}", run.first, run.last
    if first == last:
        return f"{chain} residue {first.number}{first.icode}"
    return f"{chain} residue from {first.number} to {last.number}"
