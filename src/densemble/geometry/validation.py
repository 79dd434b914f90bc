"""How good the stereochemistry of each member is, in the figures that crystallographers quote."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.geometry.contacts import ContactSearch
from densemble.geometry.objective import angles, chiral_volumes, dihedrals, distances
from densemble.geometry.ramachandran import torsion_table
from densemble.geometry.restraints import Restraints, Terms

CLASH = 0.4
"""Å below its limit of contact from which a pair counts as a clash (the overlap of MolProbity's clashes;
here between heavy atoms and against the shortest usual distances, so that far fewer are counted)."""
TWISTED = 30.0
"""Degrees from planar beyond which a peptide counts as twisted (MolProbity)."""


@dataclass(frozen=True, eq=False)
class GeometryReport:
    """Figures per member; only terms that involve a free atom are counted.

    Attributes:
        bond_rmsz: root mean square deviation of bond lengths in standard deviations of the target.
        angle_rmsz: the same of bond angles.
        favoured: residues inside the 98 % contour of their Ramachandran class.
        allowed: residues outside it but inside the outer contour (99.95 %, or 99.8 % for Gly, Pro, pre-Pro).
        outliers: residues outside both. The contours are those of ``ramachandran.torsion_table``.
        cis: peptides with omega within 90 degrees of 0.
        twisted: peptides with omega more than 30 degrees from 0 and from 180.
        wrong_hand: chiral (or prochirally named) centres whose chiral volume has the wrong sign.
        clashes: pairs of atoms more than 0.4 Å closer than the limit of contact.
    """

    bond_rmsz: Float[Tensor, " k"]
    angle_rmsz: Float[Tensor, " k"]
    favoured: Int[Tensor, " k"]
    allowed: Int[Tensor, " k"]
    outliers: Int[Tensor, " k"]
    cis: Int[Tensor, " k"]
    twisted: Int[Tensor, " k"]
    wrong_hand: Int[Tensor, " k"]
    clashes: Int[Tensor, " k"]

    def rows(self) -> list[dict[str, float]]:
        """One dictionary of plain numbers per member."""
        columns = {name: values.tolist() for name, values in vars(self).items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@torch.no_grad()
def validate(restraints: Restraints, coords: Float[Tensor, "k n 3"]) -> GeometryReport:
    """Judge each member's geometry.

    Args:
        restraints: those of the free atoms.
        coords: Å, free atoms.
    """
    fixed = restraints.fixed.to(coords.device, torch.float64)
    free = coords.to(torch.float64)
    x = torch.cat([free, fixed.expand(len(coords), -1, -1)], dim=1)
    favoured, allowed, outliers = _ramachandran(restraints, x)
    off = torch.rad2deg(dihedrals(x[:, restraints.omegas.atoms]).abs())
    volumes = chiral_volumes(x[:, restraints.chirals.atoms])
    return GeometryReport(
        bond_rmsz=_rmsz(distances(x[:, restraints.bonds.atoms]), restraints.bonds),
        angle_rmsz=_rmsz(angles(x[:, restraints.angles.atoms]), restraints.angles),
        favoured=favoured,
        allowed=allowed,
        outliers=outliers,
        cis=(off < 90).sum(-1),
        twisted=((off > TWISTED) & (off < 180 - TWISTED)).sum(-1),
        wrong_hand=(volumes * restraints.chirals.mean.to(coords.device) < 0).sum(-1),
        clashes=_clashes(restraints, free, x),
    )


def _clashes(restraints: Restraints, free: Tensor, x: Tensor) -> Tensor:
    contacts = restraints.contacts.to(torch.float64, free.device)
    k, i, j = ContactSearch(contacts, restraints.fixed.to(free), skin=0.0)(free)
    short = contacts.limit(i, j) - (x[k, i] - x[k, j]).norm(dim=-1) > CLASH
    return torch.bincount(k[short], minlength=len(free))


def _rmsz(values: Tensor, terms: Terms) -> Tensor:
    z = (values - terms.mean.to(values.device)) / terms.sd.to(values.device)
    return z.square().mean(-1).sqrt()


def _ramachandran(restraints: Restraints, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kind, points = restraints.phipsi_class.to(x.device), x[:, restraints.phipsi]
    table = torsion_table().to(torch.float64, x.device)
    density = table.log_density(dihedrals(points[..., :4, :]), dihedrals(points[..., 1:, :]), kind)
    inner = torch.as_tensor(table.favoured, device=x.device)[kind]
    outer = torch.as_tensor(table.allowed, device=x.device)[kind]
    favoured = density >= inner
    outliers = density < outer
    return favoured.sum(-1), (~favoured & ~outliers).sum(-1), outliers.sum(-1)
