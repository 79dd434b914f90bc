"""A model with all its altlocs, as the conformers that its atoms form: what validation walks through.

Atoms without an altloc belong to every conformer, atoms with one to the conformer of that letter only. So
conformer A of a residue is its atoms of altloc A and its atoms without altloc, and two atoms can meet if
their altlocs are equal or one has none (as in MolProbity: Chen et al. 2010, Acta Cryst. D66, 12-21).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from jaxtyping import Float, Int

from densemble.atoms import Region, Residue, Topology
from densemble.errors import InputError
from densemble.geometry.restraints import LINK_DISTANCE
from densemble.io.models import residue_kind
from densemble.io.naming import residue_id

Atoms = tuple[int, ...]
"""Indices of atoms that one figure is calculated from."""
CIS = 30.0
"""Degrees of omega from 0 within which a peptide is cis (MolProbity)."""


@dataclass(frozen=True, eq=False)
class Conformers:
    """The n atoms of a model, all altlocs, without hydrogens.

    Attributes:
        residues: in file order; the names that share a place (microheterogeneity) are residues of their own.
        residue_index: of each atom.
        names, elements, altlocs: of each atom; the altloc is empty where there is none.
        coords: Å, shape=(n, 3).
        occupancy: shape=(n,).
    """

    residues: tuple[Residue, ...]
    residue_index: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    elements: tuple[str, ...]
    altlocs: tuple[str, ...]
    coords: Float[np.ndarray, "n 3"]
    occupancy: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, structure: gemmi.Structure) -> Conformers:
        """The first model of a structure; hydrogens and atoms of unknown element are left out.

        Raises:
            InputError: no atoms, or a coordinate that is not a number.
        """
        if len(structure) == 0:
            raise InputError(f"model {structure.name}: no atoms in it")
        if all(r.entity_type == gemmi.EntityType.Unknown for chain in structure[0] for r in chain):
            structure = structure.clone()
            structure.setup_entities()
        residues: list[Residue] = []
        atoms: list[gemmi.Atom] = []
        index: list[int] = []
        for chain in structure[0]:
            for residue in chain:
                own = [a for a in residue if not a.is_hydrogen() and a.element.atomic_number > 0]
                if not own:
                    continue
                atoms += own
                index += [len(residues)] * len(own)
                residues.append(Residue(residue_id(chain, residue), residue.name, residue_kind(residue)))
        if not atoms:
            raise InputError(f"model {structure.name}: nothing but hydrogens and unknown atoms in it")
        coords = np.array([a.pos.tolist() for a in atoms], dtype=np.float64)
        if not np.isfinite(coords).all():
            raise InputError(
                f"model {structure.name}: coordinates that are not numbers; complete or remove them"
            )
        return cls(
            residues=tuple(residues),
            residue_index=np.array(index, dtype=np.int64),
            names=tuple(a.name for a in atoms),
            elements=tuple(a.element.name for a in atoms),
            altlocs=tuple(a.altloc.strip("\0 ") for a in atoms),
            coords=coords,
            occupancy=np.array([a.occ for a in atoms], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def topology(self) -> Topology:
        """All atoms as one list; names are not unique in a residue with altlocs."""
        return Topology(self.names, self.elements, self.residue_index, self.residues)

    @property
    def first(self) -> np.ndarray:
        """Which atoms are without altloc or of the first of their residue, shape=(n,)."""
        letters = [self.letters(r)[0] for r in range(len(self.residues))]
        return np.array(
            [a in ("", letters[r]) for a, r in zip(self.altlocs, self.residue_index, strict=True)]
        )

    @cached_property
    def _by_letter(self) -> list[dict[str, dict[str, int]]]:
        found: list[dict[str, dict[str, int]]] = [{} for _ in self.residues]
        for i, (r, letter) in enumerate(zip(self.residue_index, self.altlocs, strict=True)):
            found[r].setdefault(letter, {})[self.names[i]] = i
        return found

    def letters(self, *residues: int) -> tuple[str, ...]:
        """The conformers that residues form together; one without a letter if none of them has altlocs."""
        return tuple(sorted({a for r in residues for a in self._by_letter[r]} - {""})) or ("",)

    def atoms(self, residue: int, letter: str) -> Mapping[str, int]:
        """Atoms by name of one conformer of a residue."""
        own = self._by_letter[residue]
        return {**own.get("", {}), **own.get(letter, {})}

    def letter(self, atoms: Sequence[int]) -> str:
        """The altloc that a group of atoms of one conformer has; empty if none of them has one."""
        return max((self.altlocs[i] for i in atoms), default="")

    def compatible(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Whether atoms can be there at the same time."""
        letters = np.array(self.altlocs)
        return (letters[i] == letters[j]) | (letters[i] == "") | (letters[j] == "")

    @cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Residues of which, in some conformer, C of the first is bonded to N of the second."""
        places: list[list[int]] = []
        for r, residue in enumerate(self.residues):
            if residue.kind != "protein":
                continue
            if not places or self.residues[places[-1][0]].id != residue.id:
                places.append([])
            places[-1].append(r)
        return tuple(
            (i, j)
            for first, second in itertools.pairwise(places)
            for i in first
            for j in second
            if self.residues[i].id.chain == self.residues[j].id.chain and any(self._bonded(i, j))
        )

    def _bonded(self, i: int, j: int) -> Iterator[bool]:
        for letter in self.letters(i, j):
            c, n = self.atoms(i, letter).get("C"), self.atoms(j, letter).get("N")
            yield c is not None and n is not None and self._distance(c, n) < LINK_DISTANCE

    def _distance(self, i: int, j: int) -> float:
        return float(np.linalg.norm(self.coords[i] - self.coords[j]))

    @cached_property
    def previous(self) -> dict[int, list[int]]:
        """Residues bonded before a residue."""
        return _grouped((j, i) for i, j in self.links)

    @cached_property
    def following(self) -> dict[int, list[int]]:
        """Residues bonded after a residue."""
        return _grouped(self.links)

    def inside(self, region: Region | None) -> set[int]:
        """Indices of the residues of a region, all of them if None.

        Raises:
            RegionError: the model has no such residues.
        """
        if region is None:
            return set(range(len(self.residues)))
        ids = {self.residues[r].id for r in region.residues(self.topology)}
        return {r for r, residue in enumerate(self.residues) if residue.id in ids}


def _grouped(pairs: Iterator[tuple[int, int]] | Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def pick(names: Sequence[str], own: Mapping[str, int], following: Mapping[str, int]) -> Atoms | None:
    """Atoms by name, ``+`` in front for the next residue; None if one is not there."""
    found = [following.get(n[1:]) if n.startswith("+") else own.get(n) for n in names]
    return None if None in found else tuple(i for i in found if i is not None)


def dihedral(points: Float[np.ndarray, "*batch 4 3"]) -> Float[np.ndarray, " *batch"]:
    """Dihedral angles in degrees, -180 to 180 (IUPAC sign)."""
    u, v, w = np.moveaxis(np.diff(points, axis=-2), -2, 0)
    p, q = np.cross(u, v), np.cross(v, w)
    sine = np.linalg.norm(v, axis=-1) * (u * q).sum(-1)
    return np.asarray(np.degrees(np.arctan2(sine, (p * q).sum(-1))))
