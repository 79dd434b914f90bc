"""Where the files of a case are: in the package, in a folder, or fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from densemble.archives.cache import Cache
from densemble.archives.entries import Fetched, fetch
from densemble.archives.servers import SERVERS, Servers
from densemble.errors import InputError


@dataclass(eq=False)
class Files:
    """Finds files by their names in a suite.

    Attributes:
        folder: for fetched entries, one folder each.
        data: for the names that begin with ``data:``; None if there is none.
        cache: of the archives.
        servers: addresses of the archives.
    """

    folder: Path
    data: Path | None
    cache: Cache
    servers: Servers = SERVERS
    _known: dict[str, Fetched | InputError] = field(default_factory=dict)

    def find(self, name: str) -> Path:
        """The path of a file.

        Raises:
            InputError: it is not there, and why.
        """
        where, _, path = name.partition(":")
        if where == "package":
            return Path(str(resources.files("densemble") / "data" / path))
        if where == "data":
            return self._in_data(path)
        entry, _, own = path.partition("/")
        return self._fetched(entry, own)

    def _in_data(self, path: str) -> Path:
        if self.data is None:
            raise InputError(f"{path} is in a folder of data, which was not given (--data)")
        place = self.data / path
        if not place.is_file():
            raise InputError(f"{place} is not there")
        return place

    def _fetched(self, entry: str, own: str) -> Path:
        place = self.folder / entry / own
        if place.is_file():
            return place
        if entry not in self._known:
            self._known[entry] = self._try(entry)
        known = self._known[entry]
        if isinstance(known, InputError):
            raise known
        if not place.is_file():
            absent = "; ".join(f"{part.role}: {part.why}" for part in known.absent)
            raise InputError(f"{entry} came without {own} ({absent or 'the archive does not have it'})")
        return place

    def _try(self, entry: str) -> Fetched | InputError:
        try:
            return fetch(entry, self.folder / entry, self.cache, servers=self.servers)
        except InputError as error:
            return InputError(" ".join(line.strip() for line in str(error).splitlines()))  # a cell of a table
