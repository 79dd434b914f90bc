"""What several modules of the command line share: errors in plain words, and options of amplitudes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from densemble.errors import InputError

PATH = click.Path(path_type=Path)


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input: one sentence on stderr and exit code 2, no traceback."""

    @wraps(command)
    def wrapped(**options: Any) -> None:
        try:
            command(**options)
        except InputError as error:
            click.echo(f"densemble: {error}", err=True)
            sys.exit(2)

    return wrapped


def _labels(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, str] | None:
    """Two names of columns, separated by a comma."""
    del context, parameter
    if value is None:
        return None
    first, comma, second = (part.strip() for part in value.partition(","))
    if not (first and comma and second) or "," in second:
        raise click.BadParameter(f"'{value}' is not two names of columns, for example FP,SIGFP")
    return first, second


def column_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every command has which reads amplitudes."""
    command = click.option("--free-label", help="Column of the free flags, if several differ.")(command)
    return click.option(
        "--labels",
        callback=_labels,
        metavar="F,SIGF",
        help="Columns of amplitudes and their uncertainties, if DATA has several.",
    )(command)
