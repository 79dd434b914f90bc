"""From the backbone of a whole model to all its atoms: everything else goes along with what is near it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.atoms import Topology
from densemble.priors.rigid import nearest_rotation

COMPANIONS = 8
"""Residues whose common motion carries a ligand, an ion, a water or a nucleotide."""


class CarriedAtoms:
    """A completion without a state of its own: atoms keep their place relative to the backbone.

    The other atoms of a residue whose backbone is modelled are fixed in the frame of its N, CA and C, so that
    its chi angles stay as they are. A residue of any other kind moves as a rigid body with the backbone of
    the ``COMPANIONS`` nearest modelled residues, by least squares.

    Args:
        topology: all atoms of the model.
        coords: Å, shape=(n, 3): the reference, from which the relative places come.
        backbone: indices of N, CA, C and O of the R residues modelled, shape=(R, 4).
        atoms: indices of the prior's atoms, in its order, shape=(m,).
        dtype: of the coordinates that will come.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        backbone: Int[np.ndarray, "r 4"],
        atoms: Int[np.ndarray, " m"],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        place = np.full(len(topology), -1)
        place[atoms] = np.arange(len(atoms))
        self._rows = torch.from_numpy(place[backbone])
        reference = torch.as_tensor(coords, dtype=dtype)
        frames = reference[torch.from_numpy(backbone)]
        rank = {r: i for i, r in enumerate(topology.residue_index[backbone[:, 1]].tolist())}
        owner = np.array([rank.get(r, -1) for r in topology.residue_index.tolist()])
        rest = place < 0
        self._own = torch.from_numpy(np.flatnonzero(rest & (owner >= 0)))
        self._owner = torch.from_numpy(owner)[self._own]
        axes = _axes(frames)[self._owner]
        self._local = (axes.mT @ (reference[self._own] - frames[self._owner, 1])[..., None])[..., 0]
        self._others = torch.from_numpy(np.flatnonzero(rest & (owner < 0)))
        self._carriers, group = _companions(topology, coords, backbone[:, 1], self._others.numpy())
        self._group = torch.from_numpy(group)
        self._reference = frames
        self._apart = reference[self._others]
        order = np.concatenate([atoms, self._own.numpy(), self._others.numpy()])
        self._order = torch.from_numpy(np.argsort(order))

    def update(self, x0_hat: Float[Tensor, "k m 3"], sigma: float) -> None:
        """Nothing to bring up to date."""

    def finish(self, x0: Float[Tensor, "k m 3"]) -> None:
        """Nothing to bring up to date."""

    def __call__(self, x0_hat: Float[Tensor, "k m 3"]) -> Float[Tensor, "k n 3"]:
        """All atoms in the model's order, differentiable in ``x0_hat``."""
        frames = x0_hat[:, self._rows]
        own = frames[:, self._owner, 1] + (_axes(frames)[:, self._owner] @ self._local[..., None])[..., 0]
        return torch.cat([x0_hat, own, self._carried(frames)], dim=1)[:, self._order]

    def _carried(self, frames: Tensor) -> Tensor:
        """Atoms of residues that are not modelled."""
        if not len(self._others):
            return frames.new_zeros(len(frames), 0, 3)
        here, there = frames[:, self._carriers].flatten(2, 3), self._reference[self._carriers].flatten(1, 2)
        centre, origin = here.mean(2), there.mean(1)
        turn = nearest_rotation((here - centre[:, :, None]).mT @ (there - origin[:, None]))
        away = (self._apart - origin[self._group])[..., None]
        return centre[:, self._group] + (turn[:, self._group] @ away)[..., 0]

    def adopt(self, atoms: Float[Tensor, "k n 3"]) -> None:
        """Nothing to take over."""

    def state_dict(self) -> dict[str, Tensor]:
        """No state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """No state."""


def _axes(backbone: Float[Tensor, "*k r 4 3"]) -> Float[Tensor, "*k r 3 3"]:
    """Orthonormal axes of each residue as columns: toward C, toward N in its plane, and their normal."""
    n, ca, c = backbone[..., 0, :], backbone[..., 1, :], backbone[..., 2, :]
    first = torch.nn.functional.normalize(c - ca, dim=-1)
    second = n - ca
    second = torch.nn.functional.normalize(second - (second * first).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def _companions(
    topology: Topology, coords: np.ndarray, alphas: np.ndarray, atoms: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """For each residue of ``atoms`` the nearest of the CA given, shape=(g, c); and each atom's residue."""
    residues, group = np.unique(topology.residue_index[atoms], return_inverse=True)
    if not len(residues):
        return torch.zeros(0, 1, dtype=torch.int64), group
    centres = np.stack([coords[atoms[group == g]].mean(axis=0) for g in range(len(residues))])
    count = min(COMPANIONS, len(alphas))
    near = cKDTree(coords[alphas]).query(centres, k=count)[1].reshape(len(residues), count)
    return torch.from_numpy(near), group
