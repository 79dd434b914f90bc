"""The variance-preserving process, against its equations written out and a Gaussian in closed form."""

import itertools
import math

import pytest
import torch

from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.priors.held import Substructure
from densemble.priors.protocol import NoiseProcess
from densemble.priors.variance_preserving import LinearLogSnr, VariancePreserving
from densemble.sampler import sample
from densemble.testing import chain_topology, check_prior

DOUBLE = {"dtype": torch.float64}


def walk(atoms: int, step: float = 1.5) -> torch.Tensor:
    """A random walk's square root of its covariance: noise as strongly correlated along a chain as any."""
    return step * torch.tril(torch.ones(atoms, atoms, **DOUBLE)) + 0.3 * torch.eye(atoms, **DOUBLE)


def places(atoms: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(atoms, 3, generator=torch.Generator().manual_seed(seed), **DOUBLE)


class LikeNoise:
    """x0 ~ N(mean, (width L)(width L)^T): the linear stand-in whose covariance is that of the noise."""

    def __init__(self, process: VariancePreserving, mean: torch.Tensor, width: float) -> None:
        self.topology = chain_topology(len(mean) // 4)
        self.process = process
        self.mean, self.width = mean, width

    def denoise(self, x_t, t):
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        share = alpha * self.width**2 / (alpha**2 * self.width**2 + sigma**2)
        center = self.process.center
        return self.mean + share * (x_t - center - alpha * (self.mean - center))


def stand_in(residues: int = 5, **options) -> LikeNoise:
    process = VariancePreserving(walk(4 * residues), center=places(4 * residues, 1), **options)
    return LikeNoise(process, places(4 * residues, 2), width=0.6)


def test_schedule_is_linear_in_log_snr_and_preserves_variance():
    schedule, step = LinearLogSnr(-5.0, 9.0), 1e-6
    for t in (0.0, 0.3, 1.0):
        alpha, sigma = schedule.alpha_sigma(t)
        assert math.log(alpha**2 / sigma**2) == pytest.approx(9 - 14 * t)
        assert alpha**2 + sigma**2 == pytest.approx(1)
        fall = math.log(schedule.alpha_sigma(t + step)[0] / schedule.alpha_sigma(t - step)[0]) / step
        assert schedule.beta(t) == pytest.approx(-fall, rel=1e-5)


def test_noise_in_angstrom_tells_its_label():
    process = stand_in().process
    for t in (0.02, 0.3, 0.7, 1.0):
        assert process.level(process.sigma(t)) == pytest.approx(t, abs=1e-6)
    low, high = process.sigma(0.001), process.sigma(1.0)
    for sigma in (0.9 * low, 1.1 * high):
        with pytest.raises(ValueError, match=r"noise between .* and .* Å, not"):
            process.level(sigma)


def test_is_a_process_and_keeps_the_contract():
    assert isinstance(stand_in().process, NoiseProcess)
    check_prior(stand_in())


def test_marginals_are_those_of_the_forward_process(generator):
    process = stand_in(3).process
    x0 = places(12, 5).expand(20000, -1, -1)
    alpha, sigma = process.schedule.alpha_sigma(0.6)
    x = process.diffuse(x0, 0.6, generator)
    z = torch.linalg.solve(process.factor, x - process.center - alpha * (x0 - process.center))
    assert float(z.mean(0).abs().max()) < 5 * sigma / math.sqrt(20000)
    covariance = torch.einsum("kid,kjd->ij", z, z) / (3 * len(z))
    assert torch.allclose(
        covariance, sigma**2 * torch.eye(12, **DOUBLE), atol=5 * sigma**2 / math.sqrt(30000)
    )
    start = torch.linalg.solve(process.factor, process.initial(20000, generator) - process.center)
    assert float(start.std()) == pytest.approx(process.schedule.alpha_sigma(1.0)[1], rel=0.01)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("heat", [(1.0, 0.0, True), (4.0, 2.0, True), (4.0, 2.0, False)])
def test_step_is_the_equation_written_out(heat, centred):
    """Against matrices and a score by autograd of log p(x_t | x0_hat), in double precision."""
    temperature, langevin, isothermal = heat
    process = VariancePreserving(
        walk(8),
        center=places(8, 1) if centred else None,
        inverse_temperature=temperature,
        langevin_factor=langevin,
        langevin_isothermal=isothermal,
    )
    x0, x, t, t_next = places(8, 3)[None], places(8, 4)[None], 0.62, 0.6
    found = process.step(lambda x, t: x0, x, t, t_next, torch.Generator().manual_seed(3))
    z = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(3), **DOUBLE)
    log_snr = 13.5 - 20.5 * t
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))
    beta = 20.5 * sigma**2
    center = process.center if centred else x.mean(1, keepdim=True)
    middle = process.center if centred else x0.mean(1, keepdim=True)
    covariance = process.factor @ process.factor.T
    leaf = x.clone().requires_grad_()
    away = leaf - middle - alpha * (x0 - middle)
    log_p = -0.5 * (away * torch.linalg.solve(covariance, away)).sum() / sigma**2
    (score,) = torch.autograd.grad(log_p, leaf)
    lambda_t = temperature / (temperature * sigma**2 + alpha**2)
    lambda_l = temperature if isothermal else lambda_t
    drift = -beta / 2 * (x - center) - beta * (lambda_t + lambda_l * langevin / 2) * covariance @ score
    ahead = t_next - t
    expected = x + ahead * drift + math.sqrt(-ahead * beta * (1 + langevin)) * process.factor @ z
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centred", [True, False])
def test_shift_of_the_estimate_acts_as_the_score_that_causes_it(centred):
    """A step with x0_hat + precondition(g) is that with score + g."""
    process = VariancePreserving(walk(8), center=places(8, 1) if centred else None)
    x, x0, g = places(8, 3)[None], places(8, 4)[None], places(8, 5)[None]
    steps = [
        process.step(lambda x, t, to=to: to, x, 0.4, 0.39, torch.Generator().manual_seed(1))
        for to in (x0, x0 + process.precondition(g, 0.4))
    ]
    expected = 0.01 * process.schedule.beta(0.4) * process.factor @ process.factor.T @ g
    assert torch.allclose(steps[1] - steps[0], expected, rtol=1e-9, atol=1e-9)


