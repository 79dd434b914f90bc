"""Index tensors of every restraint on the free atoms of a model, built once.

The extended atoms are the N free atoms, in the order of the model, followed by the fixed atoms that
restraints or contacts reach: neighbours along the chain, the surroundings, symmetry copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.atoms import Topology
from densemble.geometry import targets
from densemble.geometry.contacts import Contacts
from densemble.geometry.targets import Target

LINK_DISTANCE = 2.5
"""Å; consecutive residues whose C and N are further apart are not linked (a gap in the model)."""
_DISULFIDE_DISTANCE = 2.5
_COVALENT_DISTANCE = 1.95  # between an atom of an unknown residue and any other atom


@dataclass(frozen=True, eq=False)
class Terms:
    """Restraints of one kind: atoms (extended indices), ideal values and standard deviations."""

    atoms: Int[Tensor, "t a"]
    mean: Float[Tensor, " t"]
    sd: Float[Tensor, " t"]

    def __len__(self) -> int:
        return int(self.atoms.shape[0])


@dataclass(frozen=True, eq=False)
class Restraints:
    """Everything that is known about the geometry of the free atoms. Lengths in Å, angles in radians.

    Attributes:
        topology: the N free atoms.
        fixed: Å, the M fixed atoms; extended index N + j.
        bonds, angles, chirals, omegas: terms of 2, 3, 4 and 4 atoms.
        planes: groups of coplanar atoms, padded with -1.
        phipsi: C, N, CA, C, N of the residues whose backbone torsions are judged.
        phipsi_class: index into ``ramachandran.CLASSES``.
        contacts: how close free atoms may come to extended atoms, and which pairs count.
    """

    topology: Topology
    fixed: Float[Tensor, "m 3"]
    bonds: Terms
    angles: Terms
    chirals: Terms
    omegas: Terms
    planes: Int[Tensor, "g p"]
    phipsi: Int[Tensor, "r 5"]
    phipsi_class: Int[Tensor, " r"]
    contacts: Contacts

    @property
    def contact_limit(self) -> Float[Tensor, "n nm"]:
        """Smallest distance of a free atom to every extended atom, made anew each time.

        0 where the pair does not count (bonded up to 1-4, counted already, metals). For regions: its
        memory is quadratic; ``contacts`` serves models of any size.
        """
        return self.contacts.dense()


def build_restraints(
    topology: Topology,
    coords: np.ndarray,
    free: np.ndarray,
    *,
    absent: Sequence[int] | np.ndarray = (),
    copies: np.ndarray | None = None,
    copy_elements: Sequence[str] = (),
    bonded_as: np.ndarray | None = None,
    reach: float = 12.0,
) -> Restraints:
    """Restraints on the atoms ``free`` of a model whose other atoms stay where they are.

    Args:
        topology: the whole model.
        coords: Å, shape=(n, 3): where fixed atoms are, and which of them are near. Free atoms that are not
            placed yet may be NaN; others that are NaN are absent.
        free: increasing indices of the free atoms, shape=(N,).
        absent: indices of atoms that are neither free nor there, such as the side chains of a region
            of which only the backbone is modelled, or waters that may be displaced.
        copies: Å, further fixed atoms (symmetry copies), shape=(c, 3).
        copy_elements: their elements, length c.
        bonded_as: Å, the conformation that decides which residues are linked, which cysteines are, and
            which peptides before proline are cis; ``coords`` if None. Give the start where ``coords`` are a
            sample, or a bond that the sample tore would count as none.
        reach: Å, fixed atoms further than this from every free atom make no contact.

    Raises:
        ValueError: shapes disagree, or an atom is both free and absent.
    """
    free = np.asarray(free, dtype=np.int64)
    if coords.shape != (len(topology), 3) or len(copy_elements) != (0 if copies is None else len(copies)):
        raise ValueError(
            f"build_restraints: {len(topology)} atoms, coords {coords.shape}, {len(copy_elements)} elements "
            f"of copies {None if copies is None else copies.shape} do not agree"
        )
    if np.isin(free, absent).any():
        raise ValueError("build_restraints: an atom is both free and absent")
    chemistry = coords if bonded_as is None else bonded_as
    found = _Collector(topology, chemistry, free, np.asarray(absent, dtype=np.int64))
    found.coords = coords
    return _assemble(found, copies, copy_elements, reach)


class _Collector:
    """Gathers the terms that touch a free atom, in indices of the whole model."""

    def __init__(self, topology: Topology, coords: np.ndarray, free: np.ndarray, absent: np.ndarray) -> None:
        self.topology, self.coords, self.free = topology, coords, free
        self.present = np.ones(len(topology), dtype=bool)
        self.present[absent] = False
        self.is_free = np.zeros(len(topology), dtype=bool)
        self.is_free[free] = True
        self.present &= self.is_free | np.isfinite(coords).all(axis=1)
        self.terms: dict[str, list[tuple[tuple[int, ...], float, float]]] = {
            kind: [] for kind in ("bonds", "angles", "chirals", "omegas")
        }
        self.planes: list[tuple[int, ...]] = []
        self.phipsi: list[tuple[tuple[int, ...], int]] = []
        self.graph: list[tuple[int, int]] = []
        self.protein = [i for i, r in enumerate(topology.residues) if r.kind == "protein"]
        self.links = [
            (i, j) for i, j in zip(self.protein[:-1], self.protein[1:], strict=True) if self._linked(i, j)
        ]
        touched = set(topology.residue_index[free].tolist())
        for residue in self.protein:
            self._residue(residue, touched)
        for i, j in self.links:
            self._link(i, j)
        self._torsions()
        self._disulfides()
        self._unknown_bonds()

    def atom(self, residue: int, name: str) -> int | None:
        index = self.topology.atom_index.get((residue, name))
        return index if index is not None and self.present[index] else None

    def name(self, residue: int) -> str:
        return self.topology.residues[residue].name

    def atoms(self, names: Iterable[str], residue: int, following: int = -1) -> tuple[int, ...] | None:
        """Indices of the named atoms, ``+`` meaning the following residue; None if one is not there."""
        found = [
            self.atom(following, name[1:]) if name.startswith("+") else self.atom(residue, name)
            for name in names
        ]
        return None if None in found else tuple(i for i in found if i is not None)

    def _linked(self, i: int, j: int) -> bool:
        first, second = self.topology.residues[i], self.topology.residues[j]
        c, n = self.atom(i, "C"), self.atom(j, "N")
        if first.id.chain != second.id.chain or c is None or n is None:
            return False
        distance = float(np.linalg.norm(self.coords[c] - self.coords[n]))
        if np.isnan(distance):
            return second.id.number - first.id.number <= 1
        return distance <= LINK_DISTANCE

    def add(self, kind: str, wanted: Iterable[Target], residue: int, following: int = -1) -> None:
        for target in wanted:
            atoms = self.atoms(target.atoms, residue, following)
            if atoms is None:
                continue
            if kind == "bonds":
                self.graph.append((atoms[0], atoms[1]))
            if self.is_free[list(atoms)].any():
                scale = np.pi / 180 if kind == "angles" else 1.0
                self.terms[kind].append((atoms, target.mean * scale, target.sd * scale))

    def plane(self, atoms: Iterable[int | None]) -> None:
        group = tuple(i for i in atoms if i is not None)
        if len(group) >= 4 and self.is_free[list(group)].any():
            self.planes.append(group)

    def _residue(self, i: int, touched: set[int]) -> None:
        name = self.name(i)
        self.add("bonds", targets.residue_bonds(name), i)
        if i not in touched:
            return
        self.add("angles", targets.residue_angles(name), i)
        self.add("chirals", targets.chiral_centres(name), i)
        self.plane(self.atom(i, atom) for atom in targets.PLANES.get(name, ()))
        self.plane(self.atom(i, atom) for atom in ("CA", "C", "O", "OXT"))

    def _link(self, i: int, j: int) -> None:
        first, second = self.name(i), self.name(j)
        torsion = self.atoms(("CA", "C", "+N", "+CA"), i, j)
        cis = second == "PRO" and torsion is not None and bool(abs(_torsion(self.coords[list(torsion)])) < 90)
        self.add("bonds", targets.peptide_bonds(first, second), i, j)
        self.add("angles", targets.peptide_angles(first, second, cis=cis), i, j)
        self.plane([*(self.atom(i, atom) for atom in ("CA", "C", "O")), self.atom(j, "N")])
        if second == "PRO":
            self.plane([self.atom(i, "C"), *(self.atom(j, atom) for atom in ("N", "CA", "CD"))])
        if torsion is not None and self.is_free[list(torsion)].any():
            sd = np.radians(targets.OMEGA_SD)
            self.terms["omegas"].append((torsion, 0.0 if cis else np.pi, sd))

    def _torsions(self) -> None:
        for (h, i), (k, j) in zip(self.links[:-1], self.links[1:], strict=True):
            before, after = self.atom(h, "C"), self.atom(j, "N")
            own = self.atoms(("N", "CA", "C"), i)
            if i != k or before is None or after is None or own is None:
                continue
            atoms = (before, *own, after)
            name = self.name(i)
            kind = {"GLY": 1, "PRO": 2}.get(name, 3 if self.name(j) == "PRO" else 0)
            if self.is_free[list(atoms)].any() and name in targets.known_residues():
                self.phipsi.append((atoms, kind))

    def _disulfides(self) -> None:
        cysteines = [i for i in self.protein if self.name(i) == "CYS" and self.atom(i, "SG") is not None]
        sulphurs = np.array([self.topology.atom_index[i, "SG"] for i in cysteines], dtype=np.int64)
        placed = np.isfinite(self.coords[sulphurs]).all(axis=1)
        cysteines = [i for i, known in zip(cysteines, placed, strict=True) if known]
        near = cKDTree(self.coords[sulphurs[placed]]).query_pairs(_DISULFIDE_DISTANCE)
        for a, b in sorted(near):
            self.add("bonds", targets.disulfide_bonds(), cysteines[a], cysteines[b])
            self.add("angles", targets.disulfide_angles(), cysteines[a], cysteines[b])

    def _unknown_bonds(self) -> None:
        """Covalent bonds of ligands and modified residues, by distance: only to leave out their contacts."""
        known = np.array([r.name in targets.known_residues() for r in self.topology.residues], dtype=bool)
        here = np.flatnonzero(self.present & np.isfinite(self.coords).all(axis=1))
        unknown = here[~known[self.topology.residue_index[here]]]
        if not len(unknown) or not len(here):
            return
        close = cKDTree(self.coords[unknown]).query_ball_tree(cKDTree(self.coords[here]), _COVALENT_DISTANCE)
        self.graph += [
            (int(a), int(here[b]))
            for a, near in zip(unknown, close, strict=True)
            for b in near
            if here[b] != a
        ]


def _torsion(points: np.ndarray) -> float:
    """Dihedral angle in degrees of four points, shape=(4, 3)."""
    u, v, w = np.diff(points, axis=0)
    p, q = np.cross(u, v), np.cross(v, w)
    return float(np.degrees(np.arctan2(np.linalg.norm(v) * (u @ q), p @ q)))


def _surroundings(found: _Collector, reach: float) -> np.ndarray:
    """Fixed atoms that a term uses or that are within reach of a free atom, increasing."""
    fixed = np.flatnonzero(found.present & ~found.is_free)
    used = {i for kind in found.terms.values() for atoms, _, _ in kind for i in atoms}
    used |= {i for group in found.planes for i in group} | {i for atoms, _ in found.phipsi for i in atoms}
    placed = found.free[np.isfinite(found.coords[found.free]).all(axis=1)]
    if len(placed) and len(fixed):
        distance, _ = cKDTree(found.coords[placed]).query(found.coords[fixed], distance_upper_bound=reach)
        used |= set(fixed[np.isfinite(distance)].tolist())
    return np.array(sorted(used - set(found.free.tolist())), dtype=np.int64)


def _assemble(
    found: _Collector, copies: np.ndarray | None, copy_elements: Sequence[str], reach: float
) -> Restraints:
    topology, free = found.topology, found.free
    fixed = _surroundings(found, reach)
    copies = np.zeros((0, 3)) if copies is None else copies
    order = np.concatenate([free, fixed])
    place = np.full(len(topology), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    terms = {
        kind: _terms(rows, place, width)
        for (kind, rows), width in zip(found.terms.items(), (2, 3, 4, 4), strict=True)
    }
    elements = [topology.elements[i] for i in order]
    graph = place[np.array(found.graph, dtype=np.int64).reshape(-1, 2)]
    width = max((len(group) for group in found.planes), default=4)
    planes = [[*place[list(group)], *[-1] * (width - len(group))] for group in found.planes]
    return Restraints(
        topology=topology.subset(free),
        fixed=torch.as_tensor(np.concatenate([found.coords[fixed], copies]), dtype=torch.float64),
        planes=torch.tensor(planes, dtype=torch.long).reshape(-1, width),
        phipsi=torch.as_tensor(place[np.array([a for a, _ in found.phipsi], dtype=np.int64).reshape(-1, 5)]),
        phipsi_class=torch.tensor([kind for _, kind in found.phipsi], dtype=torch.long),
        contacts=Contacts.between([*elements, *copy_elements], len(free), graph[(graph >= 0).all(axis=1)]),
        **terms,
    )


def _terms(rows: list[tuple[tuple[int, ...], float, float]], place: np.ndarray, width: int) -> Terms:
    atoms = np.array([row[0] for row in rows], dtype=np.int64).reshape(-1, width)
    values = torch.tensor([row[1:] for row in rows], dtype=torch.float64).reshape(-1, 2)
    return Terms(atoms=torch.as_tensor(place[atoms]), mean=values[:, 0], sd=values[:, 1])
