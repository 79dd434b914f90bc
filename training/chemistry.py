"""Chemistry of sampled segments with their anchors and surroundings."""

from __future__ import annotations

import numpy as np
import torch

from densemble.geometry.ramachandran import CLASSES, torsion_table
from densemble.priors.segment_geometry import ALPHABET
from structure import dihedral

PEPTIDE = 1.33
TOLERANCE = 0.03
CLASH = 3.5


def ramachandran_classes(kind: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Class of each residue (index into ``CLASSES``) from its type and the next one's."""
    proline, glycine = ALPHABET.index("P"), ALPHABET.index("G")
    classes = np.full(kind.shape, CLASSES.index("general"))
    classes[following == proline] = CLASSES.index("pre-proline")
    classes[kind == glycine] = CLASSES.index("glycine")
    classes[kind == proline] = CLASSES.index("proline")
    return classes


def outliers(phi: np.ndarray, psi: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Ramachandran outliers: outside the outer contour of the packaged table."""
    table = torsion_table()
    flat = [torch.tensor(a.ravel()) for a in (phi, psi, classes)]
    density = table.log_density(flat[0].double(), flat[1].double(), flat[2]).numpy()
    return (density < np.asarray(table.allowed)[flat[2].numpy()]).reshape(phi.shape)


def chemistry(samples: np.ndarray, items: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Fractions and spreads over all members of all segments (between two anchors).

    Args:
        samples: canonical frame, Å, shape=(s, k, l, 4, 3).
        items: descriptions of the segments, as ``densemble.priors.segment_geometry.describe`` gives them.

    Returns:
        ``peptide_bonds_within`` 1.33 ± 0.03 Å, junctions included; ``n_ca_c_sd`` in degrees; fraction of
        ``ramachandran_outliers``; of ``trans`` peptides before residues that are not proline; of
        ``clashes``: residues with CA within 3.5 Å of a fixed residue's CA, neighbours in sequence aside.
    """
    k, length = samples.shape[1:3]
    ends = np.stack([item["anchors"] for item in items])[:, None].repeat(k, axis=1)
    chain = np.concatenate([ends[:, :, :1], samples, ends[:, :, 1:]], axis=2)
    n, ca, c = chain[..., 0, :], chain[..., 1, :], chain[..., 2, :]
    bond = np.linalg.norm(n[:, :, 1:] - c[:, :, :-1], axis=-1)
    a, b = samples[..., 0, :] - samples[..., 1, :], samples[..., 2, :] - samples[..., 1, :]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    omega = np.abs(np.degrees(dihedral(ca[:, :, :-1], c[:, :, :-1], n[:, :, 1:], ca[:, :, 1:])))
    phi = dihedral(c[:, :, :-2], n[:, :, 1:-1], ca[:, :, 1:-1], c[:, :, 1:-1])
    psi = dihedral(n[:, :, 1:-1], ca[:, :, 1:-1], c[:, :, 1:-1], n[:, :, 2:])
    kind = np.stack([item["kind"] for item in items])
    after = np.array([_type_at(item, length) for item in items])
    following = np.concatenate([kind[:, 1:], after[:, None]], axis=1)
    classes = np.broadcast_to(ramachandran_classes(kind, following)[:, None], phi.shape)
    other = np.concatenate([kind, after[:, None]], axis=1) != ALPHABET.index("P")
    close = [_clashes(x, item) for x, item in zip(samples, items, strict=True)]
    return {
        "peptide_bonds_within": float((np.abs(bond - PEPTIDE) < TOLERANCE).mean()),
        "n_ca_c_sd": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).std()),
        "ramachandran_outliers": float(outliers(phi, psi, classes).mean()),
        "trans": float((omega > 90).transpose(0, 2, 1)[other].mean()),
        "clashes": float(np.mean(close)),
    }


def _type_at(item: dict[str, np.ndarray], place: int) -> int:
    return int(item["context_type"][item["context_place"] == place][0])


def _clashes(samples: np.ndarray, item: dict[str, np.ndarray]) -> float:
    fixed = item["context"][item["context_mask"], 1]
    place = item["context_place"][item["context_mask"]]
    length = samples.shape[1]
    apart = np.abs(place[None] - np.arange(length)[:, None]) > 2
    distance = np.linalg.norm(samples[:, :, 1, None] - fixed, axis=-1)
    return float(((distance < CLASH) & apart).any(-1).mean())