def test_guided_posterior_of_a_gaussian_is_exact(generator):
    """Guidance at scale 1 with the exact log p(y | x_t): the samples have the closed-form posterior."""
    prior = stand_in(2)
    covariance = prior.width**2 * prior.process.factor @ prior.process.factor.T
    measured, noise = torch.tensor([1.0, -2.0, 0.5], **DOUBLE), 0.5

    def log_likelihood(x0, sigma):
        # of one atom's place; Cov[x0 | x_t] is proportional to the prior's
        ratio = (sigma / spread) ** 2
        left = ratio / (prior.width**2 + ratio) * covariance[5, 5]
        return -0.5 * ((x0[:, 5] - measured).square().sum(-1) / (left + noise**2)).sum()

    spread = float(prior.process.factor.square().sum(1).mean().sqrt())
    guided = GuidedPrior(prior, [Stage("place", log_likelihood)])
    x = sample(guided, steps=300, members=4000, generator=generator)
    gain = covariance[:, 5] / (covariance[5, 5] + noise**2)
    mean = prior.mean + gain[:, None] * (measured - prior.mean[5])
    left = covariance - torch.outer(gain, covariance[5])
    deviation = left.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / deviation[:, None]).abs().max()) < 0.1
    assert torch.allclose(x.var(0).mean(-1), deviation.square(), rtol=0.08)


def test_noise_level_in_angstrom():
    process = stand_in().process
    alpha, sigma = process.schedule.alpha_sigma(0.3)
    spread = process.factor.square().sum(1).mean().sqrt()
    assert process.sigma(0.3) == pytest.approx(float(sigma / alpha * spread))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"span": (0.5, 0.5)}, "span must fall"),
        ({"span": (1.2, 0.1)}, "span must fall"),
        ({"inverse_temperature": 0.0}, "inverse_temperature > 0"),
        ({"langevin_factor": -1.0}, "langevin_factor >= 0"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        VariancePreserving(walk(4), **options)


def test_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="must rise"):
        LinearLogSnr(3.0, 3.0)
    with pytest.raises(ValueError, match="one step"):
        VariancePreserving(walk(4)).times(0)
    with pytest.raises(ValueError, match=r"above 0\.001"):
        VariancePreserving(walk(4)).times(5, 0.001)
    assert VariancePreserving(walk(4)).times(4, 0.5)[0] == 0.5


