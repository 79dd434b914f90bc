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
from boltz.data.types import MSA, ChainInfo, Target

from densemble.errors import InputError
from densemble.priors.boltz.sequences import Contents

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


def read_alignments(
    target: Target, contents: Contents, server: MsaServer | None
) -> tuple[dict[int, MSA], tuple[str, ...]]:
    """Alignments by Boltz's number of the chain, and what the user should know.

    Args:
        target: ``boltz.data.types.Target``.
        contents: where it is from.
        server: for proteins without an alignment.

    Raises:
        InputError: a protein has no alignment and there is no server; an alignment cannot be read, or is of
            another sequence; the server fails.
    """
    proteins = [c for c in target.record.chains if c.mol_type == const.chain_type_ids["PROTEIN"]]
    unaligned = {c.entity_id: c.chain_name for c in proteins if c.msa_id == 0}
    if unaligned and server is None:
        chain = next(iter(unaligned.values()))
        raise InputError(
            f"{contents.source}: chain {chain} has no alignment (MSA); name one (msa: FILE.a3m in a Boltz "
            f"YAML, '>{chain}|protein|FILE.a3m' in FASTA), write 'empty' there to fold it from its sequence "
            f"alone, or --use-msa-server to have one made by {COLABFOLD}, to which the sequence is then sent"
        )
    made = _from_server(target, list(unaligned), contents, server) if unaligned and server else {}
    found, read = {}, dict[Path, MSA]()
    for chain in proteins:
        if chain.msa_id != -1:
            path = made[chain.entity_id] if chain.msa_id == 0 else Path(chain.msa_id)
            if path not in read:
                read[path] = _read(path, contents.source)
            _check_query(read[path], chain, target.sequences[chain.entity_id], path, contents.source)
            found[chain.chain_id] = read[path]
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


def _check_query(alignment: MSA, chain: ChainInfo, sequence: str, path: Path, source: str) -> None:
    """Rows must be as long as the chain, and the first must be its sequence; Boltz takes both for granted."""
    what = f"{source}: alignment {path} is not of chain {chain.chain_name}"
    lengths = {int(s["res_end"] - s["res_start"]) for s in alignment.sequences}
    if lengths != {chain.num_residues}:
        raise InputError(
            f"{what}: its rows have {', '.join(map(str, sorted(lengths)[:3]))} residues (lower case not "
            f"counted), the chain has {chain.num_residues}"
        )
    first = alignment.sequences[0]
    row = alignment.residues[first["res_start"] : first["res_end"]]["res_type"]
    query = [const.token_ids[const.prot_letter_to_token[letter]] for letter in sequence]
    identity = float(np.mean(row == np.array(query)))
    if identity < _SAME:
        raise InputError(f"{what}: {identity:.0%} of the residues of its first row are those of the chain")


def _from_server(
    target: Target, entities: list[int], contents: Contents, server: MsaServer
) -> Mapping[int, Path]:
    """Files of the alignments that a server made, by entity."""
    sequences = [target.sequences[entity] for entity in entities]
    asked = "\n".join((server.url, server.pairing, *sequences))
    folder = server.folder / hashlib.sha256(asked.encode()).hexdigest()[:32]
    if not folder.is_dir():
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
