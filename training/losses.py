"""What both networks are trained on: denoising error of every stage, and local distances at low noise."""

from __future__ import annotations

import torch
from torch import Tensor


def total_loss(terms: dict[str, Tensor], geometry: float) -> Tensor:
    """Weighted sum: the last stage in full, earlier ones a quarter."""
    stages = [terms[k].mean() for k in sorted(terms) if k.startswith("stage")]
    return stages[-1] + 0.25 * sum(stages[:-1]) + geometry * terms["geometry"].mean()


def link_distances(chain: Tensor) -> Tensor:
    """Distances between all atoms of a residue and the next, shape=(..., m, 4, 3) to (..., m - 1, 28)."""
    both = torch.cat([chain[..., :-1, :, :], chain[..., 1:, :, :]], dim=-2)
    i, j = torch.triu_indices(8, 8, offset=1)
    return torch.sqrt(((both[..., i, :] - both[..., j, :]) ** 2).sum(-1) + 1e-6)


def geometry_error(found: Tensor, truth: Tensor, there: Tensor, sigma: Tensor) -> Tensor:
    """Error of local distances in units of the noise, for every noisy copy.

    Local distances of the posterior mean are only those of a chain when little noise is left: their
    weight falls as 1 / (1 + (sigma / 0.5 Å)^2)^2.

    Args:
        found: from ``link_distances``, shape=(..., l, 28).
        truth: the same of the truth.
        there: which count, broadcast over them.
        sigma: Å, shape=(...).
    """
    scale = sigma[..., None, None]
    error = torch.nn.functional.smooth_l1_loss(
        found / scale, truth.expand_as(found) / scale, reduction="none"
    )
    return (error * there).mean((-2, -1)) / (1 + (sigma / 0.5) ** 2) ** 2
