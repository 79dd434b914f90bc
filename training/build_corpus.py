"""Build a corpus of backbones from Debian's ``promod3-data``: ``build_corpus.py STRUCTURE_DB HOLDOUT OUT``.

STRUCTURE_DB is ``usr/share/promod3/loop_data/structure_db.dat`` of the package (Apache-2.0; PDB data). Kept
are chains of 40-384 residues without breaks that have no significant local match to a hold-out sequence;
clusters at 30 % identity are assigned to training or validation whole. Needs mmseqs2.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densemble.errors import InputError
from exclude import matches

HEADER = 77
LENGTHS = (40, 384)
PEPTIDE = (1.1, 1.6)


@dataclass(frozen=True)
class Chain:
    """One chain of the database: names, sequence and N, CA, C, O in units of 0.01 Å, shape=(n, 4, 3)."""

    name: str
    sequence: bytes
    atoms: np.ndarray

    def usable(self) -> bool:
        """Of the lengths wanted, and with peptide bonds all along."""
        if not LENGTHS[0] <= len(self.sequence) <= LENGTHS[1]:
            return False
        bonds = np.linalg.norm(self.atoms[1:, 0] - self.atoms[:-1, 2], axis=-1) * 0.01
        return bool(((bonds > PEPTIDE[0]) & (bonds < PEPTIDE[1])).all())


def read_database(path: Path) -> list[Chain]:
    """All chains of a ProMod3 structure database.

    Raises:
        InputError: the file is missing or of another layout.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        place, table = _read_table(data)
        residues = sum(length for _, _, length in table)
        sequence, place = _read_array(data, place, np.dtype("S1"), residues)
        atoms, _ = _read_array(data, place, np.dtype(("<u2", (4, 3))), residues)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(
            f"{path}: not a ProMod3 structure database ({error}); take structure_db.dat from promod3-data"
        ) from error
    return [
        Chain(name, sequence[first : first + n].tobytes(), atoms[first : first + n].astype(np.int32))
        for name, first, n in table
    ]


def _read_table(data: np.ndarray) -> tuple[int, list[tuple[str, int, int]]]:
    """End of the table of chains; name, first residue and number of residues of each."""
    place, table = HEADER + 8, []
    (count,) = struct.unpack("<Q", data[HEADER:place].tobytes())
    for _ in range(count):
        words = []
        for _ in range(2):
            (size,) = struct.unpack("<I", data[place : place + 4].tobytes())
            words.append(data[place + 4 : place + 4 + size].tobytes().decode("ascii"))
            place += 4 + size
        # offset, residues, number of the first residue, origin
        first, residues, *_ = struct.unpack("<IHHfff", data[place : place + 20].tobytes())
        table.append(("_".join(words), first, residues))
        place += 20
    return place, table


def _read_array(data: np.ndarray, place: int, kind: np.dtype, count: int) -> tuple[np.ndarray, int]:
    """An array behind its uint64 count, and where it ends."""
    (found,) = struct.unpack("<Q", data[place : place + 8].tobytes())
    if found != count:
        raise ValueError(f"an array of {found} entries where {count} residues were expected")
    end = place + 8 + count * kind.itemsize
    base, shape = kind.subdtype or (kind, ())
    return np.frombuffer(data[place + 8 : end].tobytes(), dtype=base).reshape(count, *shape), end


def encode(chains: list[Chain]) -> dict[str, np.ndarray]:
    """Arrays of the corpus format, without ``validation``."""
    deltas = []
    for chain in chains:
        rows = chain.atoms.reshape(-1, 3)
        centred = rows - np.rint(rows.mean(0)).astype(np.int32)
        deltas.append(np.diff(centred, axis=0, prepend=0).astype(np.int16))
    return {
        "offset": np.cumsum([0] + [len(chain.sequence) for chain in chains]),
        "seq": np.frombuffer(b"".join(chain.sequence for chain in chains), dtype=np.uint8),
        "chain": np.array([chain.name for chain in chains]),
        "delta": np.concatenate(deltas),
    }


def without_homologs(chains: list[Chain], holdout: Path, folder: Path) -> list[Chain]:
    """Chains that have no significant local match to a hold-out sequence."""
    _write(chains, folder / "all.fasta")
    held = {int(query) for query, _, _ in matches(folder / "all.fasta", holdout, folder, 7.5)}
    return [chain for i, chain in enumerate(chains) if i not in held]


def split(chains: list[Chain], fraction: float, seed: int, folder: Path) -> np.ndarray:
    """Mark about ``fraction`` of the chains for validation, whole clusters at 30 % identity."""
    _write(chains, folder / "kept.fasta")
    command = ["mmseqs", "easy-cluster", folder / "kept.fasta", folder / "clusters", folder / "work"]
    command += ["--min-seq-id", 0.3, "-c", 0.5, "--cov-mode", 1, "-v", 1]
    subprocess.run([str(part) for part in command], check=True)
    lines = (folder / "clusters_cluster.tsv").read_text().split()
    owner = np.empty(len(chains), dtype=np.int64)
    owner[np.array(lines[1::2], dtype=np.int64)] = np.array(lines[::2], dtype=np.int64)
    clusters = np.unique(owner)
    chosen = np.random.default_rng(seed).choice(
        clusters, max(1, round(fraction * len(clusters))), replace=False
    )
    return np.isin(owner, chosen)


def _write(chains: list[Chain], path: Path) -> None:
    path.write_text("".join(f">{i}\n{chain.sequence.decode('ascii')}\n" for i, chain in enumerate(chains)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("holdout", type=Path, help="FASTA of sequences that training may not see")
    parser.add_argument("out", type=Path)
    parser.add_argument("--fraction", type=float, default=0.02, help="of clusters, for validation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chains = [chain for chain in read_database(args.database) if chain.usable()]
    with tempfile.TemporaryDirectory() as name:
        chains = without_homologs(chains, args.holdout, Path(name))
        validation = split(chains, args.fraction, args.seed, Path(name))
    np.savez_compressed(args.out, validation=validation, **encode(chains))
    print(f"{len(chains)} chains, {int(validation.sum())} for validation")


if __name__ == "__main__":
    main()
