"""The variance-preserving process for a denoiser of EDM noise, in its own variable and on Gaussians."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from densemble.priors.edm import EDM
from evaluate import Sampling, sample
from reverse import Reverse
from samplers import PROCESSES

VP_ODE, VP_SDE = {"vp_unit": 1.7}, {"vp_unit": 1.7, "posterior": True}
MEAN = torch.tensor([[1.0, -2, 3], [4, 5, 6]], dtype=torch.float64)


def process(**options):
    return Reverse(MEAN, sigma_max=60.0, sigma_min=0.05, **options)


def drawn(reverse, denoise, steps, members=20000):
    """Mean, shape=(2, 3), and standard deviation over all coordinates after each step."""
    generator = torch.Generator().manual_seed(0)
    x, times, found = reverse.initial(members, generator), reverse.times(steps), []
    for t, t_next in pairwise(times):
        x = reverse.step(denoise, x, t, t_next, generator)
        found.append((t_next, x.mean(0), float((x - MEAN).square().mean().sqrt())))
    return found


def gaussian(width):
    """E[x0 | x] where x0 ~ N(MEAN, width^2)."""
    return lambda x, sigma: MEAN + width**2 / (width**2 + sigma**2) * (x - MEAN)


def test_levels_are_evenly_spaced_in_the_label_of_the_published_rate():
    times = process(**VP_ODE).times(7)
    assert times[0] == pytest.approx(60)
    assert times[-2:] == pytest.approx([0.05, 0])
    # s = exp(-1/2 integral of 0.1 + 19.9 t), integrated numerically; t where it is 1/sqrt(1 + sigma^2)
    grid = np.linspace(0, 1, 200001)
    rate = 0.1 + 19.9 * grid
    integral = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid))])
    labels = np.interp(np.log1p((np.array(times[:-1]) / 1.7) ** 2), integral, grid)
    assert np.diff(labels) == pytest.approx(np.full(6, np.diff(labels).mean()), rel=1e-4)


def test_without_a_unit_levels_and_steps_are_those_of_edm():
    edm = EDM(MEAN, sigma_max=60.0, sigma_min=0.05, churn=0.4)
    ours = process(churn=0.4)
    assert ours.times(9) == edm.times(9)
    x = edm.initial(3, torch.Generator().manual_seed(1))
    steps = [p.step(gaussian(2.0), x, 9.0, 7.0, torch.Generator().manual_seed(2)) for p in (edm, ours)]
    assert torch.equal(*steps)


def test_step_is_that_of_ddpm_in_the_scaled_variable():
    """Ho et al. 2020, Eq. 7, with the cumulative alphas s^2 of the two levels."""
    t, t_next, unit = 5.0, 2.0, 1.7
    high, low = (1 / (1 + (sigma / unit) ** 2) for sigma in (t, t_next))  # their alpha-bar
    alpha = high / low
    x0 = MEAN[None] / unit
    x = 3 * torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled = math.sqrt(high) * x / unit
    mean = math.sqrt(low) * (1 - alpha) / (1 - high) * x0
    mean = mean + math.sqrt(alpha) * (1 - low) / (1 - high) * scaled
    z = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = mean + math.sqrt((1 - low) / (1 - high) * (1 - alpha)) * z
    found = process(**VP_SDE).step(lambda x, t: MEAN[None], x, t, t_next, torch.Generator().manual_seed(2))
    assert torch.allclose(math.sqrt(low) * found / unit, expected, rtol=1e-12, atol=1e-12)


def test_flow_solves_the_ode_of_the_scaled_variable():
    """dy/dt = s'/s y + sigma'/sigma (y - s D(y / s)), Karras et al. 2022, Eq. 81, by midpoints."""
    unit, x0 = 1.7, MEAN[None] / 1.7

    def slope(y, t):
        rate = 0.1 + 19.9 * t
        variance = math.expm1(0.1 * t + 19.9 * t * t / 2)
        s = 1 / math.sqrt(1 + variance)
        return -rate / 2 * y + rate * (1 + variance) / (2 * variance) * (y - s * x0)

    def level(t):
        return unit * math.sqrt(math.expm1(0.1 * t + 19.9 * t * t / 2))

    x = 4 * torch.ones(1, 2, 3, dtype=torch.float64)
    t, t_next, steps = 0.6, 0.4, 2000
    y = x / unit / math.sqrt(1 + (level(t) / unit) ** 2)
    h = (t_next - t) / steps
    for i in range(steps):
        now = t + i * h
        y = y + h * slope(y + h / 2 * slope(y, now), now + h / 2)
    found = process(**VP_ODE).step(lambda x, t: MEAN[None], x, level(t), level(t_next), torch.Generator())
    assert torch.allclose(y * math.sqrt(1 + (level(t_next) / unit) ** 2) * unit, found, rtol=1e-6)


@pytest.mark.parametrize("options", [VP_ODE, VP_SDE, {"posterior": True}])
def test_samples_of_a_point_have_the_noise_of_every_level_however_few_the_steps(options):
    for sigma, mean, sd in drawn(process(**options), lambda x, t: MEAN.expand_as(x), 4):
        assert sd == pytest.approx(sigma, rel=0.01)
        assert torch.allclose(mean, MEAN, atol=5 * sigma / math.sqrt(20000))


def spread_kept(reverse, width, steps):
    """Standard deviation of samples of N(MEAN, width^2) over width: every step is linear, so it is known."""
    times = reverse.times(steps)
    variance = times[0] ** 2
    for t, t_next in pairwise(times):
        if reverse.churn and t > reverse.churn_min:
            raised = t * (1 + reverse.churn)
            variance, t = variance + raised**2 - t**2, raised
        share, ratio = width**2 / (width**2 + t**2), t_next / t
        kept = ratio**2 if reverse.posterior else ratio
        variance *= (share + kept * (1 - share)) ** 2
        variance += t_next**2 * (1 - ratio**2) if reverse.posterior else 0
    return math.sqrt(variance) / width


@pytest.mark.parametrize("options", [{}, {"churn": 1.0}, {"posterior": True}, VP_ODE, VP_SDE])
def test_samples_of_a_gaussian_have_its_mean_and_the_spread_of_linear_steps(options):
    for steps in (3, 15, 200):
        _, mean, sd = drawn(process(**options), gaussian(2.0), steps, 5000)[-1]
        assert sd == pytest.approx(2 * spread_kept(process(**options), 2.0, steps), rel=0.02)
        assert torch.allclose(mean, MEAN, atol=5 * sd / math.sqrt(5000))


@pytest.mark.parametrize("options", [VP_ODE, VP_SDE, {"posterior": True}])
def test_with_many_steps_samples_have_the_variance_of_the_prior(options):
    assert spread_kept(process(**options), 2.0, 20000) == pytest.approx(1, abs=2e-3)
    assert drawn(process(**options), gaussian(2.0), 300, 5000)[-1][2] == pytest.approx(2.0, rel=0.04)


def test_spread_kept_is_what_the_model_card_says():
    """Of a Gaussian of 1 Å, 3.38 Å being the widest expected, by 50 steps."""
    found = {}
    for name in ("EDM, churn 1", "EDM, ODE", "VP, ODE", "VP, SDE"):
        s = PROCESSES[f"{name}, 50 steps"]
        unit = None if s.vp_unit is None else 3.38 * s.vp_unit
        reverse = Reverse(
            MEAN,
            sigma_max=3.38 * s.widths,
            sigma_min=s.sigma_min,
            churn=s.churn,
            vp_unit=unit,
            posterior=s.posterior,
        )
        found[name] = round(spread_kept(reverse, 1.0, s.steps), 2)
    assert found == {"EDM, churn 1": 0.84, "EDM, ODE": 0.97, "VP, ODE": 0.95, "VP, SDE": 0.9}


def test_posterior_steps_bring_no_other_noise():
    for other in ({"churn": 0.1}, {"heun": True}):
        with pytest.raises(ValueError, match="posterior"):
            process(posterior=True, **other)


def test_sampling_has_the_unit_in_widths():
    """The first and last levels that the denoiser sees, and one between them, of a set 3 Å wide."""
    seen = []
    sampling = Sampling(members=1, steps=3, churn=0.0, vp_unit=0.5, posterior=True)

    def denoise(x, sigma):
        seen.append(sigma)
        return 0 * x

    last = sample(denoise, torch.zeros(1, 2, 4, 3), 12.0, sampling, torch.Generator().manual_seed(0))
    expected = Reverse(MEAN, sigma_max=12.0, sigma_min=0.05, vp_unit=1.5).times(3)
    assert seen == pytest.approx(expected[:3])
    assert not last.any()  # after the last step nothing is left of the noise
    seen.clear()
    sample(denoise, torch.zeros(1, 2, 4, 3), 12.0, replace(sampling, vp_unit=None), torch.Generator())
    assert seen == pytest.approx(EDM(MEAN, sigma_max=12.0, sigma_min=0.05).times(3)[:3])
