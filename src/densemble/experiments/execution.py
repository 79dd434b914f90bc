"""One job in a process of its own: the run, and the record of what became of it."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import torch
from filelock import FileLock

from densemble.cryoem import run_cryoem
from densemble.errors import InputError
from densemble.experiments.clusters import VISIBLE
from densemble.experiments.jobs import Found, Job, JobRecord
from densemble.experiments.judging import judge_states
from densemble.experiments.preparation import Task
from densemble.inputs import Settings
from densemble.io.finished import read_run
from densemble.io.output import RESULT_FILE, write_record, write_text
from densemble.io.results import Result
from densemble.io.state_results import StateResult
from densemble.pipeline import run_xray
from densemble.side_process import end_with_parent


def begin_worker(threads: int, gpu: str | None) -> None:
    """Set up a worker process: its threads, its GPU, and an end to it when the scheduler is no more.

    Args:
        threads: of its jobs. Figures depend on their number in the last digits, so it is the same for all.
        gpu: that it sees; None where there is none.
    """
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ[VISIBLE] = gpu  # CUDA reads it when it is first used, which it was not
    end_with_parent()


def execute_with(threads: int, task: Task, record_file: Path) -> JobRecord:
    """``execute`` in a worker that was not begun by us, with so many threads."""
    torch.set_num_threads(threads)
    return execute(task, record_file)


def execute(task: Task, record_file: Path) -> JobRecord:
    """Run a task to its end, going on from what an attempt that was stopped has left, and record it.

    What the run directory holds belongs to the job whose key is beside it; of another job it is replaced.
    """
    job = task.job
    record_file.parent.mkdir(parents=True, exist_ok=True)
    key_file = record_file.with_suffix(".key")
    with FileLock(record_file.with_suffix(".lock")):
        own = key_file.is_file() and key_file.read_text(encoding="utf-8") == job.key
        write_text(key_file, job.key)
        begin = time.perf_counter()
        try:
            figures = figures_of(_result(task, own=own), task)
            record = JobRecord(
                id=job.id,
                key=job.key,
                state="done",
                seconds=round(time.perf_counter() - begin, 1),
                residues=task.residues,
                figures=figures,
            )
        except InputError as error:
            record = not_run(job, str(error))
        except Exception as error:  # whatever it is, the other jobs go on
            write_text(record_file.with_suffix(".log"), traceback.format_exc())
            record = JobRecord(id=job.id, key=job.key, state="failed", why=f"{type(error).__name__}: {error}")
        write_record(record_file, record)
    return record


def not_run(job: Job, why: str) -> JobRecord:
    """The record of a job that could not begin."""
    return JobRecord(id=job.id, key=job.key, state="not run", why=why)


def _result(task: Task, *, own: bool) -> Result | StateResult:
    """Of a run that is finished, or of the run now."""
    settings, folder = task.settings, task.folder
    if own and (folder / RESULT_FILE).is_file():
        return read_run(folder)
    if isinstance(settings, Settings):
        return run_xray(settings, folder, reference=task.reference, resume=own, force=not own)
    return run_cryoem(
        settings, folder, reference=task.reference, selection=task.local, resume=own, force=not own
    )


def figures_of(result: Result | StateResult, task: Task) -> tuple[Found, ...]:
    """What a run says, by the names that suites have for it."""
    return _of_crystal(result, task) if isinstance(result, Result) else _of_map(result)


def _of_crystal(result: Result, task: Task) -> tuple[Found, ...]:
    """Agreement with the data, and of the states found with the reference's, if there is one.

    ``states_advised`` is their number in ``model.cif``: one where more are not supported.
    """
    found = [
        Found(measure="cosine", value=result.metrics.cosine["ensemble"]),
        Found(measure="rscc", value=result.metrics.rscc["ensemble"]),
    ]
    if result.r_factors is not None:
        found.append(Found(measure="r_free", value=result.r_factors.ensemble.r_free))
    if result.model is None or task.reference is None:
        return tuple(found)
    judged = judge_states(task.folder, result.region, result.model, task.reference)
    if judged is not None:
        found.append(Found(measure="states", value=judged.found))
        found.append(Found(measure="states_advised", value=judged.found if result.model.advised else 1))
        found += [
            Found(measure=f"rmsd_to_{name or 'reference'}", value=value)
            for name, value in judged.rmsd.items()
        ]
        if judged.occupancy_error is not None:
            found.append(Found(measure="occupancy_error", value=judged.occupancy_error))
    return tuple(found)


def _of_map(result: StateResult) -> tuple[Found, ...]:
    """Of the sample that fits the map best, and of the one that is nearest to the reference."""
    found = []
    compared = [member for member in result.members if member.reference is not None]
    nearest = min(compared, key=lambda m: m.reference.all_atom_rmsd, default=None)  # type: ignore[union-attr]
    for by, member in (("map", result.best), ("rmsd", nearest)):
        if member is None:
            continue
        values = {"rscc": member.fit.rscc}
        if member.reference is not None:
            values |= {
                "rmsd": member.reference.all_atom_rmsd,
                "ca_rmsd": member.reference.ca_rmsd,
                "tm_score": member.reference.tm_score,
            }
            if member.reference.local_ca_rmsd is not None:
                values["local_rmsd"] = member.reference.local_ca_rmsd
        found += [Found(measure=name, best_by=by, value=value) for name, value in values.items()]  # type: ignore[arg-type]
    return tuple(found)
