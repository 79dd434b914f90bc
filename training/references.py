"""References that are wrong in realistic ways: what a starting model may look like when the truth is known.

A truth is bent along smooth fields of its own contact network (hinges between domains, shears, low-frequency
modes), some loops are modelled anew, noise is added, and the chain is made whole again, so that the
reference's chemistry does not tell where it was bent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from densemble.priors.chain_graph import Trust

CONTACT = 10.0
"""Å between CA joined by a spring (Gaussian network model: Bahar et al. 1997, Fold. Des. 2, 173)."""
_MODES = 12
# Pairs of atoms N 0, CA 1, C 2, O 3 whose distances are kept: within a residue (not those that psi
# changes), and to the next residue. O(i)-N(i+1) and the others of the peptide plane keep it planar.
_WITHIN = ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3))
_ONWARD = ((2, 0), (1, 0), (3, 0), (2, 1), (1, 1), (3, 1))


@dataclass(frozen=True)
class Modes:
    """Slow modes of a chain's contact network, without the constant one.

    Attributes:
        vectors: shape=(n, m).
        stiffness: eigenvalues, shape=(m,).
    """

    vectors: np.ndarray
    stiffness: np.ndarray


def slow_modes(alpha: np.ndarray) -> Modes:
    """The slowest modes of the network of CA, shape=(n, 3) in Å; bonded springs ten times stiffer."""
    n = len(alpha)
    near = np.linalg.norm(alpha[:, None] - alpha[None], axis=-1) < CONTACT
    springs = near.astype(np.float64)
    i = np.arange(n - 1)
    springs[i, i + 1] = springs[i + 1, i] = 10.0
    np.fill_diagonal(springs, 0.0)
    values, vectors = np.linalg.eigh(np.diag(springs.sum(1)) - springs)
    m = min(_MODES, n - 1)
    return Modes(vectors[:, 1 : 1 + m], values[1 : 1 + m])


def _rms(displacement: np.ndarray) -> float:
    return float(np.sqrt((displacement**2).sum(-1).mean()))


def hinge(atoms: np.ndarray, modes: Modes, size: float, rng: np.random.Generator) -> np.ndarray:
    """One part of the chain turned about an axis through its boundary to the rest, and moved a little.

    The parts are the two sides of a slow mode; residues between them take a part of the motion.

    Args:
        atoms: Å, shape=(n, 4, 3).
        modes: of the truth.
        size: wanted root mean square displacement over the chain, Å; the turn is at most 90 degrees.
        rng: source of randomness.
    """
    chance = 1 / modes.stiffness**0.5
    mode = modes.vectors[:, rng.choice(len(chance), p=chance / chance.sum())]
    cut = np.quantile(mode, rng.uniform(0.25, 0.75))
    share = 1 / (1 + np.exp(-(mode - cut) / (rng.uniform(0.05, 0.3) * mode.std())))
    border = share * (1 - share) + 1e-6
    alpha = atoms[:, 1]
    pivot = (border[:, None] * alpha).sum(0) / border.sum()
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    slide = 0.05 * size * rng.standard_normal(3)

    def turned(angle: float) -> np.ndarray:
        rotation = Rotation.from_rotvec(angle * share[:, None] * axis).as_matrix()
        return pivot + np.einsum("nxy,nay->nax", rotation, atoms - pivot) + share[:, None, None] * slide

    unit = _rms(turned(0.2)[:, 1] - alpha) / 0.2
    return turned(min(size / max(unit, 1e-6), np.pi / 2))


def shear(atoms: np.ndarray, modes: Modes, size: float, rng: np.random.Generator) -> np.ndarray:
    """Two sides of a slow mode slide along each other, across the direction between them."""
    mode = modes.vectors[:, int(rng.integers(min(4, modes.vectors.shape[1])))]
    alpha = atoms[:, 1]
    between = (mode[:, None] * (alpha - alpha.mean(0))).sum(0)
    along = np.cross(between, rng.standard_normal(3))
    along /= max(np.linalg.norm(along), 1e-6)
    moved = np.tanh(mode / mode.std())[:, None] * along
    moved -= moved.mean(0)
    return atoms + (size / max(_rms(moved), 1e-6)) * moved[:, None]


def wave(atoms: np.ndarray, modes: Modes, size: float, rng: np.random.Generator) -> np.ndarray:
    """A draw from the Gaussian of the contact network's slow modes, with the turns that it implies."""
    amplitude = rng.standard_normal((len(modes.stiffness), 3)) / modes.stiffness[:, None] ** 0.5
    moved = modes.vectors @ amplitude
    return follow(atoms, moved * (size / max(_rms(moved), 1e-6)))


