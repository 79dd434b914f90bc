from itertools import combinations
from math import erf, sqrt

import numpy as np
import pytest

from densemble.selection.number import (
    Normal,
    best_sets,
    choose,
    choose_by_information,
    shares,
    worth_parameters,
)
from densemble.selection.pursuit import fit_weights


def signals(rng, count=12, voxels=400):
    return rng.normal(size=(count, voxels)) + rng.normal(size=voxels)


def test_weights_are_those_of_non_negative_least_squares():
    rng = np.random.default_rng(0)
    x = signals(rng)
    y = 0.3 * x[2] + 0.7 * x[5] - 0.4 * x[7] + 0.1 * rng.normal(size=400) + 5
    normal = Normal.of(x, y, offset=True)
    w, left = normal.weights([2, 5, 7])
    assert w / w.sum() == pytest.approx(fit_weights(x[[2, 5, 7]], y), abs=1e-6)
    residual = y - y.mean() - w @ (x[[2, 5, 7]] - x[[2, 5, 7]].mean(axis=1, keepdims=True))
    assert left == pytest.approx(residual @ residual)


def test_identical_candidates_do_not_break_the_solution():
    rng = np.random.default_rng(0)
    x = signals(rng, 2)
    w, left = Normal.of(np.stack([x[0], x[0], x[1]]), x[0] + x[1]).weights([0, 1, 2])
    assert (w[0] + w[1], w[2]) == pytest.approx((1, 1), abs=1e-4)
    assert abs(left) < 1e-4


def test_shares_sum_to_one_in_each_part():
    rng = np.random.default_rng(4)
    x = signals(rng, 5)
    truth = np.array([0.2, 0.8, 0.5, 0.1, 0.4])
    groups = np.array([0, 0, 1, 1, 1])
    y = truth @ x
    normal = Normal.of(x, y)
    assert shares(normal.gram, normal.cross, groups) == pytest.approx(truth, abs=1e-5)
    # against the constrained optimum on noisy data: no direction within the constraints leads down
    normal = Normal.of(x, y + 3 * rng.normal(size=400))
    w = shares(normal.gram, normal.cross, groups)
    assert [w[:2].sum(), w[2:].sum()] == pytest.approx([1, 1])
    slope = normal.gram @ w - normal.cross
    for part in (slope[:2], slope[2:]):
        assert np.ptp(part) < 1e-3 * np.abs(normal.cross).max()


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_best_sets_of_every_size(exhaustive, monkeypatch):
    monkeypatch.setattr("densemble.selection.number.EXHAUSTIVE", 10**6 if exhaustive else 12)
    rng = np.random.default_rng(2)
    x = signals(rng)
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    y = 0.5 * x[1] + 0.3 * x[6] + 0.2 * x[9] + 0.02 * rng.normal(size=400)
    found = best_sets(Normal.of(x, y), groups, most=4, least_weight=0.05)
    assert [len(f.members) for f in found] == [1, 2, 3]  # a fourth has too little weight
    assert found[2].members == (1, 6, 9)  # the heaviest first
    assert found[2].weights == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    normal = Normal.of(x, y)
    pairs = [p for p in combinations(range(12), 2) if groups[p[0]] != groups[p[1]]]
    assert found[1].left == pytest.approx(min(normal.weights(p)[1] for p in pairs))


