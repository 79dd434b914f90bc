"""Suites of a folder of crystals."""

import shutil

import gemmi
import pytest
from click.testing import CliRunner
from command_line import invoke, sentence
from small_crystal import one_state, truth, write_crystal, write_data

from densemble.cli import main
from densemble.demo import example
from densemble.errors import InputError
from densemble.experiments.folder import crystals_in, maps_in, suite_of_folder, suite_text, widened
from densemble.io.models import read_model
from densemble.recipes import tomllib
from densemble.recipes.writing import toml_text
from densemble.suites import Variant, load_suite, suites

STATE = Variant(id="state", prior="embedded", recipe="densemble", members=2)
VARIANT = Variant(id="g", prior="gaussian", recipe="densemble", members=4, seeds=(0, 1))


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """Three crystals: one in one state, one whose model has another name, one without a model."""
    folder = tmp_path_factory.mktemp("Screen 1")
    crystal = write_crystal(tmp_path_factory.mktemp("small"))
    for name in ("x001", "x002", "x003"):
        (folder / name).mkdir()
    shutil.copy(crystal.model, folder / "x001" / "x001.cif")
    write_data(one_state(truth()), folder / "x001" / "x001.mtz")
    shutil.copy(crystal.model, folder / "x002" / "refined.cif")
    shutil.copy(crystal.data, folder / "x002" / "dimple.mtz")
    shutil.copy(crystal.data, folder / "x003" / "lone.mtz")
    return folder


def test_crystals_are_found_with_their_models(screen):
    found, missing = crystals_in(screen)
    assert [(str(f.model), str(f.data)) for f in found] == [
        ("x001/x001.cif", "x001/x001.mtz"),
        ("x002/refined.cif", "x002/dimple.mtz"),
    ]
    assert [f.id for f in found] == ["x001-x001", "x002-dimple"]
    assert len(missing) == 1
    assert "lone.mtz: no model" in missing[0]


def test_one_region_of_all(screen):
    suite, left_out = suite_of_folder(screen, variants=[VARIANT], region="A:180-184")
    assert [case.id for case in suite.crystals] == ["x001-x001-a180", "x002-dimple-a180"]
    assert {case.site.region for case in suite.crystals} == {"A:180-184"}
    assert len(left_out) == 1


def test_names_that_differ_in_case_alone_are_told_apart(screen, tmp_path):
    for name in ("A_1", "a-1"):
        shutil.copy(screen / "x001" / "x001.cif", tmp_path / f"{name}.cif")
        shutil.copy(screen / "x001" / "x001.mtz", tmp_path / f"{name}.mtz")
    suite, _ = suite_of_folder(tmp_path, variants=[VARIANT], region="A:180-184")
    assert [(case.id, case.data) for case in suite.crystals] == [
        ("a-1-a180", "data:A_1.mtz"),
        ("a-1-a180-2", "data:a-1.mtz"),
    ]


def test_what_a_scan_finds(screen, monkeypatch):
    """The windows are those of ``find_windows``, which has tests of its own."""
    from densemble.experiments import folder

    def windows(model, reflections, *, longest):
        strong = "dimple" in reflections.source
        made = [_Window("A:180-182", strong), _Window("A:185-187", strong), _Window("A:190-192", False)]
        return made, 0.9

    monkeypatch.setattr(folder, "find_windows", windows)
    suite, left_out = suite_of_folder(screen, variants=[VARIANT])
    assert [(case.id, case.site.region) for case in suite.crystals] == [("x002-dimple-a178", "A:178-189")]
    assert any("x001.mtz: no strong window" in sentence for sentence in left_out)


class _Window:
    def __init__(self, region, strong):
        self.region, self.strong = region, strong


def test_the_packaged_example_gives_its_two_loops(tmp_path):
    """Scanned in earnest: the loops that were deposited in two states are among the cases."""
    for source, name in (("model.cif", "7rin.cif"), ("data.mtz", "7rin.mtz")):
        shutil.copy(example(source), tmp_path / name)
    suite, left_out = suite_of_folder(tmp_path, variants=[VARIANT])
    assert not left_out
    sites = [range(case.site.first, case.site.last + 1) for case in suite.crystals]
    for loop in (range(176, 192), range(238, 244)):
        assert any(len(set(loop) & set(site)) >= 5 for site in sites), sites
    assert len(sites) <= 4


def test_margins_end_at_the_chain_and_at_gaps(screen, tmp_path):
    structure = gemmi.read_structure(str(screen / "x001" / "x001.cif"))
    del structure[0]["A"][10]  # 182
    structure.make_mmcif_document().write_file(str(tmp_path / "gap.cif"))
    model = read_model(tmp_path / "gap.cif")

    def numbers(stretches):
        return [[model.topology.residues[r].id.number for r in (s[0], s[-1])] for s in stretches]

    assert numbers(widened(model, ["A:172-174"])) == [[172, 176]]
    assert numbers(widened(model, ["A:179-181", "A:183-185"])) == [[177, 181], [183, 187]]
    assert numbers(widened(model, ["A:186-188", "A:191-193"])) == [[184, 194]]


def test_a_suite_written_is_the_suite_read(screen, tmp_path):
    suite, _ = suite_of_folder(screen, variants=[VARIANT], region="A:180-184")
    (tmp_path / "s.toml").write_text(suite_text(suite), encoding="utf-8")
    assert load_suite(str(tmp_path / "s.toml")) == suite


