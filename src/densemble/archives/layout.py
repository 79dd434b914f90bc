"""Where the archives keep the files of an entry.

- wwPDB (wwpdb.org/ftp/pdb-ftp-sites): ``/pub/pdb/data/structures/divided/mmCIF/ec/7ec8.cif.gz`` and
  ``.../structure_factors/ec/r7ec8sf.ent.gz``, in folders by the middle two characters.
- PDB-REDO (pdb-redo.eu): ``/db/7ec8/7ec8_final.cif`` and ``_final.mtz``, the re-refined model, and its data
  with amplitudes, free set and map coefficients.
- EMDB: ``/pub/emdb/structures/EMD-3488/`` with ``header/emd-3488.xml``, maps in ``map/`` and half maps in
  ``other/``, under names that the header gives. EBI has the same below ``ftp.ebi.ac.uk/pub/databases``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from densemble.archives.checks import Kind
from densemble.archives.servers import Servers
from densemble.archives.transfer import ArchiveError, NotInArchiveError
from densemble.errors import InputError

Role = Literal[
    "model",
    "amplitudes",
    "redo model",
    "redo data",
    "header",
    "map",
    "half map 1",
    "half map 2",
    "fitted model",
]

HALF_MAPS: tuple[Role, Role] = ("half map 1", "half map 2")

_PDB = re.compile(r"^(?:pdb_0000)?([0-9][a-z0-9]{3})$", re.IGNORECASE)
_EMDB = re.compile(r"^EMD-?([0-9]{4,5})$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One file of an entry.

    Attributes:
        entry: ``7EC8`` or ``EMD-3488``.
        role: what it is for.
        kind: what is in it.
        url: where it is.
        tolerated: failures that leave it out instead of ending the command.
    """

    entry: str
    role: Role
    kind: Kind
    url: str
    tolerated: tuple[type[ArchiveError], ...] = ()

    @property
    def name(self) -> str:
        """The archive's own name of the file."""
        return self.url.rsplit("/", 1)[-1]


def parse_entry(text: str) -> str:
    """The identifier of an entry as the archives write it, ``7EC8`` or ``EMD-3488``.

    Raises:
        InputError: it is neither.
    """
    if found := _PDB.match(text):
        return found[1].upper()
    if found := _EMDB.match(text):
        return f"EMD-{found[1]}"
    raise InputError(f"'{text}' is no entry; write a PDB code, for example 7EC8, or EMD-40226")


def crystal_files(entry: str, servers: Servers) -> list[Source]:
    """Of a PDB entry: its model; its amplitudes, which only some experiments have; and PDB-REDO's."""
    code = entry.lower()
    redo = f"{servers.redo}/{code}/{code}_final"
    return [
        Source(entry, "model", "model", f"{servers.pdb}/mmCIF/{code[1:3]}/{code}.cif.gz"),
        Source(
            entry,
            "amplitudes",
            "reflections",
            f"{servers.pdb}/structure_factors/{code[1:3]}/r{code}sf.ent.gz",
            (NotInArchiveError,),
        ),
        # PDB-REDO has no experiments but crystals, not all of those, and is one server without mirrors
        Source(entry, "redo model", "model", f"{redo}.cif", (ArchiveError,)),
        Source(entry, "redo data", "reflections", f"{redo}.mtz", (ArchiveError,)),
    ]


def fitted_model(code: str, servers: Servers) -> Source:
    """The model of a PDB entry, which may have been withdrawn."""
    model = crystal_files(code.upper(), servers)[0]
    return Source(model.entry, "fitted model", "model", model.url, (NotInArchiveError,))


def header_file(entry: str, servers: Servers) -> Source:
    """Of an EMDB entry: what says which files it has."""
    return Source(entry, "header", "header", f"{servers.emdb}/{entry}/header/{entry.lower()}.xml")


def map_file(entry: str, name: str, servers: Servers) -> Source:
    """Of an EMDB entry."""
    return Source(entry, "map", "map", f"{servers.emdb}/{entry}/map/{name}")


def half_map_files(entry: str, names: tuple[str, ...], servers: Servers) -> list[Source]:
    """Of an EMDB entry, those that its header names."""
    return [
        Source(entry, role, "map", f"{servers.emdb}/{entry}/other/{name}")
        for role, name in zip(HALF_MAPS, names, strict=False)
    ]
