import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from batches import moved
from corpus import load
from densemble.priors.chain_network import ChainNetworkConfig, width_of
from densemble.priors.segment_network import NetworkConfig
from densemble.priors.weights import save_network
from examples import random_batch
from segment_task import SegmentTask, anchored_distances
from train import Trainer, TrainingConfig, split_parameters

SMALL = NetworkConfig(
    width=16, heads=2, hidden=24, context_layers=1, stages=(1, 1), pair=8, pair_value=4, condition=12
)
SMALL_CHAINS = ChainNetworkConfig(
    width=16,
    heads=2,
    key=8,
    value=8,
    hidden=16,
    stages=(1, 1),
    pair=8,
    pair_value=4,
    condition=12,
    rigid=8,
)
SHIPPED = {name: Path(train.__file__).with_name(f"{name}.toml") for name in train.TASKS}


@pytest.fixture
def corpus(tmp_path):
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
    return tmp_path / "chains.npz"


@pytest.fixture(params=list(train.TASKS))
def config(request, corpus, tmp_path):
    shipped = TrainingConfig.read(SHIPPED[request.param])
    small = SMALL if request.param == "segments" else SMALL_CHAINS
    return dataclasses.replace(
        shipped,
        corpus=str(corpus),
        excluded=str(tmp_path / "excluded.txt"),
        steps=6,
        decay=3,
        warmup=2,
        processes=1,
        precision="float32",
        validate_every=3,
        task=dataclasses.replace(shipped.task, tokens=160, copies=4, network=small),
    )


@pytest.fixture
def batch(corpus):
    """Segments at a chain's end among them."""
    chains = load(corpus)
    rng = np.random.default_rng(0)
    shape = {"tokens": 160, "copies": 4, "terminal": 0.5, "hide": 0.0, "length": 5}
    return random_batch(chains, chains.chosen(validation=False), rng=rng, **shape)


@pytest.mark.parametrize("name", list(train.TASKS))
def test_shipped_config_reads_and_its_rate_rises_and_falls(name):
    config = TrainingConfig.read(SHIPPED[name])
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


def test_batches_built_in_the_background_are_the_same(config, tmp_path):
    here = train.run(config, tmp_path / "here", until=3)
    there = train.run(dataclasses.replace(config, workers=1), tmp_path / "there", until=3)
    for name, value in here.network.state_dict().items():
        assert torch.equal(value, there.network.state_dict()[name]), name


def test_a_batch_moves_as_a_whole(config, corpus):
    chains = load(corpus)
    batch = config.task.batch(chains, chains.chosen(validation=False), [0, 0], 0)
    found = moved(batch, torch.device("meta"))
    tensors = [x for x in tree(found) if isinstance(x, torch.Tensor)]
    assert len(tensors) >= 13
    assert {x.device.type for x in tensors} == {"meta"}
    assert type(found) is type(batch)


def tree(value):
    if dataclasses.is_dataclass(value):
        return [x for f in dataclasses.fields(value) for x in tree(getattr(value, f.name))]
    return [x for part in value for x in tree(part)] if isinstance(value, tuple) else [value]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_trains_on_an_accelerator(config, tmp_path):
    trainer = train.run(dataclasses.replace(config, device="cuda"), tmp_path / "run")
    assert trainer.step == config.steps


