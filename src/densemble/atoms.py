"""What the atoms are (``Topology``), where they are (``Ensemble``), and which of them are free (``Region``).

One order of atoms holds everywhere outside the adapters of external networks: the order of the
input file, residue by residue. Coordinates are in Å in the frame of the map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.errors import InputError

BACKBONE = ("N", "CA", "C", "O")

_SPAN = re.compile(
    r"^(?P<chain>[^:\s]+):(?P<counted>#?)(?P<first>-?\d+)(?P<icode1>[A-Za-z]?)(?:-(?P<last>-?\d+)(?P<icode2>[A-Za-z]?))?$"
)


class RegionError(InputError):
    """A region's text is malformed, or names residues that the model does not have."""


@dataclass(frozen=True, order=True)
class ResidueId:
    """Author naming of one residue: chain, number, insertion code (empty when there is none)."""

    chain: str
    number: int
    icode: str = ""

    def __str__(self) -> str:
        return f"{self.chain}:{self.number}{self.icode}"


@dataclass(frozen=True)
class Residue:
    """A residue: its name in the file (e.g. ``MSE``), and its kind.

    ``kind`` is one of ``protein``, ``nucleic``, ``ligand``, ``ion``, ``water``. Modified amino
    acids within a chain (MSE, SEP, ...) are ``protein``.
    """

    id: ResidueId
    name: str
    kind: str = "protein"


@dataclass(frozen=True, eq=False)
class Topology:
    """The atoms of one conformation, without hydrogens.

    Attributes:
        names: atom names as in the file, length N.
        elements: element symbols as in the file (``CA`` the atom name of an alpha carbon has
            element ``C``; a calcium ion has element ``Ca``), length N.
        residue_index: int array, shape=(N,), index into ``residues``; non-decreasing.
        residues: all residues in file order.
    """

    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue_index: np.ndarray
    residues: tuple[Residue, ...]

    def __post_init__(self) -> None:
        n = len(self.names)
        if len(self.elements) != n or self.residue_index.shape != (n,):
            raise ValueError(
                f"Topology: {n} names, {len(self.elements)} elements and residue_index of shape "
                f"{self.residue_index.shape} do not agree"
            )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def atom_index(self) -> dict[tuple[int, str], int]:
        """Index of an atom from (residue index, atom name)."""
        return {
            (int(r), name): i for i, (r, name) in enumerate(zip(self.residue_index, self.names, strict=True))
        }

    @cached_property
    def atom_keys(self) -> tuple[tuple[ResidueId, str], ...]:
        """Residue and name of each atom: what says that atoms of two topologies are the same, length N."""
        residues = (self.residues[r].id for r in self.residue_index.tolist())
        return tuple(zip(residues, self.names, strict=True))

    def places_of(self, other: Topology) -> np.ndarray:
        """Where another topology's n atoms are in this one, as indices; -1 where it has none, shape=(n,)."""
        place = {key: i for i, key in enumerate(self.atom_keys)}
        return np.array([place.get(key, -1) for key in other.atom_keys], dtype=np.int64)

    @property
    def residue_names(self) -> tuple[str, ...]:
        """Name of the residue of each atom, length N."""
        return tuple(self.residues[r].name for r in self.residue_index)

    def backbone(self, residues: Sequence[int]) -> np.ndarray:
        """Indices of N, CA, C, O of the residues given, shape=(R, 4).

        Raises:
            KeyError: a residue lacks a backbone atom.
        """
        return np.array([[self.atom_index[r, name] for name in BACKBONE] for r in residues], dtype=np.int64)

    def atoms_of(self, residues: Sequence[int]) -> np.ndarray:
        """Indices of all atoms of the residues given, in file order, shape=(n,)."""
        return np.flatnonzero(np.isin(self.residue_index, np.asarray(residues)))

    def subset(self, atoms: np.ndarray) -> Topology:
        """The topology of some of the atoms, in the order of the (increasing) indices given."""
        used, index = np.unique(self.residue_index[atoms], return_inverse=True)
        return Topology(
            names=tuple(self.names[i] for i in atoms),
            elements=tuple(self.elements[i] for i in atoms),
            residue_index=index.astype(np.int64),
            residues=tuple(self.residues[r] for r in used),
        )


