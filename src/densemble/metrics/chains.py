"""Which chain of a model stands for which of a reference, where chains of one sequence are alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from densemble.atoms import Topology

_EXACT = math.factorial(8)  # arrangements up to which all are tried
_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class ChainAssignment:
    """The arrangement of a model's chains that is nearest to the reference after superposition.

    Attributes:
        chains: chain of the model by the chain of the reference whose place it takes.
        coords: Å, the model's coordinates, those of each chain in the rows of the chain whose place it takes;
            NaN where its chain lacks the atom. Not superposed.
        rmsd: Å, of the alpha carbons after superposition on them.
    """

    chains: dict[str, str]
    coords: Float[np.ndarray, "n 3"]
    rmsd: float


def best_chain_assignment(
    topology: Topology, x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"]
) -> ChainAssignment:
    """Try the arrangements of interchangeable chains and keep the one of least RMSD.

    Chains are interchangeable when the names of their residues agree wherever both have a residue of a
    number, and they share at least half of the numbers of the longer one. For each arrangement the alpha
    carbons known in both are superposed anew. Up to 40,320 arrangements (eight equal chains, or six of one
    and four of another) all are tried. Beyond, the search starts from the superposition of each pair of
    interchangeable chains and alternates assignment (Hungarian method, mean square deviations of chains) and
    superposition until nothing changes: not proved best.

    Ligands go with the chain they are named after, matched by number and name; waters stay.

    Args:
        topology: of both.
        x: Å, the model; NaN where an atom is not known.
        reference: Å, NaN likewise.

    Raises:
        ValueError: fewer than three alpha carbons are known in both.
    """
    groups = interchangeable_chains(topology)
    chains = [chain for group in groups for chain in group]
    rows = {(a, b): _matched(topology, a, b) for group in groups for a in group for b in group}
    moments = _Moments.of(topology, x, reference, chains, rows)
    sizes = [len(group) for group in groups]
    if math.prod(math.factorial(size) for size in sizes) <= _EXACT:
        tried = np.array(list(_arrangements(sizes)), dtype=np.int64)
    else:
        tried = np.array(list(_alternated(moments, sizes)), dtype=np.int64)
    msd = moments.msd(tried)
    if not np.isfinite(msd).any():
        raise ValueError("best_chain_assignment: fewer than three alpha carbons are known in both")
    best = tried[int(np.nanargmin(msd))]
    coords = x.copy()
    for a, b in zip(chains, (chains[i] for i in best), strict=True):
        coords[_atoms(topology, a)] = np.nan
        here, there = rows[a, b]
        coords[here] = x[there]
    return ChainAssignment(
        chains={a: chains[i] for a, i in zip(chains, best, strict=True)},
        coords=coords,
        rmsd=float(np.sqrt(np.nanmin(msd))),
    )


def interchangeable_chains(topology: Topology) -> list[list[str]]:
    """The protein chains, those that are interchangeable together, in the order of the file."""
    sequences: dict[str, dict[tuple[int, str], str]] = {}
    for residue in topology.residues:
        if residue.kind == "protein":
            place = (residue.id.number, residue.id.icode)
            sequences.setdefault(residue.id.chain, {})[place] = residue.name
    groups: list[list[str]] = []
    for chain, sequence in sequences.items():
        for group in groups:
            first = sequences[group[0]]
            shared = first.keys() & sequence.keys()
            if 2 * len(shared) >= max(len(first), len(sequence)) and all(
                first[place] == sequence[place] for place in shared
            ):
                group.append(chain)
                break
        else:
            groups.append([chain])
    return groups


def _atoms(topology: Topology, chain: str) -> Int[np.ndarray, " a"]:
    """Atoms named after a chain, without waters."""
    own = np.array([r.id.chain == chain and r.kind != "water" for r in topology.residues], dtype=bool)
    return np.flatnonzero(own[topology.residue_index])


def _matched(topology: Topology, a: str, b: str) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " a"]]:
    """Atoms of chain a that chain b has too, and which these are in b."""

    def labelled(chain: str) -> dict[tuple[int, str, str, str], int]:
        labels = {}
        for i in _atoms(topology, chain).tolist():
            residue = topology.residues[topology.residue_index[i]]
            labels[residue.id.number, residue.id.icode, residue.name, topology.names[i]] = i
        return labels

    there = labelled(b)
    pairs = [(i, there[label]) for label, i in labelled(a).items() if label in there]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _arrangements(sizes: list[int]) -> Iterator[list[int]]:
    """Every arrangement: for each chain the index of the chain that takes its place."""
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    options = [itertools.permutations(range(s, s + n)) for s, n in zip(starts, sizes, strict=True)]
    for parts in itertools.product(*options):
        yield [i for part in parts for i in part]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over the alpha carbons that chain a of the reference and chain b of the model share.

    They suffice for the least-squares superposition of any arrangement.
    """

    number: Float[np.ndarray, "c c"]
    x: Float[np.ndarray, "c c 3"]
    reference: Float[np.ndarray, "c c 3"]
    square: Float[np.ndarray, "c c"]
    product: Float[np.ndarray, "c c 3 3"]

    @classmethod
    def of(
        cls,
        topology: Topology,
        x: np.ndarray,
        reference: np.ndarray,
        chains: list[str],
        rows: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    ) -> _Moments:
        n = len(chains)
        sums = cls(*(np.zeros((n, n, *shape)) for shape in ((), (3,), (3,), (), (3, 3))))
        protein = np.array([r.kind == "protein" for r in topology.residues], dtype=bool)
        alpha = protein[topology.residue_index] & (np.array(topology.names) == "CA")
        # about the middle, so that the sums of squares do not cancel
        x, reference = (c - _middle(c) for c in (x, reference))
        place = {chain: i for i, chain in enumerate(chains)}
        for (a, b), (here, there) in rows.items():
            known = alpha[here] & np.isfinite(reference[here]).all(1) & np.isfinite(x[there]).all(1)
            r, y, at = reference[here[known]], x[there[known]], (place[a], place[b])
            sums.number[at], sums.x[at], sums.reference[at] = len(y), y.sum(0), r.sum(0)
            sums.square[at], sums.product[at] = (y**2).sum() + (r**2).sum(), y.T @ r
        return sums

    def total(self, arrangements: Int[np.ndarray, "p c"]) -> tuple[np.ndarray, ...]:
        """Number, centres, squares and product about the centres of whole arrangements."""
        at = np.arange(arrangements.shape[1]), arrangements
        number = self.number[at].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            centre = [v[at].sum(1) / number[:, None] for v in (self.x, self.reference)]
        square = self.square[at].sum(1) - number * sum((c**2).sum(-1) for c in centre)
        outer = number[:, None, None] * centre[0][:, :, None] * centre[1][:, None, :]
        return number, *centre, square, self.product[at].sum(1) - outer

    def msd(self, arrangements: Int[np.ndarray, "p c"]) -> Float[np.ndarray, " p"]:
        """Mean square deviation after superposition of each arrangement; NaN below three atoms."""
        number, _, _, square, product = self.total(arrangements)
        enough = number >= 3
        u, singular, vt = np.linalg.svd(np.where(enough[:, None, None], product, 0.0))
        singular[:, 2] *= np.sign(np.linalg.det(u @ vt))  # without reflection (Kabsch)
        msd = (square - 2 * singular.sum(-1)) / np.maximum(number, 1)
        return np.where(enough, np.maximum(msd, 0), np.nan)

    def superposed(self, arrangement: Int[np.ndarray, " c"]) -> Float[np.ndarray, "c c"]:
        """Mean square deviation of each pair of chains in the superposition of one arrangement.

        Pairs of -1 take no part in it. Infinite for chains that share no atom.
        """
        used = arrangement >= 0
        at = np.flatnonzero(used), arrangement[used]
        number = self.number[at].sum()
        centre, target = self.x[at].sum(0) / number, self.reference[at].sum(0) / number
        u, _, vt = np.linalg.svd(self.product[at].sum(0) - number * np.outer(centre, target))
        rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt  # rows times it
        shift = target - centre @ rotation
        moved = self.x @ rotation
        square = (
            self.square
            - 2 * np.einsum("abij,ij->ab", self.product, rotation)
            + 2 * ((moved - self.reference) @ shift)
            + self.number * (shift @ shift)
        )
        return np.divide(square, self.number, out=np.full(square.shape, np.inf), where=self.number > 0)


def _middle(coords: np.ndarray) -> np.ndarray:
    """Mean of the atoms that are known."""
    known = np.isfinite(coords).all(axis=1)
    return np.asarray(coords[known].sum(axis=0) / max(int(known.sum()), 1))


def _alternated(moments: _Moments, sizes: list[int]) -> Iterator[list[int]]:
    """Arrangements that assignment and superposition in turn lead to, from each pair of chains."""
    ends = np.cumsum([0, *sizes]).tolist()
    groups = [slice(start, end) for start, end in itertools.pairwise(ends)]
    yield list(range(ends[-1]))
    for group in groups:
        for a, b in itertools.product(range(group.start, group.stop), repeat=2):
            if moments.number[a, b] < 3:
                continue
            arrangement = np.full(ends[-1], -1)
            arrangement[a] = b
            for _ in range(_ROUNDS):
                cost, before = moments.superposed(arrangement), arrangement
                arrangement = np.concatenate(
                    [linear_sum_assignment(np.minimum(cost[g, g], 1e9))[1] + g.start for g in groups]
                )
                if np.array_equal(arrangement, before):
                    break
            yield arrangement.tolist()