def test_exchange_repairs_a_greedy_first_step(monkeypatch):
    """The mean of two states is the best single candidate, and no part of the best pair."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 300))
    x = np.stack([a + b, a, b, *rng.normal(size=(5, 300))])
    monkeypatch.setattr("densemble.selection.number.EXHAUSTIVE", 8)
    found = best_sets(Normal.of(x, 0.55 * a + 0.45 * b), np.arange(8), most=3, least_weight=0.05)
    assert found[0].members == (0,)
    assert set(found[1].members) in ({1, 2}, {0, 1})
    assert found[1].left == pytest.approx(0, abs=1e-6)


def alike_members(rng, count=12, voxels=300):
    """Noisy copies of four states that have much in common, and a map of these states in some shares."""
    states = rng.normal(size=(4, voxels)) + rng.normal(size=voxels)
    x = states[np.arange(count) % 4] + 0.7 * rng.normal(size=(count, voxels))
    y = rng.dirichlet(np.full(4, 3.0)) @ states + 0.15 * rng.normal(size=voxels)
    return Normal.of(x, y)


def test_sets_that_are_grown_come_near_the_best(monkeypatch):
    """Beyond the limit: what they leave against the least of all sets, where all can still be tried.

    Of these 24 sets of two, three and four, 20 are the best; the others leave 0.5 to 4.7 % more. Up to 15 %
    was seen in other such problems.
    """
    rng = np.random.default_rng(3)
    more = []
    for _ in range(8):
        normal, found = alike_members(rng), {}
        for limit in (10**6, 12):  # of twelve members: all tried, or all but the single ones grown
            monkeypatch.setattr("densemble.selection.number.EXHAUSTIVE", limit)
            found[limit] = best_sets(normal, np.arange(12), most=4, least_weight=0.05)
        assert [len(best.members) for best in found[10**6]] == [1, 2, 3, 4]
        more += [b.left / a.left - 1 for a, b in zip(found[10**6], found[12], strict=True)][1:]
    assert min(more) > -1e-9
    assert np.mean(np.array(more) < 1e-9) > 0.75
    assert max(more) < 0.06


def test_never_two_of_one_group():
    rng = np.random.default_rng(6)
    x = signals(rng, 3)
    found = best_sets(Normal.of(x, x[0] + x[1]), np.array([0, 0, 1]), most=3, least_weight=0.01)
    assert all(len({0, 1} & set(f.members)) <= 1 for f in found)


def simulated(rng, weight, *, data=2000, held_out=100, parameters=20):
    """One state or two in unit noise, most data fitted; the second is refined by all its parameters."""
    directions = rng.normal(size=(parameters, data + held_out))
    second = directions[0]  # what is left when the first is taken out
    y = weight * second + rng.normal(size=data + held_out)
    fitted, out = slice(None, data), slice(data, None)
    refined = np.linalg.lstsq(directions[:, fitted].T, y[fitted], rcond=None)[0] @ directions
    residuals = [y, y - refined]
    worth = worth_parameters([-(r[fitted] ** 2).sum() / 2 for r in residuals], [0, parameters])
    need = [-1.0 if w else np.inf for w in worth]
    return choose([-(r[out] ** 2) / 2 for r in residuals], need=need).chosen + 1


def test_a_second_state_that_is_refined_into_noise_is_not_believed():
    """Its parameters gain half a nat each, and cost one: P(chi^2_20 > 40) = 0.005, veto aside."""
    counts = [simulated(np.random.default_rng(seed), 0.0) for seed in range(200)]
    assert np.mean(np.array(counts) == 1) >= 0.97


def test_power_grows_with_the_weight_of_the_second_state():
    weights = (0.05, 0.13, 0.18, 0.3)
    power = [np.mean([simulated(np.random.default_rng(seed), w) == 2 for seed in range(60)]) for w in weights]
    assert power == sorted(power)
    assert power[0] < 0.3 < power[2]
    assert power[-1] > 0.95


def test_a_gain_is_believed_beyond_its_noise_alone():
    rng = np.random.default_rng(7)
    noise = rng.normal(size=400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    gain = noise + 0.2  # sum 80, standard error 20
    same = choose([np.zeros(400), gain, gain], need=[0.0, 3.9, 3.9])
    assert (same.chosen, same.gains[1]) == (1, pytest.approx(80))
    assert same.errors[1] == pytest.approx(20)
    assert choose([np.zeros(400), gain], need=[0.0, 4.2]).chosen == 0
    assert choose([np.zeros(400), gain], need=[0.0, np.inf]).chosen == 0


def test_a_normal_deviate_exceeds_the_limit_as_rarely_as_it_should():
    rng = np.random.default_rng(8)
    found = [choose([np.zeros(300), rng.normal(size=300)], need=[1.0] * 2).chosen for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.5 * (1 - erf(1 / sqrt(2))), abs=0.035)


def test_information_asks_for_as_much_as_is_added():
    assert worth_parameters([100.0, 111.0, 120.0, 132.0], [10, 20, 30, 40]) == [True, True, False, True]
    assert choose_by_information([100.0, 109.0, 130.0], [10, 20, 30]).chosen == 2
    assert choose_by_information([100.0, 109.0, 119.9], [10, 20, 30]).chosen == 0


def test_choosing_by_the_free_set_flatters_it_by_a_tenth_of_the_error_of_a_difference():
    """E[g 1(g > z)] of a normal deviate is its density at z: 0.103 at 1.645."""
    rng = np.random.default_rng(9)
    flattery = []
    for gain in rng.normal(size=(3000, 100)):
        found = choose([np.zeros(100), gain], need=[1.645] * 2)
        flattery.append(found.gains[1] / found.errors[1] if found.chosen else 0.0)
    assert np.mean(flattery) == pytest.approx(0.103, abs=0.03)


def test_a_veto_is_a_loss_beyond_its_noise():
    rng = np.random.default_rng(10)
    noise = rng.normal(size=400)
    loss = noise - noise.mean() - 0.03  # sum -12, standard error 20
    assert choose([np.zeros(400), loss], need=[0.0, -1.0]).chosen == 1
    assert choose([np.zeros(400), loss - 0.03], need=[0.0, -1.0]).chosen == 0
    assert choose([np.zeros(400), np.zeros(400)], need=[0.0, -1.0]).chosen == 1
    assert choose([np.zeros(400), np.zeros(400)], need=[0.0, 0.0]).chosen == 0