@pytest.mark.parametrize("name", suites())
def test_every_suite_survives_writing(name, tmp_path):
    suite = load_suite(name)
    (tmp_path / "s.toml").write_text(suite_text(suite), encoding="utf-8")
    assert load_suite(str(tmp_path / "s.toml")) == suite


def test_toml_has_what_is_awkward_in_it():
    values = {
        "a": 'quote " and \\ and é',
        "b": [1, 2.5, True],
        "c": {"d": [], "e": {"f": -1e-9}},
        "g": [{"h": 1}, {"h": 2}],
    }
    assert tomllib.loads(toml_text(values)) == values


def test_folders_without_crystals(tmp_path):
    with pytest.raises(InputError, match=r"there is no MTZ or \*-sf\.cif file in it"):
        suite_of_folder(tmp_path, variants=[VARIANT])
    with pytest.raises(InputError, match=r"there is no MTZ or \*-sf\.cif file, and no map in it"):
        suite_of_folder(tmp_path, variants=[VARIANT], resolution=3.0)
    with pytest.raises(InputError, match="is not a folder"):
        crystals_in(tmp_path / "nothing")


def test_amplitudes_as_the_pdb_has_them(screen, tmp_path):
    """Structure factors of ``1abc-sf.cif`` go with ``1abc.cif``, and are no model themselves."""
    shutil.copy(screen / "x001" / "x001.cif", tmp_path / "1abc.cif")
    block = gemmi.MtzToCif().write_cif_to_string(gemmi.read_mtz_file(str(screen / "x001" / "x001.mtz")))
    (tmp_path / "1abc-sf.cif").write_text(block, encoding="utf-8")
    found, missing = crystals_in(tmp_path)
    assert [(str(f.model), str(f.data), f.id) for f in found] == [("1abc.cif", "1abc-sf.cif", "1abc")]
    assert not missing
    suite, left_out = suite_of_folder(tmp_path, variants=[VARIANT], region="A:180-184")
    assert [case.data for case in suite.crystals] == ["data:1abc-sf.cif"], left_out


@pytest.fixture
def maps(tmp_path):
    """Two maps and their half maps with one start, and one map with a start of its name."""
    folder = tmp_path / "maps"
    for name in ("series/c 1.mrc", "series/c2.map.gz", "series/c2_half_map_1.map", "own/x.ccp4"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    for name in ("series/start.pdb", "own/x.cif", "own/other.cif"):
        (folder / name).touch()
    return folder


def test_maps_with_their_start(maps, tmp_path):
    found, missing = maps_in(maps)
    assert [(str(f.model), str(f.data), f.id) for f in found] == [
        ("own/x.cif", "own/x.ccp4", "own-x"),
        ("series/start.pdb", "series/c 1.mrc", "series-c-1"),
        ("series/start.pdb", "series/c2.map.gz", "series-c2"),
    ]
    assert [sentence.split(": ")[1] for sentence in missing] == ["a half map, by its name"]
    out = tmp_path / "maps.toml"
    given = ["suite", "from-folder", maps, "--resolution", 3.4, "--seeds", 2, "--out", out, "--quiet"]
    done = invoke(*given)
    assert done.exit_code == 0, done.output
    assert f"3 cases in {out}" in done.stdout
    suite = load_suite(str(out))
    assert [(v.id, v.prior, v.recipe, v.members, v.seeds) for v in suite.variants] == [
        ("state", "embedded", "densemble", 4, (0, 1))
    ]
    assert [(c.id, c.map, c.model, c.resolution, c.reference) for c in suite.maps] == [
        (f.id, f"data:{f.data}", f"data:{f.model}", 3.4, None) for f in found
    ]


def test_maps_are_left_out_without_their_resolution(maps, tmp_path):
    said = sentence(invoke("suite", "from-folder", maps, "--out", tmp_path / "s.toml", "--quiet"))
    assert "no MTZ or *-sf.cif file" in said
    wrong = ("--resolution", 0, "--out", tmp_path / "s.toml")
    assert "--resolution 0 Å: must be above zero" in sentence(invoke("suite", "from-folder", maps, *wrong))
    assert not (tmp_path / "s.toml").exists()


def test_crystals_and_maps_in_one_suite(screen, maps):
    shutil.copytree(screen / "x001", maps / "x001")
    suite, _ = suite_of_folder(
        maps, variants=[VARIANT], region="A:180-184", map_variants=[STATE], resolution=3.4
    )
    assert [case.id for case in suite.crystals] == ["x001-x001-a180"]
    assert len(suite.maps) == 3
    assert {case.variants for case in suite.crystals} == {("g",)}
    assert {case.variants for case in suite.maps} == {("state",)}


def test_a_region_that_no_crystal_has(screen):
    with pytest.raises(InputError, match=r"nothing in it gives a case: .*residue A:900 is not in the model"):
        suite_of_folder(screen, variants=[VARIANT], region="A:900-905")


def test_on_the_command_line(screen, tmp_path):
    out = tmp_path / "s.toml"
    done = CliRunner().invoke(
        main,
        [
            "suite",
            "from-folder",
            str(screen),
            "--region",
            "A:180-184",
            "--seeds",
            "2",
            "--out",
            str(out),
            "--quiet",
        ],
    )
    assert done.exit_code == 0, done.output
    assert f"2 cases in {out}" in done.output
    assert load_suite(str(out)).variants[0].seeds == (0, 1)
