"""Rigid residues moved together: from small displacements to large motions that keep bonds whole.

A linear mode moves every atom along a straight line, so a domain that turns by some tens of degrees also
swells. Here the same mode turns each residue by a rotation, and places are found that fit together: modal
warping (Choi & Ko 2005, IEEE Trans. Vis. Comput. Graph. 11, 91-101), with the places from a sparse
least-squares problem as in surface modelling as rigid as possible (Sorkine & Alexa 2007, Proc. SGP, 109-116).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from densemble.priors.elastic_network import ElasticNetwork
from densemble.priors.rigid import nearest_rotation

_JOINT = 1000.0  # weight of a joint over that of an atom's place
_KEEP = 0.01  # weight of the rotation given, over that of the atoms, when rotations are fitted


class ArticulatedBlocks:
    """The residues of a structure as rigid blocks, jointed where they are bonded.

    Args:
        network: blocks and springs.
        vectors: displacements of all atoms, rigid in every block, shape=(m, N, 3); for instance modes.
    """

    def __init__(self, network: ElasticNetwork, vectors: Float[np.ndarray, "m n 3"]) -> None:
        self.block = torch.from_numpy(network.block)
        self.sizes = torch.from_numpy(network.sizes).double()
        self.centres = torch.from_numpy(network.centres)
        self.arms = torch.from_numpy(network.coords) - self.centres[self.block]
        self._edges, weights, middle, joint = _edges(network)
        first, second = self._edges
        self._weights = torch.from_numpy(weights)
        self._first_arm = torch.from_numpy(middle) - self.centres[first]
        self._second_arm = torch.from_numpy(middle) - self.centres[second]
        self._joint = torch.from_numpy(joint)
        self._shifts, self._turns = _parts(network, vectors)
        self._strain = self._shifts[:, second] - self._shifts[:, first]
        self._strain -= torch.linalg.cross(self._turns[:, first], self._first_arm.expand_as(self._strain))
        self._strain += torch.linalg.cross(self._turns[:, second], self._second_arm.expand_as(self._strain))
        pairs, count = self._edges.numpy(), len(network.sizes)
        held = np.where(np.arange(count) == 0, weights.mean(), 0.0)  # one block, to fix what is free
        self._places = _factor(pairs, weights, held)
        self._joints = _factor(pairs[:, joint], np.full(joint.sum(), _JOINT), network.sizes.astype(float))

    def move(self, q: Float[Tensor, "k m"]) -> tuple[Float[Tensor, "k n 3"], Float[Tensor, "k r 3 3"]]:
        """Atoms and rotations of the blocks for given amplitudes; ``coords + q vectors`` to first order.

        Rigid motions of the whole are exact whatever their size.
        """
        rotations = _rotation(torch.einsum("km,mrc->krc", q, self._turns.to(q)))
        strain = torch.einsum("km,mec->kec", q, self._strain.to(q))
        first, second = self._edges
        turned = (rotations[:, first] + rotations[:, second]) / 2
        target = self._spans(rotations) + (turned @ strain[..., None])[..., 0]
        places = self._solve(self._places, target, self._weights, torch.zeros_like(rotations[..., 0]))
        # The first block was held at the origin: put the centre of the whole where the displacements do.
        share = (self.sizes / self.sizes.sum()).to(q)
        middle = self.centres.to(q) + torch.einsum("km,mrc->krc", q, self._shifts.to(q))
        places = places + (share[:, None] * (middle - places)).sum(1, keepdim=True)
        return self.atoms(places, rotations), rotations

    def restore(
        self, x: Float[Tensor, "k n 3"], rotations: Float[Tensor, "k r 3 3"]
    ) -> Float[Tensor, "k n 3"]:
        """The nearest structure of rigid blocks with closed joints (rotations first, then places).

        Args:
            x: Å, shape=(k, n, 3).
            rotations: for blocks whose atoms do not determine one, shape=(k, r, 3, 3).
        """
        arms, sizes = self.arms.to(x), self.sizes.to(x)
        places = self._sum(x) / sizes[:, None]
        spread = ((x - places[:, self.block])[..., :, None] * arms[..., None, :]).flatten(2)
        fit = self._sum(spread).unflatten(-1, (3, 3))
        keep = _KEEP * self._sum(arms.square().sum(-1)[None, :, None]) + 1e-3
        rotations = nearest_rotation(fit + keep[..., None] * rotations)
        joint = self._joint
        target, edges = self._spans(rotations)[:, joint], self._edges[:, joint]
        weights = torch.full((edges.shape[1],), _JOINT)
        places = self._solve(self._joints, target, weights, sizes[:, None] * places, edges)
        return self.atoms(places, rotations)

    def atoms(
        self, places: Float[Tensor, "k r 3"], rotations: Float[Tensor, "k r 3 3"]
    ) -> Float[Tensor, "k n 3"]:
        """Atoms of blocks with their centres at ``places``."""
        turned = (rotations[:, self.block] @ self.arms.to(places)[..., None])[..., 0]
        return places[:, self.block] + turned

    def _spans(self, rotations: Tensor) -> Tensor:
        """From the first block's centre to the second's, through the middle of the edge that both carry."""
        first, second = self._edges
        there = rotations[:, first] @ self._first_arm.to(rotations)[..., None]
        back = rotations[:, second] @ self._second_arm.to(rotations)[..., None]
        return (there - back)[..., 0]

    def _solve(
        self, factor: SuperLU, spans: Tensor, weights: Tensor, pull: Tensor, edges: Tensor | None = None
    ) -> Tensor:
        """Places whose differences along edges are least away from ``spans``."""
        first, second = self._edges if edges is None else edges
        weighted = weights.to(spans)[:, None] * spans
        load = pull.index_add(1, second, weighted).index_add(1, first, -weighted)
        solved = _Solve.apply(load.transpose(0, 1).flatten(1), factor)
        return solved.unflatten(1, (-1, 3)).transpose(0, 1)

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over the atoms of each block, shape=(k, r, ...)."""
        shape = (values.shape[0], len(self.sizes), *values.shape[2:])
        return values.new_zeros(shape).index_add(1, self.block.to(values.device), values)


