"""X-ray density of an ensemble, in e/Å^3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from densemble.forward.kernel import CUTOFF, gaussian_density
from densemble.forward.plan import reach_of
from densemble.forward.scattering import FormFactors, FormFactorTable, xray_form_factors
from densemble.forward.truncation import truncated_form_factors
from densemble.grid import Grid


@dataclass(frozen=True, eq=False)
class SymmetryImages:
    """Operators ``x -> R x + t`` in Å that carry atoms to copies of themselves.

    Attributes:
        rotation: shape=(s, 3, 3).
        translation: Å, shape=(s, 3).
    """

    rotation: np.ndarray
    translation: np.ndarray

    def __len__(self) -> int:
        return len(self.rotation)

    @classmethod
    def reaching(
        cls,
        grid: Grid,
        atoms: np.ndarray,
        cell: gemmi.UnitCell,
        space_group: gemmi.SpaceGroup,
        *,
        margin: float = 10.0,
    ) -> SymmetryImages:
        """The space-group operators, with lattice translations, whose copies come near the box.

        Args:
            grid: the box.
            atoms: Å, where the atoms are, shape=(n, 3).
            cell: unit cell; its orthogonalisation defines the Å frame.
            space_group: space group; its centring translations count as operators.
            margin: Å around the box within which a copy counts: the reach of the density, plus how far
                atoms may move from ``atoms``.

        Returns:
            The operators, the identity first if it is among them.
        """
        low = np.array(grid.origin) - margin
        high = np.array(grid.origin) + np.array(grid.spacing) * (np.array(grid.shape) - 1) + margin
        orth, frac = np.array(cell.orth.mat.tolist()), np.array(cell.frac.mat.tolist())
        corners = np.array(list(itertools.product(*zip(low, high, strict=True)))) @ frac.T
        rotations, translations = [], []
        for op in space_group.operations():
            turn = np.array(op.rot, dtype=float) / op.DEN
            shift = np.array(op.tran, dtype=float) / op.DEN
            image = atoms @ frac.T @ turn.T + shift
            first = np.ceil(corners.min(axis=0) - image.max(axis=0)).astype(int)
            last = np.floor(corners.max(axis=0) - image.min(axis=0)).astype(int)
            for lattice in np.ndindex(*np.maximum(last - first + 1, 0)):
                moved = (image + first + lattice) @ orth.T
                if ((moved >= low) & (moved <= high)).all(axis=1).any():
                    rotations.append(orth @ turn @ frac)
                    translations.append(orth @ (shift + first + lattice))
        rotation, translation = np.reshape(rotations, (-1, 3, 3)), np.reshape(translations, (-1, 3))
        moves = np.abs(rotation - np.eye(3)).sum(axis=(1, 2)) + np.abs(translation).sum(axis=1) > 1e-6
        order = np.argsort(moves, kind="stable")
        return cls(rotation=rotation[order], translation=translation[order])


class XrayDensity:
    """Electron density of K members of N atoms on a box, summed or each alone.

    ``rho(xi) = sum_k sum_i occ_i sum_j a_ij (4 pi / w_ij)^(3/2) exp(-4 pi^2 |R_k y_i + t_k - xi|^2 / w_ij)``
    with ``w_ij = b_ij + B_i`` (the papers' Eq. 3), over the symmetry copies k. Form factors a, b are those
    of the International Tables, or with ``d_min`` those of ``truncated_form_factors``.

    Attributes:
        grid: the box.
        b_min: Å^2, the least B factor that the form factors allow.
    """

    _table: FormFactorTable = staticmethod(xray_form_factors)

    def __init__(
        self,
        grid: Grid,
        elements: Sequence[str],
        *,
        occupancy: Float[Tensor, " n"] | None = None,
        d_min: float | None = None,
        b_min: float = 10.0,
        terms: int = 3,
        extra: FormFactors | None = None,
        images: SymmetryImages | None = None,
        cutoff: float = CUTOFF,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the tables.

        Args:
            grid: the box.
            elements: element symbols, length N.
            occupancy: of each atom within its member; 1 if left out.
            d_min: Å, resolution at which the density is truncated; not truncated if left out.
            b_min: Å^2, the least B factor to be used with ``d_min``; without, any positive one will do.
            terms: Gaussians per atom with ``d_min``; 5 without.
            extra: further Gaussians of each atom, added as they are: the solvent that it displaces, say.
            images: symmetry copies that reach the box; the atoms themselves only, if left out.
            cutoff: see ``gaussian_density``.
            dtype: precision of the tables; coordinates must have the same.
            device: where the tables are; coordinates must be there too.

        Raises:
            InputError: an element has no tabulated form factor.
        """
        factors = (
            self._table(elements)
            if d_min is None
            else truncated_form_factors(elements, d_min, b_min=b_min, terms=terms, table=self._table)
        )
        if extra is not None:
            factors = FormFactors(a=np.hstack([factors.a, extra.a]), b=np.hstack([factors.b, extra.b]))
        self.grid = grid
        self.b_min = 0.0 if d_min is None else b_min
        self._a = torch.as_tensor(factors.a, dtype=dtype, device=device)
        if occupancy is not None:
            self._a = self._a * occupancy.to(self._a)[:, None]
        self._b = torch.as_tensor(factors.b, dtype=dtype, device=device)
        self._cutoff = cutoff
        self._apart: Tensor | None = None
        self._rotation = self._translation = None
        if images is not None:
            self._rotation = torch.as_tensor(images.rotation, dtype=dtype, device=device)
            self._translation = torch.as_tensor(images.translation, dtype=dtype, device=device)

    def of_atoms(self, atoms: Int[np.ndarray, " n"]) -> XrayDensity:
        """The density of some of the atoms alone, in the order of the indices given."""
        some = copy(self)
        some._a, some._b = self._a[atoms], self._b[atoms]
        return some

    def counting(self, mask: Float[Tensor, "nx ny nz"]) -> XrayDensity:
        """The same where some voxels count and others do not, where the density may then be anything.

        Symmetry copies of which no atom reaches a voxel that counts, by ten times the cutoff, are left out.
        """
        far = distance_transform_edt(mask.detach().cpu().numpy() == 0, sampling=self.grid.spacing)
        some = copy(self)
        some._apart = torch.as_tensor(far).to(self._a)
        return some

    def __call__(
        self,
        coords: Float[Tensor, "k n 3"],
        weights: Float[Tensor, " k"] | Float[Tensor, "k n"],
        b_iso: Float[Tensor, "k n"] | Float[Tensor, " n"] | Float[Tensor, ""],
        *,
        blur: float = 0.0,
    ) -> Float[Tensor, "nx ny nz"]:
        """Density of the ensemble, ``sum_k weights_k rho_k``; differentiable in all three tensors.

        Args:
            coords: Å, shape=(k, n, 3).
            weights: occupancies of the members, shape=(k,), or of their atoms, shape=(k, n).
            b_iso: B factors in Å^2: per member and atom, per atom, or one.
            blur: Å, standard deviation of a Gaussian that the density is convolved with.

        Returns:
            e/Å^3, shape=(nx, ny, nz).

        Raises:
            ValueError: a B factor is too small for the form factors.
        """
        x, amplitude, alpha = self._gaussians(coords, b_iso, blur)
        each = weights[:, None] if weights.dim() == 1 else weights.repeat(1, x.shape[1] // coords.shape[1])
        amplitude = amplitude * each[..., None]
        return gaussian_density(
            self.grid, x.flatten(0, 1), amplitude.flatten(0, 1), alpha.flatten(0, 1), cutoff=self._cutoff
        )

    def __len__(self) -> int:
        """How many symmetry copies, the atoms themselves among them, are in the density."""
        return 1 if self._rotation is None else len(self._rotation)

    def members(
        self,
        coords: Float[Tensor, "k n 3"],
        b_iso: Float[Tensor, "k n"] | Float[Tensor, " n"] | Float[Tensor, ""],
        *,
        blur: float = 0.0,
    ) -> Float[Tensor, "k nx ny nz"]:
        """Density of each member alone at full occupancy; see ``__call__``."""
        return gaussian_density(self.grid, *self._gaussians(coords, b_iso, blur), cutoff=self._cutoff)

    def _seen(self, copies: Float[Tensor, "k s n 3"], reach: Float[Tensor, "k n"]) -> Tensor:
        """Which of the copies reach a voxel that counts, by the distances of these from the nearest voxel."""
        assert self._apart is not None
        origin, spacing = copies.new_tensor(self.grid.origin), copies.new_tensor(self.grid.spacing)
        voxel = ((copies - origin) / spacing).round()
        inside = torch.minimum(voxel.clamp_min(0), copies.new_tensor(self.grid.shape) - 1)
        outside = ((voxel - inside) * spacing).norm(dim=-1)
        x, y, z = inside.long().unbind(-1)
        # a voxel's own distance is that of a point half its diagonal away, or less
        apart = torch.maximum(self._apart[x, y, z], outside) - float(spacing.norm()) / 2
        return (apart < reach[:, None]).any(dim=2).any(dim=0)

    def _gaussians(self, coords: Tensor, b_iso: Tensor, blur: float) -> tuple[Tensor, Tensor, Tensor]:
        """Centres (k, s * n, 3), heights and exponents (k, s * n, j) of all copies of all atoms."""
        k, n = coords.shape[:2]
        if bool((b_iso < self.b_min * (1 - 1e-6)).any()) or bool((b_iso <= 0).any()):
            raise ValueError(
                f"B factors down to {float(b_iso.min()):.2f} Å^2, where the form factors in use need "
                f"{f'{self.b_min:g} or more' if self.b_min else 'more than 0'}"
            )
        width = self._b + b_iso.expand(k, n)[..., None] + 8 * math.pi**2 * blur**2
        amplitude = self._a * (4 * math.pi / width) ** 1.5
        alpha = 4 * math.pi**2 / width
        if self._rotation is None or self._translation is None:
            return coords, amplitude, alpha
        copies = torch.einsum("sij,knj->ksni", self._rotation, coords) + self._translation[:, None]
        if self._apart is not None:
            copies = copies[:, self._seen(copies.detach(), reach_of(amplitude, alpha, 10 * self._cutoff))]
        s = copies.shape[1]
        return copies.flatten(1, 2), amplitude.repeat(1, s, 1), alpha.repeat(1, s, 1)
