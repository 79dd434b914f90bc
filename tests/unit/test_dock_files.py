"""The file-to-file part of docking: what the placed file holds, and the record."""

import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble import docking
from densemble.align.docking import Docking, Pose
from densemble.docking import dock_files, placed_structure, scattering, summary
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import read_model
from densemble.progress import Progress

TURN = Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix()
SHIFT = np.array([5.0, -7.0, 11.0])
PDB = """\
CRYST1   50.000   60.000   70.000  90.00 100.00  90.00 P 1 21 1
SCALE1      0.020000  0.000000  0.003527        0.00000
ATOM      1  N  AALA A   1      11.104   6.134  -6.504  0.60 10.00           N
ANISOU    1  N  AALA A   1     1000    500    800    100   -200     50       N
ATOM      2  N  BALA A   1      11.304   6.334  -6.304  0.40 10.00           N
ATOM      3  CA  ALA A   1      11.639   6.071  -5.147  1.00 20.00           C
ATOM      4  HA  ALA A   1      12.639   6.071  -5.147  1.00 20.00           H
HETATM    5 ZN    ZN A 201       1.000   2.000   3.000  0.50 30.00          ZN
HETATM    6  O   HOH A 301       4.000   5.000   6.000  1.00 40.00           O
END
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.pdb").write_text(PDB)
    return tmp_path / "model.pdb"


@pytest.fixture
def pose():
    return Pose(TURN, SHIFT, 0.9, 0.8, 0.95)


def test_everything_moves_along(model, pose):
    before, after = gemmi.read_structure(str(model)), placed_structure(model, pose)
    old, new = ([site.atom for site in s[0].all()] for s in (before, after))
    assert [(a.name, a.altloc, a.occ, a.b_iso) for a in old] == [
        (a.name, a.altloc, a.occ, a.b_iso) for a in new
    ]
    x, y = (np.array([a.pos.tolist() for a in atoms]) for atoms in (old, new))
    np.testing.assert_allclose(y, x @ TURN.T + SHIFT, atol=1e-9)
    u, v = (np.array(a[0].aniso.as_mat33().tolist()) for a in (old, new))
    np.testing.assert_allclose(v, TURN @ u @ TURN.T, atol=1e-6)


def test_no_crystal_is_left(model, pose, tmp_path):
    after = placed_structure(model, pose)
    assert not after.cell.is_crystal()
    for name, text in (
        ("a.pdb", after.make_pdb_string()),
        ("a.cif", after.make_mmcif_document().as_string()),
    ):
        (tmp_path / name).write_text(text)
        again = gemmi.read_structure(str(tmp_path / name))
        assert not again.cell.is_crystal()
        assert again.spacegroup_hm in ("", "P 1")
        expected = np.array([2.0, 3, 1])[[2, 0, 1]] @ TURN.T + SHIFT
        zinc = next(s.atom for s in again[0].all() if s.atom.element.name == "Zn")
        np.testing.assert_allclose(zinc.pos.tolist(), expected, atol=2e-3)


def test_water_does_not_scatter(model):
    read = read_model(model)
    kinds = [read.topology.residues[r].kind for r in read.topology.residue_index]
    np.testing.assert_allclose(scattering(read), [7, 6, 15, 0])
    assert kinds[-1] == "water"


def test_record_and_files(model, pose, tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)

    grid = Grid((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (8, 9, 10))
    write_map(tmp_path / "map.mrc", DensityMap(grid, torch.from_numpy(values)))
    found = Docking((pose,), "shape", False, False, 0.3, 0.6, True, 1.0)
    monkeypatch.setattr(docking, "dock", lambda *a, **k: found)
    told = []

    class Listener(Progress):
        def message(self, text):
            told.append(text)

    out = tmp_path / "placed.cif"
    record = dock_files(model, tmp_path / "map.mrc", resolution=5.0, out=out, progress=Listener())
    assert any("finer than twice the voxels of 4 Å" in t for t in told)
    assert out.is_file()
    written = json.loads(Path(tmp_path / "placed.json").read_text())
    assert written["schema"] == "densemble.docking/1"
    assert [f["name"] for f in written["inputs"]] == ["model.pdb", "map.mrc"]
    np.testing.assert_allclose(written["poses"][0]["matrix"], np.column_stack([TURN, SHIFT]))
    text = summary(record)
    for phrase in ("NOT clearly better", "wrong hand", "overall shape", "0.600"):
        assert phrase in text
