"""Nothing of a segment's true coordinates reaches what is sampled for it."""

import dataclasses

import numpy as np
import pytest
import torch
from ideal import small_network

from corpus import Corpus, cut
from densemble.priors.embedded import load_network
from densemble.priors.segment_geometry import stack
from evaluate import Sampling, bridge_denoiser, measure, network_denoiser, sample
from reverse import Reverse

START, LENGTH = 20, 8
FEW = Sampling(members=3, steps=4)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    course = np.cumsum(rng.normal(size=(70, 1, 3)) * 2.2, axis=0)
    atoms = (course + rng.normal(size=(70, 4, 3))).astype(np.float32)
    return Corpus(
        atoms, rng.integers(0, 20, 70), np.array([0, 70]), np.array(["one"]), np.ones(1, dtype=bool)
    )


def with_another_truth(corpus, change):
    atoms = corpus.atoms.copy()
    atoms[START : START + LENGTH] = change(atoms[START : START + LENGTH])
    return dataclasses.replace(corpus, atoms=atoms)


def another_conformation(x):
    return x[::-1] + np.random.default_rng(1).normal(size=x.shape).astype(np.float32)


CHANGES = {
    "shifted": lambda x: x + np.float32(5.0),
    "another": another_conformation,
    "unknown": lambda x: np.full_like(x, np.nan),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("network", ["random", "shipped"])
def test_samples_are_the_same_bits_whatever_the_truth(corpus, change, network):
    network = small_network() if network == "random" else load_network()
    drawn = []
    for chains in (corpus, with_another_truth(corpus, CHANGES[change])):
        item, _ = cut(*chains.chain(0), START, LENGTH)
        segment = stack([item])
        generator = torch.Generator().manual_seed(3)
        drawn.append(sample(network_denoiser(network, segment), segment.mean, 12.0, FEW, generator))
    assert drawn[0].isfinite().all()
    assert torch.equal(*drawn)


def test_the_whole_measurement_sees_the_truth_in_the_rmsd_alone(corpus):
    network = small_network()
    shifted = with_another_truth(corpus, CHANGES["shifted"])
    rows = [measure(network, chains, [(0, START)], LENGTH, FEW, 3) for chains in (corpus, shifted)]
    assert rows[0][1] == rows[1][1]  # chemistry of the samples: equal to the last bit
    assert rows[0][0]["single_median"] != rows[1][0]["single_median"]
    for prior in (rows[0][0], rows[0][0]["closed_form"]):
        assert prior["single_median"] > 0


def test_a_change_next_to_the_segment_is_seen(corpus):
    """The test of equal bits can fail: the anchors do reach the samples."""
    atoms = corpus.atoms.copy()
    atoms[START - 1] += np.float32(0.01)
    moved = dataclasses.replace(corpus, atoms=atoms)
    drawn = []
    for chains in (corpus, moved):
        segment = stack([cut(*chains.chain(0), START, LENGTH)[0]])
        generator = torch.Generator().manual_seed(3)
        drawn.append(sample(network_denoiser(small_network(), segment), segment.mean, 12.0, FEW, generator))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("heun", [False, True])
def test_the_start_is_pure_noise_about_the_expected_course(corpus, heun):
    item, truth = cut(*corpus.chain(0), START, LENGTH)
    segment = stack([item])
    sampling = Sampling(members=400, steps=3, churn=0.3, heun=heun)
    first = []

    def denoise(x, sigma):
        first.append((x.clone(), sigma))
        return bridge_denoiser(segment)(x, sigma)

    sigma_max = sampling.widths * float(segment.width.max())
    sample(denoise, segment.mean, sigma_max, sampling, torch.Generator().manual_seed(0))
    x, sigma = first[0]
    assert sigma == pytest.approx(1.3 * sigma_max)  # raised by the churn
    away = (x[0] - segment.mean[0]).flatten()
    assert float(away.std()) == pytest.approx(sigma, rel=0.02)
    error = sigma / len(away) ** 0.5
    assert abs(float(away.mean())) < 5 * error
    # and nothing of it points towards the truth
    towards = torch.from_numpy(truth).float() - segment.mean[0]
    along = ((x[0] - segment.mean[0]) * towards / towards.norm()).sum((1, 2, 3))
    assert abs(float(along.mean())) < 4 * sigma / 400**0.5


def test_options_of_the_sampler_reach_the_process(corpus, monkeypatch):
    seen = []

    class Spy(Reverse):
        def __post_init__(self):
            super().__post_init__()
            seen.append((self.rho, self.heun, self.churn, self.churn_min, self.sigma_min, self.sigma_max))

    monkeypatch.setattr("evaluate.Reverse", Spy)
    segment = stack([cut(*corpus.chain(0), START, LENGTH)[0]])
    sampling = Sampling(members=2, steps=2, churn=0.1, churn_min=0.2, sigma_min=0.3, rho=5.0, heun=True)
    sample(bridge_denoiser(segment), segment.mean, 9.0, sampling, torch.Generator().manual_seed(0))
    assert seen == [(5.0, True, 0.1, 0.2, 0.3, 9.0)]
