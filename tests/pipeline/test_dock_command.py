"""``densemble dock`` from files to files: a dimer, from anywhere, into its map."""

import json

import gemmi
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from small_state import RESOLUTION, write_state

from densemble.cli import main
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import read_model

AWAY = Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()


@pytest.fixture(scope="module")
def dimer(tmp_path_factory):
    """Two chains of one sequence about a twofold axis; the same from elsewhere; the map."""
    folder = tmp_path_factory.mktemp("dimer")
    structure = gemmi.read_structure(str(write_state(folder).truth))
    second = structure[0]["A"].clone()
    second.name = "B"
    for residue in second:
        for atom in residue:
            atom.pos = gemmi.Position(-atom.pos.x + 92, -atom.pos.y + 60, atom.pos.z)
    structure[0].add_chain(second)
    structure.make_mmcif_document().write_file(str(folder / "truth.cif"))
    model = read_model(folder / "truth.cif")
    grid = Grid.around(model.coords, margin=9.0, spacing=1.3)
    forward = MolmapDensity(grid, model.topology.elements, resolution=RESOLUTION)
    write_map(
        folder / "map.mrc", DensityMap(grid, forward.members(torch.from_numpy(model.coords).float()[None])[0])
    )
    for atom in (atom for chain in structure[0] for residue in chain for atom in residue):
        atom.pos.fromlist((AWAY @ atom.pos.tolist() + [20.0, -70.0, 10.0]).tolist())
    structure.make_mmcif_document().write_file(str(folder / "away.cif"))
    return folder


def test_a_dimer_is_placed_and_its_exchange_is_no_rival(dimer, tmp_path):
    out = tmp_path / "docked.cif"
    words = [
        "dock",
        dimer / "away.cif",
        dimer / "map.mrc",
        "--resolution",
        RESOLUTION,
        "--out",
        out,
        "--quiet",
    ]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    truth, found = (read_model(path).coords for path in (dimer / "truth.cif", out))
    half = len(truth) // 2
    exchanged = np.concatenate([truth[half:], truth[:half]])
    off = min(float(np.sqrt(((found - x) ** 2).sum(1).mean())) for x in (truth, exchanged))
    assert off < 0.3
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["clear"]
    assert not [m for m in record["messages"] if "clearly" in m]
