"""A finished run as its folder has it: ``result.json`` and the files beside it, nothing else."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from densemble.errors import InputError
from densemble.io.finished import read_run
from densemble.io.output import TRACE_FILE
from densemble.io.results import Result
from densemble.io.state_results import RESIDUES_FILE, StateResult


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A finished run.

    Attributes:
        path: the folder.
        result: of a crystal or of a cryo-EM map.
        residues: names of the residues that ``residues.csv`` lists; empty without the file.
        residue_figures: its columns by name, NaN where it has no figure, each shape=(R,).
        trace: columns of ``trace.csv`` by name, NaN where a term was not active, each shape=(steps,).
    """

    path: Path
    result: Result | StateResult
    residues: tuple[str, ...]
    residue_figures: dict[str, Float[np.ndarray, " r"]]
    trace: dict[str, Float[np.ndarray, " t"]]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read the records of a run.

        Raises:
            InputError: it is no folder of a finished run, or one of its files does not follow its format.
        """
        rows = _rows(path / RESIDUES_FILE)
        columns = [name for name in (rows[0] if rows else ()) if name not in ("residue", "name")]
        return cls(
            path=path,
            result=read_run(path),
            residues=tuple(f"{row['residue']} {row['name']}" for row in rows),
            residue_figures={name: _numbers(rows, name, path / RESIDUES_FILE) for name in columns},
            trace=_trace(path / TRACE_FILE),
        )


def _rows(path: Path) -> list[dict[str, str]]:
    """Lines of a table by column; empty where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, restval=""))
    if rows and not {"residue", "name"} <= rows[0].keys():
        raise InputError(f"{path}: has no columns residue and name")
    return rows


def _trace(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, restval=""))
    return {name: _numbers(rows, name, path) for name in rows[0]} if rows else {}


def _numbers(rows: list[dict[str, str]], column: str, path: Path) -> np.ndarray:
    """A column, NaN where it is empty."""
    try:
        return np.array([float(row[column]) if row[column] else np.nan for row in rows])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: column {column} holds something that is not a number ({error})") from error
