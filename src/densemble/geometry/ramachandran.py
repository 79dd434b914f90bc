"""Backbone-torsion plausibility: a smooth log density of (phi, psi) for four classes of residue.

The table ``data/geometry/ramachandran.npz`` is a kernel estimate over 0.7 million residues of PDB
chains; ``training/ramachandran.py`` made it and says how. Between the grid points it is interpolated by
periodic cubic B-splines, which are twice differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import spline_filter
from torch import Tensor

CLASSES = ("general", "glycine", "proline", "pre-proline")


@dataclass(frozen=True, eq=False)
class TorsionTable:
    """The log density and its contours.

    Attributes:
        coefficients: B-spline coefficients on a periodic grid from -pi on, shape=(4, n, n).
        favoured: log density per rad^2 above which lie 98 % of the residues, per class.
        allowed: the same for 99.95 % (general) and 99.8 % (the others).
    """

    coefficients: Float[Tensor, "4 n n"]
    favoured: np.ndarray
    allowed: np.ndarray

    def log_density(
        self, phi: Float[Tensor, "*batch r"], psi: Float[Tensor, "*batch r"], kind: Int[Tensor, " r"]
    ) -> Float[Tensor, "*batch r"]:
        """Log density per rad^2 at angles in radians; differentiable in ``phi`` and ``psi``."""
        n = self.coefficients.shape[-1]
        (i, wi), (j, wj) = _spline_weights(phi, n), _spline_weights(psi, n)
        flat = (kind[:, None, None] * n + i[..., :, None]) * n + j[..., None, :]
        values = self.coefficients.reshape(-1)[flat]
        return torch.einsum("...ab,...a,...b->...", values, wi, wj)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> TorsionTable:
        """The table in another precision, on another device."""
        return TorsionTable(self.coefficients.to(device, dtype), self.favoured, self.allowed)


def _spline_weights(angle: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Indices and weights of the four cubic B-splines that are not zero at an angle, last axis 4."""
    u = (angle / (2 * torch.pi) + 0.5) * n
    base = torch.floor(u.detach())
    t = u - base
    weights = torch.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=-1
    )
    index = base.long()[..., None] + torch.arange(-1, 3, device=angle.device)
    return index % n, weights / 6


@cache
def torsion_table() -> TorsionTable:
    """The table that ships with the package, in float64 on the CPU."""
    path = resources.files("densemble") / "data" / "geometry" / "ramachandran.npz"
    with path.open("rb") as file, np.load(file) as data:
        filtered = [
            spline_filter(table, order=3, mode="grid-wrap") for table in data["log_density"].astype(float)
        ]
        return TorsionTable(torch.tensor(np.array(filtered)), data["favoured"], data["allowed"])
