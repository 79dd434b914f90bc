"""The suites of the package: consistent in themselves, and with the page that lists their commands."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

import densemble
from densemble.archives.layout import crystal_files, parse_entry
from densemble.archives.servers import SERVERS
from densemble.atoms import Region, ResidueId, Topology
from densemble.demo import example
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.recipes import load_recipe
from densemble.recipes.state import load_state_recipe
from densemble.suites import Crystal, Drawn, Simulated, Site, Variant, load_suite, suites
from densemble.suites.sites import find_site

PAGE = Path(densemble.__file__).parents[2] / "docs" / "reproducing-paper-1.md"


def xray_command(case: Crystal, variant: Variant) -> str:
    """The command line that a variant of a crystal's case is, on fetched files."""

    def path(name: str) -> str:
        return re.sub(r"^(fetch|package|data):", "", name)

    words = ["densemble xray", path(case.model), path(case.data), "--region", case.site.region]
    words += ["--start-altloc", case.start_altloc] if case.start_altloc else []
    words += ["--prior", variant.prior, "--map", case.map]
    words += ["--guide", variant.guide] if variant.guide != "ensemble" else []
    words += ["--reference", path(case.reference)] if case.reference else []
    suffix = f"-{variant.guide}" if variant.guide != "ensemble" else ""
    return " ".join([*words, "--out", case.id + suffix])


def file_names(suite):
    for case in suite.cases:
        for value in (
            getattr(case, name, None) for name in ("model", "data", "reference", "zone", "map", "sequence")
        ):
            if isinstance(value, str) and ":" in value:
                yield case, value
            elif isinstance(value, Drawn):
                yield case, value.model
            elif isinstance(value, Simulated):
                yield from ((case, name) for name in (value.like, value.states) if name is not None)


@pytest.mark.parametrize("name", suites())
def test_every_file_is_one_that_fetch_or_the_package_has(name):
    found = list(file_names(load_suite(name)))
    assert found
    for case, file in found:
        where, _, path = file.partition(":")
        if where == "package":
            assert example(Path(path).name).is_file(), file
        elif where == "fetch":
            entry, own = path.split("/")
            assert parse_entry(entry) == entry
            if entry.startswith("EMD-"):
                assert own == f"emd_{entry[4:]}.map.gz" or own.endswith(".cif.gz")
            else:
                assert own in [source.name for source in crystal_files(entry, SERVERS)]
            assert entry == case.entry or file == case.sequence  # STP10 outward is folded from 7AAQ's


@pytest.mark.parametrize("name", suites())
def test_every_recipe_is_there_and_every_printed_name_is_used(name):
    suite = load_suite(name)
    crystals = {v for case in suite.crystals for v in case.variants}
    maps = {v for case in suite.maps for v in case.variants}
    assert crystals | maps == {v.id for v in suite.variants}
    for variant in suite.variants:
        assert (load_recipe if variant.id in crystals else load_state_recipe)(variant.recipe).name
    printed = {method for case in suite.cases for figure in case.figures for method in figure.values}
    assert {v.prints for v in suite.variants} - {None} <= printed


def test_methods_are_those_of_the_papers():
    first, second = load_suite("paper-1"), load_suite("paper-2")
    assert {(v.prior, v.recipe, v.members, v.keep) for v in first.variants} == {
        ("chroma", "chroma-2024", 16, 5)
    }
    assert {v.guide for v in first.variants} == {"ensemble", "each", "none"}
    assert {(v.prior, v.members, len(v.seeds)) for v in second.variants} == {("boltz1", 25, 3)}
    assert {v.stages for v in second.variants} == {None, (), ("density",), ("cloud",)}


def test_the_page_lists_the_commands_of_the_suite():
    suite = load_suite("paper-1")
    guided = next(v for v in suite.variants if v.id == "guided")
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^densemble xray .*$", text, re.MULTILINE)
    commands = [xray_command(case, guided) for case in suite.crystals]
    assert listed[: len(commands)] == commands
    of_2o1a = next(case for case in suite.crystals if case.id == "2o1a")
    others = [xray_command(of_2o1a, v) for v in suite.variants if v.id != "guided"]
    assert listed[len(commands) :] == others
    for case in suite.crystals:
        if case.table == "A3":
            row = (
                f"{case.entry}:{case.site.chain} | {case.site.sequence} | {case.site.first}-{case.site.last}"
            )
            assert f"| {row} | {case.resolution:.2f} |" in text


