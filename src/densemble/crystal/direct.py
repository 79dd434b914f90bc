"""Structure factors of a few atoms by direct summation: of each conformation of a region alone."""

from __future__ import annotations

import math

import gemmi
import numpy as np
import torch
from jaxtyping import Complex, Float, Int

from densemble.forward.scattering import FormFactors

_CHUNK = 4096  # reflections at a time, so that memory is bounded


class DirectFactors:
    """``F(h) = sum_ops sum_i f_i(s) exp(-B_i s^2 / 4) exp(2 pi i h.(R x_i + t))``, in electrons.

    For the hundred atoms of a region this costs as much as the transform of a whole cell, and nothing is
    lost to a grid. Form factors are sums of Gaussians, so that what an atom displaces of the solvent can be
    among them. Single precision: relative to the sum of f, errors are about 1e-5.
    """

    def __init__(
        self,
        factors: FormFactors,
        hkl: Int[np.ndarray, "m 3"],
        cell: gemmi.UnitCell,
        spacegroup: gemmi.SpaceGroup,
    ) -> None:
        """Prepare indices and form factors.

        Args:
            factors: of the N atoms.
            hkl: the reflections, none of them absent by symmetry, shape=(m, 3).
            cell: unit cell.
            spacegroup: all its operators, the centring translations included, make copies of the atoms.
        """
        rows, self._kind = np.unique(np.hstack([factors.a, factors.b]), axis=0, return_inverse=True)
        split = factors.a.shape[1]
        self._factors = FormFactors(rows[:, :split], rows[:, split:])
        ops = spacegroup.operations()
        self._centring = len(list(ops.cen_ops))
        turns = [(np.array(op.rot) // op.DEN, np.array(op.tran) / op.DEN) for op in ops.sym_ops]
        self._hkl = [torch.as_tensor(hkl @ turn, dtype=torch.float32) for turn, _ in turns]
        self._shift = [torch.as_tensor(hkl @ shift % 1.0, dtype=torch.float32) for _, shift in turns]
        self._s2 = cell.calculate_1_d2_array(np.asarray(hkl, dtype=np.int32))
        self._frac = np.array(cell.frac.mat.tolist())

    def __call__(
        self, atoms: Int[np.ndarray, " n"], coords: Float[np.ndarray, "n 3"], b_iso: Float[np.ndarray, " n"]
    ) -> Complex[np.ndarray, " m"]:
        """Structure factors of some of the atoms at full occupancy.

        Args:
            atoms: which of the N, shape=(n,).
            coords: Å, shape=(n, 3).
            b_iso: Å^2, shape=(n,).
        """
        x = torch.as_tensor(coords @ self._frac.T, dtype=torch.float32)
        found = np.empty(len(self._s2), dtype=np.complex128)
        for first in range(0, len(found), _CHUNK):
            here = slice(first, first + _CHUNK)
            s2 = self._s2[here]
            height = self._factors(np.sqrt(s2))[self._kind[atoms]] * np.exp(-b_iso[:, None] * s2 / 4)
            f = torch.as_tensor(height.T, dtype=torch.float32)
            real, imaginary = torch.zeros(len(s2)), torch.zeros(len(s2))
            for h, shift in zip(self._hkl, self._shift, strict=True):
                phase = (2 * math.pi) * torch.remainder(h[here] @ x.T + shift[here, None], 1.0)
                real += (f * phase.cos()).sum(1)
                imaginary += (f * phase.sin()).sum(1)
            found[here] = real.double().numpy() + 1j * imaginary.double().numpy()
        return self._centring * found
