import gemmi
import numpy as np
import pytest
from crystals import CELLS, crystal, direct_factors, ids, unique_hkl

from densemble.crystal.fcalc import (
    atom_factors,
    conformers,
    solvent_factors,
    solvent_mask,
    without_residues,
)

ORIGIN = np.zeros((1, 3), dtype=np.int32)


@pytest.mark.parametrize("group", CELLS)
def test_atoms_agree_with_direct_summation(group):
    structure = crystal(group)
    hkl = np.concatenate([unique_hkl(structure, 1.8), ORIGIN])
    expected = direct_factors(structure, hkl)
    error = np.abs(atom_factors(structure, hkl, d_min=1.8) - expected)
    mean = np.abs(expected[:-1]).mean()
    assert np.sqrt((error[:-1] ** 2).mean()) < 5e-4 * mean
    assert error.max() < 5e-3 * mean


def test_reflection_000_counts_electrons():
    structure = crystal("P 31 2 1", residues=3)
    electrons = 6 * 3 * (7 + 6 + 6 + 8 + 16)
    assert atom_factors(structure, ORIGIN, d_min=2.0)[0].real == pytest.approx(electrons, rel=2e-3)


def test_occupancies_of_altlocs_add_up():
    structure = crystal()
    split = structure.clone()
    for residue in split[0]["A"]:
        atoms = [atom.clone() for atom in residue]
        for atom in residue:
            atom.altloc, atom.occ = "A", 0.3
        for atom in atoms:
            atom.altloc, atom.occ = "B", 0.7
            residue.add_atom(atom)
    hkl = unique_hkl(structure, 2.0)
    whole, halves = (atom_factors(s, hkl, d_min=2.0) for s in (structure, split))
    np.testing.assert_allclose(halves, whole, atol=1e-3 * np.abs(whole).mean())


def test_stretch_and_rest_add_up_to_the_whole():
    structure = crystal()
    hkl = unique_hkl(structure, 2.0)
    rest, stretch = without_residues(structure, ids(2, 3)), without_residues(structure, ids(1, 4, 5, 6, 7, 8))
    assert (rest[0].count_atom_sites(), stretch[0].count_atom_sites()) == (30, 10)
    assert structure[0].count_atom_sites() == 40
    parts = sum(atom_factors(s, hkl, d_min=2.0) for s in (rest, stretch))
    whole = atom_factors(structure, hkl, d_min=2.0)
    np.testing.assert_allclose(parts, whole, atol=2e-3 * np.abs(whole).mean())


def lone_atom(altlocs=(("\0", 1.0, 15.0),)):
    """Carbon atoms along x in a cell of 30 x 30 x 30 Å, P 1: (altloc, occupancy, x)."""
    structure = crystal("P 1", residues=1)
    structure.cell = gemmi.UnitCell(30, 30, 30, 90, 90, 90)
    residue = structure[0]["A"][0]
    for i in reversed(range(len(residue))):
        del residue[i]
    for altloc, occupancy, x in altlocs:
        atom = gemmi.Atom()
        atom.name, atom.element, atom.altloc, atom.occ = "CA", gemmi.Element("C"), altloc, occupancy
        atom.pos = gemmi.Position(x, 15, 15)
        residue.add_atom(atom)
    structure.setup_cell_images()
    return structure


def test_solvent_of_a_lone_atom_is_the_cell_without_a_ball():
    mask = solvent_mask(lone_atom())
    volume = solvent_factors(mask, ORIGIN)[0].real
    radius = (3 / (4 * np.pi) * (27000 - volume)) ** (1 / 3)
    assert 1.6 < radius < 2.6  # REFMAC's radius of carbon, plus probe 1.0, minus shrinkage 0.8 Å
    structure_factor = solvent_factors(mask, np.array([[2, 0, 0]], dtype=np.int32))[0]
    q = 2 * np.pi * 2 / 30
    ball = 4 * np.pi * (np.sin(q * radius) - q * radius * np.cos(q * radius)) / q**3
    assert structure_factor.real == pytest.approx(-ball, rel=0.02)  # the atom is at x = 1/2: phase 0
    assert abs(structure_factor.imag) < 0.05 * ball


def test_solvent_fills_a_conformation_as_often_as_it_is_away():
    mask = solvent_mask(lone_atom([("A", 0.3, 8.0), ("B", 0.6, 20.0)]))
    at = [mask.interpolate_value(gemmi.Position(x, 15, 15)) for x in (8.0, 20.0, 14.0)]
    np.testing.assert_allclose(at, [2 / 3, 1 / 3, 1.0], atol=1e-5)


def test_conformers_share_what_has_no_altloc():
    structure = lone_atom([("\0", 1.0, 3.0), ("A", 0.2, 8.0), ("B", 0.6, 20.0)])
    (weight_a, a), (weight_b, b) = conformers(structure)
    assert (weight_a, weight_b) == pytest.approx((0.25, 0.75))
    assert [site.atom.pos.x for site in a[0].all()] == [3.0, 8.0]
    assert [site.atom.pos.x for site in b[0].all()] == [3.0, 20.0]
    assert conformers(lone_atom())[0][0] == 1.0