@dataclass(frozen=True, eq=False)
class Ensemble:
    """K conformations of the same atoms, one object.

    Attributes:
        topology: the N atoms.
        coords: Å, map frame, shape=(K, N, 3).
        weights: occupancies of the members, non-negative, shape=(K,). They need not sum to one.
        b_iso: isotropic B factors in Å^2, shape=(K, N).
    """

    topology: Topology
    coords: Float[Tensor, "k n 3"]
    weights: Float[Tensor, " k"]
    b_iso: Float[Tensor, "k n"]

    def __post_init__(self) -> None:
        k, n = self.coords.shape[:2]
        if n != len(self.topology) or self.weights.shape != (k,) or self.b_iso.shape != (k, n):
            raise ValueError(
                f"Ensemble: topology of {len(self.topology)} atoms, coords {tuple(self.coords.shape)}, "
                f"weights {tuple(self.weights.shape)} and b_iso {tuple(self.b_iso.shape)} do not agree"
            )
        if bool((self.weights < 0).any()):
            raise ValueError("Ensemble: negative weights")

    def __len__(self) -> int:
        return int(self.coords.shape[0])

    def select(self, members: Sequence[int], weights: Tensor | None = None) -> Ensemble:
        """Some of the members, with their weights or with new ones."""
        index = torch.as_tensor(list(members), dtype=torch.long)
        return Ensemble(
            topology=self.topology,
            coords=self.coords[index],
            weights=self.weights[index] if weights is None else weights,
            b_iso=self.b_iso[index],
        )


@dataclass(frozen=True)
class Span:
    """A closed range of residues of one chain, in author numbering.

    ``counted`` ranges have no numbering of the author: the first protein residue of the chain is 1, and
    residues that the author's numbers leave out count.
    """

    first: ResidueId
    last: ResidueId
    counted: bool = False

    def __str__(self) -> str:
        first = f"{self.first.chain}:{'#' if self.counted else ''}{self.first.number}{self.first.icode}"
        return first if self.first == self.last else f"{first}-{self.last.number}{self.last.icode}"

    def as_numbered(self, protein: Sequence[ResidueId]) -> Span:
        """The same range in author numbering, of a model with these residues in chain order.

        Raises:
            RegionError: a counted place is none of theirs.
        """
        if not self.counted:
            return self
        own = [rid for rid in protein if rid.chain == self.first.chain]
        places: dict[int, ResidueId] = {}
        for before, rid in zip([None, *own], own, strict=False):
            step = 1 if before is None else max(rid.number - before.number, 1)
            places[max(places, default=0) + step] = rid
        for end in (self.first, self.last):
            if end.number not in places:
                raise RegionError(
                    f"region {self}: counted from its first residue, chain {end.chain} has no residue "
                    f"{end.number} in the model (the last is {max(places, default=0)})"
                )
        return Span(places[self.first.number], places[self.last.number])


@dataclass(frozen=True)
class Region:
    """One or several stretches of chain, written ``A:176-191`` or ``A:176-191,A:238-243``.

    ``A:#95-100`` counts from the chain's first residue instead of taking the author's numbers.
    """

    spans: tuple[Span, ...]

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read the region syntax.

        Raises:
            RegionError: the text does not follow the syntax.
        """
        spans = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = _SPAN.match(part)
            if match is None:
                raise RegionError(
                    f"region '{part}' is not of the form CHAIN:FIRST-LAST, for example A:176-191"
                )
            chain = match["chain"]
            first = ResidueId(chain, int(match["first"]), match["icode1"].upper())
            last = first
            if match["last"] is not None:
                last = ResidueId(chain, int(match["last"]), match["icode2"].upper())
            counted = bool(match["counted"])
            if counted and (first.icode or last.icode):
                raise RegionError(f"region '{part}': residues that are counted have no insertion codes")
            spans.append(Span(first, last, counted))
        if not spans:
            raise RegionError("an empty region; write for example A:176-191")
        return cls(tuple(spans))

    def __str__(self) -> str:
        return ",".join(map(str, self.spans))

    def resolve(self, topology: Topology) -> list[list[int]]:
        """Residue indices of each span, by their place in the chain (so insertion codes are kept in order).

        Raises:
            RegionError: the first or last residue is not a modelled protein residue of the
                topology, the range runs backwards, or spans overlap.
        """
        protein = {r.id: i for i, r in enumerate(topology.residues) if r.kind == "protein"}
        chains = sorted({rid.chain for rid in protein})
        stretches: list[list[int]] = []
        for span in (span.as_numbered(list(protein)) for span in self.spans):
            for end in (span.first, span.last):
                if end not in protein:
                    own = [rid for rid in protein if rid.chain == end.chain]
                    has = (
                        f"chain {end.chain} has protein residues {own[0].number}-{own[-1].number}"
                        if own
                        else f"the protein chains are {', '.join(chains) or 'none'}"
                    )
                    raise RegionError(f"region {span}: residue {end} is not in the model ({has})")
            first, last = protein[span.first], protein[span.last]
            if last < first:
                raise RegionError(f"region {span}: the last residue comes before the first")
            stretches.append([i for i in range(first, last + 1) if topology.residues[i].id in protein])
        flat = [i for s in stretches for i in s]
        if len(flat) != len(set(flat)):
            raise RegionError(f"region {self}: the stretches overlap")
        return stretches

    def residues(self, topology: Topology) -> list[int]:
        """Residue indices of all spans, one after the other; errors as for ``resolve``."""
        return [r for stretch in self.resolve(topology) for r in stretch]
