"""Bad input to ``densemble cryoem``: exit code 2, one sentence with the culprit, nothing left behind."""

import gemmi
import numpy as np
import pytest
import torch
from command_line import invoke, sentence
from small_state import RESOLUTION, write_state

from densemble.cryoem import run_cryoem
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map, write_map
from densemble.report import state_summary


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return write_state(tmp_path_factory.mktemp("state"))


@pytest.fixture
def complaint(state, tmp_path):
    """Run the command on a changed input; what it says, after checking that it left nothing."""

    def run(*options, density=state.map, model=state.placed, resolution=RESOLUTION) -> str:
        out = tmp_path / "out"
        settings = ["--model", model, "--recipe", state.recipe, "--steps", 2, "--members", 1, "--quiet"]
        if resolution is not None:
            settings += ["--resolution", resolution]
        said = sentence(invoke("cryoem", density, *settings, "--out", out, *options))
        assert not out.exists()
        return said

    return run


def test_missing_files(complaint, tmp_path):
    assert "absent.mrc" in complaint(density=tmp_path / "absent.mrc")
    assert "absent.cif" in complaint(model=tmp_path / "absent.cif")


def test_empty_map(complaint, tmp_path):
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (20, 20, 20))
    write_map(tmp_path / "empty.ccp4", DensityMap(grid, torch.zeros(20, 20, 20)))
    said = complaint(density=tmp_path / "empty.ccp4")
    assert "empty.ccp4" in said
    assert "all its values are the same" in said


def test_map_of_noise(complaint, tmp_path):
    grid = Grid((0.0, 0.0, 0.0), (1.3, 1.3, 1.3), (40, 40, 40))
    noise = torch.randn(40, 40, 40, generator=torch.Generator().manual_seed(0))
    write_map(tmp_path / "noise.ccp4", DensityMap(grid, noise))
    assert "noise.ccp4" in complaint(density=tmp_path / "noise.ccp4")


def test_level_above_the_maximum(complaint):
    said = complaint("--level", 1e6)
    assert "map.ccp4" in said
    assert "maximum" in said


def test_no_resolution(complaint):
    assert "--resolution" in complaint(resolution=None)
    assert "--resolution -1" in complaint(resolution=-1)


def test_half_maps(complaint, state, tmp_path):
    assert "go together" in complaint("--half1", state.half1)
    other = read_map(state.half2)
    small = DensityMap(
        Grid(other.grid.origin, other.grid.spacing, (9, *other.grid.shape[1:])), other.values[:9].contiguous()
    )
    write_map(tmp_path / "small.ccp4", small)
    said = complaint("--half1", state.half1, "--half2", tmp_path / "small.ccp4")
    assert "small.ccp4" in said
    assert "size" in said


def test_model_without_atoms(complaint, tmp_path):
    (tmp_path / "none.pdb").write_text("REMARK nothing\nEND\n")
    assert "none.pdb" in complaint(model=tmp_path / "none.pdb")


def test_model_without_backbone(complaint, state, tmp_path):
    structure = gemmi.read_structure(str(state.placed))
    for chain in structure[0]:
        for residue in chain:
            for i in reversed(range(len(residue))):
                if residue[i].name != "CA":
                    del residue[i]
    structure.make_mmcif_document().write_file(str(tmp_path / "trace.cif"))
    assert "N, CA, C and O" in complaint("--placed", model=tmp_path / "trace.cif")


def test_model_much_larger_than_the_map(complaint, state, tmp_path):
    structure = gemmi.read_structure(str(state.placed))
    chain = structure[0][0].clone()
    for k in range(1, 12):
        copy = chain.clone()
        copy.name = f"C{k}"
        for residue in copy:
            for atom in residue:
                atom.pos += gemmi.Position(40.0 * k, 0, 0)
        structure[0].add_chain(copy)
    structure.make_mmcif_document().write_file(str(tmp_path / "twelve.cif"))
    assert "much larger" in complaint(model=tmp_path / "twelve.cif")


