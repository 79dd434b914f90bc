"""What the suites say of the papers against the papers' own text."""

import re

import pytest
from shared_data import SHARED, needs

from densemble.suites import Drawn, load_suite

PAPERS = SHARED / "papers"
pytestmark = needs(PAPERS, "the papers")
MEANT = {"201A": "2O1A", "30HE": "3OHE"}
MEASURES = {
    "RMSD": "rmsd",
    "all": "rmsd",
    "Cα RMSD": "ca_rmsd",
    "Local RMSD": "local_rmsd",
    "TM score": "tm_score",
    "RSCC": "rscc",
}


@pytest.fixture(scope="module")
def first():
    return (PAPERS / "density-guided-chroma.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def second():
    return (PAPERS / "cryoboltz.txt").read_text(encoding="utf-8")


def cells(text: str, caption: str) -> list[list[str]]:
    """Rows of tab-separated cells after a caption, up to the first line without tabs."""
    lines = text[text.index(caption) :].splitlines()
    begin = next(i for i, line in enumerate(lines) if "\t" in line)
    end = next(i for i, line in enumerate(lines[begin:], begin) if "\t" not in line)
    return [[cell.strip() for cell in line.split("\t")] for line in lines[begin:end]]


def measure_of(cell: str) -> str:
    plain = re.sub(r"\(.*\)|\$", "", cell.replace("\\alpha", "α")).replace("C α", "Cα").strip()
    return MEASURES[plain]


def numbers(cell: str) -> float | tuple[float, float]:
    parts = [float(part) for part in re.split(r"±|\\pm", cell)]
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def ours(suite, table: str) -> dict[tuple[str, str], dict]:
    """Printed values by case and measure."""
    return {(c.printed, f.measure): f.values for c in suite.cases for f in c.figures if f.table == table}


def test_table_a3(first):
    printed = [row for row in cells(first, "PDB ID\tProtein function")[1:]]
    cases = [case for case in load_suite("paper-1").crystals if case.table == "A3"]
    assert len(printed) == len(cases) == 13
    for row, case in zip(printed, cases, strict=True):
        code, chain = row[0].split(":")
        assert case.printed == row[0]
        assert (case.entry, case.site.chain) == (MEANT.get(code, code), chain)
        assert [case.site.first, case.site.last] == [int(n) for n in re.findall(r"\d+", row[4])]
        assert (case.site.sequence, case.resolution) == (row[5], float(row[6]))
        assert case.site.numbering == "from-first"
    assert "with respect to the first residue in the structure (numbered as 1)" in first


def test_table_a2(first):
    values = ours(load_suite("paper-1"), "A2")
    rows = cells(first, "PDB\tGuided (batched)")
    assert len(rows) == len(values) + 1 == 4
    suite = load_suite("paper-1")
    printed = {case.entry: case.printed for case in suite.crystals if case.table == "A3"}
    for row in rows[1:]:
        figures = [float(re.sub(r"</?b>", "", cell)) for cell in row[1:]]
        assert values[printed[MEANT.get(row[0], row[0])], "cosine"] == dict(
            zip(rows[0][1:], figures, strict=True)
        )


def test_table_a1(first):
    rows = cells(first, "Residue Range\tGuided")
    cases = [case for case in load_suite("paper-1").crystals if case.table == "A1"]
    assert len(rows) == len(cases) + 1 == 3
    for row, case in zip(rows[1:], cases, strict=True):
        assert [case.site.first, case.site.last] == [int(n) for n in row[0].split("–")]
        (figure,) = case.figures
        assert list(figure.values.values()) == [float(cell) for cell in row[1:]]
        assert list(figure.values) == ["Guided (batched)", "Unconditional"]
        assert (case.entry, case.site.chain) == ("7EC8", "B")
    assert "chain B of protein 7EC8" in first
    altloc = next(case for case in load_suite("paper-1").crystals if case.id == "7ec8")
    assert "residues 143 – 146 of chain A" in first
    assert "the same position in chain B" in first
    assert cases[1].site.sequence == altloc.site.sequence


def test_table_1(second):
    rows = cells(second, "Table 1:")
    values, structure, seen = ours(load_suite("paper-2"), "1"), "", set()
    methods = ["CryoBoltz", "Boltz-1", "AlphaFold3", "Local only", "Global only"]
    assert [cell.replace("AF3", "AlphaFold3") for cell in rows[0][2:]] == methods
    for row in rows[1:]:
        structure = row[0] or structure
        if structure != "<i>Mean</i>":
            key = structure, measure_of(row[1])
            seen.add(key)
            assert values[key] == dict(zip(methods, map(float, row[2:]), strict=True)), key
    assert seen == set(values)


def test_means_of_table_1(second):
    """Printed means agree with the rows printed, which finds digits read wrongly."""
    values = ours(load_suite("paper-2"), "1")
    mean = next(row for row in cells(second, "Table 1:") if row[0] == "<i>Mean</i>")
    for n, method in enumerate(values["STP10 (inward)", "rmsd"]):
        rows = [values[f"STP10 ({state})", "rmsd"][method] for state in ("inward", "outward")]
        assert sum(rows) / 2 == pytest.approx(float(mean[2 + n]), abs=0.00051)


def test_table_2(second):
    rows = [row for row in cells(second, "Table 2:") if row[0] in ("Apo", "Inward", "Occluded", "Collapsed")]
    assert len(rows) == 4
    suite = load_suite("paper-2")
    values = ours(suite, "2")
    resolution = {case.printed: case.resolution for case in suite.maps}
    for row in rows:
        case = f"P-glycoprotein ({row[0].lower()})"
        assert resolution[case] == float(row[1])
        printed = [float(cell) for cell in row[2:11]]
        for n, measure in enumerate(("rmsd", "ca_rmsd", "tm_score")):
            assert list(values[case, measure].values()) == printed[n::3]
            assert list(values[case, measure]) == ["CryoBoltz", "Boltz-1", "AlphaFold3"]
    assert len(values) == 12


def test_table_b1(second):
    rows = cells(second, "Table B1:")
    values, structure, seen = ours(load_suite("paper-2"), "B1"), "", set()
    for row in rows[1:]:
        structure = row[0] or structure
        key = structure, measure_of(row[1])
        seen.add(key)
        assert values[key] == dict(zip(rows[0][2:], map(numbers, row[2:]), strict=True)), key
    assert seen == set(values)
    assert len(seen) == 29


def test_how_samples_were_chosen(second):
    by_table = {f.table: f.best_by for case in load_suite("paper-2").cases for f in case.figures}
    assert by_table == {"1": "rmsd", "2": "rmsd", "B1": "map"}
    assert "Evaluation of samples chosen by map-model fit" in second


def test_entries_and_settings_of_paper_2(second):
    cases = {case.id: case for case in load_suite("paper-2").maps}
    assert "the inward and outward conformations (PDB:7AAQ, 7AAR)" in second
    assert [cases[f"stp10-{state}"].entry for state in ("inward", "outward")] == ["7AAQ", "7AAR"]
    assert "protein sequence corresponding to PDB:7AAQ was given as input" in second
    assert {cases[f"stp10-{state}"].sequence for state in ("inward", "outward")} == {"fetch:7AAQ/7aaq.cif.gz"}
    assert "maps of 2 Å resolution and 1 Å voxel size" in second
    assert "padded to dimension $w = h = d = 100$" in second
    drawn = cases["stp10-inward"].map
    assert isinstance(drawn, Drawn)
    assert (drawn.resolution, drawn.voxel, drawn.box, drawn.keep) == (2.0, 1.0, 100, "protein")
    assert "the antibody Fab (PDB:4HKX)" in second
    ch67 = cases["ch67"]
    assert isinstance(ch67.map, Drawn)
    assert (ch67.entry, ch67.map.resolution, ch67.map.box, ch67.map.keep) == ("4HKX", 4.0, 100, "fab")
    assert "is set at 3.0 to increase CDR H3 loop accuracy" in second
    assert (ch67.step_scale, ch67.local) == (3.0, "CDR H3")
    assert "stripped of non-protein entities and the bound hemagglutinin receptor" in second
    assert "RMSD for the $C\\alpha$ atoms in the CDR H3 loop (local RMSD)" in second
    ablations = {tuple(case.variants) for case in cases.values() if case.table == "1"}
    assert {variants[:4] for variants in ablations} == {("cryoboltz", "boltz-1", "local-only", "global-only")}


def test_p_glycoprotein(second):
    cases = [case for case in load_suite("paper-2").maps if case.id.startswith("pgp-")]
    states = ", ".join(case.id.removeprefix("pgp-") for case in cases)
    assert states == "apo, inward, occluded, collapsed"
    maps = re.search(r"\(EMDB-(\d+), (\d+), (\d+), (\d+)\)", second)
    models = re.search(r"\(PDB: (\w+), (\w+), (\w+), (\w+)\)", second)
    assert [case.entry for case in cases] == [f"EMD-{number}" for number in maps.groups()]
    for case, code in zip(cases, models.groups(), strict=True):
        assert case.map == f"fetch:{case.entry}/emd_{case.entry[4:]}.map.gz"
        assert case.reference == case.zone == case.sequence == f"fetch:{case.entry}/{code.lower()}.cif.gz"
    assert "A padding of 5 voxels was then added" in second
    assert {case.padding for case in cases} == {5}


def test_samples_and_replicates(second):
    assert "We sample 25 structures for each of three model replicates" in second
    assert {(v.members, len(v.seeds)) for v in load_suite("paper-2").variants} == {(25, 3)}, "ours too"


def test_samples_of_paper_1(first):
    assert "We generated a batch of 16 samples" in first
    assert "retain at most 5 samples" in first
    assert {(v.members, v.keep) for v in load_suite("paper-1").variants} == {(16, 5)}
