"""Gaussian noise that is correlated between atoms: what some atoms' noise says of the others'.

Noise is ``e = L z`` with z standard normal, the same along x, y and z and independent between them, so its
covariance between atoms is ``S = L L^T``. Atoms fall into those held (h) and the others, free (f).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def covariance(factor: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """S = L L^T in double precision."""
    wide = factor.double()
    return wide @ wide.T


def regression(factor: Float[Tensor, "n m"], held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
    """The matrix K = S_fh S_hh^-1, with which E[e_f | e_h] = K e_h."""
    s = covariance(factor)
    return torch.linalg.solve(s[held][:, held], s[held][:, ~held]).T.to(factor)


def conditional(
    factor: Float[Tensor, "n m"], held: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "f h"], Float[Tensor, "f f"]]:
    """K (``regression``), and lower-triangular L' of what is left free when the noise of held atoms is known.

    ``L' L'^T = S_ff - S_fh S_hh^-1 S_hf``.
    """
    s = covariance(factor)
    known = torch.linalg.solve(s[held][:, held], s[held][:, ~held])
    left = torch.linalg.cholesky(s[~held][:, ~held] - s[~held][:, held] @ known)
    return known.T.to(factor), left.to(factor)
