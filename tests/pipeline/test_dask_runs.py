"""Suites on Dask: the figures of a local run, and a worker that is killed in the middle of a job."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from command_line import invoke, sentence
from small_crystal import SmallCrystal
from small_suite import Telling, figures, files_of, until, write_suite

from densemble.errors import InputError
from densemble.experiments import dask_engine
from densemble.experiments.clusters import local_cluster
from densemble.experiments.dask_engine import DaskEngine
from densemble.experiments.files import Files
from densemble.experiments.running import run_suite
from densemble.suites import load_suite

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own, on closing


@pytest.fixture
def files(crystal: SmallCrystal, tmp_path: Path) -> Files:
    return files_of(crystal, tmp_path)


@pytest.mark.parametrize("own", [False, True], ids=["scheduler elsewhere", "our own workers"])
def test_a_killed_worker_and_the_figures_of_a_local_run(crystal, files, tmp_path, monkeypatch, own):
    suite, out = load_suite(str(write_suite(crystal, tmp_path, 60))), tmp_path / "dask"
    clusters, threads, killed = [], [], []

    def kept(distributed, workers):
        clusters.append(local_cluster(distributed, workers))
        return clusters[0]

    def kill(job):
        """Told of every job when it is prepared: kills the workers when the first has a checkpoint."""

        def when_begun():
            until((job.folder(out) / "checkpoint.pt").is_file)
            killed.extend(worker.process.pid for worker in clusters[0].workers.values())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

        if not threads:
            threads.append(threading.Thread(target=when_begun, daemon=True))
            threads[0].start()

    def run(engine):
        return run_suite(suite, out, files, only=["loop/guided", "absent"], engine=Telling(engine, kill))

    monkeypatch.setattr(dask_engine, "local_cluster", kept)
    if own:
        records = run(DaskEngine(workers=2))
    else:
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=None, dashboard_address=None
        ) as cluster:
            clusters.append(cluster)
            records = run(DaskEngine(address=cluster.scheduler_address))
    assert len(killed) == (2 if own else 1)
    assert {name: record.state for name, record in records.items()} == {
        "loop/guided/seed-1": "done",
        "loop/guided/seed-2": "done",
        "absent/unguided/seed-0": "not run",
    }
    run_suite(suite, tmp_path / "local", files, only=["loop/guided"])
    local = figures(tmp_path / "local", suite)
    assert {name: found for name, found in figures(out, suite).items() if name in local} == local


def test_on_the_command_line(crystal, tmp_path):
    path, out = write_suite(crystal, tmp_path), tmp_path / "out"
    given = ["run", path, "--out", out, "--data", crystal.model.parent, "--offline", "--quiet"]
    done = invoke(*given, "--only", "loop/unguided", "--engine", "dask")
    assert done.exit_code == 0, done.output
    assert "1 job: 1 done" in done.stdout
    assert "loop,the loop,1,unguided,cosine" in (out / "results.csv").read_text(encoding="utf-8")
    said = sentence(invoke(*given, "--resume", "--scheduler", "tcp://127.0.0.1:9"))
    assert said == "--scheduler is Dask's; add --engine dask"


def test_no_scheduler(crystal, files, tmp_path):
    engine = DaskEngine(address="tcp://127.0.0.1:9")
    suite = load_suite(str(write_suite(crystal, tmp_path)))
    with pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler"):
        run_suite(suite, tmp_path / "out", files, only=["loop/unguided"], engine=engine)


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'densemble\[dask\]' \(BSD-3-Clause\)"):
        dask_engine._distributed()
