"""The packaged example, PTP1B: what its data say about the state that the start lacks."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from crystals import positions_of
from scipy.spatial import cKDTree

import densemble
from densemble.atoms import ResidueId
from densemble.crystal.fcalc import without_residues
from densemble.crystal.omit import omit_map
from densemble.crystal.sampling import sample, simulate
from densemble.crystal.scaling import r_factors
from densemble.grid import Grid
from densemble.io.naming import residue_id
from densemble.io.reflections import check_same_crystal, read_reflections

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
LOOP = [ResidueId("A", number) for number in range(176, 192)]


@pytest.fixture(scope="module")
def start():
    return gemmi.read_structure(str(EXAMPLE / "model.cif"))


@pytest.fixture(scope="module")
def deposited():
    return gemmi.read_structure(str(EXAMPLE / "deposited.cif"))


@pytest.fixture(scope="module")
def data():
    return read_reflections(EXAMPLE / "data.mtz")


def test_the_start_has_one_conformation_and_the_data_are_its_own(start, data):
    atoms = [site.atom for site in start[0].all()]
    assert {(atom.altloc, atom.occ) for atom in atoms} == {("\0", 1.0)}
    assert not any(atom.is_hydrogen() for atom in atoms)
    check_same_crystal(start, data)
    assert (len(data), int(data.free.sum()), data.dropped) == (41355, 2069, 1156)


def test_r_factors(start, deposited, data):
    """Published for the deposited model, with hydrogens: 0.132 and 0.154."""
    of_start, of_deposited = r_factors(start, data), r_factors(deposited, data)
    assert (of_start.r_work, of_start.r_free) == pytest.approx((0.187, 0.192), abs=0.002)
    assert (of_deposited.r_work, of_deposited.r_free) == pytest.approx((0.139, 0.151), abs=0.002)


def test_omit_map_knows_the_state_that_the_start_lacks(start, deposited, data):
    """Correlations over the voxels within 2 Å of the loop's atoms, either state."""
    points = positions_of(deposited, LOOP)
    grid = Grid.around(points, margin=2.0, spacing=0.6)
    near = np.isfinite(cKDTree(points).query(grid.points(), distance_upper_bound=2.0)[0])
    density = sample(omit_map(start, LOOP, data).stretch, grid).values.numpy()[near]

    def correlation(structure):
        others = [residue_id(c, r) for c in structure[0] for r in c if residue_id(c, r) not in LOOP]
        calculated = simulate(without_residues(structure, others), d_min=data.d_min)
        return np.corrcoef(density, sample(calculated, grid).values.numpy()[near])[0, 1]

    assert correlation(start) == pytest.approx(0.83, abs=0.02)
    assert correlation(deposited) == pytest.approx(0.895, abs=0.02)
