"""What a case is compared with and begins with: models whose chains and numbers are those of its fold.

A fold has the chains of its sequences, A, B, ..., numbered from 1; deposited models have numbers and names of
their own. So the reference, and a start, are written anew with the fold's, their residues aligned with the
sequences.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi

from densemble.errors import InputError
from densemble.experiments.antibody import cdr_h3, fab_chains
from densemble.io.naming import one_letter
from densemble.io.output import write_text
from densemble.io.results import write_structure
from densemble.suites import CDR_H3, Keep


@dataclass(frozen=True)
class Folded:
    """Files of a case that folds.

    Attributes:
        sequences: FASTA as Boltz reads it.
        reference: model of the same chains and numbers; None if there is none.
        start: likewise.
        local: residues of the local RMSD in these; None if there are none.
    """

    sequences: Path
    reference: Path | None
    start: Path | None
    local: str | None


def read_structure(path: Path) -> gemmi.Structure:
    """A model with its sequences, as deposited where they were.

    Raises:
        InputError: it cannot be read.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"model {path}: cannot be read ({error})") from error
    structure.setup_entities()
    return structure


def protein_chains(structure: gemmi.Structure, keep: Keep) -> dict[str, list[str]]:
    """Names of the protein chains that are kept, with their residues as deposited, modelled or not.

    Raises:
        InputError: there is none, or no Fab where that is to be kept.
    """
    found = {}
    for chain in structure[0]:
        polymer = chain.get_polymer()
        if len(polymer) and polymer.check_polymer_type() == gemmi.PolymerType.PeptideL:
            entity = structure.get_entity_of(polymer)
            whole = [] if entity is None else [gemmi.Entity.first_mon(name) for name in entity.full_sequence]
            found[chain.name] = whole or [residue.name for residue in polymer.first_conformer()]
    if keep == "fab":
        return {
            name: found[name] for name in fab_chains({n: letters_of(names) for n, names in found.items()})
        }
    if not found:
        raise InputError(f"model {structure.name}: has no protein chain")
    return found


def letters_of(names: Sequence[str]) -> str:
    """One-letter code, of a modified residue that of its parent; X where there is none."""
    return "".join(one_letter(name) or "X" for name in names)


def fold_case(
    sequences: Path,
    reference: Path | None,
    folder: Path,
    *,
    start: Path | None = None,
    keep: Keep = "protein",
    local: str | None = None,
    alignments: Sequence[Path] = (),
) -> Folded:
    """Write the sequences that are folded, and the reference and a start with their chains and numbers.

    Args:
        sequences: model whose sequences they are.
        reference: model, if there is one; its kept chains are those of the sequences, in this order.
        folder: to write to, of this case alone: models that are there already stay.
        start: likewise.
        keep: which chains.
        local: ``CDR H3``, or residues as a region has them, in the fold's chains and numbers.
        alignments: of each chain; none, and the chains are folded from sequence alone.

    Raises:
        InputError: a model has not the chains, or there are not as many alignments.
    """
    chains = list(protein_chains(read_structure(sequences), keep).values())
    if alignments and len(alignments) != len(chains):
        raise InputError(f"{sequences}: {len(chains)} chains, and {len(alignments)} alignments")
    if len(chains) > len(string.ascii_uppercase):
        raise InputError(f"{sequences}: {len(chains)} chains, more than there are letters")
    files = [str(path.resolve()) for path in alignments] or ["empty"] * len(chains)
    records = [
        f">{name}|protein|{file}\n{letters_of(chain)}\n"
        for name, file, chain in zip(string.ascii_uppercase, files, chains, strict=False)
    ]
    fasta = write_text(folder / "sequence.fasta", "".join(records))  # anew: alignments may have moved

    def renamed(model: Path | None, name: str) -> Path | None:
        path = folder / name
        if model is not None and not path.is_file():
            whole = read_structure(model)
            own = list(protein_chains(whole, keep))
            if len(own) != len(chains):
                counts = f"{len(own)} protein chains, and {len(chains)} sequences of {sequences.name}"
                raise InputError(f"model {model}: {counts}")
            write_structure(path, _as_folded(whole, own, chains))
        return None if model is None else path

    if local == CDR_H3:
        first, last = cdr_h3(letters_of(chains[0]))
        local = f"A:{first}-{last}"
    return Folded(fasta, renamed(reference, "reference.cif"), renamed(start, "start_as_folded.cif"), local)


def _as_folded(
    structure: gemmi.Structure, names: Sequence[str], chains: Sequence[Sequence[str]]
) -> gemmi.Structure:
    """Some protein chains as A, B, ..., numbered by their alignment with sequences; all else is left out.

    Residues that are no part of the sequence, such as tags, are left out too.
    """
    written = gemmi.Structure()
    written.name = structure.name
    written.add_model(gemmi.Model("1"))
    for letter, name in zip(string.ascii_uppercase, names, strict=False):
        chain = gemmi.Chain(letter)
        for residue in structure[0][name].get_polymer():
            chain.add_residue(residue)
        written[0].add_chain(chain)
    written.setup_entities()
    for chain, sequence in zip(written[0], chains, strict=True):
        polymer = chain.get_polymer()
        scoring = gemmi.AlignmentScoring("p")  # for models that lack residues
        result = gemmi.align_sequence_to_polymer(list(sequence), polymer, gemmi.PolymerType.PeptideL, scoring)
        _renumber(chain, result.cigar_str())
    written.assign_label_seq_id(True)
    return written


def _renumber(chain: gemmi.Chain, cigar: str) -> None:
    """Number residues by their places in a sequence; those that it has not are left out.

    Args:
        chain: whose residues; microheterogeneities, which share a number, count once.
        cigar: M: in both, I: in the sequence only, D: in the chain only.
    """
    places: list[int | None] = []
    place = 0
    for length, operation in re.findall(r"(\d+)([MID])", cigar):
        for _ in range(int(length)):
            place += operation != "D"
            if operation != "I":
                places.append(place if operation == "M" else None)
    numbers = dict(zip(dict.fromkeys(str(residue.seqid) for residue in chain), places, strict=True))
    for i in reversed(range(len(chain))):
        number = numbers[str(chain[i].seqid)]
        if number is None:
            del chain[i]
        else:
            chain[i].seqid = gemmi.SeqId(str(number))
            chain[i].label_seq = None
