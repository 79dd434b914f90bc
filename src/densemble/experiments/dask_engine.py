"""Jobs on a Dask cluster: of this machine, or wherever its scheduler is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densemble.errors import InputError
from densemble.experiments.clusters import Slurm, local_cluster, slurm_cluster
from densemble.experiments.engine import ready, record_failure
from densemble.experiments.execution import execute_with
from densemble.experiments.jobs import Job, JobRecord
from densemble.experiments.preparation import Task


@dataclass(frozen=True)
class DaskEngine:
    """Dask workers; Dask gives a job whose worker dies to another, three times (its ``allowed-failures``).

    Each worker should run one job at a time (``nthreads=1``), and see the output folder under the same path.

    Attributes:
        address: of a scheduler, for example ``tcp://host:8786``; None for workers of our own.
        slurm: how workers are asked for as jobs of Slurm; None for workers on this machine.
        workers: of our own; of a scheduler elsewhere, jobs at a time that are asked for at least.
        threads: of each job.
    """

    address: str | None = None
    slurm: Slurm | None = None
    workers: int = 1
    threads: int = 1

    def run(self, jobs: list[Job], prepare: Callable[[Job], Task], out: Path) -> Iterator[JobRecord]:
        """The records of all jobs, as they come; prepared here, one at a time, as workers become free.

        Raises:
            InputError: Dask is not installed, there is no scheduler at the address, or none of Slurm's jobs
                can be asked for.
        """
        distributed = _distributed()
        waiting, running = deque(jobs), dict[str, Job]()
        with self._client(distributed) as client:
            completed = distributed.as_completed(raise_errors=False)

            def fill() -> Iterator[JobRecord]:
                places = max(self.workers, len(client.scheduler_info()["workers"]))
                while waiting and len(running) < places:
                    job = waiting.popleft()
                    task = ready(job, prepare, out)
                    if isinstance(task, JobRecord):
                        yield task
                        continue
                    future = client.submit(
                        execute_with, self.threads, task, job.record_file(out), key=job.id, pure=False
                    )
                    running[future.key] = job
                    completed.add(future)

            yield from fill()
            for future in completed:
                job = running.pop(future.key)
                if future.status == "finished":
                    yield future.result()
                else:
                    why = f"{type(future.exception()).__name__}: {future.exception()}"
                    yield record_failure(job, why, out)
                yield from fill()

    @contextmanager
    def _client(self, distributed: Any) -> Iterator[Any]:  # noqa: ANN401
        """A client of the scheduler, or of one that is begun here with its workers."""
        with ExitStack() as stack:
            address: Any = self.address
            if self.slurm is not None:
                address = stack.enter_context(slurm_cluster(self.slurm, self.workers, self.threads))
            elif address is None:
                address = stack.enter_context(local_cluster(distributed, self.workers))
            try:
                client = stack.enter_context(distributed.Client(address, timeout="10s"))
            except (OSError, ValueError) as error:
                raise InputError(f"--scheduler {self.address}: no Dask scheduler there ({error})") from error
            yield client


def _distributed() -> Any:  # noqa: ANN401
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            "--engine dask needs dask.distributed: pip install 'densemble[dask]' (BSD-3-Clause)"
        ) from error
    return distributed
