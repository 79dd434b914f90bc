"""Atomic models in: mmCIF and PDB files through gemmi, as one conformation.

Names are the author's (``auth_asym_id``, ``auth_seq_id``), which are what a crystallographer sees
in Coot and writes in a region. Hydrogens are left out and alternate conformations are resolved
while reading, with a message for each, so that ``Model.structure``, ``Model.topology`` and the
arrays list the same atoms in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Bool, Float

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.conformer import keep_one_conformer
from densemble.io.naming import NO_ALTLOC, residue_id

PEPTIDE_BOND_LIMIT = 2.0
"""Å. A C-N distance below it is a peptide bond (1.33 Å, Engh & Huber 1991), above it a gap."""

_HALOGENS = ("F", "Cl", "Br", "I")


@dataclass(frozen=True, eq=False)
class Model:
    """A model as read: one conformation, no hydrogens.

    Attributes:
        path: the file.
        structure: gemmi's view of the same atoms, with cell, space group, entities and links.
        topology: the N atoms, in file order.
        coords: Å, shape=(N, 3).
        b_iso: Å^2, the equivalent isotropic B where the file has ANISOU records, shape=(N,).
        occupancy: shape=(N,); 1 where one of several altlocs was kept, or the one asked for, else as in
            the file (also for an altloc without an alternative, which is a partly occupied site).
        messages: one sentence for each thing that was left out or chosen, for the user.
    """

    path: Path
    structure: gemmi.Structure
    topology: Topology
    coords: Float[np.ndarray, "n 3"]
    b_iso: Float[np.ndarray, " n"]
    occupancy: Float[np.ndarray, " n"]
    messages: tuple[str, ...] = ()

    def only(self, residues: Collection[int]) -> Model:
        """The model of some of its residues, given as indices into ``topology.residues``."""
        kept, structure = set(residues), self.structure.clone()
        r = len(self.topology.residues)
        for chain in reversed(list(structure[0])):
            for i in reversed(range(len(chain))):
                r -= 1
                if r not in kept:
                    del chain[i]
        structure.remove_empty_chains()
        atoms = self.topology.atoms_of(sorted(kept))
        return replace(
            self,
            structure=structure,
            topology=self.topology.subset(atoms),
            coords=self.coords[atoms],
            b_iso=self.b_iso[atoms],
            occupancy=self.occupancy[atoms],
        )


@dataclass(frozen=True, eq=False)
class Alternate:
    """One deposited conformation of some atoms.

    Attributes:
        coords: Å, NaN for atoms that the file does not have in this conformation, shape=(n, 3).
        occupancy: mean over the atoms that carry the altloc letter.
    """

    coords: Float[np.ndarray, "n 3"]
    occupancy: float


@dataclass(frozen=True)
class Anchors:
    """Residues bonded to the two ends of a stretch; None at a chain end or a gap."""

    before: int | None
    after: int | None


def read_model(path: str | Path, *, altloc: str | None = None) -> Model:
    """Read a model file as a single conformation.

    Args:
        path: mmCIF or PDB, also gzipped.
        altloc: the conformation to keep, at full occupancy, wherever it exists. Of residues that only
            have others, the atoms with altlocs are left out if their occupancies sum to less than
            ``conformer.ABSENT_BELOW``: in this conformation nothing is there. If they sum to one, and in
            every residue when ``altloc`` is None, the conformer of highest occupancy is kept (the first
            one of equals). Atoms that the kept conformer lacks are left out, except backbone atoms,
            which then come from the conformer of highest occupancy that has them.

    Raises:
        InputError: the file is missing, is not a model or has no atoms; the altloc exists nowhere
            in it; an atom occurs twice; a coordinate, B factor or occupancy is not a number.
    """
    path = Path(path)
    structure, messages = _read_structure(path)
    messages += keep_one_conformer(structure, path, altloc)
    structure.setup_entities()
    # PDB files have no label_seq_id, which some programs need in mmCIF; force numbers without SEQRES too.
    structure.assign_label_seq_id(structure.input_format == gemmi.CoorFormat.Pdb)
    topology = _topology(structure)
    atoms = [atom for chain in structure[0] for residue in chain for atom in residue]
    coords = np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64).reshape(-1, 3)
    b_iso = np.array([atom.b_eq() if atom.aniso.nonzero() else atom.b_iso for atom in atoms])
    occupancy = np.array([atom.occ for atom in atoms])
    bad = np.flatnonzero(~np.isfinite(np.column_stack([coords, b_iso, occupancy])).all(axis=1))
    if len(bad):
        residue = topology.residues[topology.residue_index[bad[0]]]
        raise InputError(
            f"model {path}: {len(bad)} atoms have coordinates, B factors or occupancies that are not "
            f"numbers, the first is {topology.names[bad[0]]} of {residue.name} {residue.id}; "
            "complete or remove them"
        )
    return Model(path, structure, topology, coords, b_iso, occupancy, tuple(messages))


def require_cell(model: Model) -> None:
    """Check that a model can stand in a crystal.

    Raises:
        InputError: it has no unit cell, or no space group that gemmi knows.
    """
    if not model.structure.cell.is_crystal():
        raise InputError(
            f"model {model.path}: no unit cell (CRYST1 in PDB, _cell in mmCIF), which a crystal needs; "
            "copy it from the reflection file"
        )
    if model.structure.find_spacegroup() is None:
        raise InputError(
            f"model {model.path}: the space group '{model.structure.spacegroup_hm}' is not known; "
            "write its Hermann-Mauguin symbol, for example 'P 31 2 1'"
        )


def alternates(path: str | Path, topology: Topology) -> dict[str, Alternate]:
    """The conformations that a file has of some atoms, for evaluation against a deposited ensemble.

    Atoms are matched by residue (chain, number, insertion code) and atom name. An atom without an
    altloc belongs to every conformation.

    Args:
        path: mmCIF or PDB.
        topology: the n atoms asked for, e.g. those of a region.

    Returns:
        Alternates by letter, in order of the alphabet; one named ``""`` if no atom has a letter.

    Raises:
        InputError: the file cannot be read, or has none of the atoms.
    """
    path = Path(path)
    structure, _ = _read_structure(path)
    wanted = {topology.residues[r].id for r in set(topology.residue_index.tolist())}
    found: dict[tuple[ResidueId, str], dict[str, gemmi.Atom]] = {}
    for chain, residue in _residues(structure):
        rid = residue_id(chain, residue)
        if rid in wanted:
            for atom in residue:
                found.setdefault((rid, atom.name), {})[_letter(atom)] = atom
    sites = [found.get(key, {}) for key in topology.atom_keys]
    if not any(sites):
        raise InputError(f"model {path}: none of the {len(topology)} atoms of the region is in this file")
    letters = sorted({letter for site in sites for letter in site if letter}) or [""]
    return {letter: _alternate(sites, letter) for letter in letters}


def bonded_to_next(topology: Topology, coords: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " r"]:
    """Which residues are peptide-bonded to the one after them, shape=(R,).

    True where residue r and residue r + 1 are protein of the same chain and C(r)-N(r + 1) is
    shorter than ``PEPTIDE_BOND_LIMIT``, whatever their numbers.
    """
    residues, index = topology.residues, topology.atom_index
    bonded = np.zeros(len(residues), dtype=bool)
    for r, (this, after) in enumerate(pairwise(residues)):
        same_chain = this.id.chain == after.id.chain and this.kind == after.kind == "protein"
        c, n = index.get((r, "C")), index.get((r + 1, "N"))
        if same_chain and c is not None and n is not None:
            bonded[r] = np.linalg.norm(coords[c] - coords[n]) < PEPTIDE_BOND_LIMIT
    return bonded


def anchors(topology: Topology, coords: Float[np.ndarray, "n 3"], stretch: list[int]) -> Anchors:
    """The residues that hold a stretch of chain at its two ends.

    Args:
        topology: the N atoms.
        coords: Å, shape=(N, 3).
        stretch: residue indices in chain order, as ``Region.resolve`` gives them.
    """
    bonded = bonded_to_next(topology, coords)
    first, last = stretch[0], stretch[-1]
    return Anchors(
        before=first - 1 if first > 0 and bonded[first - 1] else None,
        after=last + 1 if bonded[last] else None,
    )


def _read_structure(path: Path) -> tuple[gemmi.Structure, list[str]]:
    """First model of a file without hydrogens, and what was left out."""
    if not path.is_file():
        raise InputError(f"model {path}: there is no such file")
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model {path}: cannot be read as mmCIF (.cif) or PDB (.pdb, .ent): {reason}"
        ) from error
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"model {path}: no atoms in this file; give a model in mmCIF or PDB format")
    messages = []
    if len(structure) > 1:
        messages.append(f"{path.name}: only the first of {len(structure)} models is used")
        del structure[1:]
    for what, condition in (
        ("hydrogens", lambda atom: atom.is_hydrogen()),
        ("atoms of unknown element", lambda atom: atom.element.atomic_number == 0),
    ):
        removed = _remove_atoms(structure, condition)
        if removed:
            messages.append(f"{path.name}: {what} ignored: {removed}")
    if structure[0].count_atom_sites() == 0:
        raise InputError(f"model {path}: nothing but hydrogens and unknown atoms in this file")
    return structure, messages


def _remove_atoms(structure: gemmi.Structure, condition: Callable[[gemmi.Atom], bool]) -> int:
    """Remove the atoms that fulfil a condition and the residues and chains left empty; how many atoms."""
    removed = 0
    for chain in structure[0]:
        for r in reversed(range(len(chain))):
            residue = chain[r]
            for i in reversed(range(len(residue))):
                if condition(residue[i]):
                    del residue[i]
                    removed += 1
            if len(residue) == 0:
                del chain[r]
    structure.remove_empty_chains()
    return removed


def _topology(structure: gemmi.Structure) -> Topology:
    residues: list[Residue] = []
    names, elements, index = [], [], []
    for chain, residue in _residues(structure):
        for atom in residue:
            names.append(atom.name)
            elements.append(atom.element.name)
            index.append(len(residues))
        residues.append(Residue(residue_id(chain, residue), residue.name, residue_kind(residue)))
    return Topology(tuple(names), tuple(elements), np.array(index, dtype=np.int64), tuple(residues))


def residue_kind(residue: gemmi.Residue) -> str:
    """``protein``, ``nucleic``, ``ligand``, ``ion`` or ``water``; the structure's entities must be known."""
    info = gemmi.find_tabulated_residue(residue.name)
    if residue.is_water():
        return "water"
    if residue.entity_type == gemmi.EntityType.Polymer:
        if any(atom.name == "CA" for atom in residue):
            return "protein"
        if info.is_nucleic_acid() or any(atom.name == "C1'" for atom in residue):
            return "nucleic"
    element = residue[0].element
    if len(residue) == 1 and (element.is_metal or element.name in _HALOGENS):
        return "ion"
    return "ligand"


def _residues(structure: gemmi.Structure) -> Iterator[tuple[gemmi.Chain, gemmi.Residue]]:
    return ((chain, residue) for chain in structure[0] for residue in chain)


def _letter(atom: gemmi.Atom) -> str:
    return atom.altloc.strip(NO_ALTLOC)


def _alternate(sites: list[dict[str, gemmi.Atom]], letter: str) -> Alternate:
    atoms = [site.get(letter, site.get("")) for site in sites]
    coords = np.array([[np.nan] * 3 if atom is None else atom.pos.tolist() for atom in atoms])
    return Alternate(coords, float(np.mean([site[letter].occ for site in sites if letter in site])))
