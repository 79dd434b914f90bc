import json
import time

import pytest
import torch

import measuring

CUDA = torch.device("cuda")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measuring, "SIZES", {"cpu": (64, 1000), "cuda": (64, 1000)})


def sleep():
    time.sleep(0.05)


def test_one_thread_has_its_processor_time():
    assert measuring.clock() == "processor"
    assert measuring.seconds(sleep) < 0.02


def test_several_threads_have_wall_time(two_threads):
    assert measuring.clock() == "wall"
    assert measuring.seconds(sleep) >= 0.05


def test_a_gpu_is_idle_when_the_clock_is_read(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("idle"))
    monkeypatch.setitem(measuring.CLOCKS, "wall", lambda: done.append("clock") or 0.0)
    assert measuring.clock(CUDA) == "wall"
    assert measuring.seconds(lambda: done.append("task"), CUDA) == 0.0
    assert done == ["idle", "clock", "task", "idle", "clock"]


def test_the_least_of_so_many_runs(monkeypatch):
    times = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setitem(measuring.CLOCKS, "processor", lambda: next(times))
    assert measuring.least(lambda: None, 3) == 2.0
    assert next(times, None) is None


def test_peak_of_a_gpu_is_of_its_tensors(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 if reset == [device] else 0)
    measuring.reset_peak(CUDA)
    assert measuring.peak_bytes(CUDA) == 5
    measuring.reset_peak()
    assert reset == [CUDA]
    assert measuring.peak_bytes() > 50 << 20


def test_rates_are_counts_over_seconds(monkeypatch, small):
    monkeypatch.setattr(measuring, "least", lambda task, repeats, device: task() is None or 2.0)
    assert measuring.roofline() == {"matrix_product_flops": 64.0**3, "memory_bytes_per_s": 4 * 1000}


def test_roofline_comes_first(small, capsys):
    result = measuring.begin("name", 1)
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert printed == list(result)
    assert {"machine", "device", "threads", "torch", "clock", "matrix_product_flops"} <= set(result)
    assert result["clock"] == "processor"
    assert result["device"] == "cpu"


@pytest.mark.skipif(measuring.usable_cores() < 2, reason="needs two cores")
def test_threads_are_taken_for_the_roofline_too(monkeypatch, small, two_threads):
    torch.set_num_threads(1)
    seen = []
    monkeypatch.setattr(measuring, "roofline", lambda device: seen.append(torch.get_num_threads()) or {})
    result = measuring.begin("name", 2)
    assert seen == [2]
    assert (result["threads"], result["clock"]) == (2, "wall")


@pytest.mark.parametrize("threads", [0, 100_000])
def test_more_threads_than_cores_are_refused(threads):
    with pytest.raises(SystemExit, match="may use"):
        measuring.begin("name", threads)


def test_figures_are_written_where_a_file_is_named(tmp_path, capsys):
    measuring.write({"a": 1}, None)
    measuring.write({"a": 1}, tmp_path / "new" / "a.json")
    found = json.loads((tmp_path / "new" / "a.json").read_text())
    assert found.pop("load_after") >= 0
    assert found == {"a": 1}
    measuring.show({"rate": 1.5e9, "name": "cpu"})
    assert capsys.readouterr().out.split() == ["rate", "1.5e+09", "name", "cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_rates_of_an_accelerator():
    result = measuring.begin("name", 1, CUDA)
    assert result["device"] == torch.cuda.get_device_name()
    assert result["matrix_product_flops"] > 1e12
    assert result["memory_bytes_per_s"] > 1e11
