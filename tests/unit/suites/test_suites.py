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
    words += ["--prior", variant.prior, "--map", variant.map or case.map]
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
            # STP10 outward is folded from the sequence of 7AAQ, and starts are models of other states
            assert entry == case.entry or file in (case.sequence, case.model)


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


PRINTED = {
    "paper-1": ["guided", "each", "unguided"],
    "paper-2": ["cryoboltz", "boltz-1", "local-only", "global-only"],
}
"""The papers' own methods; the others are ours."""


def test_methods_are_those_of_the_papers():
    first, second = ([v for v in load_suite(name).variants if v.id in own] for name, own in PRINTED.items())
    assert {(v.prior, v.recipe, v.members, v.keep, v.map) for v in first} == {
        ("chroma", "chroma-2024", 16, 5, None)
    }
    assert [v.guide for v in first] == ["ensemble", "each", "none"]
    assert {(v.prior, v.recipe, v.members, len(v.seeds), v.forward) for v in second} == {
        ("boltz1", "cryoboltz-2025", 25, 3, "molmap")
    }
    assert [v.stages for v in second] == [None, (), ("density",), ("cloud",)]


def test_every_case_is_run_with_ours_too():
    first, second = load_suite("paper-1"), load_suite("paper-2")
    for suite in (first, second):
        ours = [v for v in suite.variants if v.id not in PRINTED[suite.name]]
        assert all(v.prints is None and len(v.seeds) == 3 for v in ours)
        for case in suite.cases:
            assert set(case.variants) - set(PRINTED[suite.name]), case.id
    embedded = [v for v in first.variants if v.prior == "embedded"]
    # the phases of the deposited model have its states in them: not for ours
    assert {(v.recipe, v.map, v.members) for v in embedded} == {("embedded", "omit", 16)}
    assert [v.guide for v in embedded] == ["ensemble", "each", "none"]
    for case in first.crystals:
        assert {"embedded", "embedded-unguided"} <= set(case.variants)
        assert ("embedded-each" in case.variants) == ("each" in case.variants), "Table A2"
    ours = {v.id: (v.prior, v.recipe) for v in second.variants if v.id not in PRINTED["paper-2"]}
    assert ours == {
        "boltz-1-ours": ("boltz1", "densemble"),
        "boltz-2": ("boltz2", "cryoboltz-2025"),
        "embedded": ("embedded", "densemble"),
    }


def test_a_start_is_the_model_of_another_state():
    """Of the same protein, and never the one that the map is of, or that judges."""
    families = [("7aaq", "7aar"), ("8gmg", "8sa1", "8sa0", "8gmj")]
    cases = [case for case in load_suite("paper-2").maps if "embedded" in case.variants]
    assert len(cases) == 6
    for case in cases:
        start, answer = (Path(name).name.split(".")[0] for name in (case.model, case.reference))
        assert start != answer
        assert any({start, answer} <= set(family) for family in families)


def test_the_page_lists_the_commands_of_the_suite():
    suite = load_suite("paper-1")
    guided = next(v for v in suite.variants if v.id == "guided")
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^densemble xray .*$", text, re.MULTILINE)
    commands = [xray_command(case, guided) for case in suite.crystals]
    assert listed[: len(commands)] == commands
    of_2o1a = next(case for case in suite.crystals if case.id == "2o1a")
    others = [xray_command(of_2o1a, v) for v in suite.variants if v.id in ("each", "unguided")]
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


OFFLINE = {
    *("7rin-wpd", "7rin-238", "4hg7-60", "4hg7-70"),
    *("simulated-7rin", "simulated-1", "simulated-2", "simulated-3"),
    *("emd-3488", "p0205", "p02911", "p0aeq3", "p23847", "p67701", "p69441", "p71447", "q5f9m1"),
}


def test_what_is_in_the_offline_suite():
    """7RIN, 4HG7, EMD-3488, the eight pairs of conformations, and crystals of several states, simulated."""
    suite = load_suite("offline")
    assert {case.id for case in suite.cases} == OFFLINE
    simulated = [case.data for case in suite.crystals if isinstance(case.data, Simulated)]
    assert sorted(len(data.occupancies) for data in simulated) == [1, 2, 2, 3]
    assert {v.prior for v in suite.variants} == {"embedded", "gaussian"}, "nothing to be downloaded"
    assert not any(name.startswith("fetch:") for _, name in file_names(suite))
