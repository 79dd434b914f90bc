"""Reading a corpus of backbones, and cutting segments with their surroundings out of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densemble.errors import InputError
from densemble.priors.segment_geometry import ALPHABET, UNKNOWN, describe, types_of

ARRAYS = ("offset", "seq", "chain", "validation", "delta")


@dataclass(frozen=True)
class Corpus:
    """Backbones of many chains in one array.

    Attributes:
        atoms: N, CA, C, O in Å, centred on each chain, shape=(residues, 4, 3).
        types: amino acids, index into ``ALPHABET``, shape=(residues,).
        offset: chain i is residues ``offset[i]:offset[i + 1]``, shape=(chains + 1,).
        names: PDB id and chain name, shape=(chains,).
        validation: never train on these, shape=(chains,).
    """

    atoms: np.ndarray
    types: np.ndarray
    offset: np.ndarray
    names: np.ndarray
    validation: np.ndarray

    def __len__(self) -> int:
        return len(self.offset) - 1

    def chain(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Atoms and types of one chain."""
        part = slice(self.offset[index], self.offset[index + 1])
        return self.atoms[part], self.types[part]

    def sequence(self, index: int) -> str:
        """One-letter sequence of one chain."""
        return "".join(ALPHABET[t] if t < len(ALPHABET) else "X" for t in self.chain(index)[1])

    def chosen(self, *, validation: bool, excluded: frozenset[str] = frozenset()) -> np.ndarray:
        """Indices of the validation chains, or of the others, without those named in ``excluded``."""
        left_out = np.isin(self.names, list(excluded))
        return np.flatnonzero((self.validation == validation) & ~left_out)


def read_excluded(path: Path) -> frozenset[str]:
    """Names of chains that training leaves out, one a line, ``#`` before remarks.

    Raises:
        InputError: the file is missing.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path}: no list of excluded chains ({error}); make it with exclude.py") from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def load(path: Path) -> Corpus:
    """Read a corpus file.

    Raises:
        InputError: the file is missing or lacks an array of the format.
    """
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: not a corpus of backbones ({error}); it must be an npz with {', '.join(ARRAYS)}"
        ) from error
    offset = arrays["offset"]
    atoms = np.empty((int(offset[-1]), 4, 3), dtype=np.float32)
    for first, last in itertools.pairwise(offset.tolist()):
        steps = arrays["delta"][4 * first : 4 * last]
        atoms[first:last] = np.cumsum(steps, axis=0, dtype=np.int32).reshape(-1, 4, 3) * np.float32(0.01)
    types = types_of(arrays["seq"].tobytes().decode("ascii"))
    return Corpus(atoms, types, offset, arrays["chain"], arrays["validation"])


@dataclass(frozen=True)
class Told:
    """What is said of a segment beside its anchors' coordinates; all of it, but in ablations.

    Attributes:
        sequence: amino acids, the segment's and those around; unknown ones if not.
        context: the fixed residues around; none but the anchors if not.
    """

    sequence: bool = True
    context: bool = True


EVERYTHING = Told()


def cut(
    atoms: np.ndarray,
    types: np.ndarray,
    start: int,
    length: int,
    hidden: np.ndarray | None = None,
    told: Told = EVERYTHING,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Conditioning of one segment of a chain and its true coordinates in the canonical frame.

    Args:
        atoms: the chain, Å, shape=(n, 4, 3).
        types: its amino acids, shape=(n,).
        start: first residue of the segment.
        length: number of residues; the chain must go on at one end at least.
        hidden: further residues not to be shown, as another segment is missing too, shape=(n,) bool.
        told: what of the rest is said.

    Returns:
        The description (see ``densemble.priors.segment_geometry.describe``) and truth, shape=(L, 4, 3).
    """
    shown = np.full(len(atoms), told.context) if hidden is None else ~hidden & told.context
    shown[start : start + length] = False
    for anchor in (start - 1, start + length):
        if 0 <= anchor < len(atoms):
            shown[anchor] = True
    fixed = np.flatnonzero(shown)
    types = types if told.sequence else np.full_like(types, UNKNOWN)
    segment = slice(start, start + length)
    item, rotation, origin = describe(
        atoms[fixed].astype(np.float64), types[fixed], fixed - start, types[segment]
    )
    return item, (atoms[segment] - origin) @ rotation
