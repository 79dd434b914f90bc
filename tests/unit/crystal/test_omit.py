"""A crystal whose stretch is in two states; the start knows one of them."""

import dataclasses

import gemmi
import numpy as np
import pytest
from crystals import crystal, ids, positions_of, reflections, unique_hkl

from densemble.crystal.fcalc import (
    atom_factors,
    solvent_factors,
    solvent_mask,
    without_residues,
)
from densemble.crystal.omit import as_phased_map, omit_map, two_fofc_map
from densemble.crystal.sampling import sample, simulate
from densemble.errors import InputError
from densemble.grid import Grid
from densemble.io.reflections import MapCoefficients

D_MIN, STRETCH = 1.7, ids(3)
OTHERS = ids(*(i for i in range(1, 25) if i != 3))


@pytest.fixture(scope="module")
def start():
    return crystal("P 21 21 21", residues=24, anisotropic=False)


@pytest.fixture(scope="module")
def truth(start):
    """The start's stretch at 0.6 and a second state 3 Å away at 0.4."""
    structure = start.clone()
    stretch = structure[0]["A"][2]
    second = [atom.clone() for atom in stretch]
    for atom in stretch:
        atom.altloc, atom.occ = "A", 0.6
    for atom in second:
        atom.altloc, atom.occ = "B", 0.4
        atom.pos += gemmi.Position(2.4, -1.2, 1.3)
        stretch.add_atom(atom)
    return structure


@pytest.fixture(scope="module")
def f_true(truth):
    hkl = unique_hkl(truth, D_MIN)
    return atom_factors(truth, hkl, d_min=D_MIN) + solvent_of(truth, hkl)


@pytest.fixture(scope="module")
def data(truth, f_true):
    return reflections(truth, 5 * np.abs(f_true), unique_hkl(truth, D_MIN))


@pytest.fixture(scope="module")
def file_coefficients(data, f_true):
    """Another program's map: true phases, arbitrary scale, no (0, 0, 0)."""
    return MapCoefficients(data.hkl, 0.02 * f_true, data.cell, data.spacegroup)


@pytest.fixture(scope="module")
def box(truth):
    return Grid.around(positions_of(truth, STRETCH), margin=1.0, spacing=0.5)


def density_of(structure, box):
    stretch = without_residues(structure, OTHERS)
    return sample(simulate(stretch, d_min=D_MIN), box).values.numpy().ravel()


def solvent_of(structure, hkl):
    s2 = structure.cell.calculate_1_d2_array(hkl)
    return 0.35 * np.exp(-46 * s2 / 4) * solvent_factors(solvent_mask(structure), hkl)


def net_density_of(structure, box):
    """Atoms of the stretch less the solvent that they displace: with and without, by structure factors."""
    hkl = np.concatenate([unique_hkl(structure, D_MIN), np.zeros((1, 3), dtype=np.int32)])
    bare = without_residues(structure, STRETCH)
    net = [atom_factors(s, hkl, d_min=D_MIN) + solvent_of(s, hkl) for s in (structure, bare)]
    group = structure.find_spacegroup()
    return values(MapCoefficients(hkl, net[0] - net[1], structure.cell, group), box)


def values(coefficients, box):
    return sample(coefficients, box).values.numpy().ravel()


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_omit_map_shows_the_state_that_the_start_lacks(start, truth, data, box):
    density = values(omit_map(start, STRETCH, data).stretch, box)
    both, one = density_of(truth, box), density_of(start, box)
    assert correlation(density, both) > 0.85
    assert correlation(density, both) > correlation(density, one) + 0.1
    slope = np.polyfit(both, density, 1)[0]
    assert 0.6 < slope < 1.1  # e/Å^3; mFo-DFc alone would show about half


def test_map_with_true_phases_is_absolute(truth, data, box):
    """With a perfect model total and context are true densities, up to the missing free reflections."""
    result = two_fofc_map(truth, STRETCH, data)
    density, expected = values(result.stretch, box), net_density_of(truth, box)
    slope, offset = np.polyfit(expected, density, 1)
    assert slope == pytest.approx(1 - data.free.mean(), abs=0.03)
    assert abs(offset) < 0.02
    assert correlation(density, expected) > 0.98


