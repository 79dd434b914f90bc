"""An archive on this machine: files over HTTP, with the ways in which real servers misbehave.

Files have paths as the archives lay them out. A fault is used up by the next request for its path.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODIFIED = "Wed, 01 Nov 2023 00:00:00 GMT"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        cut: send so many bytes and close the connection.
        stall: after ``cut`` bytes keep the connection open and say nothing.
        status: answer with this and no file.
        headers: added to the answer.
        body: of an answer in place of the file.
        whole: ignore Range and send everything.
        chunked: without Content-Length, in chunks.
        shift: answer a Range with one that begins so many bytes later.
    """

    cut: int | None = None
    stall: bool = False
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    whole: bool = False
    chunked: bool = False
    shift: int = 0


class Archive:
    """Files by path, faults by path, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.validators = True
        self.weak = False
        self.address = ""
        self.open = 0
        self.most_open = 0
        self.released = threading.Event()

    def etag(self, path: str) -> str:
        tag = f'"{hashlib.md5(self.files[path]).hexdigest()}"'
        return f"W/{tag}" if self.weak else tag

    def requests(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for a path."""
        return [headers for asked, headers in self.asked if asked == path]


@contextmanager
def serving(archive: Archive):
    """The archive at ``archive.address``."""
    handler = type("Handler", (_Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    archive.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield archive
    finally:
        archive.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    archive: Archive
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        archive, path = self.archive, self.path
        archive.asked.append((path, dict(self.headers)))
        fault = archive.faults[path].pop(0) if archive.faults[path] else Fault()
        archive.open += 1
        archive.most_open = max(archive.most_open, archive.open)
        try:
            if fault.status != 200:
                self._plain(fault.status, fault.headers)
            elif fault.body is not None:
                self._send(200, fault.body, fault, {})
            elif path not in archive.files:
                self._plain(404, {})
            else:
                self._file(path, fault)
        finally:
            archive.open -= 1

    def _file(self, path: str, fault: Fault) -> None:
        archive, data = self.archive, self.archive.files[path]
        headers = {"ETag": archive.etag(path), "Last-Modified": MODIFIED} if archive.validators else {}
        asked = dict(self.headers)
        if headers and asked.get("If-None-Match") == headers["ETag"]:
            self._plain(304, headers)
            return
        rest = re.match(r"bytes=(\d+)-$", asked.get("Range", ""))
        same = asked.get("If-Range") in (None, *headers.values())
        if rest is None or not same or fault.whole:
            self._send(200, data, fault, headers)
            return
        first = int(rest[1])
        if first >= len(data):
            self._plain(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        first += fault.shift
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206, data[first:], fault, headers)

    def _send(self, status: int, data: bytes, fault: Fault, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | fault.headers).items():
            self.send_header(name, value)
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        sent = data if fault.cut is None else data[: fault.cut]
        if fault.chunked:
            self.wfile.write(
                b"%x\r\n%b\r\n" % (len(sent), sent) + (b"0\r\n\r\n" if fault.cut is None else b"")
            )
        else:
            self.wfile.write(sent)
        self.wfile.flush()
        if fault.stall:
            self.archive.released.wait(10)
        if fault.cut is not None:
            self.close_connection = True

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", "0")
        self.end_headers()
