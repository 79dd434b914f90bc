"""Geometry that the segment network sees and corrects: residue frames, pair features, local distances."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_RBF = 8
PAIR_FEATURES = 12 + 6 + 9 + 4 * _RBF

# Local pairs of atoms (N 0, CA 1, C 2, O 3) and their usual distances in Å (Engh and Huber 1991, and
# means for those that depend on torsions): within a residue, and from a residue to the next.
_WITHIN = ((0, 1, 1.46), (1, 2, 1.53), (2, 3, 1.23), (0, 2, 2.46), (1, 3, 2.40), (0, 3, 3.2))
_ONWARD = (
    (2, 0, 1.33),
    (1, 0, 2.43),
    (3, 0, 2.25),
    (2, 1, 2.43),
    (1, 1, 3.80),
    (3, 1, 2.78),
    (0, 0, 3.2),
    (2, 2, 3.2),
)
LOCAL_DISTANCES = len(_WITHIN) + 2 * len(_ONWARD)


def residue_frames(atoms: Float[Tensor, "... 4 3"]) -> Float[Tensor, "... 3 3"]:
    """Axes (columns) of N, CA, C by Gram-Schmidt; smooth also where atoms coincide."""
    a = _unit(atoms[..., 2, :] - atoms[..., 1, :])
    b = atoms[..., 0, :] - atoms[..., 1, :]
    b = _unit(b - (a * b).sum(-1, keepdim=True) * a)
    return torch.stack([a, b, torch.linalg.cross(a, b)], dim=-1)


def with_beta(atoms: Float[Tensor, "... 4 3"]) -> Float[Tensor, "... 5 3"]:
    """Append a CB in tetrahedral place, from N, CA, C (ideal coordinates, linear in the bonds)."""
    b = atoms[..., 1, :] - atoms[..., 0, :]
    c = atoms[..., 2, :] - atoms[..., 1, :]
    a = torch.linalg.cross(b, c)
    beta = -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + atoms[..., 1, :]
    return torch.cat([atoms, beta[..., None, :]], dim=-2)


def _unit(v: Tensor) -> Tensor:
    return v * torch.rsqrt((v * v).sum(-1, keepdim=True) + 1e-4)


def _soft(v: Tensor) -> Tensor:
    """Vectors shrunk to the unit ball: direction and distance in three numbers."""
    return v / (5.0 + torch.sqrt((v * v).sum(-1, keepdim=True) + 1e-4))


def pair_features(
    query: Float[Tensor, "b c l 5 3"],
    query_frames: Float[Tensor, "b c l 3 3"],
    key: Float[Tensor, "b c k 5 3"],
    key_frames: Float[Tensor, "b c k 3 3"],
) -> Float[Tensor, "b c l k f"]:
    """Relative geometry of residues, invariant to rotation and translation, without units."""
    b, c, n = query.shape[:3]
    k = key.shape[2]
    axes = query_frames.transpose(-1, -2).reshape(b, c, 3 * n, 3)
    key_atoms = key.reshape(b, c, 5 * k, 3).transpose(-1, -2)
    own = torch.einsum("bclxy,bclax->bclay", query_frames, query)
    seen = (axes @ key_atoms).view(b, c, n, 3, k, 5).permute(0, 1, 2, 4, 5, 3) - own[:, :, :, None, 1:2]
    back_axes = key_frames.transpose(-1, -2).reshape(b, c, 3 * k, 3)
    picked = query[:, :, :, (1, 4)].reshape(b, c, 2 * n, 3).transpose(-1, -2)
    home = torch.einsum("bckxy,bckx->bcky", key_frames, key[:, :, :, 1])
    back = (back_axes @ picked).view(b, c, k, 3, n, 2).permute(0, 1, 4, 2, 5, 3) - home[:, :, None, :, None]
    turn = (axes @ back_axes.transpose(-1, -2)).view(b, c, n, 3, k, 3).permute(0, 1, 2, 4, 3, 5)
    own = own - own[:, :, :, 1:2]
    gaps = torch.stack(
        [
            seen[..., 1, :],
            seen[..., 4, :] - own[:, :, :, None, 4],
            seen[..., 3, :] - own[:, :, :, None, 0],
            seen[..., 0, :] - own[:, :, :, None, 3],
        ],
        dim=-2,
    )
    scale = torch.log1p(torch.sqrt((gaps * gaps).sum(-1) + 1e-4))
    centres = torch.linspace(1.1, 3.1, _RBF, dtype=query.dtype, device=query.device) / 0.29
    away = (scale / 0.29)[..., None] - centres
    bumps = torch.exp(away * -away)
    vectors = _soft(torch.cat([seen[..., (0, 1, 3, 4), :], back], dim=-2))
    return torch.cat([vectors.flatten(-2), turn.flatten(-2), bumps.flatten(-2)], dim=-1)


def local_distances(
    chain: Float[Tensor, "b c m 4 3"], there: Float[Tensor, "#b #c l"], sigma: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Deviations of local distances from their usual values in units of the noise, and directions.

    Args:
        chain: residues in order, one more (an anchor, or anything) before the first and after the last.
        there: 1 where a residue is bonded to the next, 0 where not, l = m - 1.
        sigma: noise in Å, broadcast over shape (b, c, residues, distances).

    Returns:
        Features of shape (b, c, m - 2, LOCAL_DISTANCES); unit vectors within residues,
        shape=(b, c, m - 2, 6, 3), and onwards from before the first to after the last, shape=(b, c, l, 8, 3).
    """
    x = chain[:, :, 1:-1]
    first, second, usual = (list(v) for v in zip(*_WITHIN, strict=True))
    inner = x[:, :, :, second] - x[:, :, :, first]
    first_on, second_on, usual_on = (list(v) for v in zip(*_ONWARD, strict=True))
    onward = chain[:, :, 1:, second_on] - chain[:, :, :-1, first_on]
    onward = onward * there[..., None, None]
    tolerance = torch.sqrt(sigma * sigma + 0.01)

    def deviation(v: Tensor, usual: list[float]) -> Tensor:
        distance = torch.sqrt((v * v).sum(-1) + 1e-4)
        return torch.tanh((distance - torch.tensor(usual, dtype=v.dtype, device=v.device)) / (2 * tolerance))

    inside, along = deviation(inner, usual), deviation(onward, usual_on) * there[..., None]
    features = torch.cat([inside, along[:, :, 1:], along[:, :, :-1]], dim=-1)
    return features, (_unit(inner), _unit(onward))


