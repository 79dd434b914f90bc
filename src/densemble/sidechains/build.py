"""From backbone and chi angles to all atoms, differentiable in both and vectorised over residues.

Atoms are placed level by level (CB, gamma, delta, ...), each from three placed ones by its bond length,
bond angle and dihedral angle: the extension of Parsons et al. (2005), J. Comput. Chem. 26, 1063-1068. Six
levels do for every residue, however many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.errors import InputError
from densemble.geometry import targets
from densemble.geometry.objective import dihedrals
from densemble.sidechains.residues import CHI_COUNT, Placement, chi_atoms, is_buildable, placements


@dataclass(frozen=True, eq=False)
class _Level:
    """Atoms that are placed together; parents are indices into the list of the atoms placed before."""

    parents: Tensor  # [a, 3]
    chi: Tensor  # [a], index into the flattened chi angles
    follows: Tensor  # [a], 1 where the dihedral follows chi, 0 where it is fixed
    offset: Tensor
    length: Tensor
    angle: Tensor


def place(
    a: Float[Tensor, "*b n 3"],
    b: Float[Tensor, "*b n 3"],
    c: Float[Tensor, "*b n 3"],
    length: Float[Tensor, " n"],
    angle: Float[Tensor, " n"],
    dihedral: Float[Tensor, "*b n"],
) -> Float[Tensor, "*b n 3"]:
    """The points at ``length`` from c, ``angle`` b-c-point and ``dihedral`` a-b-c-point (Å, radians)."""
    along = torch.nn.functional.normalize(c - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, along), dim=-1)
    side = torch.linalg.cross(normal, along)
    in_plane = -(length * angle.cos())[:, None] * along
    across = dihedral.cos()[..., None] * side + dihedral.sin()[..., None] * normal
    return c + in_plane + (length * angle.sin())[:, None] * across


class SideChainBuilder:
    """Builds the atoms of a topology, in its order.

    Attributes:
        topology: the N atoms of R protein residues with complete backbones.
        chi_mask: which chi angles exist, shape=(R, 4).
        follows_chi: atoms that depend on a chi angle, shape=(N,).
    """

    topology: Topology
    chi_mask: Bool[np.ndarray, "r 4"]
    follows_chi: Bool[np.ndarray, " n"]

    def __init__(
        self, topology: Topology, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        """Plan the levels.

        Raises:
            InputError: a residue is not an amino acid that can be built, lacks a backbone atom, or has
                an atom that does not belong to it.
        """
        _check(topology)
        self.topology = topology
        names = [residue.name for residue in topology.residues]
        self.chi_mask = np.array(
            [[i < len(chi_atoms(n)) for i in range(CHI_COUNT)] for n in names], dtype=bool
        )
        side = {(r, p.atom) for r, name in enumerate(names) for p in placements(name) if p.level > 0}
        self.follows_chi = np.array([key in side for key in topology.atom_index], dtype=bool)
        self._slots = {(r, atom): 4 * r + i for r in range(len(names)) for i, atom in enumerate(BACKBONE)}
        self._levels = self._plan(dtype, device)
        self._order = torch.tensor([self._slots[key] for key in topology.atom_index], device=device)

    def _plan(self, dtype: torch.dtype, device: torch.device | str) -> list[_Level]:
        wanted = [(r, p) for r, res in enumerate(self.topology.residues) for p in placements(res.name)]
        wanted += [
            (r, _oxt(self.topology.residues[r].name)) for r, a in self.topology.atom_index if a == "OXT"
        ]
        wanted.sort(key=lambda item: item[1].level)
        levels = []
        for _, group in groupby(wanted, key=lambda item: item[1].level):
            items = list(group)
            parents = [[self._slots[r, name] for name in p.parents] for r, p in items]
            for r, p in items:
                self._slots[r, p.atom] = len(self._slots)
            values = torch.tensor(
                [[float(p.chi > 0), p.offset, p.length, p.angle] for _, p in items],
                dtype=dtype,
                device=device,
            )
            chi = torch.tensor([CHI_COUNT * r + max(p.chi - 1, 0) for r, p in items], device=device)
            levels.append(_Level(torch.tensor(parents, device=device), chi, *values.unbind(1)))
        return levels

    def build(
        self, backbone: Float[Tensor, "k r 4 3"], chi: Float[Tensor, "k r 4"]
    ) -> Float[Tensor, "k n 3"]:
        """All atoms of the topology.

        Args:
            backbone: Å, N, CA, C and O of each residue; passed through unchanged.
            chi: radians; angles that a residue does not have are ignored.
        """
        placed, angles = backbone.flatten(1, 2), chi.flatten(1)
        for level in self._levels:
            a, b, c = placed[:, level.parents].unbind(2)
            dihedral = angles[:, level.chi] * level.follows + level.offset
            placed = torch.cat([placed, place(a, b, c, level.length, level.angle, dihedral)], dim=1)
        return placed[:, self._order]

    def backbone_of(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, "k r 4 3"]:
        """N, CA, C and O of each residue."""
        index = self.topology.backbone(range(len(self.topology.residues)))
        return coords[:, torch.as_tensor(index, device=coords.device)]

    def chi_from_coords(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, "k r 4"]:
        """Chi angles in radians; 0 where a residue has none, NaN where one of its atoms is not there."""
        chi = coords.new_zeros(len(coords), len(self.topology.residues), CHI_COUNT)
        where, atoms, missing = [], [], []
        for r, residue in enumerate(self.topology.residues):
            for i, names in enumerate(chi_atoms(residue.name)):
                found = [self.topology.atom_index.get((r, name)) for name in names]
                if None in found:
                    missing.append(CHI_COUNT * r + i)
                else:
                    where.append(CHI_COUNT * r + i)
                    atoms.append(found)
        flat = chi.flatten(1)
        if where:
            flat[:, where] = dihedrals(coords[:, torch.tensor(atoms, device=coords.device)])
        flat[:, missing] = math.nan
        return flat.reshape(chi.shape)


def _oxt(name: str) -> Placement:
    """The second oxygen of a C-terminal carboxylate, in the plane of CA, C and O."""
    length, angle = targets.bond_length(name, "C", "OXT"), targets.bond_angle(name, "CA", "C", "OXT")
    return Placement("OXT", ("O", "CA", "C"), 0, math.pi, length, math.radians(angle), 0)


def _check(topology: Topology) -> None:
    for r, residue in enumerate(topology.residues):
        own = [name for i, name in topology.atom_index if i == r]
        if residue.kind != "protein" or not is_buildable(residue.name):
            raise InputError(
                f"residue {residue.id} is {residue.name}, whose side chain cannot be built; "
                "leave it out of the region"
            )
        lacking = [name for name in BACKBONE if name not in own]
        if lacking:
            raise InputError(
                f"residue {residue.id} ({residue.name}) lacks the backbone atom {lacking[0]}; "
                "complete the model or leave the residue out of the region"
            )
        belonging = {*BACKBONE, "OXT", *(p.atom for p in placements(residue.name))}
        odd = [name for name in own if name not in belonging]
        if odd:
            raise InputError(
                f"residue {residue.id} ({residue.name}) has an atom {odd[0]} that does not belong to it; "
                "rename or remove the atom"
            )
