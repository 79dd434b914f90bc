"""Validation of a model with all its altlocs, from its coordinates alone.

- clash score: ``clashes``;
- Ramachandran classes and rotamers: ``contours``;
- bond and angle RMSZ, chiral centres: ``stereochemistry``.

Each conformer is judged; what conformers share counts once. Every module states its published definition;
``docs/validation.md`` compares the figures with those published for PDB entries.
"""

from __future__ import annotations

from collections.abc import Iterable

import gemmi
import numpy as np
from pydantic import Field

from densemble.atoms import Region
from densemble.io.model_results import Validation
from densemble.io.output import Record
from densemble.metrics.clashes import AllAtomContacts, Clash, find_clashes
from densemble.metrics.conformers import Conformers
from densemble.metrics.contours import Torsions, Verdict, ramachandran, rotamers
from densemble.metrics.stereochemistry import Deviation, Stereochemistry, is_wrong_hand, rmsz, stereochemistry

_RANK: dict[Verdict, int] = {"favoured": 0, "allowed": 1, "outlier": 2}


class Worst(Record):
    """The term of a residue that is furthest from its target: atoms, value (Å or degrees), deviation in s.d."""

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
    """Figures of the whole and of each protein residue; other residues have rows if they clash."""

    totals: Validation
    residues: list[ResidueRow]


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
    contacts = find_clashes(model, stereo)
    judged = _Judged(
        model=model,
        ramachandran=[t for t in ramachandran(model) if t.residue in inside],
        rotamers=[t for t in rotamers(model) if t.residue in inside],
        stereo=Stereochemistry(
            *(
                [t for t in terms if t.residue in inside]
                for terms in (stereo.bonds, stereo.angles, stereo.chirals)
            )
        ),
        contacts=contacts,
        inside=inside,
    )
    return ModelValidation(totals=judged.totals(), residues=judged.rows())


class _Judged:
    """All that was found about the residues inside."""

    def __init__(
        self,
        *,
        model: Conformers,
        ramachandran: list[Torsions],
        rotamers: list[Torsions],
        stereo: Stereochemistry,
        contacts: AllAtomContacts,
        inside: set[int],
    ) -> None:
        self.model, self.stereo, self.contacts = model, stereo, contacts
        self.ramachandran, self.rotamers, self.inside = ramachandran, rotamers, inside
        self.owner = model.residue_index[contacts.atoms.parents]
        self.clashes = [
            c for c in contacts.clashes if inside & {self._residue(c.first), self._residue(c.second)}
        ]

    def _residue(self, atom: int) -> int:
        return int(self.owner[atom])

    def totals(self) -> Validation:
        counted = int((self.contacts.counted & np.isin(self.owner, sorted(self.inside))).sum())
        return Validation(
            atoms=int(np.isin(self.model.residue_index, sorted(self.inside)).sum()),
            clashscore=1000 * len(self.clashes) / counted if counted else None,
            ramachandran_favoured=_part(self.ramachandran, "favoured"),
            ramachandran_outliers=_part(self.ramachandran, "outlier"),
            rotamer_outliers=_part(self.rotamers, "outlier"),
            bond_rmsz=rmsz(self.stereo.bonds),
            angle_rmsz=rmsz(self.stereo.angles),
            chirality_outliers=sum(map(is_wrong_hand, self.stereo.chirals)) if self.stereo.chirals else None,
        )

    def rows(self) -> list[ResidueRow]:
        clashes: dict[int, list[tuple[str, Clash]]] = {}
        for clash in self.clashes:
            for atom in (clash.first, clash.second):
                letter = str(self.contacts.atoms.letters[atom])
                clashes.setdefault(self._residue(atom), []).append((letter, clash))
        terms = {
            name: _by_residue(found)
            for name, found in (
                ("rama", self.ramachandran),
                ("rota", self.rotamers),
                ("bonds", self.stereo.bonds),
                ("angles", self.stereo.angles),
                ("chirals", self.stereo.chirals),
            )
        }
        rows = []
        for r in sorted(self.inside):
            if self.model.residues[r].kind != "protein" and r not in clashes:
                continue
            for letter in self.model.letters(r):
                own = {name: self._of_conformer(found.get(r, []), letter) for name, found in terms.items()}
                pairs = [c for a, c in clashes.get(r, []) if letter == "" or a in ("", letter)]
                rows.append(self._row(r, letter, own, pairs))
        return rows

    def _of_conformer(self, terms: list, letter: str) -> list:  # type: ignore[type-arg]
        return [t for t in terms if letter == "" or self.model.letter(t.atoms) in ("", letter)]

    def _row(self, r: int, letter: str, own: dict[str, list], clashes: list[Clash]) -> ResidueRow:  # type: ignore[type-arg]
        residue = self.model.residues[r]
        rama, rota = _worst_torsions(own["rama"]), _worst_torsions(own["rota"])
        return ResidueRow(
            chain=residue.id.chain,
            number=residue.id.number,
            icode=residue.id.icode,
            name=residue.name,
            altloc=letter,
            ramachandran=None if rama is None else rama.verdict,
            ramachandran_value=None if rama is None else rama.value,
            rotamer=None if rota is None else rota.verdict,
            rotamer_value=None if rota is None else rota.value,
            bond=self._worst(own["bonds"]),
            angle=self._worst(own["angles"]),
            wrong_hand=sorted({self.model.names[t.atoms[0]] for t in own["chirals"] if is_wrong_hand(t)}),
            clashes=[
                ClashPair(first=self._label(c.first), second=self._label(c.second), overlap=c.overlap)
                for c in dict.fromkeys(clashes)
            ],
        )

    def _worst(self, terms: list[Deviation]) -> Worst | None:
        if not terms:
            return None
        worst = max(terms, key=lambda t: abs(t.z))
        return Worst(atoms="-".join(self.model.names[i] for i in worst.atoms), value=worst.value, z=worst.z)

    def _label(self, atom: int) -> str:
        residue = self.model.residues[self._residue(atom)]
        letter = str(self.contacts.atoms.letters[atom])
        return f"{residue.id} {residue.name} {self.contacts.names[atom]} {letter}".rstrip()


def _part(terms: list[Torsions], verdict: Verdict) -> float | None:
    return sum(t.verdict == verdict for t in terms) / len(terms) if terms else None


def _worst_torsions(terms: Iterable[Torsions]) -> Torsions | None:
    return max(terms, key=lambda t: (_RANK[t.verdict], -t.value), default=None)


def _by_residue(terms: Iterable[Torsions] | Iterable[Deviation]) -> dict[int, list]:  # type: ignore[type-arg]
    found: dict[int, list] = {}  # type: ignore[type-arg]
    for term in terms:
        found.setdefault(term.residue, []).append(term)
    return found
