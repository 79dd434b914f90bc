"""One polite HTTP client: one connection, pauses, retries, and transfers that go on where they stopped.

A transfer is resumed only if the server can tell that the file is still the same: Range goes with If-Range
(RFC 9110, 13.1.5), which needs a strong ETag or a Last-Modified. Bytes are taken as they are sent: archives
keep gzipped files, and a server that labels them as gzip-encoded must not have them unpacked on the way.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, NameResolutionError
from urllib3.util import Retry

from densemble.errors import InputError
from densemble.io.output import Record, versions, write_record
from densemble.progress import Progress

_PIECE = 1 << 16
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


class ArchiveError(InputError):
    """An archive does not give a file: it cannot be reached, or answers with an error, or with nonsense."""


class NotInArchiveError(ArchiveError):
    """The archive is there and says that it has no such file."""


class _PassingError(Exception):
    """What may be better the next time.

    ``wait`` is what the server asks for, in seconds; ``reached`` whether there was a server at all.
    """

    def __init__(self, reason: str, wait: float | None = None, *, reached: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.reached = wait, reached


@dataclass(frozen=True)
class Manners:
    """How a server is treated; times in seconds.

    Attributes:
        pause: at least so long between two requests to one server.
        attempts: tries in a row without progress, before giving up.
        backoff: wait after the first failure; doubled after each further one.
        timeout: longest silence of a server.
        longest_wait: a server that asks for more (Retry-After) is left alone.
    """

    pause: float = 0.5
    attempts: int = 5
    backoff: float = 1.0
    timeout: float = 30.0
    longest_wait: float = 120.0


class Version(Record):
    """What a server says identifies the bytes of a file."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def validator(self) -> str | None:
        """For If-Range, which weak ETags are not good enough for."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    def unless_changed(self) -> dict[str, str]:
        """Headers that ask for the file only if it is another version."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value is not None}


