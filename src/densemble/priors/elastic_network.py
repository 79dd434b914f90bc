"""Elastic network of a structure in which each residue is a rigid block, and its modes of lowest energy.

Springs between atoms of different residues: an anisotropic network (Atilgan et al. 2001, Biophys. J. 80,
505-515) with force constants that fall as the square of the distance (Yang, Song & Jernigan 2009, PNAS 106,
12347-12352), projected onto rotations and translations of blocks (RTB; Tama, Gadea, Marques & Sanejouand
2000, Proteins 41, 1-7). Every residue is a block, of whatever kind: amino acid, nucleotide, ligand, ion,
water.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from scipy.spatial import cKDTree

from densemble.atoms import Topology

BOND_LIMIT = 2.1
"""Å. Atoms of two residues closer than this are bonded: peptides, phosphodiesters, disulphides."""
_BOND = 100.0  # force constant of a bond over that of a contact at the same distance
_BESIDE, _BESIDE_LIMIT = 30.0, 4.0  # the same for pairs up to so many Å apart in residues that are bonded
_PROTEIN = ("N", "CA", "C", "O", "CB")  # atoms of an amino acid that carry springs
_NEAREST = 12  # atoms of other residues that every block is tied to, however far
MOST_BLOCKS = 800
"""Blocks in the problem of the modes: what keeps its cost to seconds."""
_DENSE = 600  # coordinates up to which the modes come from a dense matrix


@dataclass(frozen=True, eq=False)
class Springs:
    """Pairs of atoms of different blocks.

    Attributes:
        pairs: indices of the two atoms, shape=(s, 2).
        constants: force constants, arbitrary unit, shape=(s,).
        bonded: whether the two are bonded, shape=(s,).
    """

    pairs: Int[np.ndarray, "s 2"]
    constants: Float[np.ndarray, " s"]
    bonded: np.ndarray


class ElasticNetwork:
    """The network of one structure.

    Args:
        topology: the N atoms.
        coords: Å, shape=(N, 3).
        cutoff: Å, reach of the springs.

    Attributes:
        block: index of each atom's block, shape=(N,): one block for every residue that has atoms.
        sizes: atoms of each block, shape=(R,).
        centres: mean of the atoms of each block, Å, shape=(R, 3).
        springs: see ``Springs``.
    """

    def __init__(self, topology: Topology, coords: Float[np.ndarray, "n 3"], *, cutoff: float = 8.0) -> None:
        self.coords = coords.astype(np.float64)
        self.block = np.unique(topology.residue_index, return_inverse=True)[1]
        self.sizes = np.bincount(self.block)
        self.centres = self.mean_of_blocks(self.coords)
        protein = np.array([r.kind == "protein" for r in topology.residues])[topology.residue_index]
        carries = ~protein | np.isin(topology.names, _PROTEIN)
        carries |= ~np.isin(self.block, self.block[carries])  # a residue of unusual atom names
        self.springs = _springs(self.coords, self.block, np.flatnonzero(carries), cutoff)

    def mean_of_blocks(self, values: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "r 3"]:
        """Mean over the atoms of each block."""
        sums = np.stack([np.bincount(self.block, column) for column in values.T], axis=1)
        return np.asarray(sums / self.sizes[:, None])

    @cached_property
    def rigid(self) -> Float[np.ndarray, "m n 3"]:
        """Orthonormal translations and rotations of the whole, shape=(6 or fewer, N, 3)."""
        whole = _rigid_basis(self.coords, np.zeros(len(self.coords), dtype=np.int64))
        return whole.toarray().T.reshape(-1, len(self.coords), 3)

    def hessian(self, basis: sparse.csr_matrix) -> sparse.csr_matrix:
        """Second derivatives of the energy by the coordinates of a basis of displacements, shape=(3 N, d)."""
        first, second = self.springs.pairs.T
        along = self.coords[first] - self.coords[second]
        along *= (np.sqrt(self.springs.constants) / np.linalg.norm(along, axis=1))[:, None]
        rows = np.repeat(np.arange(len(first)), 3)
        shape = (len(first), self.coords.size)
        columns = 3 * self.springs.pairs[:, :, None] + np.arange(3)
        stretch = sparse.csr_matrix((along.ravel(), (rows, columns[:, 0].ravel())), shape=shape)
        stretch -= sparse.csr_matrix((along.ravel(), (rows, columns[:, 1].ravel())), shape=shape)
        rooted = stretch @ basis
        return (rooted.T @ rooted).tocsr()

    def modes(
        self, count: int, *, most: int = MOST_BLOCKS
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m n 3"]]:
        """Eigenvalues and displacements of the lowest internal modes, the six of the whole left out.

        Displacements are orthonormal over all atoms, and orthogonal to ``rigid``. In a structure of more
        residues than ``most``, residues bonded in a row move as one block, two by two, three by three and
        so on, as RTB does: the lowest modes hardly change, and their eigenvalues rise together.

        Args:
            count: how many at most; a small structure has fewer.
            most: blocks.
        """
        basis = _rigid_basis(self.coords, self._rows(-(-len(self.sizes) // most)))
        whole = basis.T @ self.rigid.reshape(len(self.rigid), -1).T
        hessian = self.hessian(basis)
        count = min(count, hessian.shape[0] - whole.shape[1])
        if count < 1:
            return np.zeros(0), np.zeros((0, *self.coords.shape))
        values, vectors = _lowest(hessian, whole, count)
        displaced = (basis @ vectors).T.reshape(-1, len(self.coords), 3)
        return np.maximum(values, 1e-9 * values.max()), displaced

    def _rows(self, length: int) -> Int[np.ndarray, " n"]:
        """Label atoms by block, up to ``length`` residues bonded in a row making one."""
        bonds = np.sort(self.block[self.springs.pairs[self.springs.bonded]], axis=1)
        follows = np.zeros(len(self.sizes), dtype=bool)
        follows[bonds[bonds[:, 1] == bonds[:, 0] + 1, 1]] = True
        number = np.arange(len(follows))
        place = number - np.maximum.accumulate(np.where(follows, 0, number))
        return (np.cumsum(place % length == 0) - 1)[self.block]


def _lowest(
    hessian: sparse.csr_matrix, whole: Float[np.ndarray, "d m"], count: int
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "d c"]]:
    """Lowest eigenvectors orthogonal to the motions of the whole, which have no energy."""
    size, free = hessian.shape[0], whole.shape[1]
    if size <= max(_DENSE, 3 * (count + free)):
        dense = hessian.toarray()
        dense += np.trace(dense) * (whole @ whole.T)
        return tuple(eigh(dense, subset_by_index=[0, count - 1]))
    shift = 1e-7 * float(hessian.diagonal().mean())
    solve = splu(
        (hessian + shift * sparse.eye(size)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    ).solve

    def inverse(vector: np.ndarray) -> np.ndarray:
        vector = vector.ravel() - whole @ (whole.T @ vector.ravel())
        vector = solve(vector)
        return vector - whole @ (whole.T @ vector)

    start = np.random.default_rng(0).normal(size=size)  # fixed, so that modes are reproducible
    operator = LinearOperator(hessian.shape, matvec=inverse, dtype=np.float64)
    values, vectors = eigsh(operator, count, which="LM", v0=start - whole @ (whole.T @ start))
    order = np.argsort(-values)
    return 1 / values[order] - shift, vectors[:, order]


def _springs(coords: np.ndarray, block: np.ndarray, carriers: np.ndarray, cutoff: float) -> Springs:
    """Bonds, contacts within the cutoff, and what ties loose blocks to the rest."""
    tree = cKDTree(coords[carriers])
    contacts = carriers[tree.query_pairs(cutoff, output_type="ndarray")]
    bonds = cKDTree(coords).query_pairs(BOND_LIMIT, output_type="ndarray")
    _, near = tree.query(coords[carriers], k=min(len(carriers), _NEAREST + 15))
    near = carriers[near.reshape(len(carriers), -1)]
    ties = np.stack([np.repeat(carriers, near.shape[1]), near.ravel()], axis=1)
    pairs = np.concatenate([contacts, bonds, ties])
    pairs = np.unique(np.sort(pairs[block[pairs[:, 0]] != block[pairs[:, 1]]], axis=1), axis=0)
    pairs = _connected(coords, block, pairs)
    distance = np.linalg.norm(coords[pairs[:, 0]] - coords[pairs[:, 1]], axis=1).clip(min=0.5)
    bonded = distance < BOND_LIMIT
    count = int(block.max()) + 1
    code = np.sort(block[pairs], axis=1) @ [count, 1]
    beside = np.isin(code, code[bonded]) & (distance < _BESIDE_LIMIT)
    stiffness = np.where(bonded, _BOND, np.where(beside, _BESIDE, 1.0))
    return Springs(pairs, stiffness / distance**2, bonded)


def _connected(coords: np.ndarray, block: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The pairs and, while the network is in pieces, the shortest ones from each piece to the others."""
    while True:
        graph = sparse.coo_matrix((np.ones(len(pairs)), block[pairs].T), shape=(block.max() + 1,) * 2)
        pieces, label = connected_components(graph, directed=False)
        if pieces == 1:
            return pairs
        piece = label[block]
        more = [pairs]
        for one in range(pieces):
            own, others = np.flatnonzero(piece == one), np.flatnonzero(piece != one)
            distance, index = cKDTree(coords[others]).query(coords[own], k=min(_NEAREST, len(others)))
            order = np.argsort(distance, axis=None)[: 3 * _NEAREST]
            row = order // (distance.size // len(own))
            more.append(np.stack([own[row], others[index.ravel()[order]]], axis=1))
        pairs = np.unique(np.sort(np.concatenate(more), axis=1), axis=0)