class _Solve(torch.autograd.Function):
    """Solution of a sparse symmetric system, on the processor and in double precision."""

    @staticmethod
    def forward(ctx: Any, load: Tensor, factor: SuperLU) -> Tensor:  # noqa: ANN401
        ctx.factor = factor
        return torch.from_numpy(factor.solve(load.detach().double().cpu().numpy())).to(load)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Solve.apply(grad, ctx.factor), None


def _edges(network: ElasticNetwork) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of blocks with springs between them: their weights, middles (Å), and which are joints."""
    springs = network.springs
    ends = np.sort(network.block[springs.pairs], axis=1)
    pairs, which = np.unique(ends, axis=0, return_inverse=True)
    which = which.ravel()
    weights = np.bincount(which, springs.constants)
    bonds = np.bincount(which, springs.bonded)
    halfway = network.coords[springs.pairs].mean(axis=1)
    middle = network.centres[pairs].mean(axis=1)
    for axis in range(3):
        sums = np.bincount(which, springs.bonded * halfway[:, axis])
        middle[:, axis] = np.where(bonds > 0, sums / np.maximum(bonds, 1), middle[:, axis])
    return torch.from_numpy(pairs.T.copy()), weights, middle, bonds > 0


def _parts(network: ElasticNetwork, vectors: np.ndarray) -> tuple[Tensor, Tensor]:
    """Displacement of each block's centre and its small rotation, shape=(m, r, 3) both."""
    count, block = len(network.sizes), torch.from_numpy(network.block)
    arms = torch.from_numpy(network.coords - network.centres[network.block])
    moved = torch.from_numpy(vectors)
    shape = (len(vectors), count, 3)
    shifts = torch.zeros(shape).double().index_add(1, block, moved) / torch.from_numpy(network.sizes)[:, None]
    torque = torch.zeros(shape).double().index_add(1, block, torch.linalg.cross(arms.expand_as(moved), moved))
    inertia = arms.square().sum(-1)[:, None, None] * torch.eye(3).double() - arms[:, :, None] * arms[:, None]
    inertia = torch.zeros(count, 3, 3).double().index_add(0, block, inertia)
    return shifts, (torch.linalg.pinv(inertia, rtol=1e-6, hermitian=True) @ torque[..., None])[..., 0]


def _factor(pairs: np.ndarray, weights: np.ndarray, diagonal: np.ndarray) -> SuperLU:
    """Of the graph's Laplacian and a diagonal."""
    count = len(diagonal)
    between = sparse.coo_matrix((weights, pairs), shape=(count, count)).tocsr()
    between = between + between.T
    degree = np.asarray(between.sum(axis=1)).ravel()
    matrix = sparse.diags(degree + diagonal) - between
    options = {"SymmetricMode": True}
    return splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)


def _rotation(turn: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Of rotation vectors in radians (Rodrigues), with derivatives also at zero."""
    angle = (turn.square().sum(-1, keepdim=True) + 1e-14).sqrt()[..., None]
    x, y, z = turn.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    half = torch.sin(angle / 2) / angle
    return torch.eye(3).to(turn) + torch.sin(angle) / angle * cross + 2 * half.square() * (cross @ cross)