def test_as_phased_map_is_brought_to_absolute_scale(truth, data, box, file_coefficients):
    result = as_phased_map(file_coefficients, truth, STRETCH, data)
    slope, offset = np.polyfit(net_density_of(truth, box), values(result.stretch, box), 1)
    assert slope == pytest.approx(1 - data.free.mean(), abs=0.03)
    assert abs(offset) < 0.02


def test_mean_density_counts_electrons(start, data):
    total = omit_map(start, STRETCH, data).total
    assert total.hkl[-1].tolist() == [0, 0, 0]
    electrons = 4 * 24 * (7 + 6 + 6 + 8 + 16)
    volume = start.cell.volume
    solvent = solvent_factors(solvent_mask(start), total.hkl[-1:])[0].real
    density = (total.values[-1].real - electrons) / solvent
    assert 0.3 < density < 0.4  # e/Å^3 of solvent
    assert 0.3 < total.values[-1].real / volume < 1.0


def changed_free(data):
    return dataclasses.replace(data, f=np.where(data.free, 10 * data.f[::-1] + 3, data.f))


@pytest.mark.parametrize("make", ["omit", "2fofc", "as-phased"])
def test_free_reflections_do_not_enter(start, data, file_coefficients, make):
    def maps(reflections, coefficients):
        if make == "as-phased":
            return as_phased_map(coefficients, start, STRETCH, reflections)
        return {"omit": omit_map, "2fofc": two_fofc_map}[make](start, STRETCH, reflections)

    other_coefficients = dataclasses.replace(
        file_coefficients, values=np.where(data.free, 7j, file_coefficients.values)
    )
    first, second = maps(data, file_coefficients), maps(changed_free(data), other_coefficients)
    np.testing.assert_array_equal(first.total.values, second.total.values)
    np.testing.assert_array_equal(first.context.values, second.context.values)
    assert (first.stretch.values[:-1][data.free] == 0).all()
    assert (first.stretch.values[:-1][~data.free] != 0).all()


def test_working_reflections_do_enter(start, data):
    other = dataclasses.replace(data, f=np.where(data.free, data.f, 1.01 * data.f[::-1]))
    first, second = (omit_map(start, STRETCH, d).stretch.values for d in (data, other))
    assert np.abs(first - second).max() > 1


def test_omit_phases_do_not_know_where_the_stretch_was(start, data):
    """A start whose stretch is elsewhere gives the same phases; only scale and solvent may differ."""
    elsewhere = start.clone()
    for atom in elsewhere[0]["A"][2]:
        atom.pos += gemmi.Position(0.5, 0.5, 0.5)
    first, second = (omit_map(s, STRETCH, data) for s in (start, elsewhere))
    strong = np.abs(first.context.values) > np.median(np.abs(first.context.values))
    turn = np.angle(first.context.values[strong] / second.context.values[strong])
    high = strong[:-1] & (data.inverse_d2 > 1 / 2.5**2)  # beyond the solvent's reach
    turn_high = np.angle(first.context.values[:-1][high] / second.context.values[:-1][high])
    assert np.abs(turn_high).max() < 0.02
    assert np.abs(turn).mean() < 0.05


def test_solvent_fills_the_place_of_the_stretch(start, data, box):
    """So that no outline of the start is in the map; what the stretch displaces goes with its atoms."""
    result = omit_map(start, STRETCH, data)
    bare = without_residues(start, STRETCH)
    atoms = atom_factors(bare, result.context.hkl, d_min=D_MIN)
    inside = result.context.values - atoms
    mask = solvent_factors(solvent_mask(bare), result.context.hkl)
    low = np.append(data.inverse_d2 < 1 / 6**2, False)
    ratio = (inside[low] / mask[low])[np.abs(mask[low]) > np.median(np.abs(mask[low]))]
    assert np.median(ratio.real) == pytest.approx(result.solvent.density, abs=0.12)
    assert np.abs(np.median(ratio.imag)) < 0.02


def test_region_that_is_not_there(start, data):
    with pytest.raises(InputError, match="none of the region's residues"):
        omit_map(start, ids(99), data)


def test_coefficients_of_another_origin(start, data, file_coefficients):
    opposite = dataclasses.replace(file_coefficients, values=-file_coefficients.values)
    with pytest.raises(InputError, match="the phases do not fit the model"):
        as_phased_map(opposite, start, STRETCH, data)
