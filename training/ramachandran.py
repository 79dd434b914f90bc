"""Estimate the backbone-torsion densities that ``densemble.geometry`` ships.

Reads the training corpus of backbones (``backbones.npz``: arrays ``offset``, ``seq``, ``chain``,
``validation`` and ``delta``, the latter N, CA, C, O in 0.01 Å as differences along each chain), bins
(phi, psi) per class of residue on a periodic 2-degree grid, smooths with a von Mises kernel and writes
the density on a 5-degree grid together with the contour levels:

    python training/ramachandran.py backbones.npz src/densemble/data/geometry/ramachandran.npz

Classes as in Lovell et al. (2003), Proteins 50, 437-450: general, glycine, proline, pre-proline.
Contours as there: "favoured" holds 98 % of the residues of the class, "allowed" 99.95 % for the general
class and 99.8 % for the others. The corpus says nothing of resolution or B factors, so chains are chosen
by themselves: a first estimate is made from all, and chains of which more than 1 % of the residues lie
outside its 98 % contours are left out of the second, which is shipped. Rare but true conformations go
with them; the contours are not MolProbity's.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import i0e

CLASSES = ("general", "glycine", "proline", "pre-proline")
FAVOURED = 0.98
ALLOWED = (0.9995, 0.998, 0.998, 0.998)
FINE, STEP = 2.0, 5.0
KAPPA = {"general": 100.0, "glycine": 60.0, "proline": 60.0, "pre-proline": 60.0}
FLOOR = 1e-3  # of the uniform density: what is never seen costs ln(1000) nats against uniform


def torsion(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Dihedral angles in radians (IUPAC sign), each argument of shape=(n, 3)."""
    u, v, w = b - a, c - b, d - c
    p, q = np.cross(u, v), np.cross(v, w)
    return np.arctan2(np.linalg.norm(v, axis=1) * (u * q).sum(1), (p * q).sum(1))


def torsions(corpus: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Chain, phi and psi (radians) by class, shape=(n, 3); validation chains left out."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    offset = corpus["offset"]
    for chain in np.flatnonzero(~corpus["validation"]):
        first, last = offset[chain], offset[chain + 1]
        xyz = corpus["delta"][4 * first : 4 * last].astype(np.int64).cumsum(0) * 0.01
        n, ca, c, _ = xyz.reshape(-1, 4, 3).transpose(1, 0, 2)
        phi = torsion(c[:-2], n[1:-1], ca[1:-1], c[1:-1])
        psi = torsion(n[1:-1], ca[1:-1], c[1:-1], n[2:])
        angles = np.stack([np.full(len(phi), chain), phi, psi], axis=1)
        seq = corpus["seq"][first:last]
        gly, pro, pre = seq[1:-1] == ord("G"), seq[1:-1] == ord("P"), seq[2:] == ord("P")
        for name, own in zip(CLASSES, (~gly & ~pro & ~pre, gly, pro, pre & ~gly & ~pro), strict=True):
            found[name].append(angles[own])
    return {name: np.concatenate(angles) for name, angles in found.items()}


def density(angles: np.ndarray, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel density per rad^2 at the centres of the fine bins and at the points of the shipped grid."""
    bins = round(360 / FINE)
    index = np.floor((np.degrees(angles) + 180) / FINE).astype(int) % bins
    counts = np.zeros((bins, bins))
    np.add.at(counts, (index[:, 0], index[:, 1]), 1.0)
    centres = np.radians(-180 + FINE * (np.arange(bins) + 0.5))

    def smooth(at: np.ndarray) -> np.ndarray:
        kernel = np.exp(kappa * (np.cos(at[:, None] - centres) - 1)) / (2 * np.pi * i0e(kappa))
        raw = kernel @ counts @ kernel.T / len(angles)
        uniform = 1 / (2 * np.pi) ** 2
        return np.asarray((raw + FLOOR * uniform) / (1 + FLOOR))

    return smooth(centres), smooth(np.radians(np.arange(-180.0, 180.0, STEP)))


def well_built(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The chains with at most 1 % of their residues outside the 98 % contours of a first estimate."""
    outside, total = (np.zeros(1 + int(max(a[:, 0].max() for a in found.values()))) for _ in range(2))
    for name, rows in found.items():
        chain = rows[:, 0].astype(int)
        own = density(rows[:, 1:], KAPPA[name])[0][bin_of(rows[:, 1:])]
        np.add.at(outside, chain, own < np.quantile(own, 1 - FAVOURED))
        np.add.at(total, chain, 1)
    good = outside <= 0.01 * total
    print(f"{int((good & (total > 0)).sum())} of {int((total > 0).sum())} chains")
    return {name: rows[good[rows[:, 0].astype(int)]] for name, rows in found.items()}


def main() -> None:
    """Read the corpus, write the table."""
    parser = argparse.ArgumentParser(description="Backbone-torsion densities from the corpus of backbones.")
    parser.add_argument("corpus")
    parser.add_argument("out")
    args = parser.parse_args()
    with np.load(args.corpus) as corpus:
        found = torsions({key: corpus[key] for key in ("offset", "seq", "validation", "delta")})
    found = well_built(found)
    tables, favoured, allowed = [], [], []
    for name, outer in zip(CLASSES, ALLOWED, strict=True):
        fine, table = density(found[name][:, 1:], KAPPA[name])
        own = np.log(fine[bin_of(found[name][:, 1:])])
        tables.append(np.log(table))
        favoured.append(np.quantile(own, 1 - FAVOURED))
        allowed.append(np.quantile(own, 1 - outer))
        print(name, len(own), "residues; ln p favoured", favoured[-1], "allowed", allowed[-1])
    np.savez_compressed(
        args.out,
        classes=np.array(CLASSES),
        log_density=np.array(tables, dtype=np.float32),
        favoured=np.array(favoured, dtype=np.float32),
        allowed=np.array(allowed, dtype=np.float32),
        residues=np.array([len(found[name]) for name in CLASSES]),
    )


def bin_of(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the fine bin of each (phi, psi)."""
    index = np.floor((np.degrees(angles) + 180) / FINE).astype(int) % round(360 / FINE)
    return index[:, 0], index[:, 1]


if __name__ == "__main__":
    main()