def test_validation_and_excluded_chains_are_left_out(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    assert trainer.corpus.names[trainer.chains].tolist() == ["a", "b"]


def test_half_the_data_is_half_of_the_chains_chosen_by_the_seed(config, corpus):
    chains = load(corpus)
    whole = Trainer(config, chains).chains
    halves = [
        Trainer(dataclasses.replace(config, fraction=0.5, seed=seed), chains).chains for seed in range(8)
    ]
    assert whole.tolist() == [0, 1]
    assert {half.tolist()[0] for half in halves} == {0, 1}
    assert all(len(half) == 1 for half in halves)
    again = Trainer(dataclasses.replace(config, fraction=0.5, seed=0), chains).chains
    assert np.array_equal(again, halves[0])


def test_training_changes_every_weight_that_is_used(config, tmp_path):
    trainer = train.run(config, tmp_path / "run")
    torch.manual_seed(config.seed)
    start = Trainer(config, trainer.corpus).network.state_dict()
    still = [n for n, v in trainer.network.state_dict().items() if torch.equal(v, start[n])]
    assert still == []


def test_muon_gets_the_hidden_matrices_alone(config, tmp_path):
    trainer = train.run(config, tmp_path / "run", until=1)
    hidden, other = split_parameters(trainer.network)
    assert all(p.ndim == 2 and min(p.shape) >= 12 for p in hidden)
    assert len(hidden) == 4 * (3 if isinstance(config.task, SegmentTask) else 2)
    assert len(hidden) + len(other) == len(list(trainer.network.parameters()))


def test_segment_loss_is_zero_for_the_truth_and_one_for_a_typical_error(batch):
    task = TrainingConfig.read(SHIPPED["segments"]).task
    truth = batch.truth[:, None].expand_as(batch.noisy)
    terms = task.terms([truth, truth], batch)
    assert set(terms) == {"stage0", "stage1", "geometry"}
    assert all(float(t.max()) == 0.0 for t in terms.values())
    # an error of one EDM output scale (Karras et al. 2022, c_out) costs exactly one
    sigma, width = batch.sigma[..., None, None], batch.segment.width[:, None]
    scale = sigma * width / (sigma**2 + width**2).sqrt()
    off = task.terms([truth + scale[..., None]], batch)
    assert torch.allclose(off["stage0"], torch.ones_like(batch.sigma), rtol=1e-3)
    assert float(off["geometry"].min()) > 0


def test_chain_loss_is_zero_for_the_truth_and_one_for_a_typical_error(corpus):
    task = dataclasses.replace(TrainingConfig.read(SHIPPED["chains"]).task, tokens=200, copies=4)
    chains = load(corpus)
    batch = task.batch(chains, chains.chosen(validation=False), [3], 0)
    assert len(batch) == 4
    truth = batch.truth.expand_as(batch.noisy)
    terms = task.terms([truth, truth], batch)
    assert all(float(t.max()) == 0.0 for t in terms.values())
    sigma, width = batch.sigma[:, None], width_of(batch.graph)
    scale = (sigma * width / (sigma**2 + width**2).sqrt())[..., None, None]
    assert torch.allclose(task.terms([truth + scale], batch)["stage0"], torch.ones(4), rtol=1e-3)
    off = truth.clone()
    off[:, 20] += 0.3
    assert float(task.terms([off], batch)["geometry"].min()) > 0
    # the ends of two chains are no link
    graph = batch.graph
    alone = dataclasses.replace(
        batch, graph=dataclasses.replace(graph, linked=torch.zeros_like(graph.linked))
    )
    assert float(task.terms([off], alone)["geometry"].max()) == 0.0


def test_local_distances_include_the_anchors(batch):
    found = anchored_distances(batch.truth[:, None], batch.segment)
    assert found.shape[2:] == (6, 28)
    first = torch.cat([batch.segment.anchors[:, 0], batch.truth[:, 0]], dim=1)
    expected = torch.stack([torch.pdist(x) for x in first])
    inside = batch.segment.anchored[:, 0]
    assert 0 < int(inside.sum()) < len(inside)
    assert torch.allclose(found[inside, 0, 0], expected[inside], atol=1e-3)


def test_trains_on_from_weights(config, corpus, tmp_path):
    first = Trainer(config, load(corpus)).network
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.25)
    save_network(first, tmp_path / "weights.safetensors", facts={})
    trainer = Trainer(
        dataclasses.replace(config, initial=str(tmp_path / "weights.safetensors")), load(corpus)
    )
    for name, value in first.state_dict().items():
        assert torch.allclose(trainer.network.state_dict()[name], value, atol=2e-3), name
        assert torch.equal(trainer.average[name], trainer.network.state_dict()[name]), name
