"""List the chains of a corpus that training must leave out: ``python training/exclude.py CORPUS HOLDOUT``.

Removing homologs by identity over a whole alignment, or with a coverage of both sequences, leaves
domains of the hold-out proteins in the corpus. Here any significant local match to a hold-out sequence
counts; a match of 30 % identity to a validation chain does too. Needs mmseqs2 (Debian: ``mmseqs2``).
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from corpus import Corpus, load

HEAD = """# Chains of {corpus} that training leaves out, one PDB id_chain a line.
# First those with any significant local match (mmseqs2 search, -s 7.5, E < 0.001) to a sequence of
# {holdout}, whatever part of it is covered; then training chains with such a match (-s 5.7) of 30 %
# identity or more to a validation chain. Made by training/exclude.py.
"""


def write_fasta(corpus: Corpus, chains: np.ndarray, path: Path) -> None:
    """Write chains named by their index."""
    path.write_text("".join(f">{i}\n{corpus.sequence(int(i))}\n" for i in chains))


def matches(query: Path, target: Path, folder: Path, sensitivity: float) -> list[tuple[str, str, float]]:
    """Query, target and identity of every local match with E < 0.001, by mmseqs2."""
    out = folder / "matches.tsv"
    command = ["mmseqs", "easy-search", query, target, out, folder / "work", "-s", sensitivity, "-e", 0.001]
    command += ["--max-seqs", 1000, "--format-output", "query,target,fident", "-v", 1]
    subprocess.run([str(part) for part in command], check=True)
    with out.open() as file:
        return [(q, t, float(identity)) for q, t, identity in csv.reader(file, delimiter="\t")]


def excluded(corpus: Corpus, holdout: Path) -> tuple[list[str], list[str]]:
    """Names of the homologs of the hold-out, and of further homologs of validation chains."""
    train, validation = corpus.chosen(validation=False), corpus.chosen(validation=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_fasta(corpus, np.arange(len(corpus)), folder / "all.fasta")
        write_fasta(corpus, train, folder / "train.fasta")
        write_fasta(corpus, validation, folder / "validation.fasta")
        held = {int(q) for q, _, _ in matches(folder / "all.fasta", holdout, folder, 7.5)}
        found = matches(folder / "validation.fasta", folder / "train.fasta", folder, 5.7)
    near = {int(t) for _, t, identity in found if identity >= 0.3} - held
    return tuple(sorted(str(corpus.names[i]) for i in chains) for chains in (held, near))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("holdout", type=Path, help="FASTA")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("excluded.txt"))
    args = parser.parse_args()
    names = [name for part in excluded(load(args.corpus), args.holdout) for name in part]
    head = HEAD.format(corpus=args.corpus, holdout=args.holdout)
    args.out.write_text(head + "\n".join(names) + "\n")
    print(f"{len(names)} chains")


if __name__ == "__main__":
    main()
