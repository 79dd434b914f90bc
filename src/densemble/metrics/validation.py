"""Validation of a model with all its altlocs, from its coordinates alone.

- clash score: ``clashes``;
- Ramachandran classes and rotamers: ``contours``;
- bond and angle RMSZ, chiral centres: ``stereochemistry``.

Each conformer is judged; what conformers share counts once. Every module states its published definition;
``docs/validation.md`` compares the figures with those published for PDB entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import gemmi
import numpy as np
from pydantic import Field

from densemble.atoms import Region, Residue
from densemble.io.model_results import Validation
from densemble.io.output import Record
from densemble.metrics.clashes import AllAtomContacts, Clash, find_clashes
from densemble.metrics.conformers import Conformers
from densemble.metrics.contours import Torsions, Verdict, ramachandran, rotamers
from densemble.metrics.stereochemistry import Deviation, is_wrong_hand, rmsz, stereochemistry

_Term = TypeVar("_Term", Torsions, Deviation)


class Worst(Record):
    """The term of a residue furthest from its target: atoms, value (Å or degrees), deviation in s.d."""

    atoms: str
    value: float
    z: float


class ClashPair(Record):
    """Two atoms that clash, written ``A:176 TRP HB2`` with the altloc behind, and their overlap in Å."""

    first: str
    second: str
    overlap: float


class ResidueRow(Record):
    """One residue in one conformer. What a residue has none of is None.

    Attributes:
        chain, number, icode, name: in author naming.
        altloc: empty for a residue without altlocs, whose figures are then the worst of all conformers.
        ramachandran: verdict, and the fraction of reference residues that are rarer.
        ramachandran_value: that fraction.
        rotamer, rotamer_value: the same of the side chain.
        bond, angle: the worst.
        wrong_hand: names of chiral centres that are inverted or flat.
        clashes: those that atoms of this conformer make, the worst first.
        rscc, q_score: agreement with a map, where there is one; of a residue's altlocs together.
    """

    chain: str
    number: int
    icode: str = ""
    name: str
    altloc: str = ""
    ramachandran: Verdict | None = None
    ramachandran_value: float | None = None
    rotamer: Verdict | None = None
    rotamer_value: float | None = None
    bond: Worst | None = None
    angle: Worst | None = None
    wrong_hand: list[str] = Field(default_factory=list)
    clashes: list[ClashPair] = Field(default_factory=list)
    rscc: float | None = None
    q_score: float | None = None


class ModelValidation(Record):
    """Figures of a region, or of the whole model.

    Attributes:
        totals: of all.
        residues: of each protein residue; other residues have rows if they clash.
        outside: residues that are not of the region and clash with it, written ``A:112 ARG``, and how many
            clashes each has with it; most first, of equals the one with the deepest.
    """

    totals: Validation
    residues: list[ResidueRow]
    outside: dict[str, int] = Field(default_factory=dict)


def name_of(residue: Residue) -> str:
    """``A:112 ARG``."""
    return f"{residue.id} {residue.name}"


def validate_structure(structure: gemmi.Structure, *, region: Region | None = None) -> ModelValidation:
    """Judge the first model of a structure.

    Args:
        structure: with any altlocs; hydrogens in it are replaced by placed ones.
        region: only its residues are judged, in the surroundings of all; clashes count if one of
            the two atoms is in it. All residues if None.

    Raises:
        InputError: no atoms, or coordinates that are not numbers.
        RegionError: the model has no such residues.
    """
    model = Conformers.of(structure)
    inside = model.inside(region)
    stereo = stereochemistry(model)
    judged = _Judged(
        model=model,
        inside=inside,
        ramachandran=_of(inside, ramachandran(model)),
        rotamers=_of(inside, rotamers(model)),
        bonds=_of(inside, stereo.bonds),
        angles=_of(inside, stereo.angles),
        chirals=_of(inside, stereo.chirals),
        contacts=find_clashes(model, stereo),
    )
    return ModelValidation(totals=judged.totals(), residues=judged.rows(), outside=judged.outside())


def _of(inside: set[int], terms: Iterable[_Term]) -> list[_Term]:
    return [term for term in terms if term.residue in inside]


@dataclass(frozen=True, eq=False)
class _Judged:
    """A model, the residues that count, all terms that these own, and the contacts of the whole."""

    model: Conformers
    inside: set[int]
    ramachandran: list[Torsions]
    rotamers: list[Torsions]
    bonds: list[Deviation]
    angles: list[Deviation]
    chirals: list[Deviation]
    contacts: AllAtomContacts

    def residue(self, atom: int) -> int:
        """Of an atom or hydrogen."""
        return int(self.model.residue_index[self.contacts.atoms.parents[atom]])

    @cached_property
    def clashes(self) -> list[Clash]:
        """Those with an atom inside."""
        return [
            c for c in self.contacts.clashes if self.inside & {self.residue(c.first), self.residue(c.second)}
        ]

    def totals(self) -> Validation:
        """Figures of the whole."""
        owner = self.model.residue_index
        within = np.isin(owner, sorted(self.inside))
        counted = int((self.contacts.counted & within[self.contacts.atoms.parents]).sum())
        return Validation(
            atoms=int(within.sum()),
            clashscore=1000 * len(self.clashes) / counted if counted else None,
            ramachandran_favoured=_part(self.ramachandran, "favoured"),
            ramachandran_outliers=_part(self.ramachandran, "outlier"),
            rotamer_outliers=_part(self.rotamers, "outlier"),
            bond_rmsz=rmsz(self.bonds),
            angle_rmsz=rmsz(self.angles),
            chirality_outliers=sum(map(is_wrong_hand, self.chirals)) if self.chirals else None,
        )

    def rows(self) -> list[ResidueRow]:
        """One row per residue and conformer."""
        clashes: dict[int, dict[Clash, set[str]]] = {}
        for clash in self.clashes:
            for atom in (clash.first, clash.second):
                own = clashes.setdefault(self.residue(atom), {}).setdefault(clash, set())
                own.add(str(self.contacts.atoms.letters[atom]))
        owned = [
            _by_residue(terms)
            for terms in (self.ramachandran, self.rotamers, self.bonds, self.angles, self.chirals)
        ]
        rows = []
        for r in sorted(self.inside):
            if self.model.residues[r].kind != "protein" and r not in clashes:
                continue
            for letter in self.model.letters(r):
                rama, rota, bonds, angles, chirals = (self._in(terms.get(r, []), letter) for terms in owned)
                pairs = [c for c, own in clashes.get(r, {}).items() if letter == "" or own & {"", letter}]
                rows.append(
                    ResidueRow(
                        **self._name(r, letter),
                        **_worst_torsions("ramachandran", rama),
                        **_worst_torsions("rotamer", rota),
                        bond=self._worst(bonds),
                        angle=self._worst(angles),
                        wrong_hand=sorted(
                            {self.model.names[t.atoms[0]] for t in chirals if is_wrong_hand(t)}
                        ),
                        clashes=[self._pair(clash) for clash in pairs],
                    )
                )
        return rows

    def outside(self) -> dict[str, int]:
        """How many clashes each residue that is not inside has with those that are, most first."""
        owners = [self.residue(atom) for c in self.clashes for atom in (c.first, c.second)]
        found = Counter(name_of(self.model.residues[r]) for r in owners if r not in self.inside)
        return dict(found.most_common())

    def _in(self, terms: list[_Term], letter: str) -> list[_Term]:
        return [t for t in terms if letter == "" or self.model.letter(t.atoms) in ("", letter)]

    def _name(self, r: int, letter: str) -> dict[str, Any]:
        residue = self.model.residues[r]
        chain, number, icode = residue.id.chain, residue.id.number, residue.id.icode
        return {"chain": chain, "number": number, "icode": icode, "name": residue.name, "altloc": letter}

    def _worst(self, terms: list[Deviation]) -> Worst | None:
        if not terms:
            return None
        worst = max(terms, key=lambda t: abs(t.z))
        return Worst(atoms="-".join(self.model.names[i] for i in worst.atoms), value=worst.value, z=worst.z)

    def _pair(self, clash: Clash) -> ClashPair:
        return ClashPair(
            first=self._label(clash.first), second=self._label(clash.second), overlap=clash.overlap
        )

    def _label(self, atom: int) -> str:
        letter = str(self.contacts.atoms.letters[atom])
        name = name_of(self.model.residues[self.residue(atom)])
        return f"{name} {self.contacts.names[atom]} {letter}".rstrip()


def _part(terms: list[Torsions], verdict: Verdict) -> float | None:
    return sum(t.verdict == verdict for t in terms) / len(terms) if terms else None


def _worst_torsions(name: str, terms: list[Torsions]) -> dict[str, Any]:
    if not terms:
        return {}
    worst = min(terms, key=lambda t: t.value)
    return {name: worst.verdict, f"{name}_value": worst.value}


def _by_residue(terms: list[_Term]) -> dict[int, list[_Term]]:
    found: dict[int, list[_Term]] = {}
    for term in terms:
        found.setdefault(term.residue, []).append(term)
    return found