def test_held_atoms_leave_the_closed_form_conditional(generator):
    """Mean and covariance of the free atoms, for a prior whose covariance is proportional to the noise's.

    The Euler-Maruyama recursion of these is closed too: samples must agree with it within their statistical
    error (5 s.d.), and the recursion with the conditional of the covariance within 1 %.
    """
    members, steps, prior = 4000, 400, stand_in(5)
    process, known = prior.process, places(20, 9)
    free = torch.zeros(20, dtype=torch.bool)
    free[8:16] = True
    conditioned = Substructure(prior, known, free)
    x = sample(conditioned, steps=steps, members=members, generator=generator)
    covariance = process.factor @ process.factor.T
    gain = covariance[free][:, ~free] @ torch.linalg.inv(covariance[~free][:, ~free])
    left = covariance[free][:, free] - gain @ covariance[~free][:, free]
    mean = prior.mean[free] + gain @ (known - prior.mean)[~free]
    center = process.center[free] + gain @ (known - process.center)[~free]
    offset, variance = recursion(process, steps, prior.width)
    ours = (x - center - offset * (mean - center)) / math.sqrt(variance)
    z = torch.linalg.solve(torch.linalg.cholesky(left), ours)
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(members)
    error = torch.einsum("kid,kjd->ij", z, z) / (3 * members) - torch.eye(8, **DOUBLE)
    assert float(error.abs().max()) < 5 * math.sqrt(2 / (3 * members))
    assert (offset, variance) == pytest.approx((1.0, prior.width**2), rel=0.01)
    assert torch.equal(conditioned.whole(x)[:, ~free], known[~free].expand(members, -1, -1))


def recursion(process: VariancePreserving, steps: int, width: float) -> tuple[float, float]:
    """What Euler-Maruyama makes of mean (over that of x0) and variance of x - c, in units of L L^T."""
    times = process.times(steps)
    offset, variance = 0.0, process.schedule.alpha_sigma(times[0])[1] ** 2
    for t, after in itertools.pairwise(times):
        alpha, sigma = process.schedule.alpha_sigma(t)
        beta, step = process.schedule.beta(t), t - after
        share = alpha * width**2 / (alpha**2 * width**2 + sigma**2)
        keep = 1 + step * beta * (0.5 + (alpha * share - 1) / sigma**2)
        offset = keep * offset + step * beta * alpha * (1 - alpha * share) / sigma**2
        variance = keep**2 * variance + step * beta
    return offset, variance


def test_network_sees_held_atoms_where_they_are():
    prior, seen = stand_in(3), []
    denoise = prior.denoise
    prior.denoise = lambda x, t: seen.append(x) or denoise(x, t)
    free = torch.arange(12) < 4
    known = places(12, 7)
    conditioned = Substructure(prior, known, free)
    x = places(4, 8)[None].repeat(3, 1, 1)
    conditioned.denoise(x, 0.5)
    assert torch.equal(seen[0][:, ~free], known[~free].expand(3, -1, -1))
    assert torch.equal(seen[0][:, free], x)
    check_prior(conditioned)


def test_substructure_without_a_centre_is_about_the_held_atoms():
    process = VariancePreserving(walk(8))
    known, held = places(8, 3), torch.arange(8) >= 4
    middle = known[4:].mean(0)
    expected, _ = VariancePreserving(walk(8), center=middle.expand(8, 3)).given(known, held)
    found, _ = process.given(known, held)
    assert torch.allclose(found.center, expected.center)


def test_substructure_needs_both_kinds_of_atoms():
    for free in (torch.zeros(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)):
        with pytest.raises(ValueError, match="free and atoms that are held"):
            Substructure(stand_in(3), places(12), free)
