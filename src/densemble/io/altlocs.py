"""From parts with their states to one structure with altlocs.

A part is an ``Ensemble`` of atoms that move together: its members are their states, its weights the states'
occupancies. Atoms of a part of one member stand once. So one ensemble of all atoms of a region is the
simplest case, and a model in which two loops and a side chain move each by itself another.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

import gemmi
import numpy as np
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Ensemble, ResidueId
from densemble.io.models import Model
from densemble.io.naming import NO_ALTLOC, author_id

_LETTERS = string.ascii_uppercase
_CENTS = 100  # PDB files have two decimals for the occupancy; mmCIF is written with the same
_LAST = 10**6  # place in its residue of an atom that the model lacks


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


def letters_of(part: Ensemble) -> tuple[str, ...]:
    """Altloc of each member of a part, in the order of the members; empty for those that are not written.

    Written are members whose ``occupancies`` are above zero. A single one of them has the blank altloc.

    Raises:
        ValueError: there are more than 26.
    """
    written = (occupancies(part.weights) > 0).tolist()
    if sum(written) > len(_LETTERS):
        raise ValueError(f"build_structure: {sum(written)} members, but altlocs have {len(_LETTERS)} letters")
    free = iter(_LETTERS if sum(written) > 1 else NO_ALTLOC)
    return tuple(next(free) if yes else "" for yes in written)


def build_structure(model: Model, ensemble: Ensemble, region_atoms: np.ndarray) -> gemmi.Structure:
    """The model with some of its atoms replaced by one ensemble: ``build_altlocs`` of a single part."""
    return build_altlocs(model, [ensemble], region_atoms)


def build_altlocs(model: Model, parts: Sequence[Ensemble], region_atoms: np.ndarray) -> gemmi.Structure:
    """The model with some of its atoms replaced by parts, each with altlocs A, B, C, ... of its own.

    Everything else (other atoms, cell, entities, links) is as in the model. Refinement statistics
    are left out: they describe the model as it was. A single member has no altloc letter and full
    occupancy. Coordinates are rounded to 0.001 Å and B factors to 0.01 Å^2, as in the file.

    Args:
        model: what was read.
        parts: members whose ``occupancies`` are above zero are written, lettered in their order. Atoms are
            matched with the model's by residue and atom name; there may be some that the model lacks.
        region_atoms: indices into ``model.topology`` of the atoms that the parts replace; those that no
            part has are removed.

    Raises:
        ValueError: a part has a residue that the region has not, an atom that the model has outside
            ``region_atoms``, or one that another part has; a residue is split by two parts; a part has more
            than 26 members.
    """
    by_residue = _match(model, parts, region_atoms)
    structure = model.structure.clone()
    replaced = set(region_atoms.tolist())
    conformers = [_Conformers(part) for part in parts]
    start = 0
    for r, residue in enumerate(residue for chain in structure[0] for residue in chain):
        n = len(residue)
        if r in by_residue:
            _replace(residue, [i for i in range(n) if start + i in replaced], by_residue[r], conformers)
        start += n
    update_links(structure, {model.topology.residues[r].id for r in by_residue})
    structure.meta.refinement = []
    structure.raw_remarks = []
    structure.clear_conect()
    structure.assign_serial_numbers()
    return structure


def _match(
    model: Model, parts: Sequence[Ensemble], region_atoms: np.ndarray
) -> dict[int, list[tuple[int, int]]]:
    """By residue of the model, part and atom in it; every residue of the region has an entry."""
    topology = model.topology
    by_residue: dict[int, list[tuple[int, int]]] = {
        r: [] for r in topology.residue_index[region_atoms].tolist()
    }
    index = {topology.residues[r].id: r for r in by_residue}
    replaced = set(region_atoms.tolist())
    owner: dict[tuple[int, str], int] = {}
    splits: dict[int, int] = {}
    for p, part in enumerate(parts):
        own, several = part.topology, len({*letters_of(part)} - {""}) > 1
        for i, (s, name) in enumerate(zip(own.residue_index.tolist(), own.names, strict=True)):
            rid = own.residues[s].id
            if rid not in index:
                raise ValueError(f"build_structure: the ensemble has residue {rid}, which the region has not")
            r = index[rid]
            if topology.atom_index.get((r, name), region_atoms[0]) not in replaced:
                raise ValueError(
                    f"build_structure: atom {name} of {rid} is in the ensemble and in its context"
                )
            if owner.setdefault((r, name), p) != p:
                raise ValueError(f"build_structure: atom {name} of {rid} is in two parts")
            if several and splits.setdefault(r, p) != p:
                raise ValueError(f"build_structure: residue {rid} is split by two parts")
            by_residue[r].append((p, i))
    return by_residue


class _Conformers:
    """The members of a part as gemmi atoms with altlocs and occupancies."""

    def __init__(self, part: Ensemble) -> None:
        self.topology = part.topology
        self.coords = part.coords.detach().cpu().double().numpy().round(3)
        self.b_iso = part.b_iso.detach().cpu().double().numpy().round(2)
        letters, occupancy = letters_of(part), occupancies(part.weights).tolist()
        self.members = [(k, x, occupancy[k]) for k, x in enumerate(letters) if x]

    def atoms(self, i: int, template: gemmi.Atom | None) -> Iterator[gemmi.Atom]:
        """One atom in all its altlocs."""
        for k, letter, occupancy in self.members:
            atom = gemmi.Atom() if template is None else template.clone()
            atom.name, atom.altloc, atom.occ = self.topology.names[i], letter, occupancy
            atom.element = gemmi.Element(self.topology.elements[i])
            atom.pos = gemmi.Position(*self.coords[k, i])
            atom.b_iso = float(self.b_iso[k, i])
            atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
            yield atom


def _replace(
    residue: gemmi.Residue, gone: list[int], new: list[tuple[int, int]], conformers: list[_Conformers]
) -> None:
    """Remove some atoms of a residue and add others: in its order, each with all its altlocs (wwPDB)."""
    templates = {residue[i].name: residue[i].clone() for i in gone}
    place = {name: n for n, name in enumerate(templates)}
    for i in reversed(gone):
        del residue[i]
    for p, i in sorted(new, key=lambda at: place.get(conformers[at[0]].topology.names[at[1]], _LAST)):
        for atom in conformers[p].atoms(i, templates.get(conformers[p].topology.names[i])):
            residue.add_atom(atom)


def update_links(structure: gemmi.Structure, region: set[ResidueId]) -> None:
    """A link to a split atom becomes one for each altloc; links to removed atoms go. In place.

    A link that has an altloc already stays the link of that altloc. Records of cis peptides in the region go
    too, because members may differ in them.
    """

    def within(chain: str, seqid: gemmi.SeqId) -> bool:
        return author_id(chain, seqid) in region

    links = []
    for link in list(structure.connections):
        ends = (link.partner1, link.partner2)
        touched = any(within(end.chain_name, end.res_id.seqid) for end in ends)
        known = {end.altloc for end in ends} - {NO_ALTLOC}
        present = known or set().union(*(_altlocs(structure[0], end) for end in ends))
        letters = sorted(present) if touched else []
        for letter in letters or [NO_ALTLOC]:
            copy = _with_altloc(structure[0], link, letter)
            if copy is not None:
                links.append(copy)
    structure.connections = gemmi.ConnectionList(links)
    structure.cispeps = [
        cis
        for cis in structure.cispeps
        if not any(within(p.chain_name, p.res_id.seqid) for p in (cis.partner_c, cis.partner_n))
    ]


def _altlocs(model: gemmi.Model, end: gemmi.AtomAddress) -> set[str]:
    """The letters that an atom has."""
    residue = model.find_cra(gemmi.AtomAddress(end.chain_name, end.res_id.seqid, end.res_id.name, "")).residue
    if residue is None:
        return set()
    return {atom.altloc for atom in residue if atom.name == end.atom_name} - {NO_ALTLOC}


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