def _rigid_basis(coords: np.ndarray, block: np.ndarray) -> sparse.csr_matrix:
    """Orthonormal rigid displacements of blocks, shape=(3 N, up to 6 for each block)."""
    count = int(block.max()) + 1
    sizes = np.bincount(block)
    centres = np.stack([np.bincount(block, column) for column in coords.T], axis=1) / sizes[:, None]
    arm = coords - centres[block]
    # Rotations about the principal axes of a block are orthogonal to each other and to translations.
    spread = np.zeros((count, 3, 3))
    np.add.at(spread, block, (arm**2).sum(1)[:, None, None] * np.eye(3) - arm[:, :, None] * arm[:, None])
    moments, axes = np.linalg.eigh(spread)
    turns = np.cross(np.swapaxes(axes, 1, 2)[block], arm[:, None])  # (N, axis, xyz)
    known = moments > 1e-6 * sizes[:, None]
    turns /= np.sqrt(np.where(known, moments, np.inf))[block][..., None]
    shifts = np.broadcast_to(np.eye(3), (len(coords), 3, 3)) / np.sqrt(sizes[block])[:, None, None]
    values = np.concatenate([shifts, turns], axis=1)  # (N, dof, xyz)
    keep = np.concatenate([np.ones((count, 3), bool), known], axis=1)
    number = (np.cumsum(keep) - 1).reshape(count, 6)
    used = np.broadcast_to(keep[block][:, :, None], values.shape)
    rows = np.broadcast_to(3 * np.arange(len(coords))[:, None, None] + np.arange(3), values.shape)
    columns = np.broadcast_to(number[block][:, :, None], values.shape)
    return sparse.csr_matrix(
        (values[used], (rows[used], columns[used])), shape=(coords.size, int(keep.sum()))
    )
