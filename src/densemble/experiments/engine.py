"""Jobs in worker processes on this machine, each in a process that may die without the others."""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from densemble.errors import InputError
from densemble.experiments.clusters import gpus_of
from densemble.experiments.execution import begin_worker, execute, not_run
from densemble.experiments.jobs import Job, JobRecord
from densemble.experiments.preparation import Task
from densemble.io.output import write_record

ATTEMPTS = 3
"""A job whose worker died so often has failed."""


@runtime_checkable
class Engine(Protocol):
    """What runs jobs."""

    def run(self, jobs: list[Job], prepare: Callable[[Job], Task], out: Path) -> Iterator[JobRecord]:
        """The records of all jobs, as they come; every one is also written."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Worker processes, each of which sees one GPU, if there are any.

    Attributes:
        workers: how many.
        threads: of each.
    """

    workers: int = 1
    threads: int = 1

    def run(self, jobs: list[Job], prepare: Callable[[Job], Task], out: Path) -> Iterator[JobRecord]:
        """The records of all jobs, as they come.

        Jobs are prepared here, one at a time, when a worker is free: downloads follow one another. If
        a worker dies, those under way are begun again in new ones, and go on from their checkpoints.
        """
        waiting, deaths = deque(jobs), Counter[str]()
        while waiting:
            running: dict[Future[JobRecord], Job] = {}
            try:
                with self._pool() as pool:
                    while waiting or running:
                        yield from self._fill(pool, waiting, running, prepare, out)
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            record = future.result()
                            del running[future]
                            yield record
            except BrokenProcessPool:
                pass
            for job in running.values():  # whose worker died, or only shared the pool with one that did
                deaths[job.id] += 1
                if deaths[job.id] < ATTEMPTS:
                    waiting.append(job)
                else:
                    why = f"its worker died {ATTEMPTS} times, perhaps for want of memory"
                    failed = JobRecord(id=job.id, key=job.key, state="failed", why=why)
                    yield record_without_run(failed, job, out)

    def _fill(
        self,
        pool: ProcessPoolExecutor,
        waiting: deque[Job],
        running: dict[Future[JobRecord], Job],
        prepare: Callable[[Job], Task],
        out: Path,
    ) -> Iterator[JobRecord]:
        """Give every free worker a job; the records of those that cannot begin."""
        while waiting and len(running) < self.workers:
            job = waiting[0]
            try:
                running[pool.submit(execute, prepare(job), job.record_file(out))] = job
            except InputError as error:
                yield record_without_run(not_run(job, str(error)), job, out)
            waiting.popleft()

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        gpus = context.SimpleQueue()
        for gpu in gpus_of(self.workers):
            gpus.put(gpu)
        return ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=begin_worker, initargs=(self.threads, gpus)
        )


def record_without_run(record: JobRecord, job: Job, out: Path) -> JobRecord:
    """Write the record of a job that no worker has."""
    path = job.record_file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return record
