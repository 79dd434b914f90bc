"""Bad input: exit code 2, one sentence that names the culprit, and nothing left behind."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from command_line import invoke, sentence
from small_crystal import LOOP, SmallCrystal, contents, read_columns, write_mtz

from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.priors import embedded


@pytest.fixture
def complaint(crystal: SmallCrystal, tmp_path: Path) -> Callable[..., str]:
    """Run ``densemble xray`` on a changed input; what it says, after checking that it left nothing."""

    def run(*options, model=crystal.model, data=crystal.data, region=LOOP, recipe=crystal.recipe) -> str:
        out = tmp_path / "out"
        settings = ("--region", region, "--recipe", recipe, "--steps", 2, "--members", 1, "--quiet")
        said = sentence(invoke("xray", model, data, *settings, "--out", out, *options))
        assert not out.exists()
        return said

    return run


def changed_data(crystal: SmallCrystal, path: Path, change) -> Path:
    """The data with changed columns: ``change`` edits the dictionary of label to (type, values)."""
    hkl, columns = read_columns(crystal.data)
    write_mtz(path, hkl, change(columns) or columns)
    return path


def changed_model(crystal: SmallCrystal, path: Path, change) -> Path:
    structure = gemmi.read_structure(str(crystal.model))
    change(structure)
    structure.make_mmcif_document().write_file(str(path))
    return path


def test_missing_model(complaint, tmp_path):
    said = complaint(model=tmp_path / "absent.cif")
    assert "absent.cif" in said
    assert "no such file" in said


def test_model_that_is_none(complaint, tmp_path, crystal):
    (tmp_path / "model.cif").write_text("this is no model\n")
    assert "model.cif" in complaint(model=tmp_path / "model.cif")
    shutil.copy(crystal.data, tmp_path / "data.pdb")
    assert "data.pdb" in complaint(model=tmp_path / "data.pdb")


def test_missing_data(complaint, tmp_path):
    said = complaint(data=tmp_path / "absent.mtz")
    assert "absent.mtz" in said
    assert "does not exist" in said


def test_folder_in_place_of_a_file(complaint, tmp_path):
    assert str(tmp_path) in complaint(data=tmp_path)
    assert str(tmp_path) in complaint(model=tmp_path)


@pytest.mark.parametrize("content", [b"not reflections at all\n", b"MTZ broken", b"", bytes(range(256))])
def test_data_that_are_not_an_mtz(complaint, tmp_path, content):
    (tmp_path / "data.mtz").write_bytes(content)
    said = complaint(data=tmp_path / "data.mtz")
    assert "data.mtz" in said
    assert "MTZ" in said


def test_cut_off_mtz(complaint, tmp_path, crystal):
    content = crystal.data.read_bytes()
    (tmp_path / "half.mtz").write_bytes(content[: len(content) // 2])
    assert "half.mtz" in complaint(data=tmp_path / "half.mtz")


def test_model_given_as_data(complaint, crystal):
    assert crystal.model.name in complaint(data=crystal.model)


def test_no_amplitudes(complaint, tmp_path, crystal):
    path = changed_data(crystal, tmp_path / "free.mtz", lambda columns: {"FREE": columns["FREE"]})
    said = complaint(data=path)
    assert "free.mtz has no amplitudes" in said


def test_intensities_alone(complaint, tmp_path, crystal):
    path = changed_data(
        crystal,
        tmp_path / "i.mtz",
        lambda c: {"I": ("J", c["FP"][1] ** 2), "SIGI": ("Q", c["SIGFP"][1]), "FREE": c["FREE"]},
    )
    said = complaint(data=path)
    assert "i.mtz has no amplitudes" in said
    assert "intensities" in said


def two_of_all(columns):
    """As phenix.refine writes them: amplitudes as measured and as filtered; and two free sets."""
    value = columns["FP"][1]
    return {
        "F-obs": ("F", value),
        "SIGF-obs": columns["SIGFP"],
        "F-obs-filtered": ("F", 0.5 * value),
        "SIGF-obs-filtered": columns["SIGFP"],
        "FREE": columns["FREE"],
        "R-free-flags": ("I", np.roll(columns["FREE"][1], 1)),
    }


def test_ambiguous_columns_are_named_and_can_be_chosen(complaint, tmp_path, crystal):
    path = changed_data(crystal, tmp_path / "two.mtz", two_of_all)
    said = complaint(data=path)
    assert "F-obs/SIGF-obs, F-obs-filtered/SIGF-obs-filtered; name one pair of them (--labels)" in said
    labels = ("--labels", "F-obs,SIGF-obs")
    assert "FREE, R-free-flags; name one of them (--free-label)" in complaint(*labels, data=path)
    assert "no column X of type F" in complaint("--labels", "X,SIGF-obs", data=path)
    chosen = (*labels, "--free-label", "FREE", "--json")
    found, plain = (
        invoke("score", crystal.model, *arguments, "--json")
        for arguments in ((path, *chosen), (crystal.data,))
    )
    assert found.exit_code == plain.exit_code == 0
    figures = ("rscc", "cosine", "r_work", "r_free")
    first, second = (json.loads(done.stdout) for done in (found, plain))
    assert [first[name] for name in figures] == [second[name] for name in figures]


def test_labels_that_are_not_two(crystal, tmp_path):
    done = invoke(
        *("xray", crystal.model, crystal.data, "--region", LOOP, "--labels", "FP", "--out", tmp_path / "o")
    )
    assert done.exit_code == 2
    assert "'FP' is not two names of columns" in done.stderr
    assert not (tmp_path / "o").exists()


def test_no_free_set(complaint, tmp_path, crystal):
    path = changed_data(crystal, tmp_path / "data.mtz", lambda c: {k: c[k] for k in ("FP", "SIGFP")})
    assert "data.mtz has no free set" in complaint(data=path)


def test_free_set_that_sets_nothing_apart(complaint, tmp_path, crystal):
    def all_working(columns):
        columns["FREE"][1][:] = 1

    path = changed_data(crystal, tmp_path / "data.mtz", all_working)
    assert "data.mtz has no free set" in complaint(data=path)


def test_no_amplitude_is_a_number(complaint, tmp_path, crystal):
    def all_nan(columns):
        columns["FP"][1][:] = np.nan

    path = changed_data(crystal, tmp_path / "nan.mtz", all_nan)
    assert "nan.mtz: columns FP and SIGFP hold no numbers" in complaint(data=path)


def test_some_amplitudes_that_are_no_numbers_are_left_out(crystal, tmp_path):
    """As in every deposited file: unmeasured reflections are NaN, and the others are used."""

    def some_nan(columns):
        columns["FP"][1][::7] = np.nan

    path = changed_data(crystal, tmp_path / "data.mtz", some_nan)
    settings = ("--region", LOOP, "--recipe", crystal.recipe, "--steps", 2, "--members", 1, "--quiet")
    done = invoke("xray", crystal.model, path, *settings, "--out", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("region", ["A:300-305", "Z:179-186", "A:170-175", "A:1-2", "W:500-502"])
def test_region_that_is_not_in_the_model(complaint, region):
    said = complaint(region=region)
    assert f"region {region}" in said
    assert "not in the model" in said


@pytest.mark.parametrize("region", ["A179-186", "A:", "179-186", "A:x-y", "", ",", "A:179--186x7"])
def test_malformed_region(complaint, region):
    said = complaint(region=region)
    assert "region" in said
    assert "A:176-191" in said


@pytest.mark.parametrize("region", ["A:186-179", "A:179-183,A:182-186"])
def test_region_that_makes_no_sense(complaint, region):
    assert "region" in complaint(region=region)


def test_region_without_backbone(complaint, tmp_path, crystal):
    def cut(structure):
        residue = next(r for r in structure[0]["A"] if r.seqid.num == 182)
        del residue[[a.name for a in residue].index("C")]

    said = complaint(model=changed_model(crystal, tmp_path / "cut.cif", cut))
    assert "cut.cif" in said
    assert "A:182" in said


def test_model_of_another_cell(complaint, tmp_path, crystal):
    def widen(structure):
        structure.cell = gemmi.UnitCell(40, 31, 36, 90, 104, 90)

    said = complaint(model=changed_model(crystal, tmp_path / "wide.cif", widen))
    assert "wide.cif has the cell (40.00" in said
    assert crystal.data.name in said


def test_model_of_another_space_group(complaint, tmp_path, crystal):
    def rename(structure):
        structure.spacegroup_hm = "P 1 2 1"

    said = complaint(model=changed_model(crystal, tmp_path / "p2.cif", rename))
    assert "p2.cif is in space group P 1 2 1" in said


def test_model_without_cell(complaint, tmp_path, crystal):
    def remove(structure):
        structure.cell = gemmi.UnitCell()

    said = complaint(model=changed_model(crystal, tmp_path / "nocell.cif", remove))
    assert "nocell.cif" in said
    assert "cell" in said


def test_model_with_coordinates_that_are_no_numbers(complaint, tmp_path, crystal):
    document = gemmi.cif.read(str(crystal.model))
    document.sole_block().find("_atom_site.", ["Cartn_x"])[40][0] = "?"
    document.write_file(str(tmp_path / "nan.cif"))
    said = complaint(model=tmp_path / "nan.cif")
    assert "nan.cif: 1 atoms have coordinates" in said


def test_unknown_altloc(complaint, crystal):
    said = complaint("--start-altloc", "Q", model=crystal.reference)
    assert crystal.reference.name in said
    assert "altloc 'Q'" in said
    assert "A, B" in said


def test_unknown_recipe(complaint, tmp_path):
    assert "recipe guesswork: not known; choose " in complaint(recipe="guesswork")
    assert "absent.toml: no such file" in complaint(recipe=tmp_path / "absent.toml")


def test_recipe_with_an_unknown_key(complaint, tmp_path, crystal):
    (tmp_path / "odd.toml").write_text("colour = 'blue'\n" + crystal.recipe.read_text())
    said = complaint(recipe=tmp_path / "odd.toml")
    assert "odd.toml" in said
    assert "colour" in said


def test_as_phased_without_coefficients(complaint, tmp_path, crystal):
    path = changed_data(crystal, tmp_path / "f.mtz", lambda c: {k: c[k] for k in ("FP", "SIGFP", "FREE")})
    assert "f.mtz has no map coefficients" in complaint("--map", "as-phased", data=path)


def test_phases_of_something_else(complaint, tmp_path, crystal):
    def scramble(columns):
        columns["PHWT"][1][:] += 180

    path = changed_data(crystal, tmp_path / "odd.mtz", scramble)
    assert "odd.mtz: the phases do not fit the model" in complaint("--map", "as-phased", data=path)


def test_missing_reference(complaint, tmp_path):
    assert "absent.cif" in complaint("--reference", tmp_path / "absent.cif")


def test_reference_of_something_else(complaint, tmp_path, crystal):
    def rename(structure):
        structure[0]["A"].name = "B"

    path = changed_model(crystal, tmp_path / "other.cif", rename)
    assert "other.cif" in complaint("--reference", path)


def test_weights_of_the_prior_that_are_missing(complaint, tmp_path, monkeypatch):
    missing = partial(embedded.load_network, tmp_path / "gone.safetensors")
    monkeypatch.setattr(embedded, "load_network", missing)
    said = complaint("--prior", "embedded")
    assert "gone.safetensors" in said
    assert "reinstall" in said


def test_stretch_that_the_prior_cannot_do(complaint):
    said = complaint("--prior", "embedded", region="A:172-194")
    assert "A:172" in said


@pytest.mark.parametrize("command", ["xray", "demo"])
def test_output_folder_that_exists(crystal, tmp_path, command):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "notes.txt").write_text("mine")
    before = contents(out)
    inputs = (crystal.model, crystal.data, "--region", LOOP) if command == "xray" else ()
    said = sentence(invoke(command, *inputs, "--out", out, "--quiet"))
    assert f"output folder {out}: exists and is not empty" in said
    assert "--force" in said
    assert contents(out) == before


def test_output_folder_that_is_a_file(crystal, tmp_path):
    (tmp_path / "out").write_text("mine")
    said = sentence(invoke("xray", crystal.model, crystal.data, "--region", LOOP, "--out", tmp_path / "out"))
    assert "a file of this name exists" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_cycles_of_a_model_that_is_not_made(complaint):
    assert "--no-states" in complaint("--no-states", "--cycles", 2)


def test_force_with_bad_input_removes_nothing(crystal, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("of an earlier run")
    options = ("--region", "A:300-305", "--out", out, "--force", "--quiet")
    sentence(invoke("xray", crystal.model, crystal.data, *options))
    assert contents(out) == {"result.json": b"of an earlier run"}


@pytest.mark.parametrize(
    ("fill", "words"), [(0.0, "is empty"), (np.nan, "holds NaNs")], ids=["empty", "NaNs"]
)
def test_score_refuses_a_map_without_density(crystal, tmp_path, fill, words):
    path = tmp_path / "map.ccp4"
    write_map(
        path, DensityMap(Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (9, 9, 9)), torch.full((9, 9, 9), fill))
    )
    said = sentence(invoke("score", crystal.model, path, "--resolution", 2))
    assert f"map.ccp4 {words}" in said


def test_score_refuses_what_is_not_there(crystal, tmp_path):
    assert "absent.ccp4" in sentence(
        invoke("score", crystal.model, tmp_path / "absent.ccp4", "--resolution", 2)
    )
    assert "absent.cif" in sentence(invoke("score", tmp_path / "absent.cif", crystal.data))
