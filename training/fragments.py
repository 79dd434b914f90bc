"""Second conformations of a segment: fragments of other chains closed onto its anchors.

They are taken from proteins and not from the prior, so that the test of finding two states asks for
conformations that the prior did not propose itself. They are sound by the package's own figures.
"""

from __future__ import annotations

import numpy as np
import torch

from corpus import Corpus
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.validation import validate
from densemble.metrics.coordinates import rmsd
from hidden import Hidden

APART = (1.5, 4.0)
"""Å, backbone RMSD in place between the two states."""
FIT = 1.5
"""Å, largest RMSD of a fragment's neighbours from the anchors before it is closed."""
TRIED = 8
SOUND = 1.5
"""Largest RMSZ of bonds and of angles."""
_SHORTLIST = 2000


class Fragments:
    """All fragments of one length of some chains, by how their two neighbours lie to each other."""

    def __init__(self, corpus: Corpus, length: int, *, chains: int, seed: int) -> None:
        """Take ``chains`` chains at random."""
        rng = np.random.default_rng([seed, length])
        chosen = rng.permutation(len(corpus))[:chains]
        first = [np.arange(corpus.offset[c] + 1, corpus.offset[c + 1] - length) for c in chosen]
        self.corpus, self.length = corpus, length
        self.start = np.concatenate(first)
        self.owner = np.repeat(chosen, [len(f) for f in first])
        self._distances = _between(corpus.atoms[self.start - 1], corpus.atoms[self.start + length])

    def onto(self, hidden: Hidden, *, leave_out: int) -> np.ndarray:
        """Fragments moved onto the anchors, those that fit them best first.

        Args:
            hidden: the segment.
            leave_out: chain of which none is taken.

        Returns:
            Å, shape=(m, length, 4, 3); all fit within ``FIT``.
        """
        before, after = hidden.anchors
        wanted = _between(before[None].astype(np.float32), after[None].astype(np.float32))
        error = np.square(self._distances - wanted).sum(-1)
        error[self.owner == leave_out] = np.inf
        best = (
            np.argpartition(error, _SHORTLIST)[:_SHORTLIST]
            if len(error) > _SHORTLIST
            else np.arange(len(error))
        )
        best = best[np.isfinite(error[best])]
        ends = np.stack([self.start[best] - 1, self.start[best] + self.length], axis=1)
        own = self.corpus.atoms[ends][:, :, :3].reshape(len(best), 6, 3).astype(np.float64)
        goal = np.concatenate([before[:3], after[:3]])
        rotation, shift, fit = _superpositions(own, goal)
        order = np.argsort(fit, kind="stable")
        order = order[fit[order] < FIT]
        rows = self.start[best[order], None] + np.arange(self.length)
        moved = np.einsum("mlax,mxy->mlay", self.corpus.atoms[rows], rotation[order])
        return moved + shift[order, None, None]


def _between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Distances of N, CA, C of one residue to those of the other, Å, shape=(m, 9)."""
    pairs = [np.linalg.norm(before[:, i] - after[:, j], axis=-1) for i in range(3) for j in range(3)]
    return np.stack(pairs, axis=-1)


def _superpositions(x: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotations (x @ rotation + shift), shifts and RMSD of m point sets onto one (Kabsch 1976)."""
    centre = x.mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("mpx,py->mxy", x - centre, goal - goal.mean(0)))
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    shift = goal.mean(0) - (centre @ rotation)[:, 0]
    fit = x @ rotation + shift[:, None]
    return rotation, shift, np.sqrt(np.square(fit - goal).sum(-1).mean(1))


def second_state(hidden: Hidden, truth: np.ndarray, fragments: Fragments, *, chain: int) -> np.ndarray | None:
    """A sound conformation between the same anchors, ``APART`` from the true one.

    Args:
        hidden: the segment.
        truth: Å, shape=(length, 4, 3).
        fragments: of the same length.
        chain: the segment's own, which gives none.

    Returns:
        Å, shape=(length, 4, 3): the best fitting of the first ``TRIED`` fragments that, closed and
        regularised, have RMSZ within ``SOUND``, no Ramachandran outlier and no clash; None if there is none.
    """
    moved = fragments.onto(hidden, leave_out=chain).reshape(-1, 4 * hidden.length, 3)
    flat = truth.reshape(-1, 3).astype(np.float64)
    if len(moved):
        far = rmsd(moved, flat)
        moved = moved[(far > APART[0]) & (far < APART[1])][:TRIED]
    if not len(moved):
        return None
    objective = GeometryObjective(hidden.restraints)
    closed = regularise(torch.from_numpy(moved).float(), objective, evaluations=200).coords
    report = validate(hidden.restraints, closed)
    far = rmsd(closed.double().numpy(), flat)
    sound = (report.bond_rmsz < SOUND) & (report.angle_rmsz < SOUND) & (report.outliers == 0)
    good = (sound & (report.clashes == 0)).numpy() & (far > APART[0]) & (far < APART[1])
    return closed[int(np.flatnonzero(good)[0])].double().numpy().reshape(truth.shape) if good.any() else None
