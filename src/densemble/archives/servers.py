"""Addresses of the archives: data alone, for the command line states them before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Servers:
    """Addresses of the archives, of which mirrors have others."""

    pdb: str = "https://files.wwpdb.org/pub/pdb/data/structures/divided"
    redo: str = "https://pdb-redo.eu/db"
    emdb: str = "https://files.wwpdb.org/pub/emdb/structures"


SERVERS = Servers()
