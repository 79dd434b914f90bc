"""TM-scores: closed forms, and TM-align of all residues made to keep the correspondence."""

import numpy as np
import pytest
import tmtools
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from densemble.metrics.tmscore import tm_distance, tm_score


def chain(n: int, seed: int) -> np.ndarray:
    """A smooth random coil with 3.8 Å between residues."""
    steps = np.random.default_rng(seed).normal(size=(n, 3))
    for i in range(1, n):
        steps[i] = 0.7 * steps[i - 1] / np.linalg.norm(steps[i - 1]) + 0.5 * steps[i]
    return np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)


def turned(x: np.ndarray, seed: int = 1) -> np.ndarray:
    return x @ Rotation.random(random_state=seed).as_matrix().T + [100.0, -30.0, 8.0]


def hinged(x: np.ndarray, at: int, degrees: float) -> np.ndarray:
    """The second part turned about the hinge."""
    turn = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return np.concatenate([x[:at], (x[at:] - x[at]) @ turn.T + x[at]])


def test_distance_scale():
    assert tm_distance(100) == pytest.approx(1.24 * 85 ** (1 / 3) - 1.8)
    assert tm_distance(15) == tm_distance(4) == 0.5


def test_a_rigid_motion_scores_one_and_a_mirror_image_does_not():
    x = chain(80, 0)
    assert tm_score(turned(x), x) == pytest.approx(1, abs=1e-9)
    assert tm_score(turned(x * [1, 1, -1]), x) < 0.6


def test_unknown_residues_count_by_the_length_of_the_reference():
    x = chain(90, 2)
    model = turned(x)
    model[60:] = np.nan
    assert tm_score(model, x) == pytest.approx(60 / 90)
    reference = x.copy()
    reference[60:] = np.nan
    assert tm_score(turned(x), reference) == pytest.approx(1)
    assert tm_score(turned(x), reference, length=120) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least three"):
        tm_score(model[58:], x[58:])


def test_a_model_of_half_the_residues_scores_half():
    x = chain(120, 7)
    assert tm_score(turned(x[:60]), x[:60], length=120) == pytest.approx(0.5, abs=1e-9)
    with pytest.raises(ValueError, match="at most the length of 59"):
        tm_score(x[:60], x[:60], length=59)


def test_length_sets_the_distance_scale():
    """Against the definition where no superposition is better: distances that point away from the centre."""
    x = np.random.default_rng(0).normal(size=(30, 3))
    x = 20 * np.concatenate([x, -x]) / np.linalg.norm(np.concatenate([x, -x]), axis=1, keepdims=True)
    for length in (60, 400):
        each = 1 / (1 + (2.0 / tm_distance(length)) ** 2)
        assert tm_score(1.1 * x, x, length=length) == pytest.approx(60 * each / length, abs=1e-4)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_few_residues(n):
    x = chain(n, 9)
    assert tm_score(turned(x), x) == pytest.approx(1, abs=1e-9)
    assert tm_score(turned(x * [1, 1, -1]), x) <= 1


def test_thousands_of_residues():
    """The larger part superposed alone is a lower bound; searched among every eighth residue, all score."""
    n, at = 4000, 1500
    x = chain(n, 4)
    model = hinged(x, at, 70)
    turn = Rotation.from_euler("x", 70, degrees=True).as_matrix()
    back = (model[:at] - x[at]) @ turn + x[at]
    near = 1 / (1 + (np.linalg.norm(back - x[:at], axis=1) / tm_distance(n)) ** 2)
    bound = (n - at + near.sum()) / n
    assert bound - 1e-6 <= tm_score(turned(model), x) < bound + 0.01


def test_one_displaced_residue_in_closed_form():
    x = chain(60, 3)
    model = x.copy()
    model[20] += [0, 0, 6.0]
    alone = (59 + 1 / (1 + (6 / tm_distance(60)) ** 2)) / 60  # superposed on the other 59
    assert alone - 1e-9 <= tm_score(turned(model), x) < alone + 2e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [40, 150, 700])
def test_agrees_with_tm_align_at_the_same_correspondence(n, seed):
    """And is no lower: the value is climbed from what TM-align stops at."""
    x = chain(n, seed)
    drift = 0.7 * np.random.default_rng(seed).normal(size=x.shape).cumsum(axis=0)
    letters = "A" * n
    for model in (x + drift, hinged(x, n // 3, 70)):
        model = turned(model)
        fixed = tmtools.tm_align(model, x, letters, letters, alignment=[letters, letters])
        assert -1e-6 < tm_score(model, x) - fixed.tm_norm_chain2 < 5e-3
        assert fixed.tm_norm_chain2 < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_is_a_maximum_over_superpositions(seed):
    """By a minimiser of turn and shift, from where TM-align stops, which is up to 0.01 lower here."""
    n, x = 40, chain(40, seed)
    model, letters = x + 4 * np.random.default_rng(seed).normal(size=x.shape), "A" * 40
    fixed = tmtools.tm_align(model, x, letters, letters, alignment=[letters, letters])
    start = np.r_[Rotation.from_matrix(fixed.u).as_rotvec(), np.array(fixed.t)]

    def loss(motion: np.ndarray) -> float:
        moved = Rotation.from_rotvec(motion[:3]).apply(model) + motion[3:]
        return -(1 / (1 + ((moved - x) ** 2).sum(1) / tm_distance(n) ** 2)).sum() / n

    assert loss(start) == pytest.approx(-fixed.tm_norm_chain2, abs=1e-6)
    best = minimize(loss, start, method="BFGS").fun
    assert tm_score(model, x) == pytest.approx(-best, abs=2e-5)
