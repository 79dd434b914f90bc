"""Suites from a file to the table: what is run, what is not and why, resumption, workers that are killed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_crystal import SmallCrystal
from small_state import RESOLUTION, write_state
from small_suite import figures, files_of, until, write_suite

from densemble.cli import main
from densemble.errors import InputError
from densemble.experiments.clusters import gpus_of
from densemble.experiments.dask_engine import DaskEngine
from densemble.experiments.engine import ATTEMPTS, LocalEngine
from densemble.experiments.execution import execute
from densemble.experiments.files import Files
from densemble.experiments.jobs import JobRecord, jobs_of, read_record
from densemble.experiments.judging import judge_states
from densemble.experiments.preparation import prepare
from densemble.experiments.running import run_suite
from densemble.io.finished import read_run
from densemble.progress import Progress
from densemble.suites import load_suite


@pytest.fixture
def suite_file(crystal: SmallCrystal, tmp_path: Path):
    return partial(write_suite, crystal, tmp_path)


@pytest.fixture
def files(crystal: SmallCrystal, tmp_path: Path) -> Files:
    return files_of(crystal, tmp_path)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_suite_runs_to_its_table_and_says_what_did_not(suite_file, crystal, tmp_path):
    out, path = tmp_path / "out", suite_file()
    arguments = [
        "run",
        str(path),
        "--out",
        str(out),
        "--data",
        str(crystal.model.parent),
        "--offline",
        "--cache",
        str(tmp_path / "cache"),
        "--quiet",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "5 jobs: 3 done, 2 not run" in done.output
    rows = {(row["case"], row["method"], row["measure"]): row for row in table(out)}
    guided = rows["loop", "guided", "cosine"]
    results = [read_run(out / f"jobs/loop/guided/seed-{seed}") for seed in (1, 2)]
    values = [result.metrics.cosine["ensemble"] for result in results]
    assert float(guided["ours"].split(" ± ")[0]) == pytest.approx(sum(values) / 2, abs=5e-5)
    half_width = 12.7062 * abs(values[0] - values[1]) / 2  # Student's t of one degree of freedom
    assert float(guided["ours"].split(" ± ")[1]) == pytest.approx(half_width, abs=2e-4)
    assert (guided["printed"], guided["runs"], guided["remark"]) == ("0.8", "2/2", "")
    assert guided["residues"] == "A:180-183 PDFG, by the author's numbers"
    assert rows["loop", "unguided", "cosine"]["printed"] == ""
    assert (
        "printed as AAAA, but by the author's numbers they are PDFG"
        in rows["wrong", "unguided", ""]["remark"]
    )
    assert "7ec8.cif.gz: is not here, and nothing is fetched" in rows["absent", "unguided", ""]["remark"]
    other = rows["loop", "Another", "cosine"]
    assert (other["printed"], other["ours"]) == ("0.5", "")
    assert other["remark"].startswith("not run")
    assert "| loop | the loop | 1 | guided | cosine |" in (out / "results.md").read_text(encoding="utf-8")
    assert "<td>0.8</td>" in (out / "results.html").read_text(encoding="utf-8")
    # again: refused without --resume, and with it nothing that is done is done again
    assert CliRunner().invoke(main, arguments).exit_code == 2
    first = [out / "jobs/loop/guided/seed-1.json", out / "jobs/loop/guided/seed-1/result.json"]
    before = [file.stat().st_mtime_ns for file in first]
    again = CliRunner().invoke(main, [*arguments, "--resume"])
    assert "3 done, 2 not run" in again.output
    assert [file.stat().st_mtime_ns for file in first] == before


def test_a_suite_of_which_nothing_can_be_run_ends_with_code_1(suite_file, crystal, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    arguments = ["run", str(suite_file()), "--out", str(out), "--offline", "--cache", str(cache), "--quiet"]
    without = CliRunner().invoke(main, [*arguments, "--only", "loop"])
    assert without.exit_code == 2
    assert "(--data)" in without.output
    elsewhere = CliRunner().invoke(main, [*arguments, "--data", str(tmp_path / "nowhere")])
    assert elsewhere.exit_code == 2
    assert "nowhere: there is no such folder" in elsewhere.output
    assert not out.exists()
    done = CliRunner().invoke(main, [*arguments, "--only", "absent"])
    assert done.exit_code == 1, done.output
    assert "1 job: 1 not run" in done.output
    assert "No job could be run" in done.output
    assert "\n" not in table(out)[0]["remark"], "the files that could be put there by hand are several"


@pytest.mark.slow
def test_four_workers_find_what_one_finds(suite_file, files, tmp_path):
    """Four jobs at a time, to the last digit of every coordinate."""
    suite = load_suite(str(suite_file()))
    variants = tuple(v.model_copy(update={"seeds": (0, 1, 2, 3)}) for v in suite.variants)
    suite = suite.model_copy(update={"variants": variants})
    jobs = jobs_of(suite, ["loop/guided"])
    for name, workers in (("one", 1), ("four", 4)):
        run_suite(suite, tmp_path / name, files, only=["loop/guided"], engine=LocalEngine(workers=workers))
    one, four = (figures(tmp_path / name, suite) for name in ("one", "four"))
    assert len(one) == len(jobs) == 4
    assert one == four
    for job in jobs:
        for file in ("ensemble.cif", "model.cif"):
            assert len({(job.folder(tmp_path / name) / file).read_bytes() for name in ("one", "four")}) == 1
    assert len({tuple(found) for found in one.values()}) == 4, "seeds differ"


def _seen(task, record_file):
    """In place of a job: says which GPU its worker sees, when the other job has begun too."""
    mark = record_file.with_suffix(".begun")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    until(lambda: len(list(mark.parent.glob("*.begun"))) == 2)
    return JobRecord(id=task.job.id, key=task.job.key, state="done", why=os.environ["CUDA_VISIBLE_DEVICES"])


def _seen_by_dask(threads, task, record_file):
    return _seen(task, record_file)


@pytest.mark.parametrize("kind", ["local", "dask"])
@pytest.mark.filterwarnings("ignore")  # Dask's own, on closing
def test_each_worker_sees_one_gpu(suite_file, files, tmp_path, monkeypatch, kind):
    if kind == "dask":
        pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    monkeypatch.setattr("densemble.experiments.engine.execute", _seen)
    monkeypatch.setattr("densemble.experiments.dask_engine.execute_with", _seen_by_dask)
    engine = LocalEngine(workers=2) if kind == "local" else DaskEngine(workers=2)
    suite = load_suite(str(suite_file()))
    records = run_suite(suite, tmp_path / "out", files, only=["loop/guided"], engine=engine)
    assert {record.why for record in records.values()} == {"GPU-a", "GPU-b"}


def test_gpus_are_shared_out_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus_of(3) == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of(2) == [None, None]


SIMULATED = """
name = "simulated"
source = "two states"
[[variants]]
id = "guided"
prior = "gaussian"
recipe = "{recipe}"
members = 2
keep = 2
steps = 4
[[crystals]]
id = "two"
printed = "two states"
table = "1"
model = "data:start.cif"
data = {{ like = "data:data.mtz", occupancies = [0.6, 0.4] }}
site = {{ chain = "A", first = 179, last = 186, numbering = "author" }}
variants = ["guided"]
"""


def test_the_table_says_how_far_states_are_from_a_simulated_truth(crystal, files, tmp_path):
    path, out = tmp_path / "two.toml", tmp_path / "out"
    path.write_text(SIMULATED.format(recipe=crystal.recipe), encoding="utf-8")
    records = run_suite(load_suite(str(path)), out, files)
    assert [record.state for record in records.values()] == ["done"]
    ours = {row["measure"]: float(row["ours"]) for row in table(out)}
    folder = out / "jobs/two/guided/seed-0"
    result = read_run(folder)
    judged = judge_states(folder, result.region, result.model, out / "inputs/two/truth.cif")
    assert ours["states"] == judged.found
    assert ours["states_advised"] == (judged.found if result.model.advised else 1)
    assert ours["rmsd_to_A"] == pytest.approx(judged.rmsd["A"], abs=1e-4)
    assert ours["rmsd_to_B"] == pytest.approx(judged.rmsd["B"], abs=1e-4)
    assert ours["occupancy_error"] == pytest.approx(judged.occupancy_error, abs=1e-4)
    assert min(judged.rmsd.values()) > 0, "the truth was not given to it"
    assert "truth" not in {file.name.split(".")[0] for file in result.inputs[:2]}


def children(pid: int) -> list[int]:
    """Worker processes: those that spawned themselves from the scheduler to run jobs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(") ", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def started(path: Path, out: Path, data: Path, *more: str) -> subprocess.Popen:
    arguments = ["run", str(path), "--out", str(out), "--data", str(data), "--offline", "--quiet", *more]
    code = f"if __name__ == '__main__':\n    from densemble.cli import main; main({arguments!r})"
    script = path.with_suffix(".py")
    script.write_text(code, encoding="utf-8")
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_killed_worker_and_killed_scheduler_lose_nothing(suite_file, files, crystal, tmp_path):
    """A worker is killed in the middle of a job, then the scheduler; the figures are those of an even run."""
    path, out, data = suite_file(steps=60), tmp_path / "out", crystal.model.parent
    suite = load_suite(str(path))
    first = "loop/guided/seed-1"
    checkpoint = out / "jobs" / first / "checkpoint.pt"
    scheduler = started(path, out, data, "--only", "loop/guided")
    try:
        until(checkpoint.is_file)
        (worker,) = children(scheduler.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: children(scheduler.pid) not in ([], [worker]))
        until(lambda: (out / f"jobs/{first}.json").is_file())
        (successor,) = children(scheduler.pid)
        os.kill(scheduler.pid, signal.SIGKILL)
        scheduler.wait()
        until(lambda: not Path(f"/proc/{successor}").exists())  # a worker does not outlive its scheduler
    finally:
        scheduler.kill()
        scheduler.communicate()
    done = json.loads((out / f"jobs/{first}.json").read_text())
    assert done["state"] == "done"
    files_of_first = [out / f"jobs/{first}.json", *(out / "jobs" / first).iterdir()]
    written = {file: file.stat().st_mtime_ns for file in files_of_first}
    assert any(row["remark"] for row in table(out))  # the second is said to be waiting
    records = run_suite(suite, out, files, only=["loop/guided"], resume=True)
    assert [record.state for record in records.values()] == ["done", "done"]
    assert {file: file.stat().st_mtime_ns for file in files_of_first} == written, (
        "a finished job is left alone"
    )
    undisturbed = tmp_path / "undisturbed"
    run_suite(suite, undisturbed, files, only=["loop/guided"])
    assert figures(out, suite) == figures(undisturbed, suite)


def test_a_worker_that_always_dies_is_given_up(suite_file, files, tmp_path, monkeypatch):
    suite = load_suite(str(suite_file()))
    monkeypatch.setattr("densemble.experiments.engine.execute", _die)
    out = tmp_path / "out"
    records = run_suite(suite, out, files, only=["loop/unguided"])
    (record,) = records.values()
    assert (record.state, record.why) == (
        "failed",
        f"its worker died {ATTEMPTS} times, perhaps for want of memory",
    )
    assert "failed: its worker died" in table(out)[0]["remark"]


def _die(task, record_file):
    os._exit(9)


def _one_dies(task, record_file):
    """In place of a job: the first seed's worker always dies, the other's outlives three of them."""
    record_file.parent.mkdir(parents=True, exist_ok=True)
    with record_file.with_suffix(".begun").open("a") as file:
        file.write("x")
    if task.job.seed == 1:
        os._exit(9)
    deaths = record_file.with_name("seed-1.begun")
    until(lambda: deaths.is_file() and len(deaths.read_text()) == ATTEMPTS)
    return JobRecord(id=task.job.id, key=task.job.key, state="done")


def test_a_worker_that_dies_takes_no_other_with_it(suite_file, files, tmp_path, monkeypatch):
    monkeypatch.setattr("densemble.experiments.engine.execute", _one_dies)
    out = tmp_path / "out"
    records = run_suite(
        load_suite(str(suite_file())), out, files, only=["loop/guided"], engine=LocalEngine(workers=2)
    )
    assert {name: record.state for name, record in records.items()} == {
        "loop/guided/seed-1": "failed",
        "loop/guided/seed-2": "done",
    }
    begun = out / "jobs/loop/guided/seed-2.begun"
    assert begun.read_text() == "x", "it was not disturbed"


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self):
        self.steps_done, self.said = [], []

    @contextmanager
    def steps(self, name, total):
        yield lambda done: self.steps_done.append((name, done, total))

    def message(self, text):
        self.said.append(text)


