"""Samplers against the exact posterior of a Gaussian prior: mean and covariance, within sampling error."""

import math

import pytest
import torch

from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.priors.edm import EDM
from densemble.priors.gaussian import GaussianPrior, anchored_chain
from densemble.sampler import SamplerState, load_checkpoint, sample, save_checkpoint
from densemble.testing import EnsembleMeasurement, chain_topology


def chain(residues=3, **process):
    topology = chain_topology(residues)
    n = len(topology)
    start = torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor([1.2, 0.1, 0.0], dtype=torch.float64)
    # sigma_max 100 against a prior s.d. of 1.5: starting from N(center, sigma_max^2) instead of
    # N(center, sigma_max^2 + C) costs a relative 1e-4
    noise = EDM(center=start, sigma_max=100.0, sigma_min=0.005, **process)
    return anchored_chain(
        topology,
        start,
        [list(range(residues))],
        anchored=[(True, True)],
        amplitude=1.5,
        smoothness=1.5,
        jitter=0.3,
        process=noise,
    )


def assert_gaussian(x, mean, covariance):
    """Samples [S, n, 3] have this mean [n, 3] and covariance [n, n] within 5 standard errors."""
    count = len(x)
    deviation = (x.mean(0) - mean).abs() / (covariance.diagonal()[:, None] / count).sqrt()
    assert float(deviation.max()) < 5, f"mean off by {float(deviation.max()):.1f} standard errors"
    centred = x - mean
    sample_covariance = torch.einsum("sid,sjd->ij", centred, centred) / (3 * count)
    variance = covariance.diagonal()
    error = ((covariance**2 + variance[:, None] * variance[None, :]) / (3 * count)).sqrt()
    deviation = (sample_covariance - covariance).abs() / error
    assert float(deviation.max()) < 5, f"covariance off by {float(deviation.max()):.1f} standard errors"


@pytest.mark.parametrize(
    ("process", "steps"), [({"heun": True}, 80), ({"heun": True, "churn": 0.2, "churn_min": 0.01}, 160)]
)
def test_unguided_samples_follow_the_prior(generator, process, steps):
    prior = chain(**process)
    x = sample(prior, steps=steps, members=2000, generator=generator)
    assert_gaussian(x, prior.mean, prior.covariance)


def test_guided_samples_follow_the_exact_posterior(generator):
    prior = chain(heun=True)
    operator = torch.zeros(2, 12, dtype=torch.float64)
    operator[0, 5], operator[1, 9] = 1.0, 1.0
    measured = prior.mean[[5, 9]] + torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, 1.0]], dtype=torch.float64)
    posterior = prior.condition(operator, measured, 0.4)

    def each(x0_hat, sigma):
        spread = operator @ prior.denoised_covariance(sigma) @ operator.T + 0.16 * torch.eye(2)
        residual = measured - operator @ x0_hat
        return -0.5 * (residual * torch.linalg.solve(spread, residual)).sum()

    guided = GuidedPrior(prior, [Stage("measurement", each)])
    x = sample(guided, steps=80, members=2000, generator=generator)
    assert_gaussian(x, posterior.mean, posterior.covariance)


def test_an_ensemble_measured_together_follows_its_joint_posterior(generator):
    """The linear analogue of Eq. 2: only the mean of the members is measured."""
    prior = chain(residues=2, heun=True)
    operator = torch.zeros(1, 8, dtype=torch.float64)
    operator[0, 3] = 1.0
    measured = prior.mean[[3]] + torch.tensor([[1.5, -1.0, 0.5]], dtype=torch.float64)
    members, repeats = 3, 400
    measurement = EnsembleMeasurement(prior, operator, measured, 0.2)

    def separate_ensembles(x0_hat, sigma):
        groups = x0_hat.reshape(repeats, members, 8, 3)
        return torch.stack([measurement.log_probability(group, sigma) for group in groups]).sum()

    guided = GuidedPrior(prior, [Stage("measurement", separate_ensembles)])
    x = sample(guided, steps=40, members=members * repeats, generator=generator)
    mean, covariance = measurement.posterior(members)
    assert_gaussian(x.reshape(repeats, members * 8, 3), mean.reshape(members * 8, 3), covariance)
    # what makes it an ensemble: members compensate for each other, which independent ones would not
    joint = covariance.reshape(members, 8, members, 8)
    assert float(joint[0, 3, 1, 3]) < -0.1 * math.sqrt(float(joint[0, 3, 0, 3] * joint[1, 3, 1, 3]))


def test_a_wrong_sampler_would_be_noticed(generator):
    prior = chain(heun=True)
    too_tight = GaussianPrior(prior.topology, prior.mean, 0.8 * prior.covariance, prior.process)
    x = sample(too_tight, steps=80, members=2000, generator=generator)
    with pytest.raises(AssertionError, match="covariance off"):
        assert_gaussian(x, prior.mean, prior.covariance)


def test_same_seed_same_samples_and_resuming_changes_nothing(tmp_path):
    prior = chain(churn=0.3)
    options = {"steps": 12, "members": 4}
    whole = sample(prior, generator=torch.Generator().manual_seed(5), **options)
    again = sample(prior, generator=torch.Generator().manual_seed(5), **options)
    other = sample(prior, generator=torch.Generator().manual_seed(6), **options)
    assert torch.equal(whole, again)
    assert not torch.equal(whole, other)

    class KilledError(Exception):
        pass

    path = tmp_path / "state.pt"

    def save_and_die(state):
        save_checkpoint(path, vars(state))
        if state.step == 7:
            raise KilledError

    with pytest.raises(KilledError):
        sample(prior, generator=torch.Generator().manual_seed(5), on_step=save_and_die, **options)
    state = SamplerState(**load_checkpoint(path))
    resumed = sample(prior, generator=torch.Generator().manual_seed(99), state=state, **options)
    assert torch.equal(whole, resumed)


def test_divergence_is_reported(generator):
    prior = chain()

    class Broken:
        topology, process = prior.topology, prior.process

        def denoise(self, x_t, t):
            return x_t * float("nan")

    with pytest.raises(FloatingPointError, match="step 1 of 5"):
        sample(Broken(), steps=5, members=1, generator=generator)
