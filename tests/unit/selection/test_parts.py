import numpy as np
import pytest

from densemble.atoms import Residue, ResidueId, Topology
from densemble.selection.parts import find_parts, joins_on, moved_atoms, same_naming, spans_of

NAMES = ("N", "CA", "C", "O", "CB")


def chain(residues=10, chains="A"):
    """An extended chain of alanines, bonded at 1.33 Å, one every 3.8 Å along x."""
    names, index, made, sites = [], [], [], []
    for c, letter in enumerate(chains):
        for r in range(residues):
            made.append(Residue(ResidueId(letter, r + 1), "ALA"))
            names += NAMES
            index += [len(made) - 1] * len(NAMES)
            place = [(0, 0, 0), (1.2, 0.6, 0), (2.47, 0, 0), (2.6, -1.2, 0), (1.2, 1.2, 1.4)]
            sites += [(3.8 * r + x, y, z + 30 * c) for x, y, z in place]
    topology = Topology(tuple(names), tuple(n[0] for n in names), np.array(index), tuple(made))
    return topology, np.array(sites)


def moving(topology, x, residues, by=2.0):
    """The same with some residues moved."""
    moved = x.copy()
    moved[topology.atoms_of(list(residues))] += (0, by, 0)
    return moved


def test_where_nothing_differs_there_is_no_part():
    topology, x = chain()
    rng = np.random.default_rng(0)
    members = x + 0.05 * rng.normal(size=(6, *x.shape))
    assert find_parts(topology, members, same=0.5) == []
    assert find_parts(topology, x[None], same=0.5) == []
    assert not moved_atoms(x[None], same=0.5).any()


def test_a_loop_is_one_part_and_two_loops_are_two():
    topology, x = chain()
    both = np.stack([x, moving(topology, x, [2, 3]), moving(topology, x, [6, 7])])
    assert find_parts(topology, both[:2], same=0.5) == [[2, 3]]
    assert find_parts(topology, both, same=0.5) == [[2, 3], [6, 7]]


def test_one_residue_that_all_share_lets_its_two_sides_combine():
    topology, x = chain()
    first, second = moving(topology, x, [2, 3]), moving(topology, x, [5, 6])
    assert find_parts(topology, np.stack([x, first, second]), same=0.5) == [[2, 3], [5, 6]]


def test_side_chains_on_a_shared_backbone_are_parts_of_their_own():
    topology, x = chain()
    turned = x.copy()
    for r in (3, 4):
        turned[topology.atom_index[r, "CB"]] += 1.0
    assert find_parts(topology, np.stack([x, turned]), same=0.5) == [[3], [4]]
    turned[topology.atom_index[3, "O"]] += 1.0  # now the peptide between them moves
    assert find_parts(topology, np.stack([x, turned]), same=0.5) == [[3, 4]]


def test_parts_end_at_chains_and_gaps():
    topology, x = chain(4, "AB")
    assert find_parts(topology, np.stack([x, moving(topology, x, range(2, 6))]), same=0.5) == [[2, 3], [4, 5]]
    torn = x.copy()
    torn[topology.atoms_of([2, 3])] += (5.0, 0, 0)
    assert find_parts(topology, np.stack([torn, moving(topology, torn, [1, 2])]), same=0.5) == [[1], [2]]


def test_a_part_joins_on_where_its_ends_agree():
    topology, x = chain()
    members = np.stack([x, moving(topology, x, [2, 3]), moving(topology, x, [2, 3, 4])])
    assert joins_on(topology, members, [2, 3], x, same=0.5).tolist() == [True, True, False]
    assert joins_on(topology, members, [2, 3, 4], x, same=0.5).tolist() == [True, True, True]


def test_names_of_equivalent_atoms_make_no_state():
    names = ("CG", "OD1", "OD2")
    topology = Topology(names, ("C", "O", "O"), np.zeros(3, dtype=int), (Residue(ResidueId("A", 1), "ASP"),))
    x = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    members = np.stack([x, x[[0, 2, 1]]])
    assert find_parts(topology, members, same=0.5) == [[0]]
    assert find_parts(topology, same_naming(topology, members), same=0.5) == []


@pytest.mark.parametrize(
    ("residues", "text"),
    [
        ([("A", 5, ""), ("A", 6, ""), ("A", 6, "A"), ("A", 9, "")], "A:5-6A,A:9"),
        ([("A", 7, ""), ("B", 8, "")], "A:7,B:8"),
    ],
)
def test_regions_in_words(residues, text):
    assert spans_of([ResidueId(*r) for r in residues]) == text
