"""Ideal backbones for the tests of the training commands."""

import numpy as np
import torch

from corpus import Corpus
from densemble.priors.segment_network import NetworkConfig, SegmentNetwork

SMALL = NetworkConfig(
    width=16, heads=2, hidden=24, context_layers=1, stages=(1, 1), pair=8, pair_value=4, condition=12
)


def small_network():
    """A network with random weights, whose output depends on everything it is given."""
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).eval().requires_grad_(False)
    for stage in network.stages:
        torch.nn.init.normal_(stage.head.weight, std=0.1)
    return network


def place(a, b, c, length, angle, torsion):
    """The atom at a bond length from c, with angle b-c-d and torsion a-b-c-d in degrees (NeRF)."""
    angle, torsion = np.deg2rad(angle), np.deg2rad(torsion)
    bc = (c - b) / np.linalg.norm(c - b)
    n = np.cross(b - a, bc)
    n /= np.linalg.norm(n)
    m = np.cross(n, bc)
    local = [-np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
    return c + length * (local[0] * bc + local[1] * m + local[2] * n)


def build(phi, psi):
    """Ideal backbone of the torsions given, trans peptides, shape=(n, 4, 3)."""
    nitrogen, alpha = np.zeros(3), np.array([1.458, 0.0, 0.0])
    carbon = np.array([1.458 - 1.525 * np.cos(np.deg2rad(111.0)), 1.525 * np.sin(np.deg2rad(111.0)), 0.0])
    rows = []
    for after, turn in zip([*phi[1:], -60.0], psi, strict=True):
        oxygen = place(nitrogen, alpha, carbon, 1.231, 120.5, turn + 180.0)
        rows.append([nitrogen, alpha, carbon, oxygen])
        next_n = place(nitrogen, alpha, carbon, 1.329, 116.6, turn)
        next_a = place(alpha, carbon, next_n, 1.458, 121.7, 180.0)
        nitrogen, alpha, carbon = next_n, next_a, place(carbon, next_n, next_a, 1.525, 111.0, after)
    return np.array(rows)


def constant(phi, psi, n):
    """Ideal backbone of n residues of the same torsions, shape=(n, 4, 3)."""
    return build([phi] * n, [psi] * n)


def ideal_corpus(chains=((-62, -42), (-120, 130), (-75, 145)), residues=60):
    """Chains of constant torsions, alanine throughout, all marked for validation."""
    atoms = [constant(phi, psi, residues) for phi, psi in chains]
    n = residues * len(atoms)
    return Corpus(
        np.concatenate(atoms).astype(np.float32),
        np.zeros(n, dtype=np.int64),
        np.arange(len(atoms) + 1) * residues,
        np.array([str(i) for i in range(len(atoms))]),
        np.ones(len(atoms), dtype=bool),
    )
