import itertools

import gemmi
import numpy as np
import pytest

from densemble.crystal.context import symmetry_copies

CELLS = {
    "P 1": (20, 23, 27, 80, 95, 101),
    "P 1 21 1": (20, 23, 27, 90, 100, 90),
    "P 31 2 1": (22, 22, 27, 90, 90, 120),
    "C 2 2 21": (20, 23, 27, 90, 90, 90),
}


def test_nothing_is_copied_without_a_cell():
    coords = np.random.default_rng(0).uniform(-5, 25, size=(30, 3))
    copies, sources = symmetry_copies(gemmi.Structure(), coords, coords, reach=50.0)
    assert copies.shape == (0, 3)
    assert len(sources) == 0


@pytest.mark.parametrize("group", CELLS)
def test_every_copy_within_reach_is_found_once(group):
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELLS[group]), group
    coords = np.random.default_rng(0).uniform(-5, 25, size=(30, 3))
    near, reach = coords[:10], 6.0
    expected = []
    for op in gemmi.SpaceGroup(group).operations():
        for shift in itertools.product(range(-3, 4), repeat=3):
            if op == gemmi.Op("x,y,z") and shift == (0, 0, 0):
                continue
            for i, x in enumerate(coords):
                fractional = structure.cell.fractionalize(gemmi.Position(*x)).tolist()
                moved = np.add(op.apply_to_xyz(fractional), shift)
                position = np.array(structure.cell.orthogonalize(gemmi.Fractional(*moved)).tolist())
                if np.linalg.norm(near - position, axis=1).min() < reach:
                    expected.append((i, *position.round(3)))
    copies, sources = symmetry_copies(structure, coords, near, reach=reach)
    found = [(int(i), *x.round(3)) for i, x in zip(sources, copies, strict=True)]
    assert len(expected) > 10
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=2e-3)
