"""The command line: thin, every word of it also in the Python API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click

from densemble import __version__
from densemble.errors import InputError

P = ParamSpec("P")

_FILE = click.Path(path_type=Path)


def _plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Bad input: one sentence on stderr and exit code 2, no traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            click.echo(f"densemble: {error}", err=True)
            sys.exit(2)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="densemble")
def main() -> None:
    """From a density map to the conformations that made it."""


_run_options = [
    click.option("--members", type=click.IntRange(min=1), default=16, show_default=True, help="Members sampled together."),
    click.option("--keep", type=click.IntRange(1, 26), default=5, show_default=True, help="At most this many are kept."),
    click.option("--steps", type=click.IntRange(min=1), help="Diffusion steps; the recipe's if not given."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
    click.option("--prior", type=click.Choice(["embedded", "gaussian"]), default="gaussian", show_default=True, help="What proteins look like."),
    click.option("--recipe", default="densemble", show_default=True, help="Name of a method, or a .toml file."),
    click.option("--force", is_flag=True, help="Replace an earlier result in the output folder."),
    click.option("--resume", is_flag=True, help="Go on with a run that was stopped."),
]
