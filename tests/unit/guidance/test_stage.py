import math

import pytest

from densemble.guidance.stage import Stage


def nothing(atoms, sigma):
    return atoms.sum() * 0


def test_interval_is_half_open():
    stage = Stage("s", nothing, high=2.0, low=0.5)
    assert [stage.active(s) for s in (2.1, 2.0, 1.0, 0.5, 0.0)] == [False, True, True, False, False]


def test_weight_follows_a_cosine_in_log_sigma():
    stage = Stage("s", nothing, high=4.0, low=1.0, weight=0.25, weight_end=0.05)
    assert stage.weight_at(4.0) == pytest.approx(0.25)
    assert stage.weight_at(2.0) == pytest.approx(0.15)
    assert stage.weight_at(1.0) == pytest.approx(0.05)
    assert stage.weight_at(2.0**1.5) == pytest.approx(0.05 + 0.2 * (1 + math.cos(math.pi / 4)) / 2)


def test_weight_counts_the_levels_of_a_sampler_where_they_are_given():
    """Paper 2, appendix A.5, at the t-th of n steps; within a step in log sigma."""
    levels = (9.0, 7.0, 4.0, 2.0, 0.5)
    stage = Stage("s", nothing, high=9.0, low=0.5, weight=0.25, weight_end=0.05, knots=levels)
    for t, level in enumerate(levels):
        assert stage.weight_at(level) == pytest.approx(0.05 + 0.1 * (1 + math.cos(math.pi * t / 4)))
    between = 0.05 + 0.1 * (1 + math.cos(math.pi * 2.5 / 4))
    assert stage.weight_at(math.sqrt(4.0 * 2.0)) == pytest.approx(between)


@pytest.mark.parametrize("knots", [None, (9.0, 5.0, 1.0)])
def test_a_stage_entered_late_has_the_same_weights(knots):
    stage = Stage("s", nothing, high=9.0, low=1.0, weight=0.25, weight_end=0.05, knots=knots)
    late = stage.below(6.0)
    assert not late.active(6.1)
    for sigma in (6.0, 3.0, 1.1):
        assert late.active(sigma)
        assert late.weight_at(sigma) == pytest.approx(stage.weight_at(sigma))
    assert stage.below(0.9) is None


@pytest.mark.parametrize("knots", [(1.0,), (2.0, 2.0), (1.0, 2.0), (1.0, 0.0)])
def test_knots_fall_and_have_logarithms(knots):
    with pytest.raises(ValueError, match="knots"):
        Stage("s", nothing, high=2.0, weight_end=0.1, knots=knots)


@pytest.mark.parametrize(
    "settings", [{"high": 1.0, "low": 2.0}, {"low": -1.0}, {"weight_end": 0.1}, {"clip": 0.0}, {"limit": 0.0}]
)
def test_nonsense_is_refused(settings):
    with pytest.raises(ValueError, match="stage s"):
        Stage("s", nothing, **settings)
