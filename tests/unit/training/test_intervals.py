import numpy as np
import pytest

from intervals import of_fraction, of_quantile


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = [low <= 0 <= high for low, high in (of_quantile(rng.normal(size=25)) for _ in range(150))]
    assert 0.8 < np.mean(held) < 0.97


def test_members_of_a_segment_do_not_count_as_independent():
    rows = np.random.default_rng(0).normal(size=(20, 1))
    one, many = of_quantile(rows), of_quantile(np.repeat(rows, 50, axis=1))
    assert many[1] - many[0] > 0.8 * (one[1] - one[0])


def test_wilson():
    # the score interval by its definition: |p - x| = z sqrt(x (1 - x) / n) at both ends
    for count, total in ((3, 12), (0, 10), (10, 10), (40, 80)):
        p = count / total
        for x in of_fraction(count, total):
            assert abs(p - x) == pytest.approx(1.645 * np.sqrt(x * (1 - x) / total), abs=1e-9)
