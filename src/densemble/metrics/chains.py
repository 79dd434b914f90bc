"""Which chain of a model stands for which of a reference, where chains of one sequence are alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from densemble.atoms import BACKBONE, Residue, Topology

DIFFER = 0.05
"""Chains in which more than this share of the residues in common have other names are different."""
_EXACT = math.factorial(8)  # arrangements up to which all are tried
_FOLLOWED = 100  # superpositions that are followed beyond
_FAR = 1e9  # Å^2, for chains that share no atom
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

    Which are, see ``interchangeable_chains``. For each arrangement the alpha carbons known in both are
    superposed anew. Up to 40,320 arrangements (eight equal chains, or six of one and four of another) all are
    tried. Beyond, each pair of interchangeable chains is superposed. From the 100 of these superpositions in
    which the chains are nearest to some other, assignment (Hungarian method, mean square deviations of
    chains) and superposition alternate until nothing changes: not proved best.

    Atoms are matched by number and name; of residues named differently the backbone only. Ligands go with the
    chain they are named after; waters stay.

    Args:
        topology: of both.
        x: Å, the model; NaN where an atom is not known.
        reference: Å, NaN likewise.

    Raises:
        ValueError: fewer than three alpha carbons are known in both.
    """
    groups = interchangeable_chains(topology)
    chains = [chain for group in groups for chain in group]
    atoms = _labelled(topology)
    moments = _Moments.of(topology, x, reference, groups, atoms)
    sizes = [len(group) for group in groups]
    if math.prod(math.factorial(size) for size in sizes) <= _EXACT:
        tried = np.array(list(_arrangements(sizes)), dtype=np.int64)
    else:
        tried = _alternated(moments, sizes)
    msd = moments.msd(tried)
    if not np.isfinite(msd).any():
        raise ValueError("best_chain_assignment: fewer than three alpha carbons are known in both")
    best = tried[int(np.nanargmin(msd))]
    coords = x.copy()
    for a, b in zip(chains, (chains[i] for i in best), strict=True):
        coords[list(atoms[a].values())] = np.nan
        pairs = [(i, atoms[b][label]) for label, i in atoms[a].items() if label in atoms[b]]
        here, there = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        coords[here] = x[there]
    return ChainAssignment(
        chains={a: chains[i] for a, i in zip(chains, best, strict=True)},
        coords=coords,
        rmsd=float(np.sqrt(np.nanmin(msd))),
    )


def interchangeable_chains(topology: Topology) -> list[list[str]]:
    """The protein chains, those that are interchangeable together, in the order of the file.

    Two chains are alike when they share, by number and insertion code, at least half of the residues of the
    longer one, and at most a share of ``DIFFER`` of these is named differently (point mutations, modified
    residues). A chain joins the first group in which it is like every chain.
    """
    sequences: dict[str, dict[tuple[int, str], str]] = {}
    for residue in topology.residues:
        if residue.kind == "protein":
            place = (residue.id.number, residue.id.icode)
            sequences.setdefault(residue.id.chain, {})[place] = residue.name
    groups: list[list[str]] = []
    for chain, sequence in sequences.items():
        for group in groups:
            if all(_alike(sequences[other], sequence) for other in group):
                group.append(chain)
                break
        else:
            groups.append([chain])
    return groups


def _alike(first: dict[tuple[int, str], str], second: dict[tuple[int, str], str]) -> bool:
    if first == second:
        return True
    shared = first.keys() & second.keys()
    differ = sum(first[place] != second[place] for place in shared)
    return 2 * len(shared) >= max(len(first), len(second)) and differ <= DIFFER * len(shared)


_Label = tuple[int, str, str, str]


def _labelled(topology: Topology) -> dict[str, dict[_Label, int]]:
    """The atoms named after each chain, without waters, by what they are matched by."""
    atoms: dict[str, dict[_Label, int]] = {}
    for i, (r, name) in enumerate(zip(topology.residue_index, topology.names, strict=True)):
        residue = topology.residues[r]
        if residue.kind != "water":
            atoms.setdefault(residue.id.chain, {})[_label(residue, name)] = i
    return atoms


