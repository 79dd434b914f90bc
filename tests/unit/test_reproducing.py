"""The page on paper 1: its commands are those of the paper's tables, and such as the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from densemble.atoms import Region
from densemble.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "reproducing-paper-1.md"
TABLE_A3 = {
    "1LU4:A": ("95-100", "YNVPWW"),
    "2O1A:A": ("50-53", "KQNN"),  # printed 201A
    "2Q3G:A": ("24-27", "FNVP"),
    "2YNT:A": ("126-128", "GNG"),
    "3OHE:A": ("97-104", "YQGDPAWP"),  # printed 30HE
    "3V3S:B": ("227-232", "KAQERD"),
    "4NPU:B": ("33-36", "FEEI"),
    "4OLE:B": ("59-69", "ASTEKKDVLPV"),
    "5G51:A": ("31-36", "GSASDQ"),
    "6JF2:A": ("50-54", "VTAGG"),
    "6QQF:A": ("68-75", "RTPGSRNL"),
    "7EC8:A": ("187-190", "DGGI"),
    "7R7W:B": ("46-50", "IEKVE"),
}
FOR_ALL = "--start-altloc A --prior chroma --map as-phased --out out"


@pytest.fixture(scope="module")
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("the documentation is not installed with the package")
    return PAGE.read_text(encoding="utf-8")


def options_of(command: str, name: str = "xray") -> dict:
    """What the program understands a command to mean; it stops at an option that it does not have."""
    return main.commands[name].make_context(name, shlex.split(command, comments=False)).params


def test_every_entry_of_table_a3_has_its_command(page):
    rows = re.findall(r"^\| (\w{4}:\w) \| (\w+) \| ([\d.]+) \| `(.+)` \|$", page, re.MULTILINE)
    assert {entry: sequence for entry, sequence, *_ in rows} == {e: s for e, (_, s) in TABLE_A3.items()}
    for entry, sequence, _, command in rows:
        code, chain = entry.lower().split(":")
        site = TABLE_A3[entry][0]
        options = options_of(f"{command} {FOR_ALL}")
        assert options["region"] == f"{chain.upper()}:#{site}"
        assert (options["model"].name, options["data"].name) == (f"{code}.cif", f"{code}.mtz")
        first, last = map(int, site.split("-"))
        assert last - first + 1 == len(sequence)
        Region.parse(options["region"])


def test_commands_of_controls_and_ablation_are_such_as_the_program_takes(page):
    blocks = re.findall(r"^```\n(densemble .+?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [options_of(line.removeprefix("densemble xray ")) for line in lines]
    assert all(options["prior"] == "chroma" for options in commands)
    assert {o["region"] for o in commands} >= {"B:205-208", "B:143-146"}  # Table A1
    assert {o["guide"] for o in commands} == {"ensemble", "each", "none"}
    assert len(commands) == 5


def test_other_commands_are_such_as_the_program_takes(page):
    assert "--region-prior chroma" in page
    line = "map.mrc --model m.cif --resolution 3 --out o --ensemble --region A:95-100 --region-prior chroma"
    more = " --region-recipe r.toml --weights-backbone b.pt --weights-design d.pt"
    assert options_of(line + more, "cryoem")["region_prior"] == "chroma"
    for option in set(re.findall(r"--[a-z][a-z-]+", page)) - {"--no-deps"}:
        known = {o for name in ("xray", "cryoem") for p in main.commands[name].params for o in p.opts}
        assert option in known, option