def test_progress_is_told_of_every_job(suite_file, files, tmp_path):
    suite, out = load_suite(str(suite_file())), tmp_path / "out"
    first, second = Told(), Told()
    run_suite(suite, out, files, only=["loop/unguided", "wrong"], progress=first)
    assert first.steps_done == [("suite small", n, 2) for n in range(3)]
    assert first.said[0] == "loop/unguided/seed-0: done"
    assert first.said[1].startswith("wrong/unguided/seed-0: not run: residues 180-183 of chain A: printed as")
    run_suite(suite, out, files, only=["loop/unguided"], resume=True, progress=second)
    assert (second.steps_done, second.said) == ([("suite small", 1, 1)], [])


MAPS = """
name = "maps"
source = "a small protein"
[[variants]]
id = "state"
prior = "elastic"
recipe = "{recipe}"
members = 2
[[maps]]
id = "measured"
printed = "a map"
table = "1"
map = "data:map.ccp4"
resolution = {resolution}
forward = "molmap"
model = "data:placed.cif"
reference = "data:truth.cif"
local = "A:90-100"
variants = ["state"]
figures = [
    {{ table = "1", measure = "ca_rmsd", best_by = "map", values = {{ "Another" = 0.5 }} }},
]
[[maps]]
id = "unknown"
printed = "a map of which nothing is known"
table = "1"
map = "data:map.ccp4"
resolution = {resolution}
forward = "molmap"
model = "data:start.cif"
variants = ["state"]
"""


