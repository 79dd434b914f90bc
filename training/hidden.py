"""A segment of a corpus chain as the package sees a model with a stretch that is to be found.

Nothing here depends on the true coordinates of the segment: in their place stands a zigzag along the straight
line between the anchors, which says only that the chain goes on and that peptides are trans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np

from corpus import Corpus
from densemble.atoms import BACKBONE, Residue, ResidueId, Topology
from densemble.geometry.restraints import Restraints, build_restraints
from densemble.priors.segment_geometry import ALPHABET, canonical_frame, expected_course

ELEMENTS = ("N", "C", "C", "O")
ZIGZAG = 0.5
"""Å; consecutive atoms of the stand-in lie this far on either side of the line."""
REACH = 12.0
"""Å; fixed atoms this far from where the segment may be make contacts."""


@dataclass(frozen=True, eq=False)
class Hidden:
    """One segment between two anchors, without its answer.

    Attributes:
        atoms: N, CA, C, O of the chain, Å, the segment's replaced by the stand-in, shape=(n, 4, 3).
        types: amino acids, index into ``ALPHABET``, shape=(n,).
        start: first residue of the segment.
        length: its residues.
    """

    atoms: np.ndarray
    types: np.ndarray
    start: int
    length: int

    @classmethod
    def of(cls, corpus: Corpus, chain: int, start: int, length: int) -> Hidden:
        """Hide a segment.

        Raises:
            ValueError: it has no residue of the chain on both sides.
        """
        atoms, types = corpus.chain(chain)
        if start < 1 or start + length >= len(atoms):
            raise ValueError(
                f"segment {start}-{start + length - 1} of {len(atoms)} residues needs two anchors"
            )
        shown = atoms.astype(np.float64)
        before, after = shown[start - 1], shown[start + length]
        shown[start : start + length] = _zigzag(length, before, after)
        return cls(shown, types, start, length)

    @property
    def residues(self) -> list[int]:
        """Indices of the segment's residues."""
        return list(range(self.start, self.start + self.length))

    @property
    def free(self) -> np.ndarray:
        """Indices of the segment's atoms in the topology."""
        return np.arange(4 * self.start, 4 * (self.start + self.length))

    @property
    def coords(self) -> np.ndarray:
        """All atoms in the order of the topology, Å, shape=(4 n, 3)."""
        return self.atoms.reshape(-1, 3)

    @property
    def fixed(self) -> np.ndarray:
        """The atoms that are known, Å, shape=(4 (n - length), 3)."""
        return np.delete(self.coords, self.free, axis=0)

    @property
    def anchors(self) -> tuple[np.ndarray, np.ndarray]:
        """N, CA, C, O before and after, Å, each shape=(4, 3)."""
        return self.atoms[self.start - 1], self.atoms[self.start + self.length]

    @property
    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Axes (columns) and origin of the canonical frame: world = local @ axes.T + origin."""
        return canonical_frame(*self.anchors)

    @property
    def course(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected place of the segment's atoms, Å, shape=(L, 4, 3), and standard deviation, shape=(L, 4)."""
        return expected_course(self.length, *self.anchors)

    @cached_property
    def topology(self) -> Topology:
        """The chain: N, CA, C, O of every residue."""
        n = len(self.types)
        residues = tuple(Residue(ResidueId("A", i + 1), residue_name(t)) for i, t in enumerate(self.types))
        return Topology(BACKBONE * n, ELEMENTS * n, np.repeat(np.arange(n), 4), residues)

    @cached_property
    def restraints(self) -> Restraints:
        """Stereochemistry of the segment, its junctions, and contacts with the rest of the chain.

        Peptides are trans, those before proline too: where the segment is put for want of better knowledge
        says nothing of them.
        """
        reach = REACH + 2 * float(self.course[1].max())
        unplaced = self.coords.copy()
        unplaced[self.free] = np.nan
        return build_restraints(self.topology, self.coords, self.free, bonded_as=unplaced, reach=reach)


def residue_name(kind: int) -> str:
    """Three-letter code of an amino acid by its index in ``ALPHABET``; UNK for unknown ones."""
    if kind >= len(ALPHABET):
        return "UNK"
    return gemmi.expand_one_letter(ALPHABET[kind], gemmi.ResidueKind.AA)


def _zigzag(length: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    mean, _ = expected_course(length, before, after)
    axes, _ = canonical_frame(before, after)
    side = np.where((3 * np.arange(length)[:, None] + np.arange(3)) % 2 == 0, ZIGZAG, -ZIGZAG)
    side = np.concatenate([side, 3 * side[:, 2:]], axis=1)  # O further out than its C
    return mean + side[..., None] * axes[:, 1]
