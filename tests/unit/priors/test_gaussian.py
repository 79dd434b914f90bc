import pytest
import torch

from densemble.priors.gaussian import GaussianPrior, anchored_chain
from densemble.testing import chain_topology, check_prior


def chain(dtype=torch.float64, **options):
    topology = chain_topology(6)
    start = torch.arange(24, dtype=dtype)[:, None] * torch.tensor([1.2, 0.1, 0.0], dtype=dtype)
    settings = {"amplitude": 2.0, "smoothness": 2.0, "jitter": 0.2} | options
    return anchored_chain(topology, start, [list(range(6))], anchored=[(True, True)], **settings)


def test_keeps_the_contract():
    check_prior(chain(torch.float32))


def test_denoiser_is_the_conditional_mean():
    prior = chain()
    n = len(prior.mean)
    sigma = 0.7
    x_t = prior.mean + torch.randn(3, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # the textbook formula for a joint Gaussian (x0, x_t), by a dense solve
    gain = torch.linalg.solve(prior.covariance + sigma**2 * torch.eye(n), prior.covariance).T
    assert torch.allclose(prior.denoise(x_t, sigma), prior.mean + gain @ (x_t - prior.mean), atol=1e-10)
    remaining = prior.covariance - gain @ prior.covariance
    assert torch.allclose(prior.denoised_covariance(sigma), remaining, atol=1e-10)


def test_denoiser_gradient():
    prior = chain()
    x = torch.randn(1, len(prior.mean), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prior.denoise(x, 0.5), x)


def test_condition_equals_the_information_form():
    prior = chain()
    generator = torch.Generator().manual_seed(2)
    operator = torch.randn(5, len(prior.mean), dtype=torch.float64, generator=generator)
    measured = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    posterior = prior.condition(operator, measured, 0.3)
    precision = torch.linalg.inv(prior.covariance)
    covariance = torch.linalg.inv(precision + operator.T @ operator / 0.09)
    mean = covariance @ (precision @ prior.mean + operator.T @ measured / 0.09)
    assert torch.allclose(posterior.covariance, covariance, atol=1e-8)
    assert torch.allclose(posterior.mean, mean, atol=1e-8)


def test_displacements_vanish_toward_held_ends_only():
    topology = chain_topology(6)
    start = torch.zeros(24, 3, dtype=torch.float64)
    options = {"amplitude": 3.0, "smoothness": 2.0, "jitter": 0.01}
    both = anchored_chain(topology, start, [list(range(6))], anchored=[(True, True)], **options)
    one = anchored_chain(topology, start, [list(range(6))], anchored=[(True, False)], **options)
    spread_both, spread_one = both.covariance.diagonal().sqrt(), one.covariance.diagonal().sqrt()
    assert spread_both[0] < 0.7
    assert spread_both[22] < 0.7
    assert spread_one[0] < 0.7
    assert spread_one[22] > 2.5
    assert spread_both[12] > 2 * spread_both[0]


def test_stretches_move_independently():
    topology = chain_topology(6)
    prior = anchored_chain(
        topology,
        torch.zeros(24, 3),
        [[0, 1, 2], [3, 4, 5]],
        anchored=[(False, False), (False, False)],
        amplitude=1.0,
        smoothness=2.0,
        jitter=0.1,
    )
    assert float(prior.covariance[:12, 12:].abs().max()) == 0.0
    assert float(prior.covariance[0, 8]) > 0.1


def test_a_singular_covariance_is_refused():
    with pytest.raises(ValueError, match="positive definite"):
        GaussianPrior(chain_topology(1), torch.zeros(4, 3), torch.ones(4, 4) - 2 * torch.eye(4))
