"""How stiff stereochemistry is in each direction, for optimisers to know.

A bond may change by a hundredth of an Ångström and a torsion angle by many degrees. An optimiser that is not
told so spends most of its steps on finding out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Curvature = Callable[[Tensor], Tensor]
"""Coordinates, shape=(k, n, 3), to minus the second derivatives of each member, shape=(k, 3 n, 3 n)."""
LEAST = 500.0
"""Å^-2, curvature that is added at least, so that what stereochemistry leaves free takes no leaps. Measured
on loops in density at 1.9 Å, whose own curvature is 12: from 200 to 1000 alike."""
_STEP = 0.02
"""Å, of a finite difference."""


class Blocks:
    """A sum of blocks of three by three, those of pairs of free atoms of K members."""

    def __init__(self, like: Float[Tensor, "k n 3"]) -> None:
        self._members, self._atoms = like.shape[:2]
        self._side = self._atoms + 1  # the last one stands for all atoms that are not free
        self._sum = like.new_zeros(self._members * self._side**2, 9)

    def add(self, member: Tensor, i: Tensor, j: Tensor, block: Tensor) -> None:
        """Blocks (..., 3, 3) at atoms i and j of members; indices are broadcast against each other."""
        i, j = i.clamp(max=self._atoms), j.clamp(max=self._atoms)
        place = (member * self._side + i) * self._side + j
        self._sum.index_add_(0, place.expand(block.shape[:-2]).reshape(-1), block.reshape(-1, 9))

    def add_terms(self, atoms: Int[Tensor, "t a"], block: Float[Tensor, "k t a a 3 3"]) -> None:
        """Blocks between all atoms of each term, of each member."""
        member = torch.arange(self._members, device=atoms.device)[:, None, None, None]
        self.add(member, atoms[:, :, None], atoms[:, None, :], block)

    def add_outer(self, atoms: Int[Tensor, "t a"], slope: Float[Tensor, "k t a 3"]) -> None:
        """J^T J of terms whose values have these derivatives."""
        self.add_terms(atoms, slope[:, :, :, None, :, None] * slope[:, :, None, :, None, :])

    def matrix(self) -> Float[Tensor, "k m m"]:
        """The sum, coordinates of an atom in a row, shape=(k, 3 n, 3 n)."""
        n = self._atoms
        blocks = self._sum.view(self._members, self._side, self._side, 3, 3)[:, :n, :n]
        return blocks.permute(0, 1, 3, 2, 4).reshape(self._members, 3 * n, 3 * n)


def mean_curvature(value: Callable[[Tensor], Tensor], coords: Float[Tensor, "k n 3"]) -> Float[Tensor, " k"]:
    """Minus the mean second derivative of a value by a coordinate of each member, about.

    ``v . H v / 3 n`` for one random v of ones and minus ones (Hutchinson 1990, Commun. Stat. Simul. Comput.
    19, 433-450), the same each time, from two gradients.

    Args:
        value: of the coordinates, to a scalar.
        coords: Å.
    """
    probe = torch.randint(0, 2, coords.shape, generator=torch.Generator().manual_seed(0)).to(coords) * 2 - 1

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            return torch.autograd.grad(value(at), at)[0]

    fall = slope(coords - _STEP * probe) - slope(coords + _STEP * probe)
    return (fall * probe).sum((1, 2)) / (2 * _STEP * coords[0].numel())


def evened(curvature: Float[Tensor, "k m m"], also: Float[Tensor, " k"]) -> Float[Tensor, "k m m"]:
    """R with ``R^T (curvature + also) R = 1``: in steps ``R z`` all directions are about as stiff.

    Args:
        curvature: Å^-2, of each member.
        also: Å^-2, that of what else pulls at its atoms; ``LEAST`` where it is less.
    """
    one = torch.eye(curvature.shape[1]).to(curvature)
    stiff = curvature + also.clamp_min(LEAST)[:, None, None] * one
    lower = torch.linalg.cholesky(stiff)
    return torch.linalg.solve_triangular(lower.mT, one.expand_as(curvature), upper=True)
