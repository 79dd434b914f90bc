"""Waters of the start that stand where atoms of a state stand.

Sampling ignores waters, because conformations displace them. What is left to do is what a crystallographer
does when building an alternate conformation: a water that is too near to atoms of some states goes with the
others, under their altlocs and with their occupancies (deposited models do so: ten waters of 7RIN have
altloc B, occupancy 0.61, with state B of its loop); a water too near to all of them is removed. Where several
states leave it its place it stands there once for each of their letters, so that its occupancies are groups
of the occupancies that states are refined with.

Only waters are displaced. Ions and ligands are obstacles in sampling, and stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from densemble.atoms import Ensemble, ResidueId
from densemble.geometry.contacts import CONTACT_SD, contact_limit
from densemble.io.altlocs import build_altlocs, update_links
from densemble.io.models import NO_ALTLOC, Model
from densemble.io.naming import residue_id

_POLAR = {"N", "O"}
_REACH = 3.5  # Å, further than any contact of an oxygen is limited


@dataclass(frozen=True)
class PartialWater:
    """A water that stands in some states only.

    Attributes:
        water: the residue.
        beside: a residue of the part whose states it goes with.
        altlocs: of these states.
    """

    water: ResidueId
    beside: ResidueId
    altlocs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.water} altloc {', '.join(self.altlocs)}"


@dataclass(frozen=True)
class Displaced:
    """The waters that gave way, in file order.

    Attributes:
        removed: too near to every state.
        partial: too near to some.
    """

    removed: tuple[ResidueId, ...] = ()
    partial: tuple[PartialWater, ...] = ()


@dataclass(frozen=True)
class _Contact:
    """An atom that is too near to a water: its residue, its altloc, and the occupancies of its altlocs."""

    residue: ResidueId
    altloc: str
    occupancies: dict[str, float]


def too_near(first: str, second: str) -> float:
    """Å, distance of a water's atom below which it cannot be where another atom is, by element.

    The usual limit of contact (``geometry.contacts``): 2.8 Å to C. Less one standard deviation where the two
    can form a hydrogen bond, for these come shorter: 2.3 Å to N and O. Of the 159 waters of the deposited
    7RIN the closest stands 2.32 Å from the O of a carboxylate, and none is nearer than 2.8 Å to a C.
    """
    return contact_limit(first, second) - (CONTACT_SD if {first, second} <= _POLAR else 0.0)


def model_structure(
    model: Model, parts: Sequence[Ensemble], region_atoms: np.ndarray
) -> tuple[gemmi.Structure, Displaced]:
    """The final model: ``io.altlocs.build_altlocs``, where waters make room for the parts.

    Args:
        model: what was read.
        parts: see ``build_altlocs``.
        region_atoms: indices into ``model.topology`` of the atoms that the parts replace.
    """
    structure = build_altlocs(model, parts, region_atoms)
    return structure, make_room(structure, residues_of(model, region_atoms))


def residues_of(model: Model, region_atoms: np.ndarray) -> set[ResidueId]:
    """The residues of a region."""
    indices = set(model.topology.residue_index[region_atoms].tolist())
    return {model.topology.residues[r].id for r in indices}


def make_room(structure: gemmi.Structure, region: Collection[ResidueId]) -> Displaced:
    """Remove waters, or give them altlocs, where they are too near to a region's atoms; in place.

    Symmetry copies of the region count as the region does. A water that is in conflict with several parts
    goes with the one that leaves it the least occupancy, and letters count alike in all parts: A goes with A.

    Args:
        structure: its region has altlocs where states differ.
        region: residues whose atoms waters give way to.
    """
    found = list(_conflicts(structure, set(region)))
    removed, partial = [], []
    for chain, r, contacts in reversed(found):
        rid = residue_id(chain, chain[r])
        beside, free = _allowed(contacts)
        if free:
            _set_altlocs(chain[r], free)
            partial.append(PartialWater(rid, beside, tuple(free)))
        else:
            del chain[r]
            removed.append(rid)
    if found:
        update_links(structure, {*removed, *(water.water for water in partial)})
        structure.remove_empty_chains()
        structure.assign_serial_numbers()
    return Displaced(tuple(reversed(removed)), tuple(reversed(partial)))


def _conflicts(
    structure: gemmi.Structure, region: set[ResidueId]
) -> Iterator[tuple[gemmi.Chain, int, list[_Contact]]]:
    """Waters, by chain and place in it, with what of the region is too near."""
    model, cell = structure[0], structure.cell
    search = gemmi.NeighborSearch(model, cell, _REACH)
    for c, chain in enumerate(model):
        for r, residue in enumerate(chain):
            if residue_id(chain, residue) in region:
                for i, atom in enumerate(residue):
                    search.add_atom(atom, c, r, i)
    for chain in model:
        for r, residue in enumerate(chain):
            contacts = (
                [_contact(model, mark) for atom in residue for mark in _near(search, model, cell, atom)]
                if residue.is_water()
                else []
            )
            if contacts:
                yield chain, r, contacts


def _near(
    search: gemmi.NeighborSearch, model: gemmi.Model, cell: gemmi.UnitCell, water: gemmi.Atom
) -> Iterator[gemmi.NeighborSearch.Mark]:
    for mark in search.find_atoms(water.pos, NO_ALTLOC, radius=_REACH):
        other = mark.to_cra(model).atom
        apart = cell.find_nearest_pbc_image(water.pos, other.pos, mark.image_idx).dist()
        if apart < too_near(water.element.name, other.element.name):
            yield mark


def _contact(model: gemmi.Model, mark: gemmi.NeighborSearch.Mark) -> _Contact:
    cra = mark.to_cra(model)
    same = (atom for atom in cra.residue if atom.name == cra.atom.name)
    occupancies = {atom.altloc: atom.occ for atom in same}
    return _Contact(residue_id(cra.chain, cra.residue), cra.atom.altloc, occupancies)


def _allowed(contacts: Sequence[_Contact]) -> tuple[ResidueId, dict[str, float]]:
    """The residue that leaves a water the least, and the letters left, with their occupancies."""
    blocked = {contact.altloc for contact in contacts}
    left = [
        (contact.residue, {x: occ for x, occ in contact.occupancies.items() if x not in blocked})
        for contact in contacts
    ]
    return min(left, key=lambda entry: sum(entry[1].values()))


def _set_altlocs(water: gemmi.Residue, occupancies: dict[str, float]) -> None:
    """Every atom of a water once for each letter, at its place."""
    atoms = [atom.clone() for atom in water]
    for i in reversed(range(len(water))):
        del water[i]
    for atom in atoms:
        for letter, occupancy in occupancies.items():
            copy = atom.clone()
            copy.altloc, copy.occ = letter, occupancy
            water.add_atom(copy)
