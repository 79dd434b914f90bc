"""A suite of few jobs on the small crystal, and what is asked of its runs."""

import time
from pathlib import Path

from small_crystal import SmallCrystal

from densemble.archives.cache import Cache
from densemble.archives.transfer import Client
from densemble.experiments.files import Files
from densemble.experiments.jobs import JobRecord, jobs_of
from densemble.suites import Suite

SUITE = """
name = "small"
source = "the small crystal"
[[variants]]
id = "guided"
prints = "Guided"
prior = "gaussian"
recipe = "{recipe}"
members = 2
keep = 2
steps = {steps}
seeds = [1, 2]
[[variants]]
id = "unguided"
prior = "gaussian"
recipe = "{recipe}"
guide = "none"
members = 2
steps = 4
[[crystals]]
id = "loop"
printed = "the loop"
table = "1"
entry = "7RIN"
model = "data:start.cif"
data = "data:data.mtz"
reference = "data:truth.cif"
site = {{ chain = "A", first = 180, last = 183, numbering = "author", sequence = "PDFG" }}
variants = ["guided", "unguided"]
figures = [
    {{ table = "1", measure = "cosine", values = {{ "Guided" = 0.8, "Another" = 0.5 }} }},
]
[[crystals]]
id = "wrong"
printed = "a sequence that is not there"
table = "1"
entry = "7RIN"
model = "data:start.cif"
data = "data:data.mtz"
site = {{ chain = "A", first = 180, last = 183, numbering = "author", sequence = "AAAA" }}
variants = ["unguided"]
[[crystals]]
id = "absent"
printed = "a file that is not there"
table = "1"
entry = "7EC8"
model = "fetch:7EC8/7ec8_final.cif"
data = "fetch:7EC8/7ec8_final.mtz"
site = {{ chain = "A", first = 1, last = 4, numbering = "author" }}
variants = ["unguided"]
"""


def write_suite(crystal: SmallCrystal, folder: Path, steps: int = 4) -> Path:
    """The suite as a file, with so many steps of each run."""
    path = folder / "small.toml"
    path.write_text(SUITE.format(recipe=crystal.recipe, steps=steps), encoding="utf-8")
    return path


def files_of(crystal: SmallCrystal, folder: Path) -> Files:
    """The crystal's files; nothing is fetched."""
    cache = Cache(folder / "cache", Client(offline=True))
    return Files(folder=folder / "fetched", data=crystal.model.parent, cache=cache)


def figures(out: Path, suite: Suite) -> dict[str, tuple]:
    paths = {job.id: job.record_file(out) for job in jobs_of(suite)}
    return {
        name: JobRecord.model_validate_json(path.read_bytes()).figures
        for name, path in paths.items()
        if path.is_file()
    }


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this should have happened by now"
        time.sleep(0.05)


class Telling:
    """An engine that tells of every job that is prepared."""

    def __init__(self, engine, tell) -> None:
        self.engine, self.tell = engine, tell

    def run(self, jobs, prepare, out):
        def told(job):
            task = prepare(job)
            self.tell(job)
            return task

        return self.engine.run(jobs, told, out)
