"""Which residues move together: the parts of a region that have states of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.distance import pdist

from densemble.atoms import ResidueId, Span, Topology
from densemble.io.models import bonded_to_next
from densemble.metrics.coordinates import nearest_naming

_LINK = (("CA", "C", "O"), ("N", "CA"))
"""The atoms of a peptide: of the residue before it, and of the one after."""


def same_naming(topology: Topology, coords: Float[np.ndarray, "k n 3"]) -> Float[np.ndarray, "k n 3"]:
    """Members whose equivalent atoms (CD1 and CD2 of PHE, say) are named as is nearest to the first member.

    Without this, two members that differ in names alone would be two states.
    """
    return np.stack([nearest_naming(topology, x, coords[0]) for x in coords])


def moved_atoms(coords: Float[np.ndarray, "k n 3"], *, same: float) -> Bool[np.ndarray, " n"]:
    """Atoms that any two members place more than ``same`` Å apart."""
    if len(coords) < 2:
        return np.zeros(coords.shape[1], dtype=bool)
    return np.array([pdist(atom).max() > same for atom in coords.transpose(1, 0, 2)])


def find_parts(topology: Topology, coords: Float[np.ndarray, "k n 3"], *, same: float) -> list[list[int]]:
    """Residues that differ between members, in runs within which conformations cannot combine freely.

    Two neighbours are of one part if both differ and the peptide between them does too: where all members
    place its atoms alike, either side can be exchanged without breaking a bond. So two loops are two parts,
    and so are two side chains on a backbone that all members share.

    Args:
        topology: the N atoms.
        coords: Å, shape=(K, N, 3), named alike (``same_naming``).
        same: Å, the difference up to which two places count as one.

    Returns:
        Residues of each part, as indices into ``topology.residues``, in chain order.
    """
    moved, bonded = moved_atoms(coords, same=same), bonded_to_next(topology, coords[0])
    parts: list[list[int]] = []
    for r in np.unique(topology.residue_index[moved]).tolist():
        if parts and parts[-1][-1] == r - 1 and bonded[r - 1] and _peptide_moved(topology, moved, r - 1):
            parts[-1].append(r)
        else:
            parts.append([r])
    return parts


def _peptide_moved(topology: Topology, moved: np.ndarray, r: int) -> bool:
    """Whether an atom of the peptide between residue r and the next differs."""
    link = [topology.atom_index.get((r + i, name)) for i, names in enumerate(_LINK) for name in names]
    return any(moved[atom] for atom in link if atom is not None)


def joins_on(
    topology: Topology,
    coords: Float[np.ndarray, "k n 3"],
    part: Sequence[int],
    around: Float[np.ndarray, "n 3"],
    *,
    same: float,
) -> Bool[np.ndarray, " k"]:
    """Members whose part can stand in another conformation of the rest.

    It can if the peptides at the part's two ends are where that conformation has them: the atoms of the
    neighbours that belong to them are compared. An end without a neighbour in the topology holds at atoms
    that do not move.

    Args:
        topology: the N atoms.
        coords: Å, members, shape=(K, N, 3).
        part: its residues, a contiguous run.
        around: Å, the conformation, shape=(N, 3).
        same: Å.
    """
    index = topology.atom_index
    edges = [(part[0] - 1, _LINK[0]), (part[-1] + 1, _LINK[1])]
    chain = topology.residues[part[0]].id.chain
    atoms = [
        index[r, name]
        for r, names in edges
        if 0 <= r < len(topology.residues) and topology.residues[r].id.chain == chain
        for name in names
        if (r, name) in index
    ]
    distance = np.linalg.norm(coords[:, atoms] - around[atoms], axis=-1)
    return np.asarray((distance <= same).all(axis=1))


def spans_of(residues: Sequence[ResidueId]) -> str:
    """Residues as a region is written, for example ``A:176-183,A:190``."""
    runs: list[list[ResidueId]] = []
    for rid in residues:
        if runs and runs[-1][-1].chain == rid.chain and 0 <= rid.number - runs[-1][-1].number <= 1:
            runs[-1].append(rid)
        else:
            runs.append([rid])
    return ",".join(str(Span(run[0], run[-1])) for run in runs)