@dataclass(eq=False)
class Client:
    """Fetches files, one at a time.

    Attributes:
        manners: how servers are treated.
        progress: told of every file.
        sleep: waits some seconds.
        offline: fetch nothing.
    """

    manners: Manners = Manners()
    progress: Progress = field(default_factory=Progress)
    sleep: Callable[[float], None] = time.sleep
    offline: bool = False
    _last: dict[str, float] = field(default_factory=dict)
    _unreachable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"densemble/{versions()['densemble']} (fetch)"
        self._session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=0))

    def download(self, url: str, part: Path, *, known: Version | None = None) -> Version | None:
        """Complete a file, going on with what an earlier attempt left of it.

        Args:
            url: of the file.
            part: where the bytes go; beside it ``NAME.version`` says of which version they are.
            known: the version that one has already.

        Returns:
            The version fetched, or None if ``known`` is still what the server has (nothing is written then).

        Raises:
            NotInArchiveError: the server has no such file.
            ArchiveError: it cannot be reached (then it is not tried again), answers with another error, or
                asks for too long a wait; or nothing is to be fetched.
        """
        failures, host = 0, urlsplit(url).netloc
        if self.offline:
            raise ArchiveError(f"{url}: is not here, and nothing is fetched (--offline)")
        if host in self._unreachable:
            raise ArchiveError(f"cannot reach {host}: {self._unreachable[host]}")
        while True:
            before = _size(part)
            try:
                return self._attempt(url, part, known)
            except _PassingError as error:
                failures = 1 if _size(part) >= before + _PIECE else failures + 1
                wait = self.manners.backoff * 2 ** (failures - 1) if error.wait is None else error.wait
                if failures >= self.manners.attempts:
                    if not error.reached:
                        self._unreachable[host] = str(error)
                        raise ArchiveError(
                            f"cannot reach {host}: {error}, {failures} times in a row"
                        ) from error
                    raise ArchiveError(f"{url}: {error}, {failures} times in a row") from error
                if wait > self.manners.longest_wait:
                    raise ArchiveError(
                        f"{url}: {error}, and asks to wait for {wait:.0f} s; try again after that"
                    ) from error
                self.progress.message(f"{url}: {error}; again in {wait:g} s")
                self.sleep(wait)

    def _attempt(self, url: str, part: Path, known: Version | None) -> Version | None:
        have, version = _resumable(part)
        headers = {} if known is None else known.unless_changed()
        if have and version.validator is not None:
            headers = {"Range": f"bytes={have}-", "If-Range": version.validator}
        self._be_polite(url)
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=self.manners.timeout) as answer:
                if answer.status_code == 304 and known is not None:
                    return None
                start = _accepted(url, answer, have, part)
                found = Version(
                    etag=answer.headers.get("ETag"), last_modified=answer.headers.get("Last-Modified")
                )
                write_record(_version_file(part), found)
                self._receive(answer.raw, part, start, name=urlsplit(url).path.rsplit("/", 1)[-1])
        except requests.TooManyRedirects as error:
            raise ArchiveError(f"{url}: is redirected in a circle") from error
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            if _no_such_name(error):  # no network, or no such server: the next second does not change that
                host = urlsplit(url).netloc
                self._unreachable[host] = "its name cannot be resolved"
                raise ArchiveError(f"cannot reach {host}: its name cannot be resolved") from error
            silent = isinstance(error, requests.ConnectionError | requests.ConnectTimeout)
            raise _PassingError(_plain(error), reached=not silent) from error
        except requests.RequestException as error:
            raise ArchiveError(f"{url}: cannot be asked for ({_plain(error)})") from error
        _version_file(part).unlink()
        return found

    def _receive(self, raw: BaseHTTPResponse, part: Path, start: int, *, name: str) -> None:
        """Append what the server sends; all of it, or it is an error that may pass."""
        length = raw.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        done = start
        with (
            part.open("ab" if start else "wb") as file,
            self.progress.steps(name, total or 0) as tell,
        ):
            for piece in raw.stream(_PIECE, decode_content=False):
                file.write(piece)
                done += len(piece)
                tell(done)
        if total is not None and done != total:
            raise _PassingError(f"{done} of {total} bytes came")

    def _be_polite(self, url: str) -> None:
        host = urlsplit(url).netloc
        since = time.monotonic() - self._last.get(host, -self.manners.pause)
        if since < self.manners.pause:
            self.sleep(self.manners.pause - since)
        self._last[host] = time.monotonic()


def _accepted(url: str, answer: requests.Response, have: int, part: Path) -> int:
    """Offset of the bytes that a good answer brings; a bad one is an error."""
    status = answer.status_code
    if status == 200:
        return 0
    if status == 206 and have and _first_byte(answer) == have:
        return have
    if status in (206, 416):  # not what was asked for, or nothing is left of the file: begin again
        part.unlink(missing_ok=True)
        raise _PassingError("the rest of the file does not fit what is here of it")
    where = urlsplit(answer.url).netloc
    if status in _GONE:
        raise NotInArchiveError(f"{url}: {where} has no such file ({status})")
    if status in _BUSY:
        raise _PassingError(f"{where} answers {status} {answer.reason}", _retry_after(answer))
    raise ArchiveError(f"{url}: {where} answers {status} {answer.reason}")


def _first_byte(answer: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return None if found is None else int(found[1])


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds, of a header that has seconds or a date."""
    value = answer.headers.get("Retry-After")
    try:
        return None if value is None else float(Retry().parse_retry_after(value))
    except InvalidHeader:
        return None


def _resumable(part: Path) -> tuple[int, Version]:
    """Bytes that are here, and their version; none if it is not known."""
    try:
        version = Version.model_validate_json(_version_file(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return 0, Version()
    return _size(part), version


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _no_such_name(error: BaseException) -> bool:
    """Whether the name of the server could not be resolved, by whichever of the errors below this one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror | NameResolutionError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _plain(error: Exception) -> str:
    """The innermost reason in one line, without addresses of Python objects."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    text = re.sub(r"<[^<>]*object at 0x[0-9a-f]+>:? ?", "", str(cause))
    return " ".join(text.split()) or type(cause).__name__
