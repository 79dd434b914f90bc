"""TM-scores: closed forms, and TM-align made to keep the correspondence."""

import numpy as np
import pytest
import tmtools
from scipy.spatial.transform import Rotation

from densemble.metrics.tmscore import tm_align, tm_distance, tm_score


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


def test_one_displaced_residue_in_closed_form():
    x = chain(60, 3)
    model = x.copy()
    model[20] += [0, 0, 6.0]
    alone = (59 + 1 / (1 + (6 / tm_distance(60)) ** 2)) / 60  # superposed on the other 59
    assert alone - 1e-9 <= tm_score(turned(model), x) < alone + 2e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [40, 150])
def test_agrees_with_tm_align_at_the_same_correspondence(n, seed):
    x = chain(n, seed)
    drift = 0.7 * np.random.default_rng(seed).normal(size=x.shape).cumsum(axis=0)
    letters = "A" * n
    for model in (x + drift, hinged(x, n // 3, 70), x + 4 * np.random.default_rng(seed).normal(size=x.shape)):
        model = turned(model)
        fixed = tmtools.tm_align(model, x, letters, letters, alignment=[letters, letters])
        assert tm_score(model, x) == pytest.approx(fixed.tm_norm_chain2, abs=3e-3)
        assert fixed.tm_norm_chain2 < 0.95


def test_alignment_finds_a_shifted_correspondence():
    x = chain(100, 5)
    letters = "".join(np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), 100))
    part = turned(x[20:])
    found = tm_align(part, letters[20:], x, letters)
    assert found.aligned == 80
    assert found.by_reference == pytest.approx(0.8, abs=1e-3)
    assert found.by_model == pytest.approx(1.0, abs=1e-3)
    assert found.rmsd == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="the model has 80 alpha carbons and 100 letters"):
        tm_align(part, letters, x, letters)
