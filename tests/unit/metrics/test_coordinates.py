import gemmi
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from densemble.atoms import Ensemble, Residue, ResidueId, Topology
from densemble.metrics.coordinates import (
    bimodality,
    local_rmsd,
    nearest_naming,
    rmsd,
    rmsf,
    rmsf_per_residue,
    superpose,
    superposed_rmsd,
)
from densemble.metrics.populations import assign_states, populations


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_rmsd_of_a_shift_and_of_one_moved_atom(rng):
    x = rng.normal(size=(5, 3))
    assert rmsd(x + np.array([3.0, 0.0, 4.0]), x) == pytest.approx(5.0)
    moved = x.copy()
    moved[2] += [0, 2.0, 0]
    assert rmsd(moved, x) == pytest.approx(2.0 / np.sqrt(5))


def test_rmsd_of_many_to_one_and_without_unknown_atoms(rng):
    x = rng.normal(size=(4, 5, 3))
    reference = rng.normal(size=(5, 3))
    np.testing.assert_allclose(rmsd(x, reference), [rmsd(y, reference) for y in x])
    reference[[1, 3]] = np.nan
    np.testing.assert_allclose(rmsd(x, reference), rmsd(x[:, [0, 2, 4]], reference[[0, 2, 4]]))
    with pytest.raises(ValueError, match="no atom is known"):
        rmsd(x, np.full((5, 3), np.nan))


def test_superposition_agrees_with_gemmi(rng):
    x, reference = rng.normal(size=(2, 30, 3)) * 10
    reference = 0.8 * reference + 0.2 * x
    positions = [[gemmi.Position(*p) for p in y] for y in (reference, x)]
    expected = gemmi.superpose_positions(*positions)
    assert rmsd(superpose(x, reference), reference) == pytest.approx(expected.rmsd, rel=1e-9)
    moved = [expected.transform.apply(p).tolist() for p in positions[1]]
    np.testing.assert_allclose(superpose(x, reference), moved, atol=1e-8)


def test_superposition_undoes_a_rigid_motion_but_not_a_reflection(rng):
    x = rng.normal(size=(10, 3))
    moved = x @ Rotation.random(random_state=3).as_matrix().T + [10, -20, 5]
    np.testing.assert_allclose(superpose(moved, x), x, atol=1e-12)
    assert rmsd(superpose(x * [1, 1, -1], x), x) > 0.1


def test_superposition_on_some_atoms_moves_all(rng):
    x = rng.normal(size=(6, 3))
    reference = x @ Rotation.from_rotvec([0.3, 1.0, 0]).as_matrix().T + 4
    reference[[4, 5]] += 2.5  # not rigid, not fitted
    fit = np.array([0, 1, 2, 3])
    moved = superpose(x, reference, fit=fit)
    np.testing.assert_allclose(moved[:4], reference[:4], atol=1e-12)
    np.testing.assert_allclose(moved[4:], reference[4:] - 2.5, atol=1e-12)
    reference[3] = np.nan  # an atom that the reference lacks does not take part
    np.testing.assert_allclose(superpose(x, reference, fit=fit), moved, atol=1e-12)
    with pytest.raises(ValueError, match="at least three"):
        superpose(x, reference, fit=np.array([0, 1, 3]))


def test_rmsf_of_two_states_in_closed_form():
    # w and 1 - w at distance d: the deviation is d sqrt(w (1 - w)).
    coords = np.zeros((2, 3, 3))
    coords[1, 1] = [0, 3.0, 4.0]
    np.testing.assert_allclose(rmsf(coords, np.array([0.6, 1.4])), [0, 5 * np.sqrt(0.3 * 0.7), 0], atol=1e-12)
    np.testing.assert_allclose(rmsf(coords, np.array([0.0, 2.0])), 0, atol=1e-12)


def test_rmsf_is_the_standard_deviation_for_equal_weights(rng):
    coords = rng.normal(size=(7, 4, 3))
    expected = np.sqrt(coords.var(axis=0).sum(axis=-1))
    np.testing.assert_allclose(rmsf(coords, np.ones(7)), expected)


def test_rmsf_per_residue_is_that_of_the_alpha_carbons(rng):
    topology = Topology(
        ("N", "CA", "CB", "CA", "CA"),
        ("N", "C", "Ca", "C", "Ca"),
        np.array([0, 0, 1, 2, 3]),
        (
            *(Residue(ResidueId("A", i), "GLY") for i in range(3)),
            Residue(ResidueId("A", 9), "CA", "ion"),
        ),
    )
    coords, weights = rng.normal(size=(3, 5, 3)), np.array([0.2, 0.3, 0.5])
    ensemble = Ensemble(topology, torch.tensor(coords), torch.tensor(weights), torch.ones(3, 5))
    expected = rmsf(coords, weights)
    np.testing.assert_allclose(rmsf_per_residue(ensemble), [expected[1], np.nan, expected[3], np.nan])


def test_bimodality_follows_its_formula(rng):
    x, a, b = rng.normal(size=(50, 8, 3)), rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    r = np.linalg.norm((x - a).reshape(50, -1), axis=1) / np.linalg.norm((x - b).reshape(50, -1), axis=1)
    expected = (1 - np.minimum(r, 1 / r)) * np.sign(r - 1 / r)
    np.testing.assert_allclose(bimodality(x, a, b), expected, atol=1e-12)
    assert (expected > 0).any()
    assert (expected < 0).any()


