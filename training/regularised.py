"""Chemistry of samples after the package's geometry objective, against that before."""

from __future__ import annotations

import numpy as np
import torch

from corpus import Corpus
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.validation import validate
from densemble.metrics.coordinates import rmsd
from hidden import Hidden

EVALUATIONS = 200
"""Of the objective; the package's own finish of a run with density takes 60."""


def regularised(
    corpus: Corpus, places: list[tuple[int, int]], samples: np.ndarray, *, evaluations: int | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Figures of each member before and after.

    Bonds, angles, planes, omega, contacts with the rest of the chain and Ramachandran torsions of the segment
    and its junctions are restrained, and nothing holds the members to their place.

    Args:
        corpus: where the segments are from.
        places: chain and first residue of each.
        samples: canonical frame, Å, shape=(s, k, l, 4, 3).
        evaluations: of the objective; ``EVALUATIONS`` if None.

    Returns:
        Under ``before`` and ``after``: ``rmsd`` to the truth, Å, ``bond_rmsz``, ``angle_rmsz``, ``outliers``
        (fraction of the residues judged), ``twisted`` (fraction of peptides), ``clashes`` (pairs a residue);
        under ``moved``: ``rms`` of the atoms' displacements, Å. Each of shape (s * k,).
    """
    rows: dict[str, list[dict[str, np.ndarray]]] = {"before": [], "after": [], "moved": []}
    length = samples.shape[2]
    for (chain, start), own in zip(places, samples, strict=True):
        hidden = Hidden.of(corpus, chain, start, length)
        axes, origin = hidden.frame
        x = torch.from_numpy((own @ axes.T + origin).reshape(len(own), -1, 3)).float()
        truth = corpus.chain(chain)[0][start : start + length].reshape(-1, 3)
        objective = GeometryObjective(hidden.restraints)
        better = regularise(x, objective, evaluations=evaluations or EVALUATIONS).coords
        rows["before"].append(_figures(hidden, x, truth))
        rows["after"].append(_figures(hidden, better, truth))
        rows["moved"].append({"rms": (better - x).square().sum(-1).mean(1).sqrt().numpy()})
    return {
        when: {name: np.concatenate([row[name] for row in found]) for name in found[0]}
        for when, found in rows.items()
    }


def _figures(hidden: Hidden, x: torch.Tensor, truth: np.ndarray) -> dict[str, np.ndarray]:
    restraints = hidden.restraints
    report = validate(restraints, x)
    return {
        "rmsd": rmsd(x.double().numpy(), truth.astype(np.float64)),
        "bond_rmsz": report.bond_rmsz.numpy(),
        "angle_rmsz": report.angle_rmsz.numpy(),
        "outliers": report.outliers.numpy() / len(restraints.phipsi),
        "twisted": report.twisted.numpy() / len(restraints.omegas),
        "clashes": report.clashes.numpy() / hidden.length,
    }


def chemistry_regularised(
    corpus: Corpus,
    sets: dict[str, tuple[list[tuple[int, int]], np.ndarray]],
    *,
    segments: int,
    members: int,
    bar: float = 1.5,
) -> dict:
    """Medians, 90th percentiles and means over members, of a part of each set of segments.

    Args:
        corpus: where the segments are from.
        sets: places and samples (as for ``regularised``) by name.
        segments: the first ones of each set are taken.
        members: the first ones of each segment are taken.
        bar: RMSZ below which a member's bonds and angles count as sound.

    Returns:
        Size of the part; by set and pooled over all: figures before and after, and ``within_bar``, the
        fraction of members whose bonds and angles are both within.
    """
    found = {
        name: regularised(corpus, places[:segments], samples[:segments, :members])
        for name, (places, samples) in sets.items()
    }
    pooled = {
        when: {
            figure: np.concatenate([rows[when][figure] for rows in found.values()])
            for figure in next(iter(found.values()))[when]
        }
        for when in ("before", "after", "moved")
    }
    return {
        "segments_per_set": segments,
        "members_per_segment": members,
        "members": len(pooled["moved"]["rms"]),
        "evaluations": EVALUATIONS,
        "rmsz_bar": bar,
        **_digest(pooled, bar),
        "by_set": {name: _digest(rows, bar) for name, rows in found.items()},
    }


def _digest(rows: dict[str, dict[str, np.ndarray]], bar: float) -> dict:
    result: dict = {}
    for when, figures in rows.items():
        result[when] = {}
        for name, values in figures.items():
            if name in ("rmsd", "bond_rmsz", "angle_rmsz", "rms"):
                median, high = np.quantile(values, [0.5, 0.9]).tolist()
                result[when] |= {f"{name}_median": median, f"{name}_p90": high}
            else:
                result[when][name] = float(values.mean())
        if "bond_rmsz" in figures:
            sound = (figures["bond_rmsz"] < bar) & (figures["angle_rmsz"] < bar)
            result[when]["within_bar"] = float(sound.mean())
    return result
