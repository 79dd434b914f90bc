"""All rotamers of a stretch at once: their atoms on given backbones, their scores, their contacts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import gemmi
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.geometry.contacts import CONTACT_SD
from densemble.sidechains.build import SideChainBuilder
from densemble.sidechains.residues import CHI_COUNT
from densemble.sidechains.rotamers import Rotamers, rotamers

DensityAt = Callable[[Tensor], Tensor]
"""Points in Å, shape=(..., 3), to what one electron there adds to the log likelihood, shape=(...)."""

WORST_CONTACT = 8.0
"""Nats; no single contact counts more, so that a backbone not yet in place can still be packed."""


class Candidates:
    """Every rotamer of every residue that has one, laid out flat.

    The candidates of all residues follow each other (C in all); so do the atoms of all candidates that
    depend on a chi angle (P points in all), candidate by candidate.

    Attributes:
        residues: those with atoms that follow a chi angle, as indices into the builder's topology.
        chi: their rotamers, radians, each shape=(count, 4).
    """

    residues: list[int]
    chi: list[Float[Tensor, "c 4"]]

    def __init__(
        self,
        builder: SideChainBuilder,
        limit: Float[Tensor, "n nm"],
        fixed: Float[Tensor, "m 3"],
        *,
        library: Callable[[str], Rotamers] = rotamers,
    ) -> None:
        """Lay out the candidates.

        Args:
            builder: of the stretch's N atoms.
            limit: Å, of contact, between atoms of the stretch and those, followed by the fixed atoms;
                symmetric within the stretch.
            fixed: Å, everything else.
            library: rotamers of a residue by its name.
        """
        topology, device, dtype = builder.topology, fixed.device, fixed.dtype
        names = [residue.name for residue in topology.residues]
        self.residues = sorted({int(r) for r in topology.residue_index[builder.follows_chi]})
        self.chi = [library(names[r]).chi.to(device, dtype) for r in self.residues]
        frequency = [library(names[r]).log_probability.to(device, dtype) for r in self.residues]
        self._log_probability = torch.cat([fixed.new_zeros(0), *frequency])
        self._own = [
            torch.as_tensor(
                np.flatnonzero((topology.residue_index == r) & builder.follows_chi), device=device
            )
            for r in self.residues
        ]
        counts = [len(chi) for chi in self.chi]
        self.of = _slices(counts)
        self._points = _slices([c * len(own) for c, own in zip(counts, self._own, strict=True)])
        none = torch.zeros(0, dtype=torch.long, device=device)
        self._atoms = torch.cat([none, *(own.repeat(c) for c, own in zip(counts, self._own, strict=True))])
        self._which = torch.cat(
            [
                none,
                *(
                    torch.arange(c, device=device).repeat_interleave(len(o))
                    for c, o in zip(counts, self._own, strict=True)
                ),
            ]
        )
        electrons = [gemmi.Element(topology.elements[a]).atomic_number for a in self._atoms.tolist()]
        self._electrons = torch.tensor(electrons, dtype=dtype, device=device)
        self._fixed = fixed
        self._still = torch.as_tensor(np.flatnonzero(~builder.follows_chi), device=device)
        self._moving = torch.as_tensor(np.flatnonzero(builder.follows_chi), device=device)
        n = len(topology)
        self._still_limit = torch.cat([limit[:, n:], limit[:, self._still]], dim=1)[self._atoms]
        self._moving_limit = limit[:, self._moving][self._atoms]
        self._table = self._padded(len(names), max(counts, default=1))

    def _padded(self, residues: int, width: int) -> Tensor:
        """Chi angles of the i-th candidate of each residue, the last one repeated, shape=(width, r, 4)."""
        table = self._fixed.new_zeros(width, residues, CHI_COUNT)
        for r, chi in zip(self.residues, self.chi, strict=True):
            table[:, r] = chi[torch.arange(width, device=chi.device).clamp(max=len(chi) - 1)]
        return table

    def build(self, builder: SideChainBuilder, backbone: Float[Tensor, "k r 4 3"]) -> Float[Tensor, "k p 3"]:
        """Atoms of all candidates on each member's backbone."""
        members, width = len(backbone), len(self._table)
        atoms = builder.build(
            backbone.repeat_interleave(width, dim=0), self._table.repeat(members, 1, 1)
        ).reshape(members, width, -1, 3)
        return atoms[:, self._which, self._atoms]

    def static_score(
        self, points: Float[Tensor, "k p 3"], atoms: Float[Tensor, "k n 3"], density_at: DensityAt | None
    ) -> Float[Tensor, "k c"]:
        """Log frequency, density, and contacts with all that does not move; nats."""
        around = torch.cat([self._fixed.expand(len(points), -1, -1), atoms[:, self._still]], dim=1)
        score = -_contacts(points, around, self._still_limit)
        if density_at is not None:
            score = score + self._electrons * density_at(points)
        owner = torch.cat([s.start + self._which[p] for s, p in zip(self.of, self._points, strict=True)])
        total = points.new_zeros(len(points), len(self._log_probability)).index_add(1, owner, score)
        return total + self._log_probability

    def contacts(
        self, points: Float[Tensor, "k p 3"], atoms: Float[Tensor, "k n 3"], place: int
    ) -> Float[Tensor, "k c"]:
        """Contacts of one residue's candidates with the present side chains of the others; nats."""
        here = self._points[place]
        energy = _contacts(points[:, here], atoms[:, self._moving], self._moving_limit[here])
        return energy.reshape(len(points), len(self.chi[place]), -1).sum(-1)

    def put(
        self,
        points: Float[Tensor, "k p 3"],
        atoms: Float[Tensor, "k n 3"],
        place: int,
        choice: Int[Tensor, " k"],
    ) -> Float[Tensor, "k n 3"]:
        """The atoms with one residue's side chain replaced by each member's choice."""
        own = self._own[place]
        mine = points[:, self._points[place]].reshape(len(points), -1, len(own), 3)
        return atoms.index_copy(1, own, mine[torch.arange(len(points), device=points.device), choice])


def _contacts(points: Tensor, others: Tensor, limit: Tensor) -> Tensor:
    """Summed penalty of each point, harmonic below the limit of contact, each contact bounded."""
    gap = (limit - torch.cdist(points, others)).clamp_(min=0) / CONTACT_SD
    return gap.square_().mul_(0.5).clamp_(max=WORST_CONTACT).sum(-1)


def _slices(counts: list[int]) -> list[slice]:
    ends = np.cumsum([0, *counts]).tolist()
    return [slice(a, b) for a, b in pairwise(ends)]
