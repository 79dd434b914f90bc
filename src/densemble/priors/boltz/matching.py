"""Which atoms of an input are which of a model: by alignment of sequences, never by place or number.

Polymer chains are aligned residue by residue, so that tags, loops without coordinates, insertion codes and
other numbering do not matter; chains of one sequence are paired one to one. Ligands and ions are paired by
their component codes; of several of one code, those that are bonded to what is paired come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import gemmi
import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from densemble.atoms import BACKBONE, Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.models import Model
from densemble.io.naming import one_letter
from densemble.priors.boltz.sequences import chain_names

MIN_IDENTITY = 0.5
"""Share of identical residues, of the shorter sequence, from which on two chains are the same molecule."""

_NUCLEIC_BACKBONE = ("P", "OP1", "OP2", "O5'", "C5'", "C4'", "O4'", "C3'", "O3'", "C2'", "O2'", "C1'")
_POLYMERS = ("protein", "nucleic")
_BOND = 2.0  # Å, more than a C-N or O3'-P bond
_LINKS = {"protein": ("C", "N"), "nucleic": ("O3'", "P")}


@dataclass(frozen=True, eq=False)
class Match:
    """What an input and a model have in common.

    Attributes:
        atoms: indices into the input's topology, increasing, shape=(M,).
        model_atoms: the same atoms in the model's topology, shape=(M,).
        residues: for each residue of the input, that of the model, or -1, shape=(R,).
        chains: polymer chain of the model by chain of the input.
        identity: share of identical residues by chain of the input.
        messages: what the user should know.
    """

    atoms: Int[np.ndarray, " m"]
    model_atoms: Int[np.ndarray, " m"]
    residues: Int[np.ndarray, " r"]
    chains: dict[str, str]
    identity: dict[str, float]
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Alignment:
    pairs: tuple[tuple[int, int], ...]
    identical: int
    identity: float


def matched(topology: Topology, model: Model, *, links: Sequence[tuple[int, int]] = ()) -> Match:
    """Pair the atoms of an input with those of a model.

    Of residues of the same kind (also modified: MSE and MET) the atoms of the same name and element are
    paired, of others the backbone.

    Args:
        topology: of the input.
        model: the model.
        links: residues of the input that are covalently bonded, by index.

    Raises:
        InputError: a chain of the input and a chain of the model are left over, or nothing is in common; says
            which identity was found.
    """
    own, other = _polymers(topology), _polymers(model.topology)
    alignments = {
        (a, b): _aligned(topology, own[a], model, other[b])
        for a in own
        for b in other
        if topology.residues[own[a][0]].kind == model.topology.residues[other[b][0]].kind
    }
    chains = _assigned(list(own), list(other), alignments)
    _check(own, other, chains, alignments, model)
    residues = np.full(len(topology.residues), -1, dtype=np.int64)
    for a, b in chains.items():
        for i, j in alignments[a, b].pairs:
            residues[own[a][i]] = other[b][j]
    _match_linked(topology, model, residues, chains, links)
    alone = _match_ligands(topology, model.topology, residues)
    atoms = _atom_pairs(topology, model.topology, residues)
    return Match(
        atoms=atoms[:, 0],
        model_atoms=atoms[:, 1],
        residues=residues,
        chains=chains,
        identity={a: alignments[a, b].identity for a, b in chains.items()},
        messages=_messages(own, other, chains, alone),
    )


def _polymers(topology: Topology) -> dict[str, list[int]]:
    """Residue indices of the polymer of each chain."""
    found: dict[str, list[int]] = {}
    for r, residue in enumerate(topology.residues):
        if residue.kind in _POLYMERS:
            found.setdefault(residue.id.chain, []).append(r)
    return found


def _letter(name: str) -> str:
    """One-letter code, or the whole name if there is none."""
    return one_letter(name) or name


def _aligned(topology: Topology, own: list[int], model: Model, other: list[int]) -> _Alignment:
    """Align the sequence of an input with the residues of a model, where gaps cost less at breaks."""
    gaps = [0, *(-2 if _connected(model, a, b) else 0 for a, b in pairwise(other)), 0]
    query = tuple(_letter(topology.residues[r].name) for r in own)
    target = tuple(_letter(model.topology.residues[r].name) for r in other)
    return _align(query, target, tuple(gaps))


@lru_cache(maxsize=256)
def _align(query: tuple[str, ...], target: tuple[str, ...], gaps: tuple[int, ...]) -> _Alignment:
    result = gemmi.align_string_sequences(list(query), list(target), list(gaps), gemmi.AlignmentScoring())
    i = j = 0
    pairs = []
    for length, operation in re.findall(r"(\d+)([MID])", result.cigar_str()):
        n = int(length)
        if operation == "M":
            pairs += [(i + k, j + k) for k in range(n)]
        i += n if operation in "MI" else 0
        j += n if operation in "MD" else 0
    identical = sum(query[a] == target[b] for a, b in pairs)
    return _Alignment(tuple(pairs), identical, identical / min(len(query), len(target)))


def _connected(model: Model, a: int, b: int) -> bool:
    index = model.topology.atom_index
    ends = [index.get((r, n)) for r, n in zip((a, b), _LINKS[model.topology.residues[a].kind], strict=True)]
    if None in ends:
        return False
    return bool(np.linalg.norm(model.coords[ends[0]] - model.coords[ends[1]]) < _BOND)


def _assigned(
    own: list[str], other: list[str], alignments: dict[tuple[str, str], _Alignment]
) -> dict[str, str]:
    """Chains paired one to one, with the most identical residues; of equal choices by name, then by order."""
    gain = np.zeros((len(own), len(other)))
    for (a, b), alignment in alignments.items():
        if alignment.identity >= MIN_IDENTITY:
            i, j = own.index(a), other.index(b)
            gain[i, j] = alignment.identical + 0.5 * (a == b) - 1e-6 * abs(i - j)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return {own[i]: other[j] for i, j in zip(rows, columns, strict=True) if gain[i, j] > 0}


def _check(
    own: dict[str, list[int]],
    other: dict[str, list[int]],
    chains: dict[str, str],
    alignments: dict[tuple[str, str], _Alignment],
    model: Model,
) -> None:
    left = [b for b in other if b not in chains.values()]
    for a in own:
        found = {b: alignments[a, b].identity for b in left if (a, b) in alignments}
        if a not in chains and found:
            best = max(found, key=lambda b: found[b])
            raise InputError(
                f"model {model.path}: the sequence of chain {a} is not that of the model: {found[best]:.0%} "
                f"of the residues are identical with chain {best}, at least {MIN_IDENTITY:.0%} must be; give "
                "the sequence of the molecule in the model"
            )
    if own and not chains:
        raise InputError(
            f"model {model.path}: it has no chain of the kind of chain {next(iter(own))} (protein or nucleic "
            "acid); give the model of the molecule in the sequence file"
        )


def _match_linked(
    topology: Topology,
    model: Model,
    residues: Int[np.ndarray, " r"],
    chains: dict[str, str],
    links: Sequence[tuple[int, int]],
) -> None:
    """Pair ligands that the input binds to what is paired, in place.

    With one bound to the same residue, or else with one of the same chain. What is bound to them follows.
    """
    theirs = model.topology.residues
    places = [model.coords[model.topology.residue_index == m] for m in range(len(theirs))]
    waiting = [(a, b) for pair in links for a, b in (pair, pair[::-1]) if _is_ligand(topology, b)]
    while ready := [(a, b) for a, b in waiting if not _is_ligand(topology, a) or residues[a] >= 0]:
        for a, b in ready:
            chain = (
                theirs[residues[a]].id.chain
                if residues[a] >= 0
                else chains.get(topology.residues[a].id.chain)
            )
            found = []
            for m, residue in enumerate(theirs):
                if residue.name != topology.residues[b].name or m in residues:
                    continue
                bound = residues[a] >= 0 and cdist(places[m], places[residues[a]]).min() < _BOND
                if _is_ligand(model.topology, m) and (bound or residue.id.chain == chain):
                    found.append((not bound, m))
            if found and residues[b] < 0:
                residues[b] = min(found)[1]
        waiting = [pair for pair in waiting if pair not in ready]


def _is_ligand(topology: Topology, r: int) -> bool:
    return topology.residues[r].kind not in _POLYMERS


def _match_ligands(topology: Topology, model: Topology, residues: Int[np.ndarray, " r"]) -> list[str]:
    """Pair the other ligands and ions of the same code in their order, in place; what is left over."""
    free: dict[str, list[int]] = {}
    for r, residue in enumerate(model.residues):
        if residue.kind not in _POLYMERS and r not in residues:
            free.setdefault(residue.name, []).append(r)
    alone = []
    for r, residue in enumerate(topology.residues):
        if residue.kind not in _POLYMERS and residues[r] < 0:
            if same := free.get(residue.name):
                residues[r] = same.pop(0)
            else:
                alone.append(f"{residue.name} {residue.id.chain}")
    return alone


def _atom_pairs(topology: Topology, model: Topology, residues: Int[np.ndarray, " r"]) -> np.ndarray:
    pairs = []
    for i, (r, name) in enumerate(zip(topology.residue_index, topology.names, strict=True)):
        partner = int(residues[r])
        j = model.atom_index.get((partner, name)) if partner >= 0 else None
        if j is None or topology.elements[i] != model.elements[j]:
            continue
        alike = _letter(topology.residues[r].name) == _letter(model.residues[partner].name)
        backbone = BACKBONE if topology.residues[r].kind == "protein" else _NUCLEIC_BACKBONE
        if alike or name in backbone:
            pairs.append((i, j))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _messages(
    own: dict[str, list[int]], other: dict[str, list[int]], chains: dict[str, str], alone: list[str]
) -> tuple[str, ...]:
    absent = [a for a in own if a not in chains]
    ignored = [b for b in other if b not in chains.values()]
    said = []
    if absent:
        said.append(f"chain {', '.join(absent)} of the sequences is not in the model")
    if ignored:
        said.append(f"chain {', '.join(ignored)} of the model is not in the sequences")
    if alone:
        said.append(f"not paired with a ligand of the model, which go by component codes: {', '.join(alone)}")
    return tuple(said)


def renamed(topology: Topology, match: Match, model: Model) -> Topology:
    """The topology of an input with the chain names and residue numbers of a model where it has them.

    Residues of a chain of the model that are not in it are counted on from their neighbours; where there is
    no room for that, they come after all other numbers of the chain. Chains that are not in the model keep
    their names, or get free ones where the model uses those for something else.
    """
    theirs = model.topology.residues
    taken = {residue.id for residue in theirs}
    ids: list[ResidueId | None] = [theirs[m].id if m >= 0 else None for m in match.residues.tolist()]
    for chain, members in _polymers(topology).items():
        if chain in match.chains:
            _count_on(ids, members, match.chains[chain], taken)
    names = {residue.id.chain for residue in theirs}
    free = chain_names({*names, *(residue.id.chain for residue in topology.residues)})
    new: dict[str, str] = {}
    residues: list[Residue] = []
    for residue, rid in zip(topology.residues, ids, strict=True):
        if rid is None:
            chain = residue.id.chain
            new.setdefault(chain, next(free) if chain in names else chain)
            rid = replace(residue.id, chain=new[chain])
        residues.append(replace(residue, id=rid))
    return replace(topology, residues=tuple(residues))


def _count_on(ids: list[ResidueId | None], members: list[int], chain: str, taken: set[ResidueId]) -> None:
    """Number the residues of a chain that have no number, in place."""
    known = [k for k, r in enumerate(members) if ids[r] is not None]
    edges = [-1, *known, len(members)]
    for a, b in pairwise(edges):
        run = members[a + 1 : b]
        before = ids[members[a]] if a >= 0 else None
        after = ids[members[b]] if b < len(members) else None
        if before is not None:
            first = before.number + 1
            fits = after is None or before.number + len(run) < after.number
        else:
            first, fits = (after.number - len(run) if after is not None else 1), True
        found = [ResidueId(chain, first + k) for k in range(len(run))]
        if not fits or taken & set(found):
            last = max(rid.number for rid in taken if rid.chain == chain)
            found = [ResidueId(chain, last + 1 + k) for k in range(len(run))]
        for r, rid in zip(run, found, strict=True):
            ids[r] = rid
        taken |= set(found)
