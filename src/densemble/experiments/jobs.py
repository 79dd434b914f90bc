"""The jobs of a suite, and what is recorded of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from densemble.errors import InputError
from densemble.experiments.files import Files
from densemble.io.output import InputFile, Record, versions
from densemble.suites import Crystal, Map, Suite, Variant

SCHEMA: Literal["densemble.job/1"] = "densemble.job/1"
State = Literal["done", "not run", "failed"]
UNUSED = {"figures", "note", "printed", "table", "variants"}
"""What a case says of itself that no run depends on."""


@dataclass(frozen=True)
class Job:
    """One run of a suite: a case with a variant and a seed.

    Attributes:
        case: what is run.
        variant: how.
        seed: of all randomness.
        case_contents: SHA-256 of the files in the folder of data that the case names, see ``with_contents``.
        recipe_contents: of the variant's recipe, where that is a file.
    """

    case: Crystal | Map
    variant: Variant
    seed: int
    case_contents: tuple[str, ...] = ()
    recipe_contents: str = ""

    @property
    def id(self) -> str:
        """Also the place of its run directory below ``jobs/``."""
        return f"{self.case.id}/{self.variant.id}/seed-{self.seed}"

    @property
    def case_facts(self) -> dict[str, Any]:
        """What inputs that are made for its case depend on."""
        case = self.case.model_dump(mode="json", exclude=UNUSED)
        return {"case": case, "contents": list(self.case_contents), "version": versions()["densemble"]}

    @property
    def key(self) -> str:
        """SHA-256 of all that defines it: a record with another key is of another job."""
        parts = self.case_facts | {
            "variant": self.variant.model_dump(mode="json", exclude={"seeds", "prints"}),
            "recipe": self.recipe_contents,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def folder(self, out: Path) -> Path:
        """Its run directory."""
        return out / "jobs" / self.case.id / self.variant.id / f"seed-{self.seed}"

    def record_file(self, out: Path) -> Path:
        """What became of it, beside its run directory."""
        return self.folder(out).with_suffix(".json")


class Found(Record):
    """One figure of a run; ``best_by`` as in a paper's."""

    measure: str
    best_by: Literal["rmsd", "map"] | None = None
    value: float


class JobRecord(Record):
    """What became of a job.

    Attributes:
        id: of the job.
        key: see ``Job.key``.
        state: ``not run`` where input is wrong or absent, ``failed`` where the program broke down.
        why: the reason of both.
        seconds: that it took, without those of attempts that were stopped.
        residues: of a crystal, in the author's numbers, and how they were found.
        figures: what was found; nothing unless it is done.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.job/1"] = Field(default=SCHEMA, alias="schema")
    id: str
    key: str
    state: State
    why: str = ""
    seconds: float = 0.0
    residues: str = ""
    figures: tuple[Found, ...] = ()


def jobs_of(suite: Suite, only: Sequence[str] = ()) -> list[Job]:
    """All jobs of a suite, or those whose id, or case, or case and variant, match a pattern.

    Raises:
        InputError: a pattern matches none.
    """
    variants = {variant.id: variant for variant in suite.variants}
    jobs = [
        Job(case, variants[name], seed)
        for case in suite.cases
        for name in case.variants
        for seed in variants[name].seeds
    ]

    def matches(job: Job, pattern: str) -> bool:
        names = (job.id, f"{job.case.id}/{job.variant.id}", job.case.id)
        return any(fnmatchcase(name, pattern) for name in names)

    for pattern in only:
        if not any(matches(job, pattern) for job in jobs):
            cases = ", ".join(case.id for case in suite.cases)
            raise InputError(
                f"--only {pattern}: no job of the suite {suite.name} is so called; its cases are {cases}"
            )
    return [job for job in jobs if not only or any(matches(job, pattern) for pattern in only)]


def with_contents(jobs: Sequence[Job], files: Files) -> list[Job]:
    """The same jobs, told apart from those of files of the same names with other contents.

    Files of the package and of entries go with the version and the archives; those that are not there have no
    contents, and are said when the job is prepared.
    """
    known: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in known:
            known[path] = InputFile.of(path).sha256
        return known[path]

    def of_case(job: Job) -> tuple[str, ...]:
        names = re.findall(r'"(data:[^"]+)"', job.case.model_dump_json(exclude=UNUSED))
        paths = [None if files.data is None else files.data / name.removeprefix("data:") for name in names]
        return tuple(digest(path) for path in paths if path is not None and path.is_file())

    def of_recipe(job: Job) -> str:
        path = Path(job.variant.recipe)
        return digest(path) if path.suffix == ".toml" and path.is_file() else ""

    return [replace(job, case_contents=of_case(job), recipe_contents=of_recipe(job)) for job in jobs]


def read_record(job: Job, out: Path) -> JobRecord | None:
    """What is recorded of a job; None if nothing is, or it is of another definition of the job."""
    try:
        record = JobRecord.model_validate_json(job.record_file(out).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.key == job.key else None
