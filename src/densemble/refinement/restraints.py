"""What is expected of B factors: to be like those of bonded atoms, and of the same atom in other states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.geometry.restraints import Restraints
from densemble.refinement.conformers import Sites

BONDED_SD = 0.15
"""Of the difference of ln B of bonded atoms: 15 % of B, about REFMAC's 1.5 to 3 Å^2 at B of 10 to 20 Å^2."""
STATES_SD = 0.5
"""The same of one atom in two states. It keeps a state of low occupancy from hiding behind its B."""


@dataclass(frozen=True, eq=False)
class BRestraints:
    """Log probability of B factors, ``-sum (ln B_i - ln B_j)^2 / (2 sd^2)`` over pairs of sites.

    Attributes:
        pairs: of sites, shape=(p, 2).
        sd: shape=(p,).
    """

    pairs: Int[Tensor, "p 2"]
    sd: Float[Tensor, " p"]

    @classmethod
    def of(cls, restraints: Restraints, sites: Sites) -> BRestraints:
        """Pairs of all sites.

        Args:
            restraints: on the sites (``conformers.site_restraints``).
            sites: of the region's parts.
        """
        bonds = restraints.bonds.atoms
        bonded = bonds[(bonds < len(sites.atom)).all(dim=1)]
        most = sites.index[0][sites.atom]  # the same atom in the part's first state
        others = torch.arange(len(sites.atom))
        states = torch.stack([most, others], dim=1)[most != others]
        sd = torch.cat([torch.full((len(bonded),), BONDED_SD), torch.full((len(states),), STATES_SD)])
        return cls(torch.cat([bonded, states]), sd)

    def __call__(self, b_iso: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """Nats; Å^2, B factors of the sites, positive."""
        log_b = b_iso.log()[self.pairs]
        return -0.5 * ((log_b[:, 0] - log_b[:, 1]) / self.sd.to(b_iso)).square().sum()