def test_recipe_that_is_none(complaint, state):
    said = complaint("--recipe", "guesswork")
    assert "cryoboltz-2025" in said


def test_output_that_exists(state, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    options = ["--model", state.placed, "--resolution", RESOLUTION, "--out", tmp_path / "out"]
    sentence(invoke("cryoem", state.map, *options))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_resolution_finer_than_the_voxels_is_said(state, tmp_path):
    result = run_cryoem(state.settings(resolution=2.0, steps=2, members=1), tmp_path / "out")
    assert any("twice the voxel" in message for message in result.messages)


def test_map_of_the_wrong_hand_is_said(state, tmp_path):
    whole = read_map(state.map)
    write_map(tmp_path / "mirror.ccp4", DensityMap(whole.grid, whole.values.flip(0).contiguous()))
    settings = state.settings(
        map=tmp_path / "mirror.ccp4", model=state.truth, placed=False, steps=2, members=1
    )
    result = run_cryoem(settings, tmp_path / "out")
    assert any("wrong hand" in message for message in result.messages)
    last = state_summary(result, tmp_path / "out").splitlines()[-len(result.messages) :]
    assert all(line.startswith("Warning: ") for line in last)
    assert any("the map has the wrong hand" in line for line in last)
    assert not any(line.endswith("..") for line in last)
    assert np.isfinite(result.best.fit.correlation)


def test_region_that_cannot_be_sampled(complaint, state):
    assert "--ensemble" in complaint("--region", "A:70-75")
    assert "B:70" in complaint("--ensemble", "--region", "B:70-75")
    assert "at most 24" in complaint("--ensemble", "--region", "A:62-90")
    assert "guesswork" in complaint("--ensemble", "--region", "A:70-75", "--region-recipe", "guesswork")
    region = ("--ensemble", "--region", "A:70-75")
    assert "--region-prior" in complaint(*region, "--region-recipe", "chroma-2024")
    said = complaint(*region, "--region-recipe", "densemble", "--region-prior", "chroma")
    assert "its noise is not Chroma's; take the recipe chroma-2024" in said
    assert "--weights-backbone: of no use to the prior gaussian" in complaint(
        *region, "--region-prior", "gaussian", "--weights-backbone", state.map
    )
    options = {"--region-prior": "gaussian", "--region-recipe": "embedded", "--weights-design": "x.pt"}
    for option, value in options.items():
        assert f"{option} says how a region is sampled" in complaint(option, value)
    assert "--no-states says how a region is sampled" in complaint("--no-states")
    assert "--cycles says how a region is sampled" in complaint("--cycles", 2)
    assert "--cycles is of the final model" in complaint(*region, "--no-states", "--cycles", 2)
    assert "starts.cif" in complaint(
        "--placed", "--ensemble", "--region", "A:70-75", "--reference", state.truth.with_name("starts.cif")
    )


def test_selection_says_where_a_distance_is_stated(complaint, state, tmp_path, monkeypatch):
    assert "give --reference" in complaint("--selection", "A:70-75")
    monkeypatch.setattr("densemble.cryoem.problem_of", None)  # said before the model is docked
    assert "'everything' is not of the form" in complaint(
        "--reference", state.truth, "--selection", "everything"
    )
    said = complaint("--reference", state.truth, "--selection", "B:70-75")
    assert "residue B:70 is not in the model" in said
    said = complaint("--reference", state.truth, "--selection", "A:60-107")
    assert "--selection A:60-107: fewer than three other CA atoms" in said
    half = gemmi.read_structure(str(state.truth))
    for r in reversed(range(20)):
        del half[0]["A"][r]
    half.make_mmcif_document().write_file(str(tmp_path / "half.cif"))
    said = complaint("--reference", tmp_path / "half.cif", "--selection", "A:62-70")
    assert "half.cif has no backbone there" in said
