"""Workers as jobs of Slurm: what is submitted, and a run where sbatch and scancel are stand-ins.

The stand-in of sbatch begins the script that it is given as a process group of its own, as a node would; that
of scancel ends it. What Slurm itself makes of the script's directives is not tested.
"""

import os
import shlex
import signal
import sys
import threading
from pathlib import Path

import pytest
from small_suite import Telling, figures, files_of, until, write_suite

from densemble.errors import InputError
from densemble.experiments import clusters
from densemble.experiments.clusters import Slurm
from densemble.experiments.dask_engine import DaskEngine
from densemble.experiments.files import Files
from densemble.experiments.running import run_suite
from densemble.suites import load_suite

dask_jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own, on closing

SBATCH = """#!{python}
import pathlib, subprocess, sys
jobs = pathlib.Path({jobs!r})
number = len(list(jobs.iterdir())) + 1
script = jobs / f"{{number}}.sh"
script.write_bytes(pathlib.Path(sys.argv[-1]).read_bytes())
with open(jobs.parent / f"{{number}}.out", "wb") as out:
    options = dict(stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    job = subprocess.Popen(["bash", script], **options)
(jobs.parent / f"{{number}}.pid").write_text(str(job.pid))
print("Submitted batch job", number)
"""
SCANCEL = """#!{python}
import os, pathlib, signal, sys
jobs = pathlib.Path({jobs!r})
for number in sys.argv[1:]:
    try:
        os.killpg(int((jobs.parent / f"{{number}}.pid").read_text()), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class FakeSlurm:
    """Jobs that were submitted, by number from 1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, folder / "jobs"
        self.jobs.mkdir(parents=True)
        for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
            (folder / name).write_text(text.format(python=sys.executable, jobs=str(self.jobs)))
            (folder / name).chmod(0o755)

    @property
    def scripts(self) -> list[str]:
        return [script.read_text() for script in sorted(self.jobs.iterdir(), key=lambda s: int(s.stem))]

    def pid(self, number: int) -> int:
        return int((self.folder / f"{number}.pid").read_text())

    def alive(self, number: int) -> bool:
        try:
            os.killpg(self.pid(number), 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # a node has what this machine has
    return fake


@pytest.fixture
def files(crystal, tmp_path) -> Files:
    return files_of(crystal, tmp_path)


def test_the_script_that_is_submitted(tmp_path):
    (tmp_path / "gpu.toml").write_text(
        'memory = "8GB"\nwalltime = "12:00:00"\nqueue = "gpu"\naccount = "lab"\ngpu = true\n'
        'directives = ["--constraint=a100"]\nprologue = ["module load cuda"]\n'
        'python = "/opt/env/bin/python"\n'
    )
    options = Slurm.read(str(tmp_path / "gpu.toml")).options(2)
    with dask_jobqueue.SLURMCluster(**options) as cluster:
        lines = cluster.job_script().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {
        "-n 1",
        "--cpus-per-task=2",
        "--mem=8G",
        "-t 12:00:00",
        "-p gpu",
        "-A lab",
        "--gres=gpu:1",
        "--constraint=a100",
    } <= directives
    assert "module load cuda" in lines
    (command,) = (shlex.split(line) for line in lines if "dask_worker" in line)
    assert command[:2] == ["/opt/env/bin/python", "-m"]
    assert command[command.index("--nthreads") + 1] == "1", "one job at a time, whatever its threads"
    assert "--nworkers" not in command, "one worker, so that the GPU is its own"
    assert lines.index("module load cuda") < next(i for i, line in enumerate(lines) if "dask_worker" in line)


def test_without_gpu_none_is_asked_for():
    with dask_jobqueue.SLURMCluster(**Slurm(memory="2GB").options(1)) as cluster:
        assert "gpu" not in cluster.job_script()


def test_a_slurm_job_that_ends_too_early_is_asked_for_again(slurm, crystal, files, tmp_path, monkeypatch):
    """As when its walltime is over: the suite's job goes on in the next, to the figures of a local run."""
    monkeypatch.setattr(clusters, "REPLENISHED", 1.0)
    import dask

    suite, out = load_suite(str(write_suite(crystal, tmp_path, 60))), tmp_path / "out"
    killed = []

    def kill(job):
        def when_begun():
            until((job.folder(out) / "checkpoint.pt").is_file)
            os.killpg(slurm.pid(1), signal.SIGKILL)
            killed.append(job.id)

        if job.seed == 1:
            threading.Thread(target=when_begun, daemon=True).start()

    engine = DaskEngine(slurm=Slurm(memory="2GB"), workers=1)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        records = run_suite(suite, out, files, only=["loop/guided"], engine=Telling(engine, kill))
    assert killed == ["loop/guided/seed-1"]
    assert [record.state for record in records.values()] == ["done", "done"]
    assert len(slurm.scripts) == 2
    until(lambda: not slurm.alive(2))  # nothing is left in the queue
    run_suite(suite, tmp_path / "local", files, only=["loop/guided"])
    assert figures(out, suite) == figures(tmp_path / "local", suite)


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--slurm: there is no sbatch here"):
        clusters._jobqueue(Slurm(memory="2GB"), 1)


def test_dask_jobqueue_that_is_not_installed(monkeypatch, slurm):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match=r"pip install 'densemble\[slurm\]' \(BSD-3-Clause\)"):
        clusters._jobqueue(Slurm(memory="2GB"), 1)


def test_a_configuration_that_will_not_do(slurm, tmp_path):
    with pytest.raises(InputError, match="--slurm: You must specify how much cores and memory"):
        clusters._jobqueue(Slurm(), 1)
    (tmp_path / "wrong.toml").write_text('memory = "8GB"\nque = "gpu"\n')
    with pytest.raises(InputError, match=r"--slurm .*wrong\.toml: que"):
        Slurm.read(str(tmp_path / "wrong.toml"))
    with pytest.raises(InputError, match=r"gpu: give a \.toml file"):
        Slurm.read("gpu")