@pytest.mark.slow
def test_maps_run_to_the_table(tmp_path):
    """A measured map with an answer to compare with, and one with a start that stands anywhere and none."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    state = write_state(data)
    path = tmp_path / "maps.toml"
    path.write_text(MAPS.format(recipe=state.recipe, resolution=RESOLUTION), encoding="utf-8")
    arguments = ["run", str(path), "--out", str(out), "--data", str(data), "--offline", "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "2 jobs: 2 done" in done.output
    own = [row for row in table(out) if row["method"] == "state"]
    rows = {(row["case"], row["measure"], row["best_by"]): row for row in own}
    result = read_run(out / "jobs/measured/state/seed-0")
    best = result.best
    for measure, value in (
        ("ca_rmsd", best.reference.ca_rmsd),
        ("rmsd", best.reference.all_atom_rmsd),
        ("tm_score", best.reference.tm_score),
        ("local_rmsd", best.reference.local_ca_rmsd),
        ("rscc", best.fit.rscc),
    ):
        assert float(rows["measured", measure, "map"]["ours"]) == pytest.approx(value, abs=6e-5), measure
    nearest = min(member.reference.all_atom_rmsd for member in result.members)
    assert float(rows["measured", "rmsd", "rmsd"]["ours"]) == pytest.approx(nearest, abs=6e-5)
    assert {key[1:] for key in rows if key[0] == "unknown"} == {("rscc", "map")}
    assert best.reference.ca_rmsd < 1.5


def test_a_program_error_is_recorded_with_its_traceback(suite_file, files, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("a defect")

    suite, out = load_suite(str(suite_file())), tmp_path / "out"
    (job,) = jobs_of(suite, ["loop/unguided"])
    monkeypatch.setattr("densemble.experiments.execution.run_xray", broken)
    record = execute(prepare(job, files, out), job.record_file(out))
    assert (record.state, record.why) == ("failed", "RuntimeError: a defect")
    assert read_record(job, out) == record
    assert "in broken" in job.record_file(out).with_suffix(".log").read_text()


def test_a_run_that_was_finished_but_not_recorded_is_not_run_again(suite_file, files, tmp_path, monkeypatch):
    suite, out = load_suite(str(suite_file())), tmp_path / "out"
    (job,) = jobs_of(suite, ["loop/unguided"])
    first = execute(prepare(job, files, out), job.record_file(out))
    job.record_file(out).unlink()
    monkeypatch.setattr("densemble.experiments.execution.run_xray", lambda *args, **options: 1 / 0)
    again = execute(prepare(job, files, out), job.record_file(out))
    assert (again.state, again.figures) == ("done", first.figures)


def test_two_runs_in_one_folder_are_refused(suite_file, files, tmp_path):
    from filelock import FileLock

    suite = load_suite(str(suite_file()))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="another run is at work"):
        run_suite(suite, tmp_path / "out", files, resume=True)


def test_a_file_is_no_folder_for_a_run(suite_file, files, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="a file of this name exists"):
        run_suite(load_suite(str(suite_file())), tmp_path / "out", files)
    assert (tmp_path / "out").read_text() == "mine"


def test_patterns(suite_file, files, tmp_path):
    suite = load_suite(str(suite_file()))
    assert len(jobs_of(suite)) == 5
    assert [job.id for job in jobs_of(suite, ["loop/*/seed-1"])] == ["loop/guided/seed-1"]
    assert {job.case.id for job in jobs_of(suite, ["wrong", "abs*"])} == {"wrong", "absent"}
    with pytest.raises(InputError, match="--only nothing: no job of the suite small"):
        jobs_of(suite, ["nothing"])


def test_a_job_of_files_that_have_changed_is_done_anew(suite_file, crystal, files, tmp_path):
    """The recipe of a variant, or a file in the folder of data, with other contents under the same name."""
    data, recipe = tmp_path / "data", tmp_path / "mine.toml"
    shutil.copytree(crystal.model.parent, data)
    shutil.copyfile(crystal.recipe, recipe)
    path, out = suite_file(), tmp_path / "out"
    path.write_text(path.read_text(encoding="utf-8").replace(str(crystal.recipe), str(recipe)))
    suite, own = load_suite(str(path)), replace(files, data=data)
    only = ["loop/unguided"]
    result = out / "jobs/loop/unguided/seed-0/result.json"

    def again() -> int:
        run_suite(suite, out, own, only=only, resume=True)
        return result.stat().st_mtime_ns

    first = again()
    assert again() == first
    recipe.write_text(recipe.read_text(encoding="utf-8") + "# another\n", encoding="utf-8")
    second = again()
    assert second > first
    (data / "start.cif").write_text((data / "start.cif").read_text(encoding="utf-8") + "# another\n")
    third = again()
    assert third > second
    assert again() == third


def test_jobs_that_are_not_asked_for_stay_in_the_table(suite_file, files, tmp_path):
    suite, out = load_suite(str(suite_file())), tmp_path / "out"
    first = run_suite(suite, out, files, only=["loop/unguided"])
    before = [row for row in table(out) if row["method"] == "unguided"]
    assert len(before) > 1
    second = run_suite(suite, out, files, only=["absent"], resume=True)
    assert first.keys().isdisjoint(second)
    assert [row for row in table(out) if (row["case"], row["method"]) == ("loop", "unguided")] == before
    assert any(row["case"] == "absent" for row in table(out))
    assert not any(row["case"] == "loop" and row["method"] == "guided" for row in table(out))


def test_a_job_that_was_changed_is_done_anew(suite_file, files, tmp_path):
    suite = load_suite(str(suite_file()))
    out = tmp_path / "out"
    (job,) = jobs_of(suite, ["loop/unguided"])
    execute(prepare(job, files, out), job.record_file(out))
    changed = job.variant.model_copy(update={"members": 3})
    other = replace(job, variant=changed)
    assert read_record(job, out) is not None
    assert read_record(other, out) is None
    execute(prepare(other, files, out), other.record_file(out))
    assert read_record(other, out) is not None
    assert len(read_run(job.folder(out)).members) == 3
