"""``densemble run``: all jobs of a suite to a table that can be read at any time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from densemble.errors import InputError
from densemble.experiments.engine import Engine, LocalEngine
from densemble.experiments.files import Files
from densemble.experiments.jobs import Job, JobRecord, jobs_of, read_record, with_contents
from densemble.experiments.preparation import prepare
from densemble.experiments.tables import TABLE, rows_of, write_tables
from densemble.io.output import check_folder
from densemble.progress import Progress
from densemble.suites import Suite

ONE_WORKER = LocalEngine()


def run_suite(
    suite: Suite,
    out: Path,
    files: Files,
    *,
    only: Sequence[str] = (),
    engine: Engine = ONE_WORKER,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, JobRecord]:
    """Run the jobs that are not done, and write the table after each.

    Args:
        suite: which.
        out: folder for run directories, inputs and tables.
        files: where its files are.
        only: patterns of jobs; what other jobs of the suite have found in the folder stays in the table.
        engine: what runs them.
        resume: go on in a folder that has results; what is done there is not done again.
        progress: told of every job.

    Returns:
        The records of all jobs asked for, by id.

    Raises:
        InputError: the folder is not empty and ``resume`` is not given, or another run is in it; a pattern
            matches no job; all jobs need a folder of data, and it was not given or is not there.
    """
    tell = progress or Progress()
    jobs = jobs_of(suite, only)
    _check_data(jobs, files)
    check_folder(out)
    if out.exists() and any(out.iterdir()) and not resume:
        raise InputError(
            f"output folder {out}: exists and is not empty; choose another, or --resume to go on in it"
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            return _run(suite, {job.id for job in jobs}, out, files, engine, tell)
    except Timeout as error:
        raise InputError(f"output folder {out}: another run is at work in it") from error


def _check_data(jobs: Sequence[Job], files: Files) -> None:
    """See that the folder of data is there if no job can be run without it, before anything is made."""
    if files.data is not None and not files.data.is_dir():
        raise InputError(f"--data {files.data}: there is no such folder")
    if files.data is None and all(_needs_data(job) for job in jobs):
        raise InputError("all jobs need files of the folder that the suite calls data:...; name it (--data)")


def _needs_data(job: Job) -> bool:
    """Whether a file of the case is in the folder of data."""
    return '"data:' in job.case.model_dump_json(exclude={"printed", "note", "figures"})


def _run(
    suite: Suite, asked: set[str], out: Path, files: Files, engine: Engine, tell: Progress
) -> dict[str, JobRecord]:
    everything = with_contents(jobs_of(suite), files)
    earlier = {job.id: record for job in everything if (record := read_record(job, out)) is not None}
    others = {name: record for name, record in earlier.items() if name not in asked}
    records = {name: record for name, record in earlier.items() if name in asked and record.state == "done"}
    shown = [job for job in everything if job.id in asked or job.id in others]
    left = [job for job in everything if job.id in asked and job.id not in records]
    write_tables(out, suite, rows_of(suite, shown, others | records))
    with tell.steps(f"suite {suite.name}", len(asked)) as done:
        done(len(records))
        for record in engine.run(left, partial(prepare, files=files, out=out), out):
            records[record.id] = record
            write_tables(out, suite, rows_of(suite, shown, others | records))
            tell.message(f"{record.id}: {record.state}{': ' if record.why else ''}{record.why}")
            done(len(records))
    return records


def summary(records: dict[str, JobRecord], out: Path) -> str:
    """How many jobs came to which end, and where the table is."""
    states = [record.state for record in records.values()]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("done", "not run", "failed") if s in states)
    jobs = f"{len(records)} job{'' if len(records) == 1 else 's'}"
    return f"{jobs}: {counts}\nTable: {out / TABLE}.csv, .md, .html; runs: {out / 'jobs'}"
