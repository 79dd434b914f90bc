"""How atoms look in a cryo-EM map: as ``molmap`` draws them, or by electron form factors and one B factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.forward.electron import ElectronDensity
from densemble.forward.molmap import MolmapDensity, NuclearDensity
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid

FormKind = Literal["molmap", "electron"]


@runtime_checkable
class StateDensity(Protocol):
    """Density of K members of N atoms, summed with weights or each alone; differentiable in coordinates."""

    def __call__(
        self, coords: Float[Tensor, "k n 3"], weights: Float[Tensor, " k"]
    ) -> Float[Tensor, "nx ny nz"]:
        """``sum_k weights_k rho_k``."""
        ...

    def members(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, "k nx ny nz"]:
        """``rho_k``."""
        ...


@dataclass(frozen=True)
class AtomForm:
    """The shape of atoms in a map.

    Attributes:
        kind: ``molmap``: one Gaussian an atom, as high as its atomic number (``MolmapDensity``).
            ``electron``: electron form factors, ended at the map's resolution (``ElectronDensity``).
        spread: Å, the resolution that sets the width of a ``molmap`` Gaussian; or Å^2, the B factor of all
            atoms. How wide atoms are depends on the sharpening of a map as well as on its resolution.
        d_min: Å, where the map ends; ``electron`` only.
    """

    kind: FormKind
    spread: float
    d_min: float

    @classmethod
    def of(cls, kind: FormKind, resolution: float) -> AtomForm:
        """A first guess for a map of some resolution in Å: what ``molmap`` makes of it, or B = 2 d^2."""
        return cls(kind, resolution if kind == "molmap" else max(2 * resolution**2, B_LEAST), resolution)

    @property
    def bounds(self) -> tuple[float, float]:
        """Where a fitted spread may lie."""
        return (0.5 * self.d_min, 2 * self.d_min) if self.kind == "molmap" else (B_LEAST, 300.0)

    def density(
        self,
        grid: Grid,
        elements: Sequence[str],
        *,
        occupancy: Float[Tensor, " n"] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> StateDensity:
        """Of these elements on a box; the occupancy is that of each atom, 1 if None."""
        if self.kind == "molmap":
            return MolmapDensity(
                grid, elements, resolution=self.spread, occupancy=occupancy, dtype=dtype, device=device
            )
        forward = ElectronDensity(
            grid, elements, occupancy=occupancy, d_min=self.d_min, b_min=B_LEAST, dtype=dtype, device=device
        )
        return _WithB(forward, self.spread)

    def with_b(
        self, grid: Grid, elements: Sequence[str], *, occupancy: Float[Tensor, " n"] | None = None
    ) -> tuple[XrayDensity, float]:
        """The same as a density that takes B factors, and the B in Å^2 with which it is the same.

        For ``molmap`` it is so but for a constant factor: a Gaussian of ``spread / (pi sqrt 2)`` Å is a
        point with B = 4 spread^2.
        """
        if self.kind == "molmap":
            return NuclearDensity(grid, elements, occupancy=occupancy), 4 * self.spread**2
        forward = ElectronDensity(grid, elements, occupancy=occupancy, d_min=self.d_min, b_min=B_LEAST)
        return forward, self.spread


B_LEAST = 10.0
"""Å^2, the least B factor with which atoms can be ended at a resolution."""


@dataclass(frozen=True, eq=False)
class _WithB:
    """Electron density with one B factor for all atoms."""

    forward: ElectronDensity
    b_iso: float

    def __call__(self, coords: Tensor, weights: Tensor) -> Tensor:
        return self.forward(coords, weights, coords.new_tensor(self.b_iso))

    def members(self, coords: Tensor) -> Tensor:
        return self.forward.members(coords, coords.new_tensor(self.b_iso))
