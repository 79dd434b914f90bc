"""Scans: deficits of known size, what must not count, and the packaged example."""

import json
from dataclasses import replace

import gemmi
import numpy as np
import pytest
from click.testing import CliRunner
from shared_data import SHARED, needs
from small_crystal import EXAMPLE, one_state, truth, write_data

from densemble.cli import main
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.io.output import InputFile
from densemble.io.reflections import read_reflections
from densemble.scan import Scan, Window, _runs, find_windows, scan, summary

CRYSTALS = SHARED / "data" / "xray"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scan")


@pytest.fixture(scope="module")
def start(folder):
    """The loop in one state, as it is refined."""
    path = folder / "start.cif"
    one_state(truth()).make_mmcif_document().write_file(str(path))
    return read_model(path)


@pytest.fixture
def windows_of(folder, start):
    """Windows of the start against data of a crystal that is the start, changed."""

    def scanned(change, **columns):
        crystal = one_state(truth())
        change(crystal)
        crystal.setup_cell_images()
        write_data(crystal, folder / "data.mtz")
        reflections = read_reflections(folder / "data.mtz")
        return find_windows(start, replace(reflections, **columns), longest=4)[0]

    return scanned


def occupancy(crystal, numbers, value):
    for residue in crystal[0]["A"]:
        for atom in residue if residue.seqid.num in numbers else ():
            atom.occ = value


def residues(window):
    return set(range(window.first, window.last + 1))


def test_a_deficit_is_measured_where_it_is(windows_of):
    best, *others = windows_of(lambda crystal: occupancy(crystal, {180, 181, 182}, 0.6))
    assert (best.chain, best.first, best.last, best.region) == ("A", 180, 182, "A:180-182")
    assert best.deficit == pytest.approx(0.3, abs=0.05)  # of 0.4: phases and scale take a part of it
    electrons = {"C": 6, "N": 7, "O": 8, "S": 16}
    atoms = [atom for r in one_state(truth())[0]["A"] if r.seqid.num in range(180, 183) for atom in r]
    assert best.lost == pytest.approx(best.deficit * sum(electrons[a.element.name] for a in atoms), rel=1e-6)
    assert best.score > 5
    assert all(w.score < best.score / 2 for w in others)


def test_what_was_lost_and_is_nowhere_else_is_not_strong(windows_of):
    best = windows_of(lambda crystal: occupancy(crystal, {180, 181, 182}, 0.6))[0]
    assert best.found < 0.1 * best.lost
    assert not best.strong


def test_a_second_conformation_is_strong(windows_of):
    def two_states(crystal):
        """Residues 180-182 half in each of their deposited places."""
        both = {str(r.seqid): r for r in truth()[0]["A"]}
        for residue in crystal[0]["A"]:
            if 180 <= residue.seqid.num <= 182:
                for i in reversed(range(len(residue))):
                    del residue[i]
                for atom in both[str(residue.seqid)]:
                    atom.occ = 0.5
                    residue.add_atom(atom)

    best = windows_of(two_states)[0]
    assert best.strong
    assert best.region == "A:180-182"
    assert best.found > 0.2 * best.lost


def test_a_missing_ligand_is_not_a_conformation(windows_of, start):
    """Density as of a ligand beside the loop: nothing is strong, though electrons are found."""

    def with_ligand(crystal):
        ring = gemmi.Residue()
        ring.name, ring.seqid = "LIG", gemmi.SeqId("900")
        sites = start.coords
        middle = sites[start.topology.atoms_of([8])].mean(axis=0)
        rng = np.random.default_rng(0)
        while len(ring) < 12:
            place = middle + rng.normal(scale=4.0, size=3)
            if 2.8 < np.linalg.norm(sites - place, axis=1).min() < 4.0:
                atom = gemmi.Atom()
                atom.name, atom.element, atom.b_iso = f"C{len(ring)}", gemmi.Element("C"), 30.0
                atom.pos = gemmi.Position(*place)
                ring.add_atom(atom)
        crystal[0]["W"].add_residue(ring)

    windows = windows_of(with_ligand)
    assert not any(w.strong for w in windows)
    assert all(w.score < 4 and w.deficit < 0.1 for w in windows)


def test_one_state_has_nothing_strong(windows_of):
    windows = windows_of(lambda crystal: None)
    assert not any(w.strong for w in windows)
    assert all(w.deficit < 0.03 for w in windows)


