"""Bad input of ``densemble dock``: exit code 2, one sentence, nothing left behind."""

import math

import gemmi
import numpy as np
import pytest
import torch
from command_line import invoke, sentence

from densemble.forward.kernel import gaussian_density
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map

GRID = Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (24, 24, 24))
COORDS = np.random.default_rng(0).uniform(12, 34, size=(60, 3))


def write_model(path, coords, name="ALA"):
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    for k, x in enumerate(coords, start=1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(str(k))
        atom = gemmi.Atom()
        atom.name, atom.element = ("O", gemmi.Element("O")) if name == "HOH" else ("CA", gemmi.Element("C"))
        atom.pos = gemmi.Position(*x)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model("1"))
    structure[0].add_chain(chain)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture
def files(tmp_path):
    x = torch.from_numpy(COORDS).float()
    one = torch.ones(len(x), 1)
    density = gaussian_density(GRID, x, one, one * (math.pi / 6) ** 2)
    write_map(tmp_path / "map.mrc", DensityMap(GRID, density))
    return write_model(tmp_path / "model.cif", COORDS), tmp_path / "map.mrc"


@pytest.fixture
def complaint(files, tmp_path):
    """Run ``densemble dock`` on changed input; what it says."""

    def run(*options, model=files[0], data=files[1], resolution=6.0, out=tmp_path / "placed.cif"):
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        arguments = ["dock", model, data, "--resolution", resolution, "--out", out, "--quiet", *options]
        said = sentence(invoke(*arguments))
        assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
        return said

    return run


def test_missing_files(complaint, tmp_path):
    assert "absent.mrc" in complaint(data=tmp_path / "absent.mrc")
    assert "absent.cif" in complaint(model=tmp_path / "absent.cif")


def test_map_that_is_none_or_empty(complaint, tmp_path, files):
    assert "model.cif is not a CCP4 or MRC map" in complaint(data=files[0])
    write_map(tmp_path / "empty.mrc", DensityMap(GRID, torch.zeros(GRID.shape)))
    assert "empty.mrc is empty" in complaint(data=tmp_path / "empty.mrc")


def test_model_without_atoms(complaint, tmp_path):
    (tmp_path / "none.pdb").write_text("REMARK nothing\nEND\n")
    assert "none.pdb: no atoms" in complaint(model=tmp_path / "none.pdb")
    water = write_model(tmp_path / "water.cif", COORDS, name="HOH")
    assert "water.cif has no atoms to dock" in complaint(model=water)


@pytest.mark.parametrize("resolution", [0, -3.5, "nan"])
def test_resolution_that_is_not_positive(complaint, resolution):
    assert "above zero" in complaint(resolution=resolution)


def test_levels(complaint):
    assert "map.mrc has no density above" in complaint("--level", 1000)
    assert "higher level" in complaint("--level", -1)


def test_model_much_larger_than_the_map(complaint, tmp_path):
    large = write_model(tmp_path / "large.cif", np.random.default_rng(1).uniform(0, 150, size=(1500, 3)))
    said = complaint(model=large)
    assert "large.cif" in said
    assert "much larger than the density of map" in said


def test_output_that_exists_or_cannot_be(complaint, tmp_path):
    (tmp_path / "placed.cif").write_text("mine")
    assert "--force" in complaint()
    (tmp_path / "other.json").write_text("mine")
    assert "other.json exists" in complaint(out=tmp_path / "other.cif")
    assert "no folder" in complaint(out=tmp_path / "nowhere" / "placed.cif")
    assert "is a folder" in complaint(out=tmp_path)
    assert ".cif or .pdb" in complaint(out=tmp_path / "placed.txt")
