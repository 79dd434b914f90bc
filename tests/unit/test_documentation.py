"""What the README and the documentation tell users to type: commands that exist, and Python that runs."""

import re
import shlex
import shutil
from pathlib import Path

import click
import gemmi
import pytest
from command_line import invoke
from small_state import write_state

from densemble.cli import main
from densemble.demo import example

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


FEWER = {
    "demo": "--prior gaussian --members 2 --steps 4 --cycles 1",
    "xray": "--prior gaussian --members 2 --steps 4 --cycles 1",
    "cryoem": "--members 1 --steps 4",
}
"""What makes the commands of the quick start short, to come to their end in a test."""


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path, monkeypatch):
    """Every command, as printed but for its length, where files of these names are."""
    for name in ("model.cif", "data.mtz"):
        shutil.copy(example(name), tmp_path / name)
    state = write_state(tmp_path)
    for source, name in (
        (state.map, "map.mrc"),
        (state.half1, "half1.mrc"),
        (state.half2, "half2.mrc"),
    ):
        shutil.copy(source, tmp_path / name)
    gemmi.read_structure(str(state.start)).write_pdb(str(tmp_path / "start.pdb"))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "quick-start.md").read_text()
    typed = re.findall(r"`(densemble validate [^`]+)`|^(densemble .+)$", page, re.MULTILINE)
    names = []
    for inline, line in typed:
        name, *arguments = shlex.split(inline or line)[1:]
        names.append(name)
        if "--out" in arguments:
            shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
        done = invoke(name, *arguments, *shlex.split(FEWER.get(name, "")))
        assert done.exit_code == 0, done.output
    assert names == ["demo", "xray", "scan", "validate", "cryoem", "cryoem"]
    assert (tmp_path / "result" / "best.cif").is_file()
