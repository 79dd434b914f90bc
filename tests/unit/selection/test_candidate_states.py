import numpy as np

from densemble.atoms import Residue, ResidueId, Topology
from densemble.selection.states import cluster, distances

TOPOLOGY = Topology(
    ("N", "CA", "C", "O", "CB") * 3,
    ("N", "C", "C", "O", "C") * 3,
    np.repeat([0, 1, 2], 5),
    tuple(Residue(ResidueId("A", i + 1), "ALA") for i in range(3)),
)


def test_distance_is_that_of_the_residue_that_differs_most():
    x = np.zeros((2, 15, 3))
    x[1, 5:10, 0] = 1.0
    x[1, 10:14, 1] = 2.0  # the backbone of the third, whose side chain stays
    assert distances(TOPOLOGY, x, [0])[0, 1] == 0
    assert distances(TOPOLOGY, x, [0, 1])[0, 1] == 1
    assert distances(TOPOLOGY, x, [0, 1, 2])[0, 1] == 2  # not 2 sqrt(4/5), of all its atoms


def test_clusters_are_no_wider_than_told_and_the_first_member_is_in_the_first():
    rng = np.random.default_rng(1)
    centres = rng.permutation(np.repeat([0.0, 3.0, 6.0], 5))
    centres = np.concatenate([[3.0], centres])
    place = centres + rng.uniform(-0.2, 0.2, size=16)
    distance = np.abs(place[:, None] - place[None])
    found = cluster(distance, same=0.5)
    assert found[0] == 0
    assert {tuple(np.unique(centres[found == g])) for g in range(found.max() + 1)} == {(0.0,), (3.0,), (6.0,)}
    chain = np.arange(8) * 0.3  # every step is short, the ends are far apart
    found = cluster(np.abs(chain[:, None] - chain[None]), same=0.5)
    assert all(np.ptp(chain[found == g]) <= 0.5 for g in range(found.max() + 1))
    assert cluster(np.zeros((1, 1)), same=0.5).tolist() == [0]