def test_windows_do_not_overlap_and_come_best_first(windows_of):
    windows = windows_of(lambda crystal: occupancy(crystal, {176, 182, 188}, 0.5))
    assert [w.score for w in windows] == sorted((w.score for w in windows), reverse=True)
    assert len(windows) >= 2
    covered = [n for w in windows for n in residues(w)]
    assert len(covered) == len(set(covered))
    assert all(3 <= len(residues(w)) <= 4 for w in windows)


def test_free_reflections_have_no_part(windows_of, folder, start):
    before = windows_of(lambda crystal: occupancy(crystal, {180, 181, 182}, 0.6))
    reflections = read_reflections(folder / "data.mtz")
    spoilt = np.where(reflections.free, 7.0 * reflections.f.max(), reflections.f)
    assert find_windows(start, replace(reflections, f=spoilt), longest=4)[0] == before


def test_windows_do_not_reach_over_a_gap():
    bonded = np.array([True, True, False, True, True, True, False])
    runs = _runs(bonded, np.array([0, 1, 2, 3, 4, 5, 6]), 3)
    assert runs == [(0, 1, 2), (3, 4, 5), (4, 5, 6)]
    without_second = _runs(bonded, np.array([0, 2, 3, 4, 5, 6]), 3)  # residue 1 is no protein
    assert without_second == [(2, 3, 4), (3, 4, 5)]


def test_too_small_a_model_is_refused(start, folder, windows_of):
    windows_of(lambda crystal: None)
    with pytest.raises(InputError, match="19 windows of bonded protein residues are too few"):
        find_windows(start, read_reflections(folder / "data.mtz"), longest=6)


@pytest.fixture(scope="module")
def example() -> Scan:
    return scan(EXAMPLE / "model.cif", EXAMPLE / "data.mtz")


def inside(window: Window, first: int, last: int) -> bool:
    return window.chain == "A" and first <= window.first and window.last <= last


def test_the_packaged_example_shows_both_of_its_loops(example):
    """7RIN from altloc B alone."""
    five = example.windows[:5]
    assert any(inside(w, 176, 191) and w.strong for w in five)
    assert any(inside(w, 238, 243) and w.strong for w in five)


def test_what_is_listed_has_altlocs_in_the_deposited_model(example):
    """Evaluation: each strong window has residues that were deposited in two states."""
    deposited = gemmi.read_structure(str(EXAMPLE / "deposited.cif"))
    altered = {r.seqid.num for r in deposited[0]["A"] if any(atom.has_altloc() for atom in r)}
    strong = [w for w in example.windows if w.strong]
    assert strong
    assert all(residues(w) & altered for w in strong)


def test_a_scan_says_what_it_is_of(example):
    assert [file.name for file in example.inputs] == ["model.cif", "data.mtz"]
    assert example.inputs[1] == InputFile.of(EXAMPLE / "data.mtz")
    assert summary(example).startswith("model.cif and data.mtz: 4 strong windows")


@needs(CRYSTALS, "7RIN and 4HG7")
def test_one_state_of_4hg7_without_its_ligand_has_nothing_strong():
    result = scan(CRYSTALS / "4hg7_no_ligand.pdb", CRYSTALS / "4hg7.mtz")
    assert not any(w.strong for w in result.windows)


def test_on_the_command_line(folder, tmp_path, windows_of):
    windows_of(lambda crystal: occupancy(crystal, {180, 181, 182}, 0.6))
    files = [str(folder / "start.cif"), str(folder / "data.mtz"), "--window", "4"]
    table = CliRunner().invoke(main, ["scan", *files])
    assert table.exit_code == 0, table.output
    assert "A:180-182" in table.output
    printed = CliRunner().invoke(main, ["scan", *files, "--json"])
    record = json.loads(printed.output)
    assert {"chain", "first", "last", "score", "strong"} <= record["windows"][0].keys()
    written = CliRunner().invoke(main, ["scan", *files, "--json", str(tmp_path / "scan.json")])
    assert written.exit_code == 0, written.output
    assert json.loads((tmp_path / "scan.json").read_text())["windows"] == record["windows"]
    again = CliRunner().invoke(main, ["scan", *files, "--json", str(tmp_path / "scan.json")])
    assert again.exit_code == 2
    short = CliRunner().invoke(main, ["scan", *files, "--start-altloc", "C"])
    assert short.exit_code == 2
