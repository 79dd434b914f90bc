"""What is in a sample, as Boltz's schema has it, from FASTA or from Boltz's YAML.

The schema is the content of a Boltz YAML file: proteins, nucleic acids and ligands under ``sequences``, and
what else Boltz reads (constraints, templates). What can be wrong in it is said here, before Boltz sees it.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import count, product
from pathlib import Path
from typing import Any

import yaml
from Bio import SeqIO

from densemble.errors import InputError

FASTA = (".fa", ".fas", ".fasta")
YAML = (".yaml", ".yml")
LETTERS = {"protein": set("ARNDCEQGHILKMFPSTWYVXJBZOU"), "rna": set("AGCUN"), "dna": set("AGCTN")}
"""What Boltz has tokens for; to it J, B, Z, O and U in proteins are unknown residues, as X is."""

_NAME = 5  # characters of a chain's name that Boltz keeps
_MSA = (".a3m", ".a3m.gz", ".csv")
_TELLING = 8  # residues; a protein of this length has more than the letters of nucleic acids


@dataclass(frozen=True)
class Contents:
    """A schema, and where it is from.

    Attributes:
        source: what to call it in messages, e.g. ``sequence file complex.yaml``.
        schema: as in a Boltz YAML.
        messages: what the user should know.
    """

    source: str
    schema: dict[str, Any]
    messages: tuple[str, ...] = ()

    def entities(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Type, content and chain names of each entry of ``sequences``."""
        for item in self.schema["sequences"]:
            kind, entity = next(iter(item.items()))
            names = entity["id"]
            yield kind, entity, names if isinstance(names, list) else [names]


def chain_names(taken: Iterable[str]) -> Iterator[str]:
    """A, B, ... Z, AA, AB, ... without those that are taken."""
    taken = set(taken)
    for length in count(1):
        for letters in product(string.ascii_uppercase, repeat=length):
            if (name := "".join(letters)) not in taken:
                yield name


def read_contents(path: Path) -> Contents:
    """Read FASTA (plain, or with Boltz's headers such as ``>A|protein|msa.a3m``) or Boltz YAML.

    Sequences of a plain FASTA are proteins, in chains A, B, ... Files that are named in it are looked for in
    its folder, then in the working directory.

    Raises:
        InputError: the file is missing, empty or of another format; an entry is not as Boltz has it; a
            sequence has a letter that Boltz does not know; a file named in it does not exist.
    """
    source = f"sequence file {path}"
    if not path.is_file():
        raise InputError(f"{source}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as text ({error})") from error
    if not text:
        raise InputError(f"{source}: the file is empty; give FASTA or a Boltz YAML")
    messages: tuple[str, ...] = ()
    if path.suffix.lower() in YAML:
        schema = _from_yaml(text, source)
        if schema.pop("properties", None):
            messages = (f"{path.name}: properties (affinities) are not predicted here",)
    elif path.suffix.lower() in FASTA:
        schema = {"version": 1, "sequences": _from_fasta(text, source)}
    else:
        raise InputError(f"{source}: name it {', '.join(FASTA)} (FASTA) or {', '.join(YAML)} (Boltz YAML)")
    contents = Contents(source, schema, messages)
    _check(contents)
    _find_files(contents, path.parent)
    return contents


def _from_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        schema = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML ({' '.join(str(error).split())})") from error
    entries = schema.get("sequences") if isinstance(schema, dict) else None
    if not entries or not isinstance(entries, list):
        raise InputError(
            f"{source}: no list 'sequences' in it; write for example 'sequences:' and, below it, "
            "'  - protein: {id: A, sequence: MKTAYIAK, msa: empty}'"
        )
    return schema


def _from_fasta(text: str, source: str) -> list[dict[str, Any]]:
    if not text.startswith(">"):
        raise InputError(f"{source}: not FASTA, which begins with '>' and a name")
    records = [(r.id, str(r.seq).removesuffix("*")) for r in SeqIO.parse(StringIO(text), "fasta")]
    boltz = [_entity_type(header) is not None for header, _ in records]
    if all(boltz):
        return [_from_header(header, sequence, source) for header, sequence in records]
    if any(boltz):
        raise InputError(f"{source}: some headers are Boltz's ('>A|protein'), others not; write all alike")
    for header, sequence in records:
        if len(sequence) >= _TELLING and set(sequence.upper()) <= set("ACGTUN"):
            raise InputError(
                f"{source}: '>{header}' looks like a nucleic acid; write Boltz's headers, for example "
                "'>A|protein' and '>B|dna', or a Boltz YAML"
            )
    names = chain_names(())
    return [{"protein": {"id": next(names), "sequence": sequence.upper()}} for _, sequence in records]


