"""Atoms in leaves of neighbours, all of one size, so that what is done to one can be done to many at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def kd_leaves(
    coords: Float[Tensor, "k m 3"], used: Bool[Tensor, "k m"], *, count: int, sizes: Sequence[int]
) -> Int[Tensor, "l p"]:
    """The leaves of k-d trees, one for each member: halves or thirds along the longest side, again and again.

    Args:
        coords: Å, shape=(k, m, 3).
        used: the atoms that are sorted, the others are left out, shape=(k, m).
        count: how many these are, in the member that has the most: a number that the host must know.
        sizes: atoms in a leaf; the one that leaves the fewest places to spare is taken.

    Returns:
        Indices into the k * m atoms of all members in a row; k * m in places to spare. No leaf has atoms
        of two members; one may have none where another member has more atoms.
    """
    members, atoms = used.shape
    if count == 0:
        return torch.zeros((0, 1), dtype=torch.long, device=coords.device)
    parts, size = min(
        ((_cuts(count, size), size) for size in sizes), key=lambda way: math.prod(way[0]) * way[1]
    )
    spare = math.prod(parts) * size - count
    first = torch.argsort(used.logical_not().to(torch.uint8), dim=1, stable=True)[:, :count]
    # a place to spare lies where an atom does, evenly among them, so that all leaves stay full
    beside = torch.arange(spare, device=coords.device) * count // max(spare, 1)
    index = torch.cat([first, first[:, beside]], 1)
    x = coords.detach().gather(1, index[..., None].expand(-1, -1, 3))
    own = torch.arange(members, device=coords.device)[:, None] * atoms + index
    real = used.gather(1, index)
    real[:, count:] = False
    own = own.where(real, members * atoms)
    for part in parts:
        axis = (x.amax(1) - x.amin(1)).argmax(1)
        along = x.gather(2, axis[:, None, None].expand(-1, x.shape[1], 1))[..., 0]
        order = torch.argsort(along, dim=1, stable=True)
        own = own.gather(1, order).view(part * len(own), -1)
        x = x.gather(1, order[..., None].expand(-1, -1, 3)).view(part * len(x), -1, 3)
    return own


def _cuts(count: int, size: int) -> list[int]:
    """Threes and twos whose product is the least that makes enough leaves of a size for so many atoms."""
    leaves = -(-count // size)
    ways = itertools.product(range(leaves.bit_length() + 1), repeat=2)
    found = [(3**threes * 2**twos, threes, twos) for threes, twos in ways if 3**threes * 2**twos >= leaves]
    _, threes, twos = min(found)
    return [3] * threes + [2] * twos
