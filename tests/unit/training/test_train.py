import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from densemble.priors.segment_network import NetworkConfig
from examples import random_batch
from train import Trainer, TrainingConfig, local_distances, loss_terms, split_parameters

SMALL = NetworkConfig(
    width=16, heads=2, hidden=24, context_layers=1, stages=(1, 1), pair=8, pair_value=4, condition=12
)
SHIPPED = Path(train.__file__).with_name("segments.toml")


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    n = 240
    steps = rng.integers(-150, 150, size=(4 * n, 3)).astype(np.int16)
    np.savez(
        tmp_path / "chains.npz",
        offset=np.arange(5) * 60,
        seq=rng.choice(np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8), n),
        chain=np.array(["a", "b", "c", "d"]),
        validation=np.array([False, False, False, True]),
        delta=steps,
    )
    (tmp_path / "excluded.txt").write_text("# remark\nc\n")
    shipped = TrainingConfig.read(SHIPPED)
    return dataclasses.replace(
        shipped,
        corpus=str(tmp_path / "chains.npz"),
        excluded=str(tmp_path / "excluded.txt"),
        steps=6,
        decay=3,
        warmup=2,
        processes=1,
        tokens=160,
        copies=4,
        validate_every=3,
        network=SMALL,
    )


def test_shipped_config_reads_and_its_rate_rises_and_falls():
    config = TrainingConfig.read(SHIPPED)
    rates = [config.rate(s) for s in range(config.steps + 1)]
    assert rates[0] < rates[config.warmup] == 1.0 == rates[config.steps - config.decay]
    assert rates[-1] == 0.0
    assert np.diff(rates[config.steps - config.decay :]).max() < 0


def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path):
    whole = train.run(config, tmp_path / "whole")
    train.run(config, tmp_path / "parts", until=2)
    parts = train.run(config, tmp_path / "parts")
    assert whole.step == parts.step == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name
        assert torch.equal(whole.average[name], parts.average[name]), name
    assert (tmp_path / "parts" / "validation.csv").read_text().count("\n") == 3


def test_validation_and_excluded_chains_are_left_out(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    assert trainer.corpus.names[trainer.chains].tolist() == ["a", "b"]


def test_training_changes_every_weight_that_is_used(config, tmp_path):
    trainer = train.run(config, tmp_path / "run")
    torch.manual_seed(config.seed)
    start = Trainer(config, trainer.corpus).network.state_dict()
    still = [n for n, v in trainer.network.state_dict().items() if torch.equal(v, start[n])]
    assert still == []


def test_muon_gets_the_hidden_matrices_alone(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    hidden, other = split_parameters(trainer.network)
    assert all(p.ndim == 2 and min(p.shape) >= 16 for p in hidden)
    assert len(hidden) == 3 * 4
    assert len(hidden) + len(other) == len(list(trainer.network.parameters()))


def test_loss_is_zero_for_the_truth_and_one_for_a_typical_error(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    rng = np.random.default_rng(0)
    batch = random_batch(
        trainer.corpus, trainer.chains, tokens=160, copies=4, terminal=0.5, hide=0.0, rng=rng, length=5
    )
    truth = batch.truth[:, None].expand_as(batch.noisy)
    terms = loss_terms([truth, truth], batch)
    assert set(terms) == {"stage0", "stage1", "geometry"}
    assert all(float(t.max()) == 0.0 for t in terms.values())
    # an error of one EDM output scale (Karras et al. 2022, c_out) costs exactly one
    sigma, width = batch.sigma[..., None, None], batch.segment.width[:, None]
    scale = sigma * width / (sigma**2 + width**2).sqrt()
    off = loss_terms([truth + scale[..., None]], batch)
    assert torch.allclose(off["stage0"], torch.ones_like(batch.sigma), rtol=1e-3)
    assert float(off["geometry"].min()) > 0


def test_local_distances_include_the_anchors(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    batch = random_batch(
        trainer.corpus,
        trainer.chains,
        tokens=160,
        copies=4,
        terminal=0.0,
        hide=0.0,
        rng=np.random.default_rng(1),
        length=3,
    )
    found = local_distances(batch.truth[:, None], batch.segment)
    assert found.shape[2:] == (4, 28)
    first = torch.cat([batch.segment.anchors[:, 0], batch.truth[:, 0]], dim=1)
    expected = torch.stack([torch.pdist(x) for x in first])
    assert torch.allclose(found[:, 0, 0], expected, atol=1e-3)
