"""What a docked model lacks is put beside what it has."""

import numpy as np
import pytest

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.priors.boltz.standing import standing_atoms

NAMES = ("N", "CA", "C", "O", "CB")


@pytest.fixture
def folded():
    """Two chains of twenty residues of five atoms, and a fold in which the halves of each stand otherwise."""
    rng = np.random.default_rng(4)
    residues = tuple(Residue(ResidueId(c, n), "ALA") for c in "AB" for n in range(1, 21))
    topology = Topology(NAMES * 40, ("N", "C", "C", "O", "C") * 40, np.repeat(np.arange(40), 5), residues)
    truth = 3 * rng.normal(size=(200, 3)) + np.repeat(
        np.cumsum(2 * rng.normal(size=(40, 3)), axis=0), 5, axis=0
    )
    fold = truth.copy()
    for half in range(4):
        turn = Rotation.random(random_state=half)
        fold[50 * half : 50 * half + 50] = (
            turn.apply(truth[50 * half : 50 * half + 50]) + rng.normal(size=3) * 20
        )
    return topology, truth, fold


def lacking(truth, atoms):
    places = truth.copy()
    places[atoms] = np.nan
    return places


def test_what_is_known_stays_and_a_side_chain_follows_its_residue(folded):
    topology, truth, fold = folded
    atoms = [4, 77, 104]  # CB of A:1, C of A:16, CB of B:1
    found = standing_atoms(topology, fold, lacking(truth, atoms))
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_a_loop_follows_its_flanks(folded):
    """Residues 4 to 6 of chain A, in the first half: a global superposition would miss them by far."""
    topology, truth, fold = folded
    found = standing_atoms(topology, fold, lacking(truth, np.arange(15, 30)))
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_a_chain_that_is_missing_comes_with_everything_else(folded):
    topology, truth, _ = folded
    fold = Rotation.random(random_state=9).apply(truth) + 30
    found = standing_atoms(topology, fold, lacking(truth, np.arange(100, 200)))
    np.testing.assert_allclose(found, truth, atol=1e-6)