def _entity_type(header: str) -> str | None:
    """The type in a header as Boltz has it; None in any other header."""
    _, bar, rest = header.partition("|")
    kind = rest.split("|")[0].lower()
    return kind if bar and kind in {"protein", "dna", "rna", "ccd", "smiles"} else None


def _from_header(header: str, sequence: str, source: str) -> dict[str, Any]:
    """An entry from ``CHAIN|TYPE`` or ``CHAIN|protein|MSA``, with the meaning that Boltz gives it."""
    chain, _, *rest = header.split("|")
    kind = str(_entity_type(header))
    msa = rest[0] if rest and rest[0] else None
    if kind == "protein":
        return {kind: {"id": chain, "sequence": sequence.upper(), "msa": msa}}
    if msa is not None:
        raise InputError(f"{source}: '>{header}': only proteins have alignments; remove '|{msa}'")
    if kind in ("ccd", "smiles"):
        return {"ligand": {"id": chain, kind: sequence}}
    return {kind: {"id": chain, "sequence": sequence.upper()}}


def _check(contents: Contents) -> None:
    """Every entry as Boltz has it, with its types in lower case; chain names short and all different."""
    source, taken = contents.source, set[str]()
    entries = contents.schema["sequences"]
    for n, item in enumerate(entries, start=1):
        well = isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict)
        kind = str(next(iter(item))).lower() if well else ""
        if kind not in {*LETTERS, "ligand"}:
            raise InputError(
                f"{source}: entry {n} of 'sequences' is not one of protein, dna, rna and ligand with its id"
            )
        entries[n - 1] = {kind: next(iter(item.values()))}
    for kind, entity, names in Contents(source, {"sequences": _with_ids(entries, source)}).entities():
        for name in names:
            if not isinstance(name, str) or not 0 < len(name) <= _NAME:
                raise InputError(
                    f"{source}: chain name {name!r}: write 1 to {_NAME} characters, in quotes if they are a "
                    "number or a word such as no"
                )
            if name in taken:
                raise InputError(f"{source}: two chains are named {name}; name them differently")
            taken.add(name)
        if kind == "ligand":
            if ("ccd" in entity) == ("smiles" in entity):
                raise InputError(f"{source}: ligand {names[0]}: give it one of ccd and smiles")
        else:
            _check_sequence(source, kind, entity, names[0])


def _with_ids(entries: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    for n, item in enumerate(entries, start=1):
        if next(iter(item.values())).get("id") in (None, "", []):
            raise InputError(f"{source}: entry {n} of 'sequences' has no id, which is its chain name")
    return entries


def _check_sequence(source: str, kind: str, entity: dict[str, Any], name: str) -> None:
    sequence = entity.get("sequence")
    if not isinstance(sequence, str) or not sequence:
        raise InputError(f"{source}: chain {name} has no sequence")
    for position, letter in enumerate(sequence, start=1):
        if letter not in LETTERS[kind]:
            unknown = "X" if kind == "protein" else "N"
            raise InputError(
                f"{source}: chain {name}: residue {position} is '{letter}', which is no {kind} residue; "
                f"write {unknown} for one that is not known; modified ones go under 'modifications' in a YAML"
            )
    for change in entity.get("modifications") or []:
        place = change.get("position") if isinstance(change, dict) else None
        if not isinstance(place, int) or not 1 <= place <= len(sequence) or "ccd" not in change:
            raise InputError(
                f"{source}: chain {name}: modification {change}: write {{position: P, ccd: CODE}} with P "
                f"from 1 to {len(sequence)}"
            )


def _find_files(contents: Contents, folder: Path) -> None:
    """Replace the names of alignments and templates by full paths, in place."""
    for kind, entity, names in contents.entities():
        msa = entity.get("msa") if kind == "protein" else None
        if msa and msa != "empty":
            entity["msa"] = _found(f"{contents.source}: alignment (msa) of chain {names[0]}", msa, folder)
            if not entity["msa"].endswith(_MSA):
                raise InputError(f"{contents.source}: alignment {msa}: Boltz reads {', '.join(_MSA)}")
    for template in contents.schema.get("templates") or []:
        for form in ("cif", "pdb"):
            if form in template:
                template[form] = _found(f"{contents.source}: template", template[form], folder)


def _found(what: str, name: str, folder: Path) -> str:
    for path in (folder / name, Path(name)):
        if path.is_file():
            return str(path.resolve())
    raise InputError(f"{what}: there is no file {name} in {folder.resolve()} or {Path.cwd()}")
