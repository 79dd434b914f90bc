import pytest
import torch

from densemble.forward.leaves import kd_leaves


@pytest.mark.parametrize(("atoms", "sizes"), [(1, [4]), (37, [5]), (64, [8, 7]), (100, [16, 24]), (3, [100])])
def test_every_atom_is_in_one_leaf(atoms, sizes):
    coords = torch.randn(2, atoms, 3, generator=torch.Generator().manual_seed(atoms))
    used = torch.ones(2, atoms, dtype=torch.bool)
    used[1, ::3] = False
    leaves = kd_leaves(coords, used, count=atoms, sizes=sizes)
    assert leaves.shape[1] in sizes
    held = leaves[leaves < 2 * atoms]
    assert held.sort()[0].tolist() == used.flatten().nonzero()[:, 0].tolist()
    for leaf in leaves:
        assert len((leaf[leaf < 2 * atoms] // atoms).unique()) <= 1


def test_leaves_are_neighbours():
    """Of 512 points on a lattice, leaves of eight are the small cubes."""
    line = torch.arange(8.0)
    lattice = torch.cartesian_prod(line, line, line)
    shuffled = lattice[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    leaves = kd_leaves(shuffled[None], torch.ones(1, 512, dtype=torch.bool), count=512, sizes=[8])
    assert leaves.shape == (64, 8)
    extent = shuffled[leaves].amax(1) - shuffled[leaves].amin(1)
    assert bool((extent == 1).all())


def test_fewest_places_to_spare():
    """Ninety-six atoms fill six leaves of 16; leaves of 25 would have four places too many."""
    coords = torch.randn(1, 96, 3, generator=torch.Generator().manual_seed(1))
    leaves = kd_leaves(coords, torch.ones(1, 96, dtype=torch.bool), count=96, sizes=[25, 16])
    assert leaves.shape == (6, 16)


def test_nothing_to_sort():
    for atoms in (4, 0):
        none = torch.zeros(1, atoms, dtype=torch.bool)
        assert kd_leaves(torch.zeros(1, atoms, 3), none, count=0, sizes=[2]).shape[0] == 0
