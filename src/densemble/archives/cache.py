"""Files of the archives on this machine: each fetched once, checked, and known by its SHA-256.

``CACHE/7EC8/7ec8.cif.gz`` has its record beside it, ``7ec8.cif.gz.json``. A transfer in progress is in
``CACHE/7EC8/partial/`` under the same name. A file without record was put there by hand, and is taken if it
can be opened.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from densemble.archives.checks import check, unpack_if_packed
from densemble.archives.layout import Source
from densemble.archives.transfer import ArchiveError, Client, Version
from densemble.errors import InputError
from densemble.io.output import InputFile, Record, write_record


class Held(Record):
    """The record of a file in the cache: where it came from (None: by hand), when (UTC), and what it is."""

    url: str | None
    sha256: str
    size: int
    date: str
    version: Version = Version()


def default_folder() -> Path:
    """``densemble`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densemble"


@dataclass(frozen=True, eq=False)
class Cache:
    """A folder of fetched files.

    Attributes:
        folder: where.
        client: what fetches.
    """

    folder: Path
    client: Client

    def place(self, source: Source) -> Path:
        """Where a file is, or will be."""
        return self.folder / source.entry / source.name

    def get(self, source: Source, *, refresh: bool = False) -> Held:
        """Have a file, from before or from the archive.

        Args:
            source: which.
            refresh: ask the archive whether it has another version by now.

        Raises:
            ArchiveError: see ``Client.download``; or what came is not what it should be.
            InputError: the file put there by hand is not what it should be; the folder cannot be used.
        """
        place = self.place(source)
        try:
            (place.parent / "partial").mkdir(parents=True, exist_ok=True)
            lock = place.parent / "partial" / f"{place.name}.lock"
            with FileLock(lock):
                try:
                    held = self._held(source)
                    return held if held is not None and not refresh else self._fetch(source, held)
                finally:  # while it is held: whoever waits for it opens the file anew at every try
                    with suppress(OSError):  # Windows keeps files that are open
                        lock.unlink()
        except OSError as error:
            raise InputError(
                f"cache {self.folder}: cannot be used ({error.strerror}); choose another with --cache"
            ) from error

    def _held(self, source: Source) -> Held | None:
        """The record of a file that is here and as it was."""
        place = self.place(source)
        if not place.is_file():
            return None
        try:
            held = Held.model_validate_json(_record_file(place).read_text(encoding="utf-8"))
        except ValidationError:
            return None
        except FileNotFoundError:
            _check_by_hand(place, source)
            return _write(place, _describe(place, url=None, version=Version()))
        unchanged = held.size == place.stat().st_size and held.sha256 == InputFile.of(place).sha256
        return held if unchanged else None

    def _fetch(self, source: Source, held: Held | None) -> Held:
        place = self.place(source)
        part = place.parent / "partial" / place.name
        known = None if held is None or held.url != source.url else held.version
        version = self.client.download(source.url, part, known=known)
        if version is None:
            assert held is not None
            return _write(place, held.model_copy(update={"date": _now()}))
        try:
            unpack_if_packed(part)
            check(part, source.kind)
        except InputError as error:
            part.unlink()
            reason = str(error).removeprefix(str(part)).strip()
            raise ArchiveError(f"{source.url}: what came {reason}; try again, or another server") from error
        # the record first: a file with the record of another is fetched again, one without is taken as it is
        held = _write(place, _describe(part, url=source.url, version=version))
        part.replace(place)
        return held


def _describe(file: Path, *, url: str | None, version: Version) -> Held:
    digest, size = InputFile.of(file).sha256, file.stat().st_size
    return Held(url=url, sha256=digest, size=size, date=_now(), version=version)


def _write(place: Path, held: Held) -> Held:
    write_record(_record_file(place), held)
    return held


def _check_by_hand(place: Path, source: Source) -> None:
    try:
        check(place, source.kind)
    except InputError as error:
        raise InputError(f"{error}; replace it by {source.url}, or remove it") from error


def _record_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