def test_bimodality_at_the_states_and_between(rng):
    a, b = rng.normal(size=(2, 8, 3))
    x = np.stack([a, b, (a + b) / 2, a + (b - a) / 4])
    np.testing.assert_allclose(bimodality(x, a, b), [-1, 1, 0, -(1 - 1 / 3)], atol=1e-12)
    assert bimodality(a, a, b) == -1
    assert bimodality(a, a, a) == 0  # states that coincide tell nothing


@given(st.integers(0, 10_000))
def test_bimodality_is_odd_in_the_states_and_bounded(seed):
    x, a, b = np.random.default_rng(seed).normal(size=(3, 4, 3))
    score = bimodality(x, a, b)
    assert -1 <= score <= 1
    assert bimodality(x, b, a) == pytest.approx(-score)


def test_bimodality_leaves_out_atoms_that_a_state_lacks(rng):
    x, a, b = rng.normal(size=(3, 8, 3))
    a[0], b[5] = np.nan, np.nan
    keep = [1, 2, 3, 4, 6, 7]
    assert bimodality(x, a, b) == pytest.approx(bimodality(x[keep], a[keep], b[keep]))
    with pytest.raises(ValueError, match="no atom is known"):
        bimodality(x, a, np.full((8, 3), np.nan))


def test_members_go_to_the_nearest_state_and_bring_their_weight(rng):
    a = rng.normal(size=(6, 3))
    along = np.array([1.0, 0, 0])
    b, c = a + 2 * along, a + 9 * along
    coords = np.stack([a + 0.1, b - 0.1, a + 0.9 * along, a + 1.1 * along, a + along])
    states = {"A": a, "B": b, "C": c}
    assigned = assign_states(coords, states)
    assert assigned[:4] == ["A", "B", "A", "B"]
    shares = populations(np.array([1.0, 2.0, 1.0, 4.0, 0.0]), assigned, list(states))
    assert shares == pytest.approx({"A": 0.25, "B": 0.75, "C": 0.0})


def test_atoms_that_one_state_lacks_count_for_none(rng):
    # Over atoms 1 and 2 A is nearer, 1.0 to 1.1 Å; with atom 0, which only B has, B would be at 0.9 Å.
    x = rng.normal(size=(3, 3))
    along = np.array([1.0, 0, 0])
    a, b = x + along, x + 1.1 * along
    a[0], b[0] = np.nan, x[0]
    assert assign_states(x[None], {"B": b, "A": a}) == ["A"]


def test_populations_reject_what_cannot_be_shared():
    with pytest.raises(ValueError, match="no weight"):
        populations(np.zeros(2), ["A", "A"], ["A"])
    with pytest.raises(ValueError, match=r"unknown states \['B'\]"):
        populations(np.ones(2), ["A", "B"], ["A"])
    with pytest.raises(ValueError, match="no reference states"):
        assign_states(np.zeros((1, 2, 3)), {})


def test_local_rmsd_is_after_superposition_on_everything_else(rng):
    reference = 5 * rng.normal(size=(20, 3))
    x = reference.copy()
    x[4:7] += [0, 3.0, 4.0]
    x = x @ Rotation.random(random_state=5).as_matrix().T - 12
    over = np.array([4, 5, 6])
    assert local_rmsd(x, reference, over=over) == pytest.approx(5.0)
    assert local_rmsd(x, reference, over=over, fit=over) == pytest.approx(0, abs=1e-9)
    assert local_rmsd(x, reference, over=over, fit=np.arange(10)) < 4.9  # the loop itself pulls
    assert local_rmsd(x, reference, over=np.array([4, 10]), fit=np.array([0, 1, 2, 9])) == pytest.approx(
        5 / np.sqrt(2)
    )


@pytest.fixture
def tyrosines():
    names = ("N", "CA", "CD1", "CD2", "CE1", "CE2")
    residues = (
        *(Residue(ResidueId("A", i), "TYR") for i in range(4)),
        Residue(ResidueId("A", 9), "HOH", "water"),
    )
    return Topology(
        (*names * 4, "O"), ("N", *"CCCCC") * 4 + ("O",), np.array([*np.repeat(np.arange(4), 6), 4]), residues
    )


def test_superposed_rmsd_is_on_alpha_carbons_and_over_protein(tyrosines, rng):
    reference = 5 * rng.normal(size=(25, 3))
    x = reference.copy()
    x[6] += [2.0, 0, 0]  # an N
    x[24] += 50.0  # the water
    x = x @ Rotation.random(random_state=5).as_matrix().T - 12
    found = superposed_rmsd(tyrosines, x, reference)
    assert found.alpha == pytest.approx(0, abs=1e-9)
    assert found.all_atoms == pytest.approx(2 / np.sqrt(24))


def test_equivalent_names_are_exchanged_together_where_nearer(tyrosines, rng):
    reference = 5 * rng.normal(size=(25, 3))
    x = reference.copy()
    x[[2, 3, 4, 5]] = reference[[3, 2, 5, 4]]  # the first ring named the other way round
    x[[8, 9]] = reference[[9, 8]]  # half of the second ring: not an equivalent naming
    np.testing.assert_array_equal(nearest_naming(tyrosines, x, reference)[:6], reference[:6])
    ring = nearest_naming(tyrosines, x, reference)[6:12]
    assert min(np.abs(ring - y).max() for y in (x[6:12], x[[6, 7, 9, 8, 11, 10]])) == 0
    np.testing.assert_array_equal(nearest_naming(tyrosines, x, reference)[12:], x[12:])
    plain, exchanged = (
        superposed_rmsd(tyrosines, x, reference, symmetric=s).all_atoms for s in (False, True)
    )
    assert exchanged < plain
