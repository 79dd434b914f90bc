"""Output of a run: folders and files that may be written, and the parts that all records share.

Every file is written next to its final place and moved there when complete, so a killed run
leaves no half-written file behind.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from densemble.errors import InputError

MAP_FILE = "map.ccp4"
RESULT_FILE = "result.json"
TRACE_FILE = "trace.csv"
REPORT_FILE = "report.html"
OVERVIEW = "overview"
OWN_REPORT_FILES = (
    REPORT_FILE,
    "view.cxc",
    "view.pml",
    "view_coot.py",
    *(f"{name}.png" for name in (OVERVIEW, "occupancies", "residue_fit", "bimodality", "traces")),
)
"""What a report adds to the folder of a run, and may replace there."""


class Record(BaseModel):
    """A part of a record of a run: nothing unknown in it, and nothing that is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class InputFile(Record):
    """An input: its name without folders, and the SHA-256 of its bytes in hexadecimal."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: str | Path) -> InputFile:
        """Record a file that exists, read in pieces: weights have gigabytes."""
        digest = hashlib.sha256()
        with Path(path).open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
        return cls(name=Path(path).name, sha256=digest.hexdigest())


class RunRecord(Record):
    """What every ``result.json`` begins with; timings in seconds."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(alias="schema")
    inputs: list[InputFile]
    settings: dict[str, JsonValue]
    seed: int
    versions: dict[str, str]
    device: str
    timings: dict[str, float]


def plain(settings: Any) -> dict[str, JsonValue]:  # noqa: ANN401
    """A dataclass as plain values for ``result.json``: files by name, also within parts."""
    return {name: _plain(value) for name, value in asdict(settings).items()}


def _plain(value: Any) -> JsonValue:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.name if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Of this package and of those that a result depends on."""
    return {name: version(name) for name in ("densemble", "torch", "gemmi", "numpy", "scipy")}


def device(network: torch.device | None = None) -> str:
    """What a run was done on.

    Args:
        network: where its network is, if not on the CPU as all else.
    """
    cpu = f"cpu, {torch.get_num_threads()} threads"
    if network is None or network.type == "cpu":
        return cpu
    return f"{cpu}; network on {torch.cuda.get_device_name(network) if network.type == 'cuda' else network}"


def write_record(path: str | Path, record: Record) -> Path:
    """Write a record as JSON, without what is None."""
    return write_text(path, record.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n")


def check_folder(directory: Path) -> None:
    """See that a folder is there or can be.

    Raises:
        InputError: it is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"output folder {directory}: a file of this name exists; choose another name")


def check_output(directory: str | Path, *, force: bool = False, resume: bool = False) -> None:
    """See that an output folder may be used; nothing is written or removed.

    Raises:
        InputError: it is a file; it is not empty and neither ``force`` nor ``resume`` is given; or it
            holds a finished run that is to be resumed.
    """
    directory = Path(directory)
    check_folder(directory)
    if resume and (directory / RESULT_FILE).is_file():
        raise InputError(f"output folder {directory}: its run is finished; --force to run it anew")
    if directory.is_dir() and any(directory.iterdir()) and not (force or resume):
        raise InputError(
            f"output folder {directory}: exists and is not empty; choose another, or --force to replace "
            "an earlier result, or --resume to continue it"
        )


def check_output_file(path: Path, *, force: bool) -> None:
    """See that a file may be written.

    Raises:
        InputError: it is a folder, or exists and ``force`` is not given; or its folder does not exist.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise InputError(f"{path} exists; choose another name, or --force to replace it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")


def prepare_output(
    directory: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    own: Sequence[str],
) -> Path:
    """Make an output folder ready.

    Args:
        directory: created if missing.
        force: remove what an earlier run wrote there, and its report; other files stay.
        resume: keep what is there.
        own: patterns of the files that such a run writes.

    Raises:
        InputError: see ``check_output``; or it cannot be made or changed.
    """
    directory = Path(directory)
    check_output(directory, force=force, resume=resume)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if force and not resume:
            for file in (f for pattern in (*own, *OWN_REPORT_FILES) for f in directory.glob(pattern)):
                file.unlink()
    except OSError as error:
        raise InputError(f"output folder {directory}: cannot be used ({error.strerror})") from error
    return directory


def write_trace(path: str | Path, trace: Sequence[dict[str, float]]) -> Path:
    """Write the value of every objective at every step as CSV; empty where a stage was not active."""
    columns = list(dict.fromkeys(name for row in trace for name in row))
    rows = [",".join(f"{row[name]:.6g}" if name in row else "" for name in columns) for row in trace]
    return write_text(path, "\n".join([",".join(columns), *rows]) + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file as a whole or not at all; see ``write_bytes``."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of a file if nothing is raised until it is left."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private to the user
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
