import numpy as np
import pytest

from densemble.selection.pursuit import correlation, fit_weights, matching_pursuit


def blobs(centres, voxels=200):
    x = np.arange(voxels)
    return np.stack([np.exp(-0.5 * ((x - c) / 4.0) ** 2) for c in centres])


def test_finds_the_two_states_and_their_weights_under_scale_and_offset():
    densities = blobs([20, 60, 100, 140, 180])
    target = 7.0 * (0.39 * densities[1] + 0.61 * densities[3]) - 3.0
    selection = matching_pursuit(densities, target, keep=5)
    assert dict(zip(selection.members, selection.weights.round(6), strict=True)) == {3: 0.61, 1: 0.39}
    assert selection.score == pytest.approx(1.0)


def test_one_state_is_a_normal_answer():
    densities = blobs([20, 60, 100])
    selection = matching_pursuit(densities, densities[2], keep=5)
    assert selection.members == (2,)
    assert selection.weights.tolist() == [1.0]


def test_an_addition_that_does_not_help_is_not_kept():
    """Algorithm A2 as printed keeps its last candidate even if the score fell."""
    densities = np.stack([blobs([50])[0], blobs([150])[0]])
    selection = matching_pursuit(densities, densities[0], keep=2)
    assert selection.members == (0,)


def test_keep_is_a_limit():
    densities = blobs([20, 60, 100, 140, 180])
    selection = matching_pursuit(densities, densities.sum(0), keep=3)
    assert len(selection.members) == 3


def test_weights_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    densities = generator.normal(size=(3, 500))
    target = np.array([0.2, 0.5, 0.3]) @ densities * 4 + 1
    assert fit_weights(densities, target) == pytest.approx([0.2, 0.5, 0.3])


def test_plain_means_are_algorithm_a2():
    """Paper 1's ensemble is a mean: a minor state that would cost the others their share is left out."""
    densities = blobs([20, 60, 100])
    halves = matching_pursuit(densities, 3 * densities[0] + 3 * densities[2] + 1, keep=5, equal=True)
    assert (set(halves.members), halves.weights.tolist()) == ({0, 2}, [0.5, 0.5])
    assert halves.score == pytest.approx(1.0)
    minor = 0.9 * densities[0] + 0.1 * densities[2]
    assert matching_pursuit(densities, minor, keep=5, equal=True).members == (0,)
    assert set(matching_pursuit(densities, minor, keep=5).members) == {0, 2}
    with pytest.raises(ValueError, match="positive correlation"):
        matching_pursuit(densities, -densities.sum(0), keep=2, equal=True)


def test_nothing_to_find_is_an_error():
    densities = blobs([50])
    with pytest.raises(ValueError, match="positive correlation"):
        matching_pursuit(densities, -densities[0], keep=2)
    with pytest.raises(ValueError, match="at least one"):
        matching_pursuit(densities, densities[0], keep=0)


def test_correlation_is_pearson():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 100))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(np.ones(5), np.arange(5.0)) == 0.0
