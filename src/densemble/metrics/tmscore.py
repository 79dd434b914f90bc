"""TM-score of alpha carbons: with the residues' correspondence given, or found by TM-align.

Zhang, Y. & Skolnick, J. (2004). Proteins 57, 702-710:
``TM = max over superpositions of sum_i 1 / (1 + (d_i / d0)^2) / L``, ``d0 = 1.24 (L - 15)^(1/3) - 1.8`` Å,
at least 0.5 Å, with L the length that is normalised by and the sum over corresponding residues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tmtools
from jaxtyping import Bool, Float

_ROUNDS = 20


@dataclass(frozen=True)
class TmAlignment:
    """What TM-align found.

    Attributes:
        by_reference: TM-score normalised by the length of the reference; the one to quote.
        by_model: normalised by the length of the model.
        rmsd: Å, of the residues aligned.
        aligned: how many residues were aligned.
    """

    by_reference: float
    by_model: float
    rmsd: float
    aligned: int


def tm_align(
    x: Float[np.ndarray, "n 3"],
    sequence: str,
    reference: Float[np.ndarray, "m 3"],
    reference_sequence: str,
) -> TmAlignment:
    """TM-score after structural alignment, where the correspondence of residues is not known.

    TM-align (Zhang & Skolnick 2005, Nucleic Acids Res. 33, 2302-2309) by ``tmtools``. It may pair other
    residues than the sequence does: for a model of the same protein use ``tm_score``.

    Args:
        x: Å, alpha carbons of the model, all known.
        sequence: its letters, length n.
        reference: Å, alpha carbons of the reference, all known.
        reference_sequence: its letters, length m.

    Raises:
        ValueError: lengths disagree, fewer than three residues, or a coordinate is not finite.
    """
    for name, coords, letters in (("model", x, sequence), ("reference", reference, reference_sequence)):
        if len(coords) != len(letters) or len(coords) < 3 or not np.isfinite(coords).all():
            raise ValueError(
                f"tm_align: the {name} has {len(coords)} alpha carbons and {len(letters)} letters; at least "
                "three and as many of both are needed, all finite"
            )
    found = tmtools.tm_align(x.astype(float), reference.astype(float), sequence, reference_sequence)
    paired = sum(a != "-" and b != "-" for a, b in zip(found.seqxA, found.seqyA, strict=True))
    return TmAlignment(float(found.tm_norm_chain2), float(found.tm_norm_chain1), float(found.rmsd), paired)


def tm_score(
    x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], *, length: int | None = None
) -> float:
    """TM-score where residue i of the model is residue i of the reference.

    The maximum is sought as in the paper: superposed on fragments of the chain, from all of it down to
    four residues, then again and again on the residues that came near. The step from one fragment to
    the next is a quarter of its length, so that the value is a lower bound that can be missed by little.

    Args:
        x: Å, alpha carbons of the model; NaN where one is not known, which counts as far away.
        reference: Å, alpha carbons of the reference; NaN where one is not known.
        length: L; by default the residues that the reference has.

    Raises:
        ValueError: fewer than three residues are known in both.
    """
    in_reference = np.isfinite(reference).all(axis=1)
    known = in_reference & np.isfinite(x).all(axis=1)
    if known.sum() < 3:
        raise ValueError(f"tm_score: {known.sum()} residues known in both, at least three are needed")
    length = int(in_reference.sum()) if length is None else length
    x, reference = x[known] - x[known].mean(axis=0), reference[known] - reference[known].mean(axis=0)
    d0 = tm_distance(length)
    cutoff = np.clip(d0, 4.5, 8.0)
    chosen = _fragments(len(x))
    square = _square_distances(x, reference, chosen)
    best = _score(square, d0).max()
    for round_ in range(_ROUNDS):
        anew = _near(square, cutoff - 1 if round_ == 0 else cutoff + 1)
        moved = (anew != chosen).any(axis=1)
        if not moved.any():
            break
        chosen = np.unique(anew[moved], axis=0)
        square = _square_distances(x, reference, chosen)
        best = max(best, _score(square, d0).max())
    return float(best / length)


def tm_distance(length: int) -> float:
    """The distance d0 in Å at which a residue counts one half."""
    return max(0.5, 1.24 * float(np.cbrt(length - 15)) - 1.8)


def _score(square: Float[np.ndarray, "f n"], d0: float) -> Float[np.ndarray, " f"]:
    return (1 / (1 + square / d0**2)).sum(axis=1)


def _fragments(n: int) -> Bool[np.ndarray, "f n"]:
    """Stretches of n, n/2, n/4 ... residues, down to four."""
    sizes = [n]
    while sizes[-1] > 4:
        sizes.append(max(4, sizes[-1] // 2))
    spans = [
        (start, start + size)
        for size in sizes
        for start in sorted({*range(0, n - size + 1, max(1, size // 4)), n - size})
    ]
    first, last = np.array(spans).T
    place = np.arange(n)
    return (place >= first[:, None]) & (place < last[:, None])


def _near(square: Float[np.ndarray, "f n"], cutoff: float) -> Bool[np.ndarray, "f n"]:
    """Residues within the cutoff; it is widened to the third nearest where fewer are."""
    third = np.partition(square, 2, axis=1)[:, 2:3]
    return square <= np.maximum(cutoff**2, third)


def _square_distances(
    x: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "n 3"], chosen: Bool[np.ndarray, "f n"]
) -> Float[np.ndarray, "f n"]:
    """Of all residues, after superposition on those chosen (Kabsch 1976), for each choice."""
    weight = chosen / chosen.sum(axis=1, keepdims=True)
    centre, target = weight @ x, weight @ reference
    outer = (x[:, :, None] * reference[:, None, :]).reshape(len(x), 9)
    product = (weight @ outer).reshape(-1, 3, 3) - centre[:, :, None] * target[:, None, :]
    u, _, vt = np.linalg.svd(product)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt  # rows times it
    moved = (x - centre[:, None]) @ rotation + target[:, None]
    return ((moved - reference) ** 2).sum(axis=-1)
