import gemmi
import numpy as np
import pytest
from crystals import CELLS, crystal, direct_factors, unique_hkl

from densemble.crystal.sampling import sample, sample_crystal_map, simulate
from densemble.grid import Grid
from densemble.io.maps import CrystalMap
from densemble.io.reflections import MapCoefficients

D_MIN = 2.2
BOX = Grid(origin=(-31.0, 7.3, 55.1), spacing=(1.7, 1.1, 2.3), shape=(30, 20, 25))  # over several cells


def direct_map(coefficients: MapCoefficients, points: np.ndarray) -> np.ndarray:
    """Density at points (shape=(n, 3), Å) by summing over all equivalents of all reflections."""
    cell, ops = coefficients.cell, list(coefficients.spacegroup.operations())
    terms = {}
    for hkl, value in zip(coefficients.hkl.tolist(), coefficients.values, strict=True):
        for op in ops:
            equivalent = tuple(op.apply_to_hkl(hkl))
            moved = value * np.exp(1j * op.phase_shift(hkl))
            terms[equivalent] = moved
            terms[tuple(-i for i in equivalent)] = np.conj(moved)
    hkl = np.array(list(terms))
    fractional = points @ np.array(cell.fractionalization_matrix.tolist()).T
    density = np.exp(-2j * np.pi * fractional @ hkl.T) @ np.array(list(terms.values()))
    assert np.abs(density.imag).max() < 1e-6 * np.abs(density.real).max()
    return density.real / cell.volume


def random_coefficients(group, rng, mean=250.0):
    structure = crystal(group)
    hkl = np.concatenate([unique_hkl(structure, D_MIN), np.zeros((1, 3), dtype=np.int32)])
    values = np.append(direct_factors(structure, hkl[:-1]) * rng.uniform(0.5, 1.5, len(hkl) - 1), mean)
    return MapCoefficients(hkl, values, structure.cell, structure.find_spacegroup())


@pytest.mark.parametrize("group", CELLS)
def test_agrees_with_direct_summation(group):
    rng = np.random.default_rng(11)
    coefficients = random_coefficients(group, rng)
    density = sample(coefficients, BOX)
    chosen = rng.choice(int(np.prod(BOX.shape)), size=300, replace=False)
    expected = direct_map(coefficients, BOX.points().reshape(-1, 3)[chosen])
    error = density.values.numpy().reshape(-1)[chosen] - expected
    assert np.abs(error).max() < 2e-3 * expected.std()
    assert np.sqrt((error**2).mean()) < 2e-4 * expected.std()


def test_mean_is_f000_over_volume():
    whole = random_coefficients("P 31 2 1", np.random.default_rng(1))
    without = MapCoefficients(whole.hkl[:-1], whole.values[:-1], whole.cell, whole.spacegroup)
    difference = sample(whole, BOX).values - sample(without, BOX).values
    np.testing.assert_allclose(difference.numpy(), 250 / whole.cell.volume, atol=1e-5)


def test_one_lattice_translation_changes_nothing():
    coefficients = random_coefficients("C 1 2 1", np.random.default_rng(2))
    shift = coefficients.cell.orthogonalize(gemmi.Fractional(1, -2, 3)).tolist()
    moved = Grid(tuple(np.add(BOX.origin, shift).tolist()), BOX.spacing, BOX.shape)
    a, b = sample(coefficients, BOX).values, sample(coefficients, moved).values
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4 * a.std().item())


def test_a_crystal_map_is_met_at_its_own_points():
    structure = crystal("P 21 21 21")
    data = simulate(structure, d_min=D_MIN)
    asu = gemmi.ComplexAsuData(data.cell, data.spacegroup, data.hkl, data.values.astype(np.complex64))
    cell_map = asu.transform_f_phi_to_map(sample_rate=3.0)
    spacing = tuple(length / n for length, n in zip(data.cell.parameters, cell_map.shape, strict=False))
    origin = (3 * spacing[0], -5 * spacing[1], 7 * spacing[2])
    density = sample_crystal_map(CrystalMap(cell_map), Grid(origin, spacing, (9, 8, 7)))
    expected = np.roll(np.array(cell_map), (-3, 5, -7), axis=(0, 1, 2))[:9, :8, :7]
    np.testing.assert_allclose(density.values.numpy(), expected, atol=1e-5 * expected.std())


def test_simulated_density_is_that_of_direct_structure_factors():
    structure = crystal("P 31 2 1", residues=3)
    data = simulate(structure, d_min=D_MIN)
    assert data.d_min >= D_MIN
    assert data.hkl[-1].tolist() == [0, 0, 0]
    points = np.array([site.atom.pos.tolist() for site in structure[0].all()])
    exact = MapCoefficients(data.hkl, direct_factors(structure, data.hkl), data.cell, data.spacegroup)
    expected = direct_map(exact, points)
    for point, value in zip(points, expected, strict=True):
        there = sample(data, Grid(tuple(point.tolist()), (1.0, 1.0, 1.0), (1, 1, 1)))
        assert there.values.item() == pytest.approx(value, abs=0.01)
    assert expected.max() > 1  # e/Å^3
