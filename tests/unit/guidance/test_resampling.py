"""Resampling: exact proportions, the temperature that leaves enough, and a posterior known in closed form."""

import pytest
import torch

from densemble.guidance.resampling import crowding, systematic, tempered_weights
from densemble.priors.gaussian import anchored_chain
from densemble.testing import EnsembleMeasurement, chain_topology


def effective(weights):
    return float(1 / weights.square().sum())


def test_weights_are_the_probabilities_where_those_leave_enough():
    log_p = torch.tensor([0.0, -0.5, -1.0, 0.3])
    assert torch.allclose(tempered_weights(log_p, share=0.25), torch.softmax(log_p.double(), 0))


def test_a_higher_temperature_is_kept_where_it_leaves_enough():
    log_p = torch.tensor([0.0, -5.0, -10.0, 3.0])
    found = tempered_weights(log_p, share=0.25, temperature=20.0)
    assert torch.allclose(found, torch.softmax(log_p.double() / 20, 0))
    steep = tempered_weights(100 * log_p, share=0.5, temperature=20.0)
    assert effective(steep) == pytest.approx(2.0, rel=1e-3)
    assert torch.allclose(steep, tempered_weights(100 * log_p, share=0.5))


def test_members_that_are_alike_are_counted():
    """RMSD in place over two atoms: 0.9 and 1.1 Å from the first."""
    places = torch.zeros(4, 2, 3)
    places[1, :, 0], places[2, :, 1], places[3, 0, 2] = 0.9, 1.1, 50.0
    assert crowding(places, 1.0).tolist() == [2.0, 2.0, 1.0, 1.0]
    assert crowding(places, 1.5).tolist() == [3.0, 3.0, 3.0, 1.0]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_just_enough_stay_in_play(generator, share):
    log_p = 300 * torch.randn(40, generator=generator)
    weights = tempered_weights(log_p, share=share)
    assert effective(weights) == pytest.approx(40 * share, rel=1e-3)
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.equal(weights.argsort(), log_p.argsort())


def test_a_constant_in_log_p_changes_nothing(generator):
    log_p = 50 * torch.randn(10, generator=generator, dtype=torch.float64)
    assert torch.allclose(tempered_weights(log_p, share=0.4), tempered_weights(log_p - 1e5, share=0.4))


def test_all_in_play_are_equal_weights():
    weights = tempered_weights(torch.tensor([0.0, -1e4, -3e4]), share=1.0)
    assert torch.allclose(weights, torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize(
    ("log_p", "share"), [([0.0, float("nan")], 0.5), ([0.0, -float("inf")], 0.5), ([0.0], 0.0), ([0.0], 1.1)]
)
def test_what_cannot_be_weighed_is_refused(log_p, share):
    with pytest.raises(ValueError, match="tempered_weights"):
        tempered_weights(torch.tensor(log_p), share=share)


def test_each_comes_up_its_expected_number_of_times(generator):
    weights = torch.tensor([0.0, 3.0, 0.5, 1.5])
    counts = torch.zeros(4)
    for _ in range(2000):
        drawn = torch.bincount(systematic(weights, 8, generator), minlength=4)
        expected = 8 * weights / weights.sum()
        assert bool(((drawn - expected).abs() < 1).all())
        counts += drawn
    assert torch.allclose(counts / 2000, 8 * weights / weights.sum(), atol=0.05)


def test_resampled_prior_is_the_exact_posterior(generator):
    """Members drawn from the prior and resampled by p(y | x) follow the closed-form posterior."""
    topology = chain_topology(3)
    start = torch.arange(12, dtype=torch.float64)[:, None] * torch.tensor([1.2, 0.1, 0.0]).double()
    prior = anchored_chain(
        topology, start, [[0, 1, 2]], anchored=[(True, True)], amplitude=1.5, smoothness=1.5, jitter=0.3
    )
    operator = torch.zeros(1, 12, dtype=torch.float64)
    operator[0, 5] = 1.0
    measured = prior.mean[[5]] + torch.tensor([[0.8, -0.5, 0.2]]).double()
    problem = EnsembleMeasurement(prior, operator, measured, noise=0.7)
    root = torch.linalg.cholesky(prior.covariance)
    draws = prior.mean + root @ torch.randn(20000, 12, 3, generator=generator, dtype=torch.float64)
    log_p = torch.stack([problem.log_probability(x[None], 0.0) for x in draws])
    weights = tempered_weights(log_p, share=0.01)
    x = draws[systematic(weights, 20000, generator)]
    mean, covariance = problem.posterior(1)
    error = (covariance.diagonal() / effective(weights)).sqrt()[:, None]
    assert float(((x.mean(0) - mean[0]).abs() / error).max()) < 5
    assert float(((prior.mean - mean[0]).abs() / error).max()) > 20  # the prior would fail
    spread = (x - mean[0]).square().mean((0, 2))
    assert torch.allclose(spread, covariance.diagonal(), rtol=0.1)
    assert not torch.allclose(spread, prior.covariance.diagonal(), rtol=0.1)
