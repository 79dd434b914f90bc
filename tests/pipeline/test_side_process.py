"""Guides that are only compared with, sampled in a second process."""

import os

import pytest
import torch
from small_crystal import StopAt, StoppedError, outcome

from densemble import side_process
from densemble.pipeline import run_xray
from densemble.side_process import one_thread


@pytest.fixture(scope="module")
def settings(crystal):
    return crystal.settings(guides=("none", "each", "ensemble"), steps=12, states=False)


@pytest.fixture(scope="module")
def one_after_the_other(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence") / "out"
    with one_thread():
        result = run_xray(settings, folder)
    return folder, result


def test_side_by_side_they_give_the_same(settings, one_after_the_other, tmp_path, monkeypatch):
    monkeypatch.setattr(side_process, "cores", lambda: 2)
    out, here = tmp_path / "out", StopAt()
    with one_thread():
        result = run_xray(settings, out, side_by_side=True, progress=here)
    assert {guide for guide, _ in here.seen} == {"ensemble"}  # the others were not sampled in this process
    assert outcome(out) == outcome(one_after_the_other[0])
    assert result.model_dump(exclude={"timings"}) == one_after_the_other[1].model_dump(exclude={"timings"})
    assert not list(out.glob("checkpoint*"))


def test_on_one_core_or_where_the_process_fails_they_are_sampled_here(
    settings, one_after_the_other, tmp_path, monkeypatch
):
    monkeypatch.setattr(side_process, "cores", lambda: 1)
    for name in ("core", "failed"):
        here = StopAt()
        with one_thread():
            run_xray(settings, tmp_path / name, side_by_side=True, progress=here)
        assert {guide for guide, _ in here.seen} == {"none", "each", "ensemble"}
        assert outcome(tmp_path / name) == outcome(one_after_the_other[0])
        monkeypatch.setattr(side_process, "cores", lambda: 2)
        monkeypatch.setattr(side_process, "_sample", os.getenv)  # which does not take what it is given


def test_a_stopped_run_goes_on_with_what_the_process_had(
    settings, one_after_the_other, tmp_path, monkeypatch
):
    monkeypatch.setattr(side_process, "cores", lambda: 2)
    out = tmp_path / "out"
    with one_thread():
        with pytest.raises(StoppedError):
            run_xray(settings, out, side_by_side=True, progress=StopAt("ensemble", 11))
        again = StopAt()
        run_xray(settings, out, side_by_side=True, resume=True, progress=again)
    assert again.seen[0] == ("ensemble", 10)
    assert outcome(out) == outcome(one_after_the_other[0])


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert side_process.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert side_process.cores() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert side_process.cores() == 1


def test_threads_are_as_before():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
