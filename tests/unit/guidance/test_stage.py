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


@pytest.mark.parametrize(
    "settings", [{"high": 1.0, "low": 2.0}, {"low": -1.0}, {"weight_end": 0.1}, {"clip": 0.0}, {"limit": 0.0}]
)
def test_nonsense_is_refused(settings):
    with pytest.raises(ValueError, match="stage s"):
        Stage("s", nothing, **settings)
