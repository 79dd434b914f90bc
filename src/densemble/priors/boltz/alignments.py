"""Alignments of the proteins of an input: from files, or from a server as Boltz asks it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from boltz import main
from boltz.data import const
from boltz.data.parse.a3m import parse_a3m
from boltz.data.parse.csv import parse_csv
from boltz.data.types import MSA, Target

from densemble.errors import InputError
from densemble.priors.boltz.sequences import Contents
from densemble.progress import Progress

COLABFOLD = "https://api.colabfold.com"
_MOST = 8192  # sequences of an alignment, as Boltz's command line
_SAME = 0.9  # least identity of the first row with the chain: tags and mutations are allowed for


@dataclass(frozen=True)
class MsaServer:
    """A server that searches for homologues with MMseqs2. Sequences are sent to it.

    User name and password, or a key, are taken from the environment as Boltz does: ``BOLTZ_MSA_USERNAME`` and
    ``BOLTZ_MSA_PASSWORD``, or ``MSA_API_KEY_VALUE``.

    Attributes:
        folder: where its alignments are kept; what is there is not asked for again.
        url: of the server.
        pairing: how sequences of several chains are paired, ``greedy`` or ``complete``.
    """

    folder: Path
    url: str = COLABFOLD
    pairing: str = "greedy"


def given_alignments(contents: Contents, server: MsaServer | None) -> dict[str, MSA]:
    """Alignments that an input names, by file.

    Args:
        contents: the input; files are named by full paths.
        server: for proteins without an alignment, which it is not asked for yet.

    Raises:
        InputError: a protein has no alignment and there is no server; an alignment cannot be read, or is of
            another sequence.
    """
    read = dict[str, MSA]()
    for kind, entity, (chain, *_) in contents.entities():
        file = (entity.get("msa") or None) if kind == "protein" else "empty"
        if file is None and server is None:
            raise InputError(
                f"{contents.source}: chain {chain} has no alignment (MSA); name one (msa: FILE.a3m in a "
                f"Boltz YAML, '>{chain}|protein|FILE.a3m' in FASTA), write 'empty' there to fold it from its "
                f"sequence alone, or --use-msa-server to have one made by {COLABFOLD}, to which the sequence "
                "is then sent"
            )
        if file not in (None, "empty"):
            if file not in read:
                read[file] = _read(Path(file), contents.source)
            _check_query(read[file], chain, entity["sequence"], file, contents.source)
    return read


def read_alignments(
    target: Target,
    contents: Contents,
    given: Mapping[str, MSA],
    server: MsaServer | None,
    *,
    tell: Progress,
) -> tuple[dict[int, MSA], tuple[str, ...]]:
    """Alignments by Boltz's number of the chain, and what the user should know.

    Args:
        target: ``boltz.data.types.Target``.
        contents: where it is from.
        given: what it names, see ``given_alignments``.
        server: for the other proteins.
        tell: told when the server is waited for.

    Raises:
        InputError: the server fails, or sends what is no alignment of the sequences.
    """
    proteins = [c for c in target.record.chains if c.mol_type == const.chain_type_ids["PROTEIN"]]
    unaligned = list(dict.fromkeys(c.entity_id for c in proteins if c.msa_id == 0))
    made = dict[int, MSA]()
    if unaligned:
        assert server is not None  # given_alignments has seen to it
        for entity, path in _from_server(target, unaligned, contents, server, tell).items():
            made[entity] = _read(path, contents.source)
    found = {}
    for chain in proteins:
        if chain.msa_id == 0:
            found[chain.chain_id] = made[chain.entity_id]
            sequence = target.sequences[chain.entity_id]
            _check_query(made[chain.entity_id], chain.chain_name, sequence, "of the server", contents.source)
        elif chain.msa_id != -1:
            found[chain.chain_id] = given[chain.msa_id]
    alone = [str(c.chain_name) for c in proteins if c.msa_id == -1]
    said = f"chain {', '.join(alone)}: without alignment, from sequence alone, which is less reliable"
    return found, (said,) if alone else ()


def _read(path: Path, source: str) -> MSA:
    try:
        if path.suffix == ".csv":
            alignment = parse_csv(path, max_seqs=_MOST)
        else:
            alignment = parse_a3m(path, taxonomy=None, max_seqs=_MOST)
    except KeyError as error:
        raise InputError(f"{source}: alignment {path}: {error} is no amino acid") from error
    except Exception as error:
        raise InputError(f"{source}: alignment {path}: cannot be read ({error})") from error
    if len(alignment.sequences) == 0:
        raise InputError(f"{source}: alignment {path}: no sequences in it")
    return alignment


def _check_query(alignment: MSA, chain: str, sequence: str, file: str, source: str) -> None:
    """Rows must be as long as the chain, and the first must be its sequence; Boltz takes both for granted."""
    what = f"{source}: alignment {file} is not of chain {chain}"
    lengths = {int(s["res_end"] - s["res_start"]) for s in alignment.sequences}
    if lengths != {len(sequence)}:
        raise InputError(
            f"{what}: its rows have {', '.join(map(str, sorted(lengths)[:3]))} residues (lower case not "
            f"counted), the chain has {len(sequence)}"
        )
    first = alignment.sequences[0]
    row = alignment.residues[first["res_start"] : first["res_end"]]["res_type"]
    query = [const.token_ids[const.prot_letter_to_token[letter]] for letter in sequence]
    identity = float(np.mean(row == np.array(query)))
    if identity < _SAME:
        raise InputError(f"{what}: {identity:.0%} of the residues of its first row are those of the chain")


def _from_server(
    target: Target, entities: list[int], contents: Contents, server: MsaServer, tell: Progress
) -> Mapping[int, Path]:
    """Files of the alignments that a server made, by entity."""
    sequences = [target.sequences[entity] for entity in entities]
    asked = "\n".join((server.url, server.pairing, *sequences))
    folder = server.folder / hashlib.sha256(asked.encode()).hexdigest()[:32]
    if not folder.is_dir():
        many = "1 sequence" if len(sequences) == 1 else f"{len(sequences)} sequences"
        tell.message(f"waiting for {server.url} to align {many}, which it was sent; this may take minutes")
        try:
            server.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=server.folder, prefix=".msa-") as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                main.compute_msa(
                    data={str(n): sequence for n, sequence in enumerate(sequences)},
                    target_id="input",
                    msa_dir=made,
                    msa_server_url=server.url,
                    msa_pairing_strategy=server.pairing,
                    msa_server_username=os.environ.get("BOLTZ_MSA_USERNAME"),
                    msa_server_password=os.environ.get("BOLTZ_MSA_PASSWORD"),
                    api_key_value=os.environ.get("MSA_API_KEY_VALUE"),
                )
                os.replace(made, folder)
        except Exception as error:
            raise InputError(
                f"{contents.source}: no alignments from {server.url} ({error}); try again later, or name "
                "alignments of your own in a Boltz YAML"
            ) from error
    return {entity: folder / f"{n}.csv" for n, entity in enumerate(entities)}
