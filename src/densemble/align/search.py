"""The search for poses: all rotations of a grid with all translations, then ascent from the best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.align.overlap import Overlap
from densemble.align.points import Poses
from densemble.align.rotations import rotation_matrices

PEAKS = 4
"""Translations kept of each rotation."""
_BATCH, _VOXELS = 32, 6_000_000  # rotations, and voxels of all their maps, at once
_GROWTH, _SHRINK = 1.3, 0.4  # of the step, after a success and a failure
_CHUNK = 400_000  # points interpolated at once; bounds memory


def _near(radius: int) -> np.ndarray:
    """Index offsets within a ball."""
    axis = np.arange(-radius, radius + 1)
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return offsets[(offsets**2).sum(1) <= radius**2 + 1]


def _peaks(scores: Float[np.ndarray, "p nx ny nz"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and values of the highest points of each map, two voxels apart; overwrites the maps."""
    shape = scores.shape[1:]
    flat, rows, near = scores.reshape(len(scores), -1), np.arange(len(scores)), _near(2)
    voxels, values = [], []
    for _ in range(count):
        top = flat.argmax(axis=1)
        voxel = np.stack(np.unravel_index(top, shape), -1)
        voxels.append(voxel)
        values.append(flat[rows, top])
        around = np.moveaxis((voxel[:, None] + near) % shape, -1, 0)
        flat[rows[:, None], np.ravel_multi_index(tuple(around), shape)] = -np.inf
    return np.stack(voxels, 1), np.stack(values, 1)


def sweep(overlap: Overlap, rotations: Float[np.ndarray, "r 3 3"], *, done: Callable[[int], None]) -> Poses:
    """The best translations of every rotation, ``PEAKS`` of each, in no order.

    Args:
        overlap: map and model at a low resolution.
        rotations: to try.
        done: called with the number of rotations done.
    """
    voxels, values = [], []
    size = int(np.clip(_VOXELS // overlap.shape.prod(), 1, _BATCH))
    for start in range(0, len(rotations), size):
        batch = torch.from_numpy(rotations[start : start + size]).float()
        voxel, value = _peaks(overlap.correlate(batch), PEAKS)
        voxels.append(voxel)
        values.append(value)
        done(min(start + size, len(rotations)))
    positions = np.concatenate(voxels).reshape(-1, 3) * overlap.spacing + overlap.origin
    return Poses(np.repeat(rotations, PEAKS, axis=0), positions, np.concatenate(values).reshape(-1))


def moved_score(
    overlap: Overlap, rotations: Tensor, positions: Tensor, twist: Float[Tensor, "p 6"]
) -> Float[Tensor, " p"]:
    """Scores of poses turned about their centres and shifted; differentiable in the twist.

    Args:
        overlap: map and model.
        rotations: shape=(p, 3, 3).
        positions: Å, shape=(p, 3).
        twist: a rotation vector times the radius of gyration, and a shift, both in Å, so that a step of
            any direction moves the atoms about as far.
    """
    turned = rotation_matrices(twist[:, :3] / overlap.points.gyration) @ rotations
    return overlap.score(turned, positions + twist[:, 3:])


def ascend(overlap: Overlap, poses: Poses, *, step: float, tolerance: float, most: int = 100) -> Poses:
    """Climb from each pose to a local maximum of the score.

    Steps go up the gradient and have the length ``step`` at first; it grows while the score rises and
    shrinks when it does not, for each pose by itself (as in ChimeraX's ``fitmap``, Pintilie et al. 2010).

    Args:
        overlap: map and model.
        poses: where to begin.
        step: Å, of the first step and the longest one.
        tolerance: Å, of the last step.
        most: steps at most.
    """
    size = max(_CHUNK // len(overlap.points.weights), 1)
    parts = [
        _ascend(overlap, poses.select(np.arange(i, min(i + size, len(poses)))), step, tolerance, most)
        for i in range(0, len(poses), size)
    ]
    return Poses(*(np.concatenate([getattr(p, name) for p in parts]) for name in vars(poses)))


def _ascend(overlap: Overlap, poses: Poses, step: float, tolerance: float, most: int) -> Poses:
    rotations, positions = (torch.from_numpy(v).float() for v in (poses.rotations, poses.positions))
    zero = torch.zeros(len(poses), 6)

    def evaluate(rotations: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        twist = zero.clone().requires_grad_()
        score = moved_score(overlap, rotations, positions, twist)
        (gradient,) = torch.autograd.grad(score.sum(), twist)
        return score.detach(), gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-20)

    score, uphill = evaluate(rotations, positions)
    length = torch.full((len(poses), 1), step)
    for _ in range(most):
        twist = length * uphill
        turned = rotation_matrices(twist[:, :3] / overlap.points.gyration) @ rotations
        shifted = positions + twist[:, 3:]
        new, new_uphill = evaluate(turned, shifted)
        better = new > score
        rotations = torch.where(better[:, None, None], turned, rotations)
        positions = torch.where(better[:, None], shifted, positions)
        uphill = torch.where(better[:, None], new_uphill, uphill)
        score = torch.where(better, new, score)
        length = length * torch.where(better, _GROWTH, _SHRINK)[:, None]
        length = length.clamp(max=step)
        if bool((length < tolerance).all()):
            break
    left, _, right = torch.linalg.svd(rotations.double())  # rounding adds up over many products
    return Poses((left @ right).numpy(), positions.double().numpy(), score.double().numpy())
