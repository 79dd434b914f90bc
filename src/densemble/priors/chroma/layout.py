"""The protein of a model in Chroma's layout: X [K, L, 4, 3], the chain map C and the sequence S."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.errors import InputError
from densemble.io.models import bonded_to_next
from densemble.io.naming import one_letter

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""Chroma's alphabet, in its order."""
LONGEST_GAP = 100
"""Residues that are missing at most, whatever the numbers on either side of a gap say."""


@dataclass(frozen=True, eq=False)
class ChainLayout:
    """L places, chain by chain; where the numbering of a chain says that residues are missing, so do they.

    Attributes:
        residues: the R residues with a complete backbone, as indices into the model's, in the order of L.
        places: of these residues among the L, shape=(R,).
        chains: C: 1, 2, ... by chain, negative for missing residues, shape=(1, L).
        sequence: S: index into ``AMINO_ACIDS``, shape=(1, L). What is none of them counts as alanine.
    """

    residues: tuple[int, ...]
    places: Int[Tensor, " r"]
    chains: Int[Tensor, "1 l"]
    sequence: Int[Tensor, "1 l"]

    @classmethod
    def of(cls, topology: Topology, coords: Float[np.ndarray, "n 3"]) -> ChainLayout:
        """Lay out all protein residues that have N, CA, C and O.

        Args:
            topology: the model's atoms.
            coords: Å, by which residues are seen to be bonded, shape=(n, 3).

        Raises:
            InputError: there are none.
        """
        index = topology.atom_index
        complete: dict[str, list[int]] = {}
        for r, residue in enumerate(topology.residues):
            if residue.kind == "protein" and all((r, name) in index for name in BACKBONE):
                complete.setdefault(residue.id.chain, []).append(r)
        if not complete:
            raise InputError("the model has no protein residue with a complete backbone, which Chroma needs")
        bonded = bonded_to_next(topology, coords)
        residues: list[int] = []
        places: list[int] = []
        chains: list[int] = []
        for number, own in enumerate(complete.values(), start=1):
            for i, r in enumerate(own):
                missing = 0 if i == 0 else _missing(topology, bonded, own[i - 1], r)
                chains += [-number] * missing + [number]
                residues.append(r)
                places.append(len(chains) - 1)
        sequence = [0] * len(chains)
        for place, r in zip(places, residues, strict=True):
            sequence[place] = _amino_acid(topology.residues[r].name)
        return cls(tuple(residues), torch.tensor(places), torch.tensor([chains]), torch.tensor([sequence]))

    def spread(self, values: Float[Tensor, "k r *s"]) -> Float[Tensor, "k l *s"]:
        """Values of the residues at their places, zero at missing ones."""
        whole = values.new_zeros(len(values), self.chains.shape[1], *values.shape[2:])
        return whole.index_copy(1, self.places, values)

    def places_of(self, residues: Sequence[int]) -> Int[Tensor, " m"]:
        """Places of some of the residues.

        Raises:
            KeyError: a residue has no complete backbone.
        """
        place = dict(zip(self.residues, self.places.tolist(), strict=True))
        return torch.tensor([place[r] for r in residues], dtype=torch.long)


def _missing(topology: Topology, bonded: np.ndarray, before: int, after: int) -> int:
    """How many residues are not there between two of the same chain."""
    if after == before + 1 and bonded[before]:
        return 0
    step = topology.residues[after].id.number - topology.residues[before].id.number
    return min(max(step - 1, 0), LONGEST_GAP)


def _amino_acid(name: str) -> int:
    """Of the parent for modified residues (MSE is M)."""
    return max(AMINO_ACIDS.find(one_letter(name)), 0)