def test_commands_are_commands():
    """Every option of a command line of the suite is one of ``densemble xray``."""
    from densemble.cli import xray

    known = {option for parameter in xray.params for option in parameter.opts}
    suite = load_suite("paper-1")
    for case in suite.crystals:
        for variant in suite.variants:
            words = xray_command(case, variant).split()
            assert {word for word in words if word.startswith("--")} <= known
            Region.parse(words[words.index("--region") + 1])


GOOD = """
name = "mine"
source = "me"
[[variants]]
id = "v"
prior = "gaussian"
recipe = "densemble"
members = 2
[[crystals]]
id = "c"
printed = "c"
table = "1"
entry = "7RIN"
model = "data:m.cif"
data = "data:d.mtz"
site = { chain = "A", first = 1, last = 4, numbering = "author", sequence = "ACDE" }
variants = ["v"]
"""


def test_own_suites_are_read(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    suite = load_suite(str(tmp_path / "mine.toml"))
    assert suite.crystals[0].site.region == "A:1-4"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('variants = ["v"]', 'variants = ["w"]', "case c: no variant is called w"),
        ('"ACDE"', '"ACD"', "ACD has 3 residues, 1-4 4"),
        ("last = 4", "last = 0", "run backwards"),
        ('"data:m.cif"', '"m.cif"', "model"),
        ('id = "c"', 'id = "../c"', "id"),
        ("members = 2", "members = 2\nmember = 3", "member"),
        (
            "[[crystals]]",
            '[[variants]]\nid = "v"\nprior = "gaussian"\nrecipe = "x"\nmembers = 1\n[[crystals]]',
            "called v",
        ),
        ("name =", "name = =", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_suite_is_said(tmp_path, old, new, said):
    (tmp_path / "mine.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError, match=r"suite .*mine\.toml") as caught:
        load_suite(str(tmp_path / "mine.toml"))
    assert said in str(caught.value)


def test_a_suite_that_is_not_there():
    with pytest.raises(InputError, match="suite paper-3: not known; choose offline, paper-1, paper-2"):
        load_suite("paper-3")


@pytest.fixture(scope="module")
def topology() -> Topology:
    return read_model(example("model.cif")).topology


def site(first: int, last: int, numbering: str, sequence: str | None) -> Site:
    return Site(chain="A", first=first, last=last, numbering=numbering, sequence=sequence)


def test_a_site_is_found_by_the_papers_numbers(topology):
    located = find_site(site(178, 183, "author", "TWPDFG"), topology)
    assert (located.region, located.sequence) == ("A:178-183", "TWPDFG")
    assert located.how == "by the author's numbers"


def renumbered(topology: Topology, number) -> Topology:
    """Other author numbers for the protein."""
    residues = (
        replace(r, id=ResidueId("A", number(r.id.number))) if r.kind == "protein" else r
        for r in topology.residues
    )
    return replace(topology, residues=tuple(residues))


def test_a_site_is_found_by_another_way_of_counting_if_the_sequence_says_so(topology):
    printed = site(178, 183, "author", "TWPDFG")
    shifted = find_site(printed, renumbered(topology, lambda n: n + 40))
    assert (shifted.region, shifted.how) == ("A:218-223", "counted from the chain's first residue")
    gap = find_site(printed, renumbered(topology, lambda n: n + 5 if n > 100 else n))
    assert (gap.region, gap.how) == ("A:183-188", "counting the residues that are modelled")


def test_a_site_without_sequence_is_taken_as_printed(topology):
    assert find_site(site(178, 183, "author", None), topology).sequence == "TWPDFG"
    with pytest.raises(InputError, match="not in the model"):
        find_site(site(978, 983, "author", None), topology)


def test_a_model_with_other_residues_is_refused(topology):
    with pytest.raises(
        InputError, match=r"printed as AAAAAA, but by the author's numbers they are TWPDFG; counted"
    ):
        find_site(site(178, 183, "author", "AAAAAA"), topology)


def test_a_site_has_as_many_letters_as_numbers():
    with pytest.raises(ValidationError):
        site(1, 4, "author", "ACDEF")
