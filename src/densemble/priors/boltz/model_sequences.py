"""What is in a model, as Boltz's schema has it: sequences, also of what has no coordinates, and ligands."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import gemmi

from densemble.errors import InputError
from densemble.io.models import Model
from densemble.io.naming import one_letter
from densemble.priors.boltz.sequences import LETTERS, Contents, chain_names

_UNKNOWN = ("UNX", "UNL")  # atoms and ligands that nobody could name
_TYPES = {
    gemmi.PolymerType.PeptideL: "protein",
    gemmi.PolymerType.PeptideD: "protein",
    gemmi.PolymerType.Dna: "dna",
    gemmi.PolymerType.Rna: "rna",
    gemmi.PolymerType.DnaRnaHybrid: "rna",
}
_STANDARD = {
    "protein": {gemmi.expand_one_letter(c, gemmi.ResidueKind.AA) for c in "ARNDCQEGHILKMFPSTWYV"},
    "rna": set("ACGU"),
    "dna": {"DA", "DC", "DG", "DT"},
}


def model_contents(model: Model, *, alone: bool = True) -> Contents:
    """The schema of a model, for a fold from its sequences.

    Polymers have the sequence that the file states (SEQRES, entity_poly_seq), or that of the residues which
    are there if it states none. Modified residues go by their component codes. Every ligand and ion is a
    chain of its own; covalent links to it are kept; waters and unknown atoms are left out.

    Args:
        model: proteins, nucleic acids and ligands.
        alone: without alignments; otherwise they are still to be found.

    Raises:
        InputError: there is nothing in the model that Boltz models.
    """
    reader = _Reader(model, alone)
    for chain in model.structure[0]:
        reader.read(chain)
    if not reader.sequences:
        raise InputError(f"model {model.path}: no protein, nucleic acid or ligand in it that Boltz can model")
    schema: dict[str, Any] = {"version": 1, "sequences": reader.sequences}
    if constraints := reader.links():
        schema["constraints"] = constraints
    if alone and any("protein" in item for item in reader.sequences):
        reader.messages.append(
            "the proteins are folded from their sequence alone, without alignments, which is less reliable; "
            "give --use-msa-server, or --sequence with alignments"
        )
    return Contents(f"model {model.path}", schema, tuple(reader.messages))


@dataclass
class _Reader:
    model: Model
    alone: bool
    sequences: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    places: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """Chain and residue (from 1) in the schema, by chain and number in the model."""

    def __post_init__(self) -> None:
        chains = [chain.name for chain in self.model.structure[0]]
        self._used: set[str] = set()
        self._free = chain_names(chains)

    def read(self, chain: gemmi.Chain) -> None:
        """Add what is in a chain of the model."""
        polymer = chain.get_polymer()
        kind = _TYPES.get(polymer.check_polymer_type()) if len(polymer) else None
        if kind is not None:
            self._polymer(chain, polymer, kind)
        inside = {str(residue.seqid) for residue in polymer} if kind is not None else set()
        for residue in chain:
            if residue.is_water() or str(residue.seqid) in inside:
                continue
            where = f"{residue.name} {chain.name}:{residue.seqid}"
            if residue.name in _UNKNOWN:
                self.messages.append(f"{where} is left out: nobody knows what it is")
                continue
            name = self._name(chain.name)
            self.sequences.append({"ligand": {"id": name, "ccd": residue.name}})
            self.places[chain.name, str(residue.seqid)] = name, 1

    def _name(self, wanted: str) -> str:
        name = wanted if wanted not in self._used and 0 < len(wanted) <= 4 else next(self._free)
        self._used.add(name)
        return name

    def _polymer(self, chain: gemmi.Chain, polymer: gemmi.ResidueSpan, kind: str) -> None:
        entity = self.model.structure.get_entity_of(polymer)
        stated = [gemmi.Entity.first_mon(m) for m in entity.full_sequence] if entity is not None else []
        if not stated:
            self._tell_gaps(chain.name, polymer)
        names = stated or [residue.name for residue in polymer]
        letters, changes = [], []
        for position, name in enumerate(names, start=1):
            letters.append(_letter(name, kind))
            if name not in _STANDARD[kind] and name not in ("UNK", "N", "DN", "MSE"):
                changes.append({"position": position, "ccd": name})
        if "MSE" in names:
            self.messages.append(f"chain {chain.name}: selenomethionine is modelled as methionine")
        own = self._name(chain.name)
        entry: dict[str, Any] = {"id": own, "sequence": "".join(letters)}
        if changes:
            entry["modifications"] = changes
        if kind == "protein" and self.alone:
            entry["msa"] = "empty"
        self.sequences.append({kind: entry})
        for position, residue in enumerate(polymer, start=1):
            place = residue.label_seq if stated and residue.label_seq else position
            self.places[chain.name, str(residue.seqid)] = own, place

    def _tell_gaps(self, chain: str, polymer: gemmi.ResidueSpan) -> None:
        numbers = [residue.seqid.num for residue in polymer]
        gaps = [f"{a}-{b}" for a, b in pairwise(numbers) if b > a + 1]
        if gaps:
            self.messages.append(
                f"chain {chain}: the model does not state its sequence (SEQRES); what is missing between "
                f"{', '.join(gaps)} is not modelled; give --sequence"
            )

    def links(self) -> list[dict[str, Any]]:
        """Covalent bonds between residues that are not neighbours in a polymer."""
        found = []
        for link in self.model.structure.connections:
            if link.type != gemmi.ConnectionType.Covale or link.asu == gemmi.Asu.Different:
                continue
            ends = (link.partner1, link.partner2)
            first, second = (self.places.get((end.chain_name, str(end.res_id.seqid))) for end in ends)
            if first is None or second is None:
                continue
            if first[0] != second[0] or abs(first[1] - second[1]) > 1:
                atoms = [[*place, end.atom_name] for place, end in zip((first, second), ends, strict=True)]
                found.append({"bond": {"atom1": atoms[0], "atom2": atoms[1]}})
        return found


def _letter(name: str, kind: str) -> str:
    """One-letter code of a residue, that of the parent if it is modified."""
    letter = one_letter(name)
    return letter if letter in LETTERS[kind] else "X" if kind == "protein" else "N"
