"""How to do a run again: the command, put together from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from densemble.io.results import Result
from densemble.io.state_results import StateResult

_ON = {"states"}
"""Settings that are on unless the command says no."""


def command_of(result: Result | StateResult) -> str:
    """The command of a run, every option stated; Python where the command line has no such run.

    Files are named without their folders, as the record has them.
    """
    settings: dict[str, object] = dict(result.settings)
    reference = _reference(result)
    if isinstance(result, StateResult):
        if settings.get("region") is None or not settings.get("states", True):
            settings.pop("cycles", None)
        return _shell("cryoem", ["map"], settings | {"selection": result.selection}, reference)
    guides = settings.pop("guides", ["ensemble"])
    if isinstance(guides, list) and len(guides) == 1:
        settings["guide"] = guides[0]
        if not settings.get("states", True):
            settings.pop("cycles", None)
        return _shell("xray", ["model", "data"], settings, reference)
    return _python(settings | {"guides": guides}, reference)


def _reference(result: Result | StateResult) -> str | None:
    """The model that a result was compared with is the last of its inputs."""
    if isinstance(result, Result):
        compared = any(m.rmsd for m in result.members)
    else:
        region = () if result.region is None else result.region.members
        compared = result.start_reference is not None or any(m.rmsd for m in region)
    return result.inputs[-1].name if compared and result.inputs else None


def _shell(name: str, files: list[str], recorded: Mapping[str, object], reference: str | None) -> str:
    settings = dict(recorded)
    words = ["densemble", name, *(str(settings.pop(file)) for file in files)]
    fold = settings.pop("fold", None)
    if isinstance(fold, dict):
        settings |= fold
    for key, value in settings.items():
        words += _option(key, value)
    if reference is not None:
        words += ["--reference", reference]
    return shlex.join([*words, "--out", "again"])


def _option(key: str, value: object) -> list[str]:
    if value is None or isinstance(value, dict):
        return []
    option = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        usual = key in _ON
        return [] if value == usual else [f"--no-{key}" if usual else option]
    return [option, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def _python(settings: Mapping[str, object], reference: str | None) -> str:
    """The same through the Python API."""
    paths = ("model", "data", "weights_backbone", "weights_design")
    arguments = []
    for key, value in settings.items():
        if value is None or isinstance(value, dict):
            continue
        plain = tuple(value) if isinstance(value, list) else value
        arguments.append(f"    {key}=Path({plain!r})," if key in paths else f"    {key}={plain!r},")
    compared = "" if reference is None else f", reference=Path({reference!r})"
    return "\n".join(
        [
            "from pathlib import Path",
            "from densemble.pipeline import Settings, run_xray",
            "",
            "settings = Settings(",
            *arguments,
            ")",
            f'run_xray(settings, Path("again"){compared})',
        ]
    )
