"""``densemble fetch``: the files of an entry in a folder, with a record of where each came from."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from densemble.archives.cache import Cache, Held
from densemble.archives.emdb import read_header
from densemble.archives.layout import (
    HALF_MAPS,
    Role,
    Source,
    crystal_files,
    fitted_model,
    half_map_files,
    header_file,
    map_file,
    parse_entry,
)
from densemble.archives.servers import SERVERS, Servers
from densemble.archives.transfer import ArchiveError, NotInArchiveError
from densemble.errors import InputError
from densemble.io.output import InputFile, Record, check_folder, write_record

RECORD_FILE = "fetched.json"
SCHEMA: Literal["densemble.fetched/1"] = "densemble.fetched/1"


class FetchedFile(Record):
    """A file of the entry: ``url`` is None where it was put into the cache by hand."""

    name: str
    role: Role
    url: str | None
    sha256: str
    size: int
    date: str


class Absent(Record):
    """A file that is not there, and why."""

    role: Role
    why: str


class Fetched(Record):
    """``fetched.json``; resolution (Å) and contour level are those that an EMDB entry states."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.fetched/1"] = Field(default=SCHEMA, alias="schema")
    entry: str
    files: list[FetchedFile]
    absent: list[Absent]
    resolution: float | None = None
    contour: float | None = None

    def named(self, role: Role) -> str | None:
        """The first file of a role."""
        return next((file.name for file in self.files if file.role == role), None)


@dataclass(frozen=True)
class _Part:
    """One file on its way from the cache to the folder."""

    source: Source
    held: Held


def fetch(text: str, out: Path, cache: Cache, *, servers: Servers = SERVERS, force: bool = False) -> Fetched:
    """Have the files of an entry in a folder.

    Of a PDB entry: the model, its amplitudes where it has some, and PDB-REDO's model and data. Of an EMDB
    entry: the header, the map, its half maps, and the models fitted into it.

    Args:
        text: the entry, for example ``7EC8`` or ``EMD-40226``.
        out: the folder, made if it is missing.
        cache: files that are here already, and what fetches the others.
        servers: addresses of the archives.
        force: ask the archives for newer versions, and replace other files of the same names.

    Raises:
        InputError: it is no entry; or the folder has other files of the same names.
        ArchiveError: a file cannot be had; the message says how to go on without network.
    """
    entry = parse_entry(text)
    check_folder(out)
    if entry.startswith("EMD-"):
        parts, record = _fetch_map(entry, cache, servers, force)
    else:
        parts, absent = _obtain(crystal_files(entry, servers), cache, force)
        record = Fetched(entry=entry, files=_files(parts), absent=absent)
    _deliver(parts, cache, out, force=force)
    write_record(out / RECORD_FILE, record)
    return record


def summary(record: Fetched, out: Path) -> str:
    """What came, what did not and why, and what can be done with it."""
    lines = [f"{file.role}: {out / file.name} ({file.size / 1e6:.1f} MB)" for file in record.files]
    lines += [f"{missing.role}: none, {missing.why}" for missing in record.absent]
    if record.resolution is not None:
        level = "" if record.contour is None else f", contour level {record.contour:g}"
        lines.append(f"Stated by the entry: resolution {record.resolution:g} Å{level}")
    lines.append(f"Addresses, dates and SHA-256 are in {out / RECORD_FILE}")
    command = _next_command(record, out)
    return "\n".join([*lines, *(["", f"Next, for example: {command}"] if command else [])])


def _next_command(record: Fetched, out: Path) -> str | None:
    if (density := record.named("map")) is not None:
        half1, half2 = record.named("half map 1"), record.named("half map 2")
        halves = f" --half1 {out / half1} --half2 {out / half2}" if half1 and half2 else ""
        stated = f" --resolution {record.resolution:g}" if record.resolution is not None else ""
        return f"densemble cryoem {out / density} --model start.cif{stated}{halves} --out result"
    pairs = (("redo model", "redo data"), ("model", "amplitudes"))
    for model, data in ((record.named(m), record.named(d)) for m, d in pairs):  # type: ignore[arg-type]
        if model and data:
            return f"densemble scan {out / model} {out / data}"
    return None


def _fetch_map(entry: str, cache: Cache, servers: Servers, refresh: bool) -> tuple[list[_Part], Fetched]:
    """Of an EMDB entry: the header, and what it names."""
    head, _ = _obtain([header_file(entry, servers)], cache, refresh)
    header = read_header(cache.place(head[0].source))
    sources = [
        map_file(entry, header.map_file, servers),
        *half_map_files(entry, header.half_maps, servers),
        *(fitted_model(code, servers) for code in header.models),
    ]
    parts, absent = _obtain(sources, cache, refresh)
    if not header.half_maps:
        absent += [Absent(role=role, why="the entry names no half maps") for role in HALF_MAPS]
    if not header.models:
        absent.append(Absent(role="fitted model", why="the entry names none"))
    record = Fetched(
        entry=entry,
        files=_files(head + parts),
        absent=absent,
        resolution=header.resolution,
        contour=header.contour,
    )
    return head + parts, record


def _obtain(sources: list[Source], cache: Cache, refresh: bool) -> tuple[list[_Part], list[Absent]]:
    """Every file in the cache; those that may be left out, with the reason."""
    parts, absent = [], []
    for i, source in enumerate(sources):
        try:
            parts.append(_Part(source, cache.get(source, refresh=refresh)))
        except source.tolerated as error:
            absent.append(Absent(role=source.role, why=str(error)))
        except NotInArchiveError as error:
            raise NotInArchiveError(
                f"{error}; see that {source.entry} is a released entry, not withdrawn or superseded"
            ) from error
        except ArchiveError as error:
            raise ArchiveError(_without_network(error, sources[i:], cache)) from error
    return parts, absent


def _without_network(error: ArchiveError, sources: list[Source], cache: Cache) -> str:
    """What to do where the archive cannot be reached: which files to put where."""
    missing = [source for source in sources if not cache.place(source).is_file()]
    if not missing:
        return str(error)
    places = [f"  {source.url} as {cache.place(source)}" for source in missing]
    header = any(source.role == "header" for source in missing)
    last = "then the files that it names, and run this again" if header else "and run this again"
    return "\n".join([f"{error}. Without network, put by hand", *places, last])


def _files(parts: list[_Part]) -> list[FetchedFile]:
    return [
        FetchedFile(
            name=part.source.name,
            role=part.source.role,
            url=part.held.url,
            sha256=part.held.sha256,
            size=part.held.size,
            date=part.held.date,
        )
        for part in parts
    ]


def _deliver(parts: list[_Part], cache: Cache, out: Path, *, force: bool) -> None:
    """Copy what the folder does not have; each file appears as a whole."""
    new = []
    for part in parts:
        target = out / part.source.name
        if not target.exists():
            new.append(part)
        elif InputFile.of(target).sha256 != part.held.sha256:
            if not force:
                raise InputError(
                    f"{target} exists and is another file; choose another --out, or --force to replace it"
                )
            new.append(part)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part in new:
            copy = out / f".{part.source.name}.{os.getpid()}"
            shutil.copyfile(cache.place(part.source), copy)
            copy.replace(out / part.source.name)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