def follow(atoms: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Residues carried by a displacement of CA, turned as their neighbours within five in sequence are."""
    alpha, n = atoms[:, 1], len(atoms)
    index = np.clip(np.arange(n)[:, None] + np.arange(-5, 6), 0, n - 1)
    before = alpha[index] - alpha[index].mean(1, keepdims=True)
    after = (alpha + moved)[index]
    after = after - after.mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("nkx,nky->nxy", after, before) + 1e-3 * np.eye(3))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    return (alpha + moved)[:, None] + np.einsum("nxy,nay->nax", rotation, atoms - alpha[:, None])


def remodel(atoms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One loop modelled anew: a smooth displacement of 4 to 14 residues, zero at both ends, and new turns."""
    n = len(atoms)
    length = int(rng.integers(4, 15))
    start = int(rng.integers(0, max(1, n - length)))
    stretch = np.arange(start, min(start + length, n))
    place = (np.arange(len(stretch)) + 1) / (len(stretch) + 1)
    waves = np.stack([np.sin(np.pi * k * place) / k for k in (1, 2, 3)], axis=-1)
    moved = np.zeros((n, 3))
    moved[stretch] = rng.uniform(0.5, 4.0) * waves @ rng.standard_normal((3, 3))
    result = follow(atoms, moved)
    turn = Rotation.from_rotvec(rng.uniform(0, 0.6) * rng.standard_normal((len(stretch), 3))).as_matrix()
    centre = result[stretch, 1:2]
    result[stretch] = centre + np.einsum("nxy,nay->nax", turn, result[stretch] - centre)
    return result


def made_whole(atoms: np.ndarray, usual: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Bonds, angles and peptide planes back at their lengths, by projection in turn (Jakobsen 2001).

    Args:
        atoms: a distorted chain, Å, shape=(n, 4, 3).
        usual: a chain whose local distances are to be had.
        rounds: sweeps over all distances.
    """
    n = len(atoms)
    base = 4 * np.arange(n)
    pairs = [(base + i, base + j) for i, j in _WITHIN]
    pairs += [(base[:-1] + i, base[1:] + j) for i, j in _ONWARD]
    first = np.concatenate([p[0] for p in pairs])
    second = np.concatenate([p[1] for p in pairs])
    flat = usual.reshape(-1, 3)
    wanted = np.linalg.norm(flat[second] - flat[first], axis=-1)
    # Each atom moves by the mean of what its distances ask for, a little overrelaxed.
    share = 1.4 / np.bincount(np.concatenate([first, second]), minlength=4 * n)
    ends = np.concatenate([first, second])
    x = atoms.reshape(-1, 3).copy()
    for _ in range(rounds):
        away = x[second] - x[first]
        length = np.maximum(np.linalg.norm(away, axis=-1), 0.1)
        change = (0.5 * (length - wanted) / length)[:, None] * away
        both = np.concatenate([change, -change])
        x += share[:, None] * np.stack(
            [np.bincount(ends, weights=both[:, k], minlength=4 * n) for k in range(3)], axis=-1
        )
    return x.reshape(n, 4, 3)


def random_trust(rng: np.random.Generator) -> Trust:
    """From a fold that is flexible to domains that are nearly rigid."""
    domains = float(np.exp(rng.uniform(np.log(0.3), np.log(15.0))))
    return Trust(domains=domains, local=float(np.exp(rng.uniform(np.log(0.1), np.log(2.0)))))


def random_reference(
    atoms: np.ndarray, trust: Trust, rng: np.random.Generator, modes: Modes | None = None
) -> np.ndarray:
    """A reference for a truth: N, CA, C, O in Å, shape=(n, 4, 3), near the truth's own pose.

    The displacement of domains is normal with standard deviation ``trust.domains`` (all fields together, root
    mean square over the chain), that of what is local with ``trust.local``.
    """
    truth = atoms.astype(np.float64)
    modes = slow_modes(truth[:, 1]) if modes is None else modes
    x = truth
    fields = rng.choice(3, size=int(rng.integers(1, 4)), p=[0.5, 0.2, 0.3])
    # Before superposition; what is left after it is about two thirds.
    size = 1.5 * trust.domains * abs(rng.standard_normal()) / len(fields) ** 0.5
    for field in fields:
        x = (hinge, shear, wave)[field](x, modes, size, rng)
    for _ in range(rng.poisson(min(2.0, trust.local) * len(atoms) / 150)):
        x = remodel(x, rng)
    fine = Modes(np.linalg.qr(rng.standard_normal((len(atoms), _MODES)))[0], np.ones(_MODES))
    x = wave(x, _smoothed(fine), 0.5 * trust.local * abs(rng.standard_normal()), rng)
    x = x + 0.15 * trust.local * rng.standard_normal((len(atoms), 1, 3))
    x = made_whole(x, truth)
    x = x + min(0.1, 0.1 * trust.local) * rng.uniform() * rng.standard_normal(x.shape)
    return _posed(x, truth, rng)


def _smoothed(modes: Modes) -> Modes:
    """Random fields along the chain, smooth over about six residues."""
    kernel = np.exp(-0.5 * (np.arange(-9, 10) / 3.0) ** 2)
    vectors = np.stack([np.convolve(v, kernel / kernel.sum(), mode="same") for v in modes.vectors.T], axis=-1)
    return Modes(vectors[: len(modes.vectors)], modes.stiffness)


def _posed(x: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Superposed on the truth by CA, then turned by some degrees and moved by an Å or two."""
    centre, goal = x[:, 1].mean(0), truth[:, 1].mean(0)
    u, _, vt = np.linalg.svd((truth[:, 1] - goal).T @ (x[:, 1] - centre))
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    turn = Rotation.from_rotvec(np.deg2rad(4.0) * rng.standard_normal(3)).as_matrix()
    return (x - centre) @ (turn @ (u @ vt)).T + goal + rng.standard_normal(3)
