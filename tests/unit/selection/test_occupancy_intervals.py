import numpy as np
import pytest

from densemble.selection.intervals import MODEL_ERROR, Blocks, bootstrap, widened


def test_blocks_add_up_to_least_squares():
    rng = np.random.default_rng(0)
    x, y, information = rng.normal(size=(3, 200)), rng.normal(size=200), rng.uniform(0.5, 2, size=200)
    blocks = Blocks.of(x, y, information, rng.integers(7, size=200))
    assert blocks.gram.sum(axis=0) == pytest.approx(x * information @ x.T)
    assert blocks.cross.sum(axis=0) == pytest.approx(x * information @ y)


@pytest.mark.parametrize("repeated", [1, 8])
def test_intervals_cover_the_truth_as_often_as_they_say(repeated):
    """Also where data come in blocks that say the same several times, as voxels do."""
    rng = np.random.default_rng(1)
    groups = np.array([0, 0, 1, 1])
    truth = np.array([0.3, 0.7, 0.45, 0.55])
    covered, widths = [], []
    for trial in range(60):
        x = np.repeat(rng.normal(size=(4, 160)), repeated, axis=1)
        y = truth @ x + np.repeat(1.5 * rng.normal(size=160), repeated)
        block = np.repeat(np.arange(160), repeated)
        low, high = bootstrap(Blocks.of(x, y, np.ones(len(y)), block), groups, draws=100, seed=trial)
        covered.append((low <= truth) & (truth <= high))
        widths.append(high - low)
    assert 0.89 <= np.mean(covered) <= 0.99
    # two weights that sum to one: var = sigma^2 / sum (x0 - x1)^2 = 1.5^2 / (2 * 160)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 1.5 / np.sqrt(320), rel=0.1)


def test_the_same_data_have_the_same_interval():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 300))
    blocks = Blocks.of(x, x.mean(axis=0), np.ones(300), np.arange(300) // 10)
    first, second = (bootstrap(blocks, np.zeros(2, dtype=int), draws=50) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_interval_ends_at_zero_where_a_weight_does():
    """Draws that would be negative are solved with the bound, not cut off."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 400))
    y = 0.5 * x[0] + 0.5 * x[1] + rng.normal(size=400)
    blocks = Blocks.of(x, y, np.ones(400), np.arange(400) // 4)
    low, high = bootstrap(blocks, np.zeros(3, dtype=int))
    assert low[2] == pytest.approx(0, abs=1e-6)
    assert low[0] < 0.5 < high[0]


def test_the_error_of_the_states_adds_in_squares_and_stays_between_none_and_all():
    states = 1.96 * MODEL_ERROR
    low, high = widened(np.array([0.5, 0.03, 0.98]), np.array([0.4, 0.0, 0.97]), np.array([0.6, 0.1, 0.99]))
    assert low == pytest.approx([0.5 - (0.01 + states**2) ** 0.5, 0.0, 0.98 - (1e-4 + states**2) ** 0.5])
    assert high == pytest.approx([0.5 + (0.01 + states**2) ** 0.5, 0.03 + (0.0049 + states**2) ** 0.5, 1.0])


def test_states_that_the_data_do_not_tell_apart_have_no_interval():
    """Equal states, parts whose exchanges look alike, a likelihood without a maximum: 0 to 1, no error."""
    rng = np.random.default_rng(0)
    a, b, change = rng.normal(size=(3, 500))
    block = np.arange(500) % 50
    ones = np.ones(500)
    saddle = np.where(np.arange(500) % 2, 1.0, -1.5)
    for signals, information, groups in (
        ([a, a], ones, [0, 0]),
        ([a, a + change, b, b + change], ones, [0, 0, 1, 1]),
        ([a, b], saddle, [0, 0]),
    ):
        blocks = Blocks.of(np.array(signals), np.array(signals).mean(axis=0), information, block)
        low, high = bootstrap(blocks, np.array(groups))
        assert (low == 0).all()
        assert (high == 1).all()
        found = blocks.shares(np.array(groups))
        assert np.isfinite(found).all()
        assert np.bincount(groups, found) == pytest.approx(1)
    low, high = bootstrap(Blocks.of(np.array([a, b, b]), a + b, ones, block), np.array([0, 1, 1]))
    assert (low.tolist(), high.tolist()) == ([1, 0, 0], [1, 1, 1])
