"""What the README and the documentation tell users to type: commands that exist, and Python that runs."""

import re
import shlex
from pathlib import Path

import click
import pytest

from densemble.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOR_FILES_OF_THE_USER = {"README.md", "reproducing-paper-1.md"}
"""Pages whose Python reads files that only the user has."""


def blocks(page: Path, *, python: bool) -> list[str]:
    """Code blocks of a page: Python, or what is typed into a shell."""
    return [text for language, text in FENCE.findall(page.read_text()) if (language == "python") == python]


def commands() -> list[str]:
    """Every densemble command of every page, those in tables too, without comments."""
    found = []
    for page in PAGES:
        shell = "\n".join(blocks(page, python=False)).replace("\\\n", " ")
        lines = [line.strip().split(" #")[0].strip() for line in shell.splitlines()]
        found += [line for line in lines if re.match(r"densemble [a-z]", line)]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command):
    name, *arguments = shlex.split(re.sub(r"\$\w+", "0", command))[1:]  # variables of loops are numbers
    assert isinstance(main, click.Group)
    main.commands[name].make_context(name, arguments)  # raises for an option or a value that there is not


def test_there_are_commands():
    names = {command.split()[1] for command in commands()}
    assert {"demo", "xray", "cryoem"} <= names


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in FOR_FILES_OF_THE_USER], ids=lambda p: p.name
)
def test_python_runs(page, tmp_path, monkeypatch):
    code = blocks(page, python=True)
    if not code:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in code:  # one after the other, as a reader would
        exec(compile(block, page.name, "exec"), names)
