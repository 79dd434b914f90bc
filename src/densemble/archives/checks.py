"""Whether a file that came is what it should be: whole, and of its kind."""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import gemmi

from densemble.errors import InputError
from densemble.io.models import read_model

Kind = Literal["model", "reflections", "map", "header"]

_PIECE = 1 << 20
_HEADER = 1024  # bytes of a CCP4 header
_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}
_NAMES = {
    "model": "a model in mmCIF",
    "reflections": "reflections in MTZ or SF-mmCIF",
    "map": "a CCP4 map",
    "header": "an EMDB header in XML",
}


def check(path: Path, kind: Kind) -> None:
    """See that a file is complete and can be opened.

    Args:
        path: the file, perhaps gzipped; its name says so.
        kind: what should be in it.

    Raises:
        InputError: it is not.
    """
    try:
        for _ in _pieces(path):  # gzip's check sum comes last
            pass
        _OPEN[kind](path)
    except (
        InputError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        IndexError,
        zlib.error,
        ElementTree.ParseError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not {_NAMES[kind]}, or not all of it: {reason}") from error


def unpack_if_packed(path: Path) -> None:
    """Gunzip a file in place that came gzipped though its name does not say so."""
    with path.open("rb") as file:
        if path.suffix == ".gz" or file.read(2) != b"\x1f\x8b":
            return
    unpacked = path.with_name(f"{path.name}.unpacked")
    try:
        with gzip.open(path) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (OSError, EOFError, zlib.error) as error:
        unpacked.unlink()
        raise InputError(f"{path} came gzipped, and not all of it: {error}") from error
    unpacked.replace(path)


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def _pieces(path: Path) -> Iterator[bytes]:
    with _open(path) as file:
        while piece := file.read(_PIECE):
            yield piece


def _check_reflections(path: Path) -> None:
    with _open(path) as file:
        mtz = file.read(4) == b"MTZ "
    if mtz:
        gemmi.read_mtz_file(str(path))
    elif not any(block for block in gemmi.as_refln_blocks(gemmi.cif.read(str(path)))):
        raise ValueError("no _refln loop in it")


def _check_map(path: Path) -> None:
    """Header and length; the values are counted, not kept, for maps have gigabytes."""
    with _open(path) as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or header[208:212] != b"MAP ":
        raise ValueError("no CCP4 header")
    order = "<" if header[212] == 0x44 else ">"
    columns, rows, sections, mode = struct.unpack_from(f"{order}4i", header)
    (extended,) = struct.unpack_from(f"{order}i", header, 92)
    if mode not in _BYTES:
        raise ValueError(f"values of mode {mode}")
    wanted = _HEADER + extended + columns * rows * sections * _BYTES[mode]
    length = sum(len(piece) for piece in _pieces(path))
    if length != wanted:
        raise ValueError(f"{length} bytes where the header says {wanted}")


def _check_header(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    if root.tag != "emd":
        raise ValueError(f"its root is <{root.tag}>, not <emd>")


_OPEN: dict[Kind, Callable[[Path], object]] = {
    "model": read_model,
    "reflections": _check_reflections,
    "map": _check_map,
    "header": _check_header,
}
