"""TM-score of alpha carbons whose correspondence is given.

Zhang, Y. & Skolnick, J. (2004). Proteins 57, 702-710:
``TM = max over superpositions of sum_i 1 / (1 + (d_i / d0)^2) / L``, ``d0 = 1.24 (L - 15)^(1/3) - 1.8`` Å,
at least 0.5 Å, with L the length that is normalised by and the sum over corresponding residues.
"""

from __future__ import annotations

import numpy as np
import tmtools
from jaxtyping import Float

_SEARCHED = 500  # residues at most among which the superposition is sought: the time grows with their square
_ROUNDS = 100
_SETTLED = 1e-9  # change of the score by a round at which no more are made


def tm_score(
    x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], *, length: int | None = None
) -> float:
    """TM-score where residue i of the model is residue i of the reference.

    The superposition is sought by ``tmtools`` (TM-align's code, Zhang & Skolnick 2005, Nucleic Acids Res. 33,
    2302-2309) with the correspondence fixed. Of more than 500 residues it is given every second, third ...,
    so that at most 500 are left. From there the score of all residues is climbed to the maximum next to it,
    which can be above the value that TM-align reports (by up to 0.01 for chains of 40 residues that have
    little in common). Others may be higher: a lower bound.

    Give the whole reference, with what the model lacks as NaN in the model, or its length: a model of
    half the residues, compared with those only, would score 1.

    Args:
        x: Å, alpha carbons of the model; NaN where one is not known, which counts as far away.
        reference: Å, alpha carbons of the reference; NaN where one is not known.
        length: L, of the whole reference; by default the residues known in ``reference``.

    Raises:
        ValueError: fewer than three residues are known in both, or more than ``length``.
    """
    in_reference = np.isfinite(reference).all(axis=1)
    known = in_reference & np.isfinite(x).all(axis=1)
    length = int(in_reference.sum()) if length is None else length
    if not 3 <= known.sum() <= length:
        raise ValueError(
            f"tm_score: {known.sum()} residues known in both, at least three are needed, and at most the "
            f"length of {length}"
        )
    x, reference = (c[known].astype(float) - c[known].mean(axis=0) for c in (x, reference))
    some = slice(None, None, -(-len(x) // _SEARCHED))
    moved = _superposed(x, x[some], reference[some], length)
    return _climbed(moved, reference, tm_distance(length)) / length


def tm_distance(length: int) -> float:
    """The distance d0 in Å at which a residue counts one half."""
    return max(0.5, 1.24 * float(np.cbrt(length - 15)) - 1.8)


def _superposed(
    x: Float[np.ndarray, "n 3"],
    some: Float[np.ndarray, "m 3"],
    reference: Float[np.ndarray, "m 3"],
    length: int,
) -> Float[np.ndarray, "n 3"]:
    """All of x, moved as TM-align superposes some of it.

    The reference gets further residues that correspond to none, for the code takes d0 from its length.
    """
    whole = np.concatenate([reference, np.repeat(reference[-1:], length - len(reference), axis=0)])
    own, other = "A" * len(some), "A" * length
    found = tmtools.tm_align(some, whole, own, other, alignment=[own.ljust(length, "-"), other])
    return np.asarray(x @ found.u.T + found.t)


def _climbed(x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], d0: float) -> float:
    """The score's sum at the maximum above a superposition.

    ``1 / (1 + u)`` is convex in ``u = (d / d0)^2``: it is nowhere below its tangent, and least squares with
    the tangent's slopes as weights, ``1 / (1 + u)^2``, never lowers the sum.
    """
    score = 0.0
    for _ in range(_ROUNDS):
        each = 1 / (1 + ((x - reference) ** 2).sum(axis=1) / d0**2)
        before, score = score, float(each.sum())
        if score - before < _SETTLED * len(x):
            break
        weight = each**2 / (each**2).sum()
        x, target = x - weight @ x, reference - weight @ reference
        u, _, vt = np.linalg.svd(x.T @ (weight[:, None] * target))
        u[:, 2] *= np.sign(np.linalg.det(u @ vt))  # without reflection (Kabsch 1976)
        x = x @ (u @ vt) + weight @ reference
    return score
