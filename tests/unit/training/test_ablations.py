"""Equal runs that are told less: each trains, and is measured on what it was told."""

import dataclasses
import json

import numpy as np
import pytest
from ideal import SMALL, ideal_corpus

import ablations
from ablations import BASELINE, VARIANTS, figures, text, variant
from corpus import Corpus
from evaluate import Sampling
from train import ROOT, Trainer, TrainingConfig

FEW = {"segments": 2, "sampling": Sampling(members=16, steps=2), "seed": 0}


@pytest.fixture(scope="module")
def shipped():
    return TrainingConfig.read(ROOT / "training" / "ablations.toml")


@pytest.fixture
def base(shipped, tmp_path, monkeypatch):
    """Small, and without a file: four chains to train on, three to validate."""
    monkeypatch.setattr(ablations, "SETS", (("all", 4), ("loop", 5)))
    (tmp_path / "excluded.txt").write_text("")
    task = dataclasses.replace(shipped.task, tokens=160, copies=4, network=SMALL)
    return dataclasses.replace(
        shipped,
        excluded=str(tmp_path / "excluded.txt"),
        out=str(tmp_path / "runs"),
        steps=4,
        decay=2,
        warmup=1,
        precision="float32",
        task=task,
    )


def chains(shift=0):
    """Seven ideal chains of mixed sequence, the last three for validation."""
    turns = ((-62, -42), (-120, 130), (-75, 145), (-65, -40), (-110, 125), (-70, 150), (-62, -42))
    ideal = ideal_corpus(turns)
    kinds = (np.arange(len(ideal.types)) + shift) % 20
    return Corpus(ideal.atoms, kinds, ideal.offset, ideal.names, np.arange(7) >= 4)


def trained(config, corpus):
    trainer = Trainer(config, corpus)
    while trainer.step < config.steps:
        trainer.advance(trainer.batch(trainer.step))
    return trainer


def test_runs_differ_in_one_setting_and_in_their_folder(shipped):
    whole = variant(shipped, BASELINE)
    assert (whole.task.sequence, whole.task.context, whole.fraction) == (True, True, 1.0)
    for name in VARIANTS:
        config = variant(shipped, name)
        said = {"sequence": config.task.sequence, "context": config.task.context, "fraction": config.fraction}
        plain = {"sequence": True, "context": True, "fraction": 1.0}
        assert {k for k in said if said[k] != plain[k]} == set(VARIANTS[name])
        alike = dataclasses.replace(config.task, sequence=True, context=True)
        assert dataclasses.replace(config, out=whole.out, fraction=1.0, task=alike) == whole
    assert len({variant(shipped, name).out for name in VARIANTS}) == len(VARIANTS)
    assert shipped.processes == 1  # a run is one process, which measures too


@pytest.mark.parametrize("name", VARIANTS)
def test_every_run_trains_and_is_measured(base, name):
    corpus = chains()
    trainer = trained(variant(base, name), corpus)
    result = figures(trainer, corpus, **FEW)
    assert result["steps"] == 4
    assert result["chains"] == (2 if name == "half the data" else 4)
    assert result["validation"]["stage1"] > 0
    assert set(result["sets"]) == {"all 4", "loop 5"}
    for row in result["sets"].values():
        assert 0 < row["best16_median"] <= row["single_median"]
        assert 0 <= row["ramachandran_outliers"] <= 1
    line = text({name: json.loads(json.dumps(result))}).splitlines()[1]
    assert line.startswith(name)
    assert f"{result['validation']['stage1']:.3f}" in line


def test_what_a_run_was_not_told_does_not_reach_its_samples(base):
    """Another sequence: other samples but from the network that never knew it."""
    same = []
    for name in (BASELINE, "without sequence", "without context"):
        trainer = trained(variant(base, name), chains())
        rows = [figures(trainer, corpus, **FEW)["sets"]["all 4"] for corpus in (chains(), chains(shift=3))]
        same.append(rows[0]["single_mean"] == rows[1]["single_mean"])
    assert same == [False, True, False]
