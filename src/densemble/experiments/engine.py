"""Jobs in worker processes on this machine, each in a process that may die without the others."""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
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
        a worker dies, its job is begun again in a new one, and goes on from its checkpoints; the others' jobs
        are not disturbed, for each worker is a pool of its own.
        """
        waiting, deaths = deque(jobs), Counter[str]()
        running: dict[Future[JobRecord], tuple[_Worker, Job]] = {}
        with ExitStack() as stack:
            idle = [_Worker(self.threads, gpu, stack) for gpu in gpus_of(self.workers)]
            while waiting or running:
                if waiting and idle:
                    job = waiting.popleft()
                    task = ready(job, prepare, out)
                    if isinstance(task, JobRecord):
                        yield task
                        continue
                    worker = idle.pop()
                    running[worker.submit(task, job.record_file(out))] = worker, job
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, job = running.pop(future)
                    idle.append(worker)
                    if not isinstance(future.exception(), BrokenProcessPool):
                        yield future.result()
                        continue
                    deaths[job.id] += 1
                    if deaths[job.id] < ATTEMPTS:
                        waiting.append(job)
                    else:
                        why = f"its worker died {ATTEMPTS} times, perhaps for want of memory"
                        yield record_failure(job, why, out)


class _Worker:
    """A process that runs one job at a time, and is replaced when it dies."""

    def __init__(self, threads: int, gpu: str | None, stack: ExitStack) -> None:
        self._begin, self._stack = (threads, gpu), stack
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, task: Task, record_file: Path) -> Future[JobRecord]:
        """Have a task executed."""
        if self._pool is not None:
            try:
                return self._pool.submit(execute, task, record_file)
            except BrokenProcessPool:
                pass
        pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=begin_worker, initargs=self._begin
        )
        self._pool = self._stack.enter_context(pool)
        return self._pool.submit(execute, task, record_file)


def ready(job: Job, prepare: Callable[[Job], Task], out: Path) -> Task | JobRecord:
    """The task of a job, or the record, written too, of one that cannot begin."""
    try:
        return prepare(job)
    except InputError as error:
        return _written(not_run(job, str(error)), job, out)


def record_failure(job: Job, why: str, out: Path) -> JobRecord:
    """The record, written too, of a job that no worker came to an end with."""
    return _written(JobRecord(id=job.id, key=job.key, state="failed", why=why), job, out)


def _written(record: JobRecord, job: Job, out: Path) -> JobRecord:
    path = job.record_file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return record
