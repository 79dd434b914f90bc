import pytest
import torch

from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.priors.edm import EDM
from densemble.priors.gaussian import anchored_chain
from densemble.priors.protocol import Prior
from densemble.testing import chain_topology


def chain():
    topology = chain_topology(4)
    start = torch.arange(16, dtype=torch.float64)[:, None] * torch.tensor(
        [1.2, 0.1, 0.0], dtype=torch.float64
    )
    return anchored_chain(
        topology, start, [[0, 1, 2, 3]], anchored=[(True, False)], amplitude=2.0, smoothness=2.0, jitter=0.2
    )


def pull(atoms, sigma):
    return -0.5 * (atoms[:, 3] - 10).square().sum()


def noisy(prior, members=3):
    return prior.mean + torch.randn(
        members, *prior.mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )


def test_no_active_stage_is_the_prior_itself():
    prior = chain()
    guided = GuidedPrior(prior, [Stage("pull", pull, high=0.5)])
    x = noisy(prior)
    assert torch.equal(guided.denoise(x, 1.0), prior.denoise(x, 1.0))
    assert not guided.denoise(x.requires_grad_(), 1.0).requires_grad  # nothing is kept for a gradient
    assert guided.trace == []


def test_score_mode_is_tweedie():
    prior = chain()
    x = noisy(prior)
    guided = GuidedPrior(prior, [Stage("pull", pull, weight=0.3)])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pull(prior.denoise(leaf, 1.5), 1.5), leaf)
    expected = prior.denoise(x, 1.5) + 0.3 * 1.5**2 * gradient
    assert torch.allclose(guided.denoise(x, 1.5), expected)
    assert guided.trace[0]["pull"] == pytest.approx(float(pull(prior.denoise(x, 1.5), 1.5)))


def test_gradient_on_x0_alone_does_not_pass_the_denoiser():
    prior = chain()
    x = noisy(prior)
    guided = GuidedPrior(prior, [Stage("pull", pull, through_network=False)])
    shift = guided.denoise(x, 1.0) - prior.denoise(x, 1.0)
    assert float(shift[:, :3].abs().max()) == 0.0
    assert float(shift[:, 4:].abs().max()) == 0.0
    assert float(shift[:, 3].abs().min()) > 0.0


def test_ratio_mode_scales_to_the_unguided_update_of_each_member():
    prior = chain()
    x = noisy(prior)
    guided = GuidedPrior(prior, [Stage("pull", pull, mode="ratio", weight=0.25)])
    x0 = prior.denoise(x, 1.0)
    shift = guided.denoise(x, 1.0) - x0
    assert torch.allclose(shift.norm(dim=(1, 2)), 0.25 * (x0 - x).norm(dim=(1, 2)))


def test_clip_bounds_the_gradient():
    prior = chain()
    x = noisy(prior)
    guided = GuidedPrior(prior, [Stage("pull", pull, clip=1e-3)])
    shift = guided.denoise(x, 1.0) - prior.denoise(x, 1.0)
    assert torch.allclose(shift.norm(dim=(1, 2)), torch.full((3,), 1e-3, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["score", "ratio"])
def test_limit_bounds_the_shift_of_each_member(mode):
    prior = chain()
    x = noisy(prior)
    free = GuidedPrior(prior, [Stage("pull", pull, mode=mode)]).denoise(x, 1.5) - prior.denoise(x, 1.5)
    length = free.square().sum(-1).mean(1).sqrt()
    limit = float(length.sort().values[1]) * 1.01  # the largest of three is over it
    guided = GuidedPrior(prior, [Stage("pull", pull, mode=mode, limit=limit)])
    found = guided.denoise(x, 1.5) - prior.denoise(x, 1.5)
    shorter = found.square().sum(-1).mean(1).sqrt()
    assert torch.allclose(shorter, length.clamp(max=limit))
    assert torch.allclose(found / shorter[:, None, None], free / length[:, None, None])


def test_stages_do_not_accumulate_into_each_other():
    prior = chain()
    x = noisy(prior)
    plain = prior.denoise(x, 1.0)

    def push(atoms, sigma):
        return atoms[:, 7].sum()

    first = GuidedPrior(prior, [Stage("pull", pull)]).denoise(x, 1.0) - plain
    second = GuidedPrior(prior, [Stage("push", push, weight=2.0)]).denoise(x, 1.0) - plain
    both = GuidedPrior(prior, [Stage("pull", pull), Stage("push", push, weight=2.0)])
    assert torch.allclose(both.denoise(x, 1.0) - plain, first + second)
    assert torch.allclose(both.denoise(x, 1.0) - plain, first + second)


def test_correlated_noise_preconditions_the_shift():
    prior = chain()
    factor = torch.tril(torch.rand(16, 16, dtype=torch.float64)) + torch.eye(16, dtype=torch.float64)

    class Shrinker:
        topology = prior.topology
        process = EDM(center=prior.mean, sigma_max=5.0, factor=factor)

        def denoise(self, x_t, t):
            return x_t / (1 + t)

    x = noisy(prior)
    guided = GuidedPrior(Shrinker(), [Stage("pull", pull)])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pull(leaf / 3, 2.0), leaf)
    assert torch.allclose(guided.denoise(x, 2.0), x / 3 + 4 * factor @ factor.T @ gradient)


def test_is_a_prior():
    prior = chain()
    guided = GuidedPrior(prior, [Stage("pull", pull)])
    assert isinstance(guided, Prior)
    assert guided.topology is prior.topology
    assert guided.process is prior.process
