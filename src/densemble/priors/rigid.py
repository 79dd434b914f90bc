"""The nearest rotation of a matrix, with a derivative that stays finite."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-6


class _NearestRotation(torch.autograd.Function):
    """Of F = U S V^T the rotation U diag(1, 1, d) V^T, d = det(U V^T).

    The derivative is that of the polar decomposition, ``dR = R Omega`` with the antisymmetric
    ``Omega_ij = (R^T dF - dF^T R)_ij / (s_i + s_j)`` in the basis of V (signed s_3). It needs no
    differences of singular values, so equal ones do no harm; where s_i + s_j vanishes the rotation is
    not determined, and the quotient is bounded.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:  # noqa: ANN401
        u, s, vt = torch.linalg.svd(matrix)
        sign = torch.det(u @ vt).sign()
        s = torch.cat([s[..., :2], s[..., 2:] * sign[..., None]], dim=-1)
        u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
        rotation = u @ vt
        ctx.save_for_backward(rotation, s, vt)
        return rotation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        rotation, s, vt = ctx.saved_tensors
        sums = s[..., :, None] + s[..., None, :]
        floor = _TINY * s[..., :1, None].clamp_min(_TINY)
        inner = vt @ (rotation.mT @ grad) @ vt.mT
        inner = (inner - inner.mT) / torch.maximum(sums, floor)
        return rotation @ (vt.mT @ inner @ vt)


def nearest_rotation(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """The proper rotation R that maximises trace(R^T F), differentiable in F.

    With F = sum_i (x_i - mean x)(r_i - mean r)^T it is the least-squares superposition of r onto x (Kabsch
    1976, Acta Cryst. A32, 922-923); with a further term kappa R_0 it is the mode of the posterior whose
    prior is the matrix von Mises-Fisher distribution about R_0 (Mardia & Jupp 2000, section 13.2).

    Args:
        matrix: F; not of rank below two, or the result is not determined.
    """
    return _NearestRotation.apply(matrix)
