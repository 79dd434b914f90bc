import itertools

import numpy as np
import pytest
from globule import chain, topology
from scipy.spatial.transform import Rotation

from densemble.align.chains import chain_displacement, chain_groups, chain_permutation, matched_rmsd

X = np.random.default_rng(0).normal(scale=10, size=(15, 3))
GROUPS = [[np.arange(0, 3), np.arange(3, 6), np.arange(6, 9)], [np.arange(9, 12), np.arange(12, 15)]]


def test_groups_are_chains_of_one_sequence():
    chains = [("A", range(1, 21), "ALA"), ("B", range(1, 21), "GLY"), ("C", range(3, 25), "ALA")]
    found = chain_groups(topology(*chains, ("D", [1, 2], "GLY")))
    assert [len(kind) for kind in found] == [2, 1, 1]
    np.testing.assert_array_equal(found[0], [np.arange(2, 20), np.arange(40, 58)])
    np.testing.assert_array_equal(found[1], [np.arange(20, 40)])
    np.testing.assert_array_equal(found[2], [[62, 63]])


def test_fragments_that_share_nothing_are_not_of_one_kind():
    whole = topology(("A", range(1, 101), "ALA"), ("B", range(1, 51), "ALA"), ("C", range(51, 101), "ALA"))
    found = chain_groups(whole)
    np.testing.assert_array_equal(found[0], [np.arange(50), np.arange(100, 150)])
    np.testing.assert_array_equal(found[1], [np.arange(150, 200)])


def test_a_kind_without_residues_in_all_copies_is_left_out():
    """Each two share a half, but the three nothing."""
    numbers = {"A": [1, 2], "B": [2, 3], "C": [1, 3], "D": range(5, 9)}
    found = chain_groups(topology(*((name, own, "ALA") for name, own in numbers.items())))
    assert [len(kind) for kind in found] == [1]
    np.testing.assert_array_equal(found[0], [[6, 7, 8, 9]])
    assert found[0][0].dtype == np.int64


def test_rmsd_is_the_least_of_all_permutations():
    y = X + np.random.default_rng(1).normal(scale=8, size=X.shape)
    squares = []
    for first in itertools.permutations(range(3)):
        for second in itertools.permutations(range(2)):
            order = np.concatenate([*(GROUPS[0][k] for k in first), *(GROUPS[1][k] for k in second)])
            squares.append(((X - y[order]) ** 2).sum() / 15)
    assert matched_rmsd(X[None], y, GROUPS)[0] == pytest.approx(np.sqrt(min(squares)))


def test_exchanged_chains_are_recognised():
    order = np.concatenate([GROUPS[0][2], GROUPS[0][0], GROUPS[0][1], GROUPS[1][1], GROUPS[1][0]])
    assert matched_rmsd(X[None], X[order], GROUPS)[0] == pytest.approx(0, abs=1e-6)
    assert [p.tolist() for p in chain_permutation(X, X[order], GROUPS)] == [[1, 2, 0], [1, 0]]


def test_displacement_leaves_out_what_copies_differ_in():
    """Turned about the axis of an imperfect dimer: its copies do not coincide, but nothing is displaced."""
    half = chain(40) + np.array([15, 0, 0])
    bend = np.random.default_rng(3).normal(scale=3, size=half.shape)
    axis = Rotation.from_rotvec([0, 0, np.pi]).as_matrix()
    dimer = np.concatenate([half, (half + bend) @ axis.T])
    groups = [[np.arange(40), np.arange(40, 80)]]
    turned, up = dimer @ axis.T, np.array([0, 0, 6])
    assert matched_rmsd(turned[None], dimer, groups)[0] > 3
    assert chain_displacement(turned, dimer, groups) < 1.5
    assert chain_displacement(turned + up, dimer, groups) > 4
    assert chain_displacement(dimer + up, dimer, groups) == pytest.approx(6)