def _label(residue: Residue, name: str) -> _Label:
    whatever = residue.kind == "protein" and name in BACKBONE
    return residue.id.number, residue.id.icode, "" if whatever else residue.name, name


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
        x: Float[np.ndarray, "n 3"],
        reference: Float[np.ndarray, "n 3"],
        groups: Sequence[Sequence[str]],
        atoms: dict[str, dict[_Label, int]],
    ) -> _Moments:
        n = sum(len(group) for group in groups)
        sums = cls(*(np.zeros((n, n, *shape)) for shape in ((), (3,), (3,), (), (3, 3))))
        # about the middle, so that the sums of squares do not cancel; and a row for atoms that are lacking
        x, reference = (np.append(c - _middle(c), [[np.nan] * 3], axis=0) for c in (x, reference))
        start = 0
        for group in groups:
            rows = _alpha_rows(topology, [atoms[chain] for chain in group])
            own = slice(start, start := start + len(group))
            (y, y_known), (r, r_known) = (_filled(c[rows]) for c in (x, reference))
            sums.number[own, own] = r_known @ y_known.T
            sums.x[own, own] = np.einsum("am,bmi->abi", r_known, y, optimize=True)
            sums.reference[own, own] = np.einsum("ami,bm->abi", r, y_known, optimize=True)
            sums.square[own, own] = r_known @ (y**2).sum(-1).T + (r**2).sum(-1) @ y_known.T
            sums.product[own, own] = np.einsum("bmi,amj->abij", y, r, optimize=True)
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

    def superposed(self, arrangements: Int[np.ndarray, "p c"]) -> Float[np.ndarray, "p c c"]:
        """Mean square deviation of each pair of chains in the superposition of each arrangement.

        Pairs of -1 take no part in it. Infinite for chains that share no atom.
        """
        used = arrangements >= 0
        at = np.arange(arrangements.shape[1]), arrangements
        number = (self.number[at] * used).sum(1)[:, None]
        centre, target = (np.einsum("pc,pci->pi", used, v[at]) / number for v in (self.x, self.reference))
        product = np.einsum("pc,pcij->pij", used, self.product[at])
        u, _, vt = np.linalg.svd(product - number[:, :, None] * centre[:, :, None] * target[:, None, :])
        u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
        rotation = u @ vt  # rows times it
        shift = target - (centre[:, None] @ rotation)[:, 0]
        # |x R + t - r|^2 summed: linear in R, t, R t and |t|^2
        n = len(self.number)
        square = (
            -2 * rotation.reshape(-1, 9) @ self.product.reshape(-1, 9).T
            + 2 * (rotation @ shift[:, :, None])[:, :, 0] @ self.x.reshape(-1, 3).T
            - 2 * shift @ self.reference.reshape(-1, 3).T
            + (shift**2).sum(1)[:, None] * self.number.ravel()
        ).reshape(-1, n, n) + self.square
        return np.divide(square, self.number, out=np.full(square.shape, np.inf), where=self.number > 0)


def _alpha_rows(topology: Topology, chains: Sequence[dict[_Label, int]]) -> Int[np.ndarray, "c m"]:
    """The alpha carbons of chains, each residue in a column; -1 where a chain lacks it."""
    columns: dict[_Label, int] = {}
    found = []
    for c, atoms in enumerate(chains):
        for label, i in atoms.items():
            if label[3] == "CA" and topology.residues[topology.residue_index[i]].kind == "protein":
                found.append((c, columns.setdefault(label, len(columns)), i))
    rows = np.full((len(chains), len(columns)), -1)
    chain, column, atom = np.array(found, dtype=np.int64).reshape(-1, 3).T
    rows[chain, column] = atom
    return rows


def _filled(
    coords: Float[np.ndarray, "c m 3"],
) -> tuple[Float[np.ndarray, "c m 3"], Float[np.ndarray, "c m"]]:
    """Coordinates with 0 where they are not known, and 1 where they are."""
    known = np.isfinite(coords).all(axis=-1)
    return np.where(known[..., None], coords, 0.0), known.astype(float)


def _middle(coords: np.ndarray) -> np.ndarray:
    """Mean of the atoms that are known."""
    known = np.isfinite(coords).all(axis=1)
    return np.asarray(coords[known].sum(axis=0) / max(int(known.sum()), 1))


def _alternated(moments: _Moments, sizes: list[int]) -> Int[np.ndarray, "p c"]:
    """Arrangements that assignment and superposition in turn lead to, from pairs of chains."""
    ends = np.cumsum([0, *sizes]).tolist()
    groups = [slice(start, end) for start, end in itertools.pairwise(ends)]
    starts, nearest = [], []
    for a in range(ends[-1]):
        others = np.flatnonzero(moments.number[a] >= 3)
        pairs = np.full((len(others), ends[-1]), -1)
        pairs[:, a] = others
        starts.append(pairs)
        nearest.append(np.minimum(moments.superposed(pairs).min(axis=-1), _FAR).sum(axis=-1))
    order = np.argsort(np.concatenate(nearest), kind="stable")[:_FOLLOWED]
    now = np.concatenate(starts)[order]
    met = [np.arange(ends[-1])[None]]
    for _ in range(_ROUNDS):
        following = np.unique(_assigned(moments, now, groups), axis=0)
        if np.array_equal(following, now):
            break
        met.append(now := following)
    return np.concatenate(met)


def _assigned(
    moments: _Moments, arrangements: Int[np.ndarray, "p c"], groups: list[slice]
) -> Int[np.ndarray, "p c"]:
    """Which chains are nearest to which in the superposition of each arrangement, one to one."""
    found = np.empty_like(arrangements)
    for own, costs in zip(found, moments.superposed(arrangements), strict=True):
        for g in groups:
            own[g] = linear_sum_assignment(np.minimum(costs[g, g], _FAR))[1] + g.start
    return found
