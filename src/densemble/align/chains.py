"""Chains of the same sequence, which may stand in for each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from densemble.atoms import Topology
from densemble.metrics.chains import interchangeable_chains
from densemble.metrics.coordinates import rmsd, superpose

Groups = Sequence[Sequence[Int[np.ndarray, " _"]]]
"""For each kind of chain, the same atoms in each of its copies, as indices."""


def chain_groups(topology: Topology) -> list[list[Int[np.ndarray, " n"]]]:
    """Cα atoms by kind of chain, in each copy those of the residues that all copies have.

    Chains of one kind are those that ``interchangeable_chains`` puts together. A kind of which no residue is
    in all copies is left out.
    """
    alphas: dict[str, dict[tuple[int, str], int]] = {}
    for r, residue in enumerate(topology.residues):
        atom = topology.atom_index.get((r, "CA"))
        if residue.kind == "protein" and atom is not None:
            alphas.setdefault(residue.id.chain, {})[residue.id.number, residue.id.icode] = atom
    groups = []
    for kind in interchangeable_chains(topology):
        copies = [alphas.get(chain, {}) for chain in kind]
        shared = sorted(set.intersection(*map(set, copies)))
        if shared:
            groups.append([np.array([copy[place] for place in shared], dtype=np.int64) for copy in copies])
    return groups


def chain_permutation(
    x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], groups: Groups
) -> list[Int[np.ndarray, " c"]]:
    """For each kind, which copy of the reference each copy of x is nearest to, one to one.

    The sum of squared distances is least over all permutations of the copies of each kind (the assignment
    problem, solved by scipy's ``linear_sum_assignment``). Nothing is superposed.
    """
    found = []
    for group in groups:
        own, other = x[np.stack(group)], reference[np.stack(group)]
        found.append(linear_sum_assignment(_costs(own[None], other)[0])[1])
    return found


def matched_rmsd(
    x: Float[np.ndarray, "p n 3"], reference: Float[np.ndarray, "n 3"], groups: Groups
) -> Float[np.ndarray, " p"]:
    """RMSD in Å in place of the atoms in groups, with the best permutation of each kind's copies."""
    total, atoms = np.zeros(len(x)), 0
    for group in groups:
        index = np.stack(group)
        costs = _costs(x[:, index], reference[index])
        if len(group) == 1:
            total += costs[:, 0, 0]
        else:
            total += [cost[linear_sum_assignment(cost)].sum() for cost in costs]
        atoms += index.size
    return np.sqrt(total / atoms)


def _costs(x: Float[np.ndarray, "p c n 3"], reference: Float[np.ndarray, "c n 3"]) -> np.ndarray:
    """Sums of squared distances of each copy to each copy, shape=(p, c, c)."""
    cross = np.einsum("pcnk,dnk->pcd", x, reference, optimize=True)
    own, other = (x**2).sum((-1, -2)), (reference**2).sum((-1, -2))
    return np.maximum(own[:, :, None] + other[None, None, :] - 2 * cross, 0)


def chain_displacement(
    x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], groups: Groups
) -> float:
    """How far in Å one pose of a model is from another, whichever of its chains of one kind stand where.

    The mean square distance with the best permutation of chains, less what of it remains after
    superposition (copies that differ in shape), under the root.
    """
    pairs = [
        (x[np.stack(group)].reshape(-1, 3), reference[np.stack(group)][order].reshape(-1, 3))
        for group, order in zip(groups, chain_permutation(x, reference, groups), strict=True)
    ]
    own, other = (np.concatenate(sides) for sides in zip(*pairs, strict=True))
    least = float(rmsd(superpose(own, other), other)) if len(own) > 2 else 0.0
    return math.sqrt(max(float(rmsd(own, other)) ** 2 - least**2, 0.0))
