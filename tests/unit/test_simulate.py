"""Simulated maps, in absolute units, against direct sums; and what the command refuses."""

from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
from command_line import invoke, sentence

from densemble.forward.truncation import truncated_profile
from densemble.io.maps import read_map

PDB = """\
ATOM      1  N   ALA A   5       1.000   2.000   3.000  1.00 15.00           N
ATOM      2  CA AALA A   5       2.200   2.500   3.500  0.60 20.00           C
ATOM      3  CA BALA A   5       2.000   3.700   3.600  0.40 25.00           C
ATOM      4  C   ALA A   5       3.400   3.500   3.000  1.00 30.00           C
HETATM    5  S   SO4 A   6       8.100   7.500   5.700  0.50 22.00           S
"""
CELL = "CRYST1   14.000   17.000   15.000  90.00 104.00  90.00 P 1 21 1\n"
ATOMS = [  # element, position, occupancy, B
    ("N", (1.0, 2.0, 3.0), 1.0, 15.0),
    ("C", (2.2, 2.5, 3.5), 0.6, 20.0),
    ("C", (2.0, 3.7, 3.6), 0.4, 25.0),
    ("C", (3.4, 3.5, 3.0), 1.0, 30.0),
    ("S", (8.1, 7.5, 5.7), 0.5, 22.0),
]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pdb"
    path.write_text(PDB)
    return path


@pytest.fixture
def crystal(tmp_path):
    path = tmp_path / "crystal.pdb"
    path.write_text(CELL + PDB)
    return path


run = partial(invoke, "simulate")


def written(model, out, resolution, spacing, kind):
    result = run(model, "--resolution", resolution, "--spacing", spacing, "--kind", kind, "--out", out)
    assert result.exit_code == 0, result.stderr
    return read_map(out)


def test_crystal_is_the_fourier_sum_over_atoms_and_symmetry(crystal, tmp_path):
    """In e/Å^3 at every fifth voxel; structure factors by gemmi's direct summation."""
    density = written(crystal, tmp_path / "x.ccp4", 2.5, 0.6, "xray")
    structure = gemmi.read_structure(str(crystal))
    half = gemmi.make_miller_array(structure.cell, gemmi.SpaceGroup("P 1"), 2.5)
    hkl = np.concatenate([half, -half, np.zeros((1, 3), dtype=half.dtype)])
    direct = gemmi.StructureFactorCalculatorX(structure.cell)
    factors = np.array([direct.calculate_sf_from_model(structure[0], h.tolist()) for h in hkl])
    points = density.grid.points()[::5, ::5, ::5]
    fractional = points @ np.array(structure.cell.fractionalization_matrix.tolist()).T
    waves = np.exp(-2j * np.pi * fractional @ hkl.T)
    expected = (waves @ factors).real / structure.cell.volume
    found = density.values[::5, ::5, ::5].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())


def test_without_a_cell_each_atom_has_its_truncated_profile(model, tmp_path):
    """Within the error stated for the fitted Gaussians: of each atom 0.03 of its peak at most."""
    density = written(model, tmp_path / "x.ccp4", 1.85, 0.5, "xray")
    expected = np.zeros(density.grid.shape)
    peak = 0.0
    for element, x, occupancy, b in ATOMS:
        r = np.linalg.norm(density.grid.points() - x, axis=-1)
        profile = occupancy * truncated_profile([element], 1.85, b, r.ravel())[0].reshape(r.shape)
        expected += profile
        peak = max(peak, profile.max())
    assert np.abs(density.values.numpy() - expected).max() < 0.04 * peak
    assert expected.max() > 0.8


def test_molmap_counts_altlocs_with_their_occupancies(crystal, tmp_path):
    density = written(crystal, tmp_path / "m.mrc", 5.0, 1.0, "molmap")
    expected = np.zeros(density.grid.shape)
    for element, x, occupancy, _ in ATOMS:
        r2 = ((density.grid.points() - x) ** 2).sum(axis=-1)
        expected += occupancy * gemmi.Element(element).atomic_number * np.exp(-r2 * np.pi**2 / 25)
    np.testing.assert_allclose(density.values.numpy(), expected, atol=1e-3 * expected.max())


def test_box_is_at_multiples_of_the_spacing_and_holds_the_atoms(model, tmp_path):
    grid = written(model, tmp_path / "x.ccp4", 3.0, 0.7, "molmap").grid
    steps = np.array(grid.origin) / 0.7
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)
    np.testing.assert_allclose(grid.spacing, 0.7, atol=1e-6)
    atoms = np.array([x for _, x, _, _ in ATOMS])
    top = np.array(grid.origin) + 0.7 * (np.array(grid.shape) - 1)
    assert (np.array(grid.origin) <= atoms.min(axis=0) - 6 + 1e-4).all()
    assert (top >= atoms.max(axis=0) + 6 - 1e-4).all()


def test_an_existing_file_is_replaced_only_with_force(model, tmp_path):
    out = tmp_path / "x.ccp4"
    out.write_text("mine")
    options = (model, "--resolution", 3, "--spacing", 1, "--out", out)
    assert "--force" in sentence(run(*options))
    assert out.read_text() == "mine"
    assert run(*options, "--force").exit_code == 0
    assert read_map(out).values.max() > 0


@pytest.mark.parametrize(
    ("resolution", "spacing", "message"),
    [
        ("0", "0.5", "--resolution 0 Å"),
        ("-2", "0.5", "--resolution -2 Å"),
        ("nan", "0.5", "--resolution nan Å"),
        ("3", "0", "--spacing 0 Å"),
        ("3", "1.51", "at most half the resolution, 1.5 Å"),
        ("3", "0.001", "give a larger --spacing"),
        ("three", "1", "three"),
    ],
)
def test_sampling_that_does_not_do(model, tmp_path, resolution, spacing, message):
    out = tmp_path / "x.ccp4"
    result = run(model, f"--resolution={resolution}", f"--spacing={spacing}", "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("out", ["missing/x.ccp4", "."])
def test_nowhere_to_write(model, tmp_path, out):
    result = run(model, "--resolution", 3, "--spacing", 1, "--out", tmp_path / out)
    assert "folder" in sentence(result)


def test_model_that_is_not_there(tmp_path):
    result = run(tmp_path / "no.cif", "--resolution", 3, "--spacing", 1, "--out", Path(tmp_path / "x.ccp4"))
    assert "no.cif: there is no such file" in sentence(result)


def test_crystal_of_unknown_symmetry(tmp_path):
    path = tmp_path / "m.pdb"
    path.write_text(CELL.replace("P 1 21 1", "Z 9 9 9 ") + PDB)
    result = run(path, "--resolution", 3, "--spacing", 1, "--out", tmp_path / "x.ccp4")
    assert "space group" in sentence(result)