def assemble(change: Tensor, frames: Tensor, directions: tuple[Tensor, Tensor]) -> Tensor:
    """Corrections in units of c_out: free, in the residue's frame, and along local directions."""
    with torch.autocast(change.device.type, enabled=False):
        free, turned, pulls = change.split((12, 12, LOCAL_DISTANCES), dim=-1)
        f = free.unflatten(-1, (4, 3)) + turned.unflatten(-1, (4, 3)) @ frames.transpose(-1, -2)
        return f + pull(pulls, directions)


def pull(pulls: Tensor, directions: tuple[Tensor, Tensor]) -> Tensor:
    """Corrections of N, CA, C, O along the directions of ``local_distances``, shape=(b, c, m - 2, 4, 3).

    Args:
        pulls: shape=(b, c, m - 2, LOCAL_DISTANCES).
        directions: unit vectors.
    """
    inner, onward = directions
    n = len(_ONWARD)
    own = pulls[..., : len(_WITHIN), None] * inner
    # A link between two residues is pulled by both its ends.
    ahead = functional.pad(pulls[..., -2 * n : -n], (0, 0, 1, 0))
    behind = functional.pad(pulls[..., -n:], (0, 0, 0, 1))
    link = (ahead + behind)[..., None] * onward
    forces = [torch.zeros_like(own[..., 0, :]) for _ in range(4)]
    for p, (i, j, _) in enumerate(_WITHIN):
        forces[i] = forces[i] - own[..., p, :]
        forces[j] = forces[j] + own[..., p, :]
    for p, (i, j, _) in enumerate(_ONWARD):
        forces[i] = forces[i] - link[:, :, 1:, p]
        forces[j] = forces[j] + link[:, :, :-1, p]
    return torch.stack(forces, dim=-2)
