"""Imports go down only: the architecture as a list, and the modules held to it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import densemble

ROOT = Path(densemble.__file__).parent

LAYERS = (
    "errors",
    "atoms",
    "grid",
    "__init__",  # the public names
    "io",
    "geometry",
    "forward",
    "crystal",
    "likelihood",
    "metrics",
    "progress",
    "align",
    "archives",
    "priors",
    "sidechains",
    "testing",
    "guidance",
    "sampler",
    "rounds",
    "selection",
    "recipes",
    "suites",
    "report",
    "problem",
    "evaluation",
    "refinement",
    "assembly",
    "method",
    "run",
    "region",
    "settle",
    "part_search",
    "states",
    "inputs",
    "side_process",
    "modelling",
    "pipeline",
    "docking",
    "em",
    "cryoem",
    "simulate",
    "score",
    "validate",
    "scan",
    "experiments",
    "demo",
    "cli_options",
    "cli_entries",
    "cli_models",
    "cli",
)
"""From the lowest; a module may import from its own package and from lower layers."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
VAGUE = {"utils", "util", "core", "settings", "common", "helpers", "helper", "misc", "base"}


def imported(source: str, package: str = "densemble") -> set[str]:
    """Modules of the package that a module imports, also within functions, named without the package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == package:
                found.add(module_of(rest))
    return found


def module_of(dotted: str) -> str:
    """The module that a dotted name is in: its longest part that is one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in MODULES:
            return ".".join(parts[:n])
    return "__init__"


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[0])


def test_finder_sees_every_kind_of_import():
    source = "import densemble.io.maps\nfrom densemble import grid, Region\ndef f():\n import densemble.cli\n"
    assert imported(source) == {"io.maps", "grid", "__init__", "cli"}
    assert imported("from densemble.io import maps as m") == {"io.maps"}
    assert imported("from densemble.io.maps import read_map\nimport numpy") == {"io.maps"}
    with pytest.raises(AssertionError, match="relative"):
        imported("from . import grid")


def test_every_module_has_its_place():
    unplaced = sorted({name.split(".")[0] for name in MODULES} - set(LAYERS))
    assert not unplaced, f"add to LAYERS, above all that they import: {unplaced}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    own = layer(module)
    for other in imported(MODULES[module].read_text(encoding="utf-8")):
        same_package = other.split(".")[0] == module.split(".")[0]
        assert same_package or layer(other) < own, f"{module} imports {other}, which is above it"


def test_no_module_imports_itself_in_a_circle():
    graph = {m: imported(path.read_text(encoding="utf-8")) - {m} for m, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_names_say_what_is_in_a_module(module):
    assert not VAGUE & set(module.split("."))


def test_package_alone_imports_no_prior():
    code = "import densemble, sys; print(*(m for m in sys.modules if m.startswith('densemble.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) == {"densemble.atoms", "densemble.errors", "densemble.grid"}
