"""Density of a cryo-EM map at a resolution, as ChimeraX's ``molmap`` makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.errors import InputError
from densemble.forward.kernel import CUTOFF, gaussian_density
from densemble.forward.scattering import FormFactors, FormFactorTable
from densemble.forward.xray import XrayDensity
from densemble.grid import Grid


def _nuclear(elements: Sequence[str]) -> FormFactors:
    """Form factors of points: the atomic number at all angles."""
    charge = np.array([[gemmi.Element(symbol).atomic_number] for symbol in elements], dtype=np.float64)
    return FormFactors(a=charge, b=np.zeros_like(charge))


class MolmapDensity:
    """One Gaussian per heavy atom, all of one width; B factors have no part in it.

    ``rho(xi) = sum_i occ_i Z_i exp(-|x_i - xi|^2 / (2 sigma^2))`` with ``sigma = resolution / (pi sqrt 2)``,
    so that the transform falls to 1/e at the resolution (paper 2, A.2). The unit is arbitrary: the height
    of a lone atom is its atomic number.

    Attributes:
        grid: the box.
        sigma: Å.
    """

    def __init__(
        self,
        grid: Grid,
        elements: Sequence[str],
        *,
        resolution: float,
        occupancy: Float[Tensor, " n"] | None = None,
        cutoff: float = CUTOFF,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the atomic numbers.

        Args:
            grid: the box.
            elements: element symbols of heavy atoms, length N.
            resolution: Å.
            occupancy: of each atom within its member; 1 if left out.
            cutoff: see ``gaussian_density``.
            dtype: precision; coordinates must have the same.
            device: where the numbers are; coordinates must be there too.

        Raises:
            InputError: an element is not known.
            ValueError: a resolution that is not positive, or a hydrogen.
        """
        if not resolution > 0:
            raise ValueError(f"MolmapDensity: resolution {resolution} Å must be positive")
        numbers = [gemmi.Element(symbol).atomic_number for symbol in elements]
        for symbol, number in zip(elements, numbers, strict=True):
            if number == 0:
                raise InputError(f"element '{symbol}' is not known: correct the model's element column")
            if number == 1:
                raise ValueError("MolmapDensity: hydrogens have no part in it")
        self.grid = grid
        self.sigma = resolution / (math.pi * math.sqrt(2))
        self._height = torch.tensor(numbers, dtype=dtype, device=device)
        if occupancy is not None:
            self._height = self._height * occupancy.to(self._height)
        self._cutoff = cutoff

    def __call__(
        self, coords: Float[Tensor, "k n 3"], weights: Float[Tensor, " k"], *, blur: float = 0.0
    ) -> Float[Tensor, "nx ny nz"]:
        """Density of the ensemble, ``sum_k weights_k rho_k``; differentiable in both tensors.

        Args:
            coords: Å, shape=(k, n, 3).
            weights: occupancies of the members, shape=(k,).
            blur: Å, standard deviation of a Gaussian of integral 1 that the density is convolved with.
        """
        height, alpha = self._gaussians(len(coords), blur)
        height = height * weights[:, None, None]
        return gaussian_density(
            self.grid, coords.flatten(0, 1), height.flatten(0, 1), alpha.flatten(0, 1), cutoff=self._cutoff
        )

    def members(
        self, coords: Float[Tensor, "k n 3"], *, blur: float | Float[Tensor, " k"] = 0.0
    ) -> Float[Tensor, "k nx ny nz"]:
        """Density of each member alone at full occupancy, blurred alike or each by its own."""
        return gaussian_density(self.grid, coords, *self._gaussians(len(coords), blur), cutoff=self._cutoff)

    def _gaussians(self, k: int, blur: float | Tensor) -> tuple[Tensor, Tensor]:
        """Heights and exponents of the atoms of k members, (k, n, 1) each: variances add, charges stay."""
        own = blur if isinstance(blur, Tensor) else self._height.new_full((k,), blur)
        variance = self.sigma**2 + own.to(self._height)[:, None] ** 2
        height = (self._height * (self.sigma**2 / variance) ** 1.5)[..., None]
        return height, (0.5 / variance)[..., None].expand_as(height)


class NuclearDensity(XrayDensity):
    """Points of an atom's charge, spread by its B factor alone: ``MolmapDensity`` where B may differ.

    ``rho(xi) = sum_i occ_i Z_i (4 pi / B_i)^(3/2) exp(-4 pi^2 |x_i - xi|^2 / B_i)``: times a constant, what
    ``molmap`` draws at ``resolution = sqrt(B) / 2``.
    """

    _table: FormFactorTable = staticmethod(_nuclear)
