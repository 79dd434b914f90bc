"""Where jobs run: processes of this machine with a GPU each, or jobs of Slurm by way of dask-jobqueue."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Annotated, Any

import torch
from pydantic import Field

from densemble.errors import InputError
from densemble.recipes import Part, load

VISIBLE = "CUDA_VISIBLE_DEVICES"
REPLENISHED = 60.0
"""s, after which Slurm is asked again for workers that are no more."""

Text = Annotated[str, Field(min_length=1)]


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` has for them."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


def gpus_of(workers: int) -> list[str | None]:
    """One GPU for each worker, in turn if there are fewer GPUs than workers; None where there is none."""
    gpus = gpus_here()
    return [gpus[i % len(gpus)] if gpus else None for i in range(workers)]


def local_cluster(distributed: Any, workers: int) -> Any:  # noqa: ANN401
    """A scheduler and so many workers on this machine, which are begun again should they die.

    Args:
        distributed: the package.
        workers: how many; each runs one job at a time and sees its own GPU, if there is one.
    """
    environments = [{} if gpu is None else {VISIBLE: gpu} for gpu in gpus_of(workers)]
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": None}
    return distributed.SpecCluster(
        scheduler={"cls": distributed.Scheduler, "options": options},
        workers={
            i: {
                "cls": distributed.Nanny,
                "options": {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "env": environment},
            }
            for i, environment in enumerate(environments)
        },
    )


class Slurm(Part):
    """How workers are asked for: each is a Slurm job of its own, which runs one job of the suite at a time.

    What is left out is taken from dask-jobqueue's own configuration, ``~/.config/dask/jobqueue.yaml``.

    Attributes:
        memory: of each worker, for example ``8GB``.
        walltime: of each worker, for example ``12:00:00``; a worker that has used it up is asked for again.
        queue: partition.
        account: that is charged.
        gpu: whether each worker has a GPU (``--gres=gpu:1``).
        directives: further options of sbatch, for example ``--constraint=a100``.
        prologue: lines of shell before the worker begins, for example ``module load cuda``.
        python: that has densemble, on the nodes; the one that runs this if None.
        interface: network interface by which workers reach this machine, for example ``ib0``.
        logs: folder for what workers print.
    """

    memory: Text | None = None
    walltime: Text | None = None
    queue: Text | None = None
    account: Text | None = None
    gpu: bool = False
    directives: tuple[Text, ...] = ()
    prologue: tuple[Text, ...] = ()
    python: Text | None = None
    interface: Text | None = None
    logs: Text | None = None

    @classmethod
    def read(cls, path: str) -> Slurm:
        """From a TOML file.

        Raises:
            InputError: there is no such file, or it does not follow the schema.
        """
        if not path.endswith(".toml"):
            raise InputError(f"--slurm {path}: give a .toml file")
        return load(path, cls, Path(path).parent, what="--slurm")

    def options(self, threads: int) -> dict[str, Any]:
        """Arguments of ``dask_jobqueue.SLURMCluster`` for workers of one job with so many threads.

        One thread of Dask's each, so that a worker has one job at a time; the cores are for the job's own.
        """
        gres = ["--gres=gpu:1"] if self.gpu else []
        given = {
            "memory": self.memory,
            "walltime": self.walltime,
            "queue": self.queue,
            "account": self.account,
            "python": self.python,
            "interface": self.interface,
            "log_directory": self.logs,
            "job_extra_directives": [*gres, *self.directives] or None,
            "job_script_prologue": list(self.prologue) or None,
        }
        return {
            "cores": 1,
            "processes": 1,
            "job_cpu": threads,
            "job_name": "densemble",
            "scheduler_options": {"dashboard": False, "dashboard_address": None},
            **{name: value for name, value in given.items() if value is not None},
        }


@contextmanager
def slurm_cluster(slurm: Slurm, workers: int, threads: int) -> Iterator[Any]:
    """A scheduler here, and workers that are Slurm jobs, which are asked for again when they end.

    Args:
        slurm: how they are asked for.
        workers: how many.
        threads: of each job.

    Raises:
        InputError: dask-jobqueue is not installed, there is no sbatch here, or the configuration will not do.
    """
    with _jobqueue(slurm, threads) as cluster:
        over = threading.Event()

        def replenish() -> None:
            cluster.scale(workers)
            while not over.wait(REPLENISHED):
                cluster.scale(workers)  # those asked for that are no more are asked for again

        keeper = threading.Thread(target=replenish, daemon=True)
        keeper.start()
        try:
            yield cluster
        finally:
            over.set()
            keeper.join()


def _jobqueue(slurm: Slurm, threads: int) -> Any:  # noqa: ANN401
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(
            "--slurm needs dask-jobqueue: pip install 'densemble[slurm]' (BSD-3-Clause)"
        ) from error
    if which(SLURMCluster.job_cls.submit_command) is None:
        raise InputError("--slurm: there is no sbatch here; run this where Slurm jobs can be submitted")
    try:
        return SLURMCluster(**slurm.options(threads))
    except (OSError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from error
