"""Regions of a cryo-EM map by any prior and any packer: the seams are those of a crystal's."""

import json

import pytest

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from click.testing import CliRunner
from small_chroma import write_quick_recipe, write_weights
from small_crystal import write_recipe
from small_flexible import LOOP, RESOLUTION, write_flexible

from densemble.cli import main
from densemble.io.models import read_model
from densemble.io.output import InputFile
from densemble.priors.chroma.networks import BACKBONE, DESIGN
from densemble.sidechains.chroma import ChromaPacker

MEMBERS = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_flexible(tmp_path_factory.mktemp("flexible"))


@pytest.fixture
def cryoem(files, tmp_path, monkeypatch):
    """Run the command with further options; the record, the folder, and how often Chroma packed."""
    calls, packed = [], ChromaPacker.__call__
    monkeypatch.setattr(ChromaPacker, "__call__", lambda *args: calls.append(1) or packed(*args))

    def run(*options):
        out = tmp_path / "out"
        given = ["cryoem", files.both, "--model", files.start, "--resolution", RESOLUTION, "--placed"]
        given += [
            "--members",
            1,
            "--steps",
            2,
            "--recipe",
            files.recipe,
            "--ensemble",
            "--no-states",
            "--region",
            LOOP,
        ]
        given += ["--region-members", MEMBERS, "--out", out, "--quiet", *options]
        done = CliRunner().invoke(main, list(map(str, given)))
        assert done.exit_code == 0, done.output
        return json.loads((out / "result.json").read_text()), out, len(calls)

    return run


def test_chroma_is_the_prior_and_packs(cryoem, weights, tmp_path):
    recipe = write_quick_recipe(tmp_path / "quick.toml", noise={"steps": 16})
    options = ("--region", "A:181-185", "--region-prior", "chroma", "--region-recipe", recipe)
    options += ("--weights-backbone", weights[BACKBONE], "--weights-design", weights[DESIGN])
    record, out, packed = cryoem(*options)
    assert packed == 2, "16 steps at T = 8"
    hashes = {f["name"]: f["sha256"] for f in record["inputs"]}
    assert all(hashes[path.name] == InputFile.of(path).sha256 for path in weights.values())
    assert record["versions"]["generate-chroma"] == "1.0.0"
    assert record["settings"]["region_prior"] == "chroma"
    assert record["settings"]["region_recipe_values"]["sidechains"]["packer"] == "chroma"
    assert (out / "ensemble.cif").is_file()
    members = sorted((out / "members").glob("*.cif"))
    assert len(members) == MEMBERS
    assert len(read_model(members[0]).topology) == len(read_model(out / "best.cif").topology)


def test_chroma_packs_for_the_packaged_network(cryoem, weights, tmp_path):
    sidechains = {"packer": "chroma", "temperature": 0.001, "window": 2}
    write_recipe(tmp_path / "own.toml", sidechains=sidechains, noise={"steps": 8})
    _, out, packed = cryoem("--region-recipe", tmp_path / "own.toml", "--weights-design", weights[DESIGN])
    assert packed > 0
    assert (out / "ensemble.cif").is_file()


def test_smooth_deformations_are_a_prior_there_too(cryoem, tmp_path):
    write_recipe(tmp_path / "own.toml", noise={"steps": 8})
    record, _, packed = cryoem("--region-prior", "gaussian", "--region-recipe", tmp_path / "own.toml")
    assert packed == 0
    assert record["region"]["metrics"]["rscc"]["ensemble"] > 0.3
