import itertools

import numpy as np
import pytest
import torch

from densemble.priors.chain_graph import NEIGHBOURS, OFFSETS, Trust, build_graph, join
from densemble.priors.chain_network import ALIKE


def walk(n, seed=0):
    rng = np.random.default_rng(seed)
    alpha = np.cumsum(rng.normal(size=(n, 1, 3)) * 2.2, axis=0)
    return alpha + rng.normal(size=(n, 4, 3))


def graph(n=90, chain=None, linked=None, seed=0):
    linked = np.arange(n) > 0 if linked is None else linked
    return build_graph(walk(n, seed), np.arange(n) % 20, linked, Trust(), chain=chain)


def test_neighbours_are_those_in_sequence_and_the_nearest():
    found, atoms = graph(), walk(90)
    distance = np.linalg.norm(atoms[:, None, 1] - atoms[None, :, 1], axis=-1)
    for r in (0, 1, 40, 89):
        beside = {i for i in range(r - 2, r + 3) if 0 <= i < 90 and i != r}
        far = [i for i in np.argsort(distance[r]) if abs(i - r) > 2][: NEIGHBOURS - len(beside)]
        assert set(found.neighbours[r].tolist()) == beside | set(far)
        away = found.neighbours[r] - r
        assert torch.equal(found.offset[r], away.clamp(-OFFSETS, OFFSETS) + OFFSETS)
    assert bool(found.mask.all())


def test_gap_and_other_chain_are_no_neighbours_in_sequence():
    linked = np.arange(60) > 0
    linked[[20, 40]] = False
    found = graph(60, chain=np.repeat([0, 1], [40, 20]), linked=linked)
    row = found.neighbours[40].tolist()
    if 39 in row:
        assert int(found.offset[40, row.index(39)]) == 2 * OFFSETS + 1
    across = found.offset[19][found.neighbours[19] == 20].tolist()
    assert all(o - OFFSETS == 3 for o in across)  # a gap counts as two residues that are not there
    assert found.scales[-1].mask[20].tolist() == [False, True, True]
    assert found.scales[-1].mask[40].tolist() == [False, True, True]


def test_neighbourhoods_grow_to_the_whole():
    found = graph(300)
    sizes = []
    for scale in found.scales:
        inside = torch.zeros(300, scale.count).scatter_add(1, scale.members, scale.mask.float())
        assert float(inside.max()) == 1.0  # no group is listed twice
        covers = inside[:, scale.group] > 0
        assert bool(covers.diagonal().all())  # a residue is in its own neighbourhood
        sizes.append(float(covers.float().sum(1).mean()))
    assert sizes[0] == 300
    again = sizes.pop(ALIKE)  # this one is weighted
    assert sizes[1] * 0.8 < again < 300
    assert all(a > b for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < 3.1


def test_few_residues():
    for n in (1, 2, 5):
        found = graph(n)
        assert found.mask.sum(1).tolist() == [n - 1] * n
        assert bool((found.neighbours < n).all())


def test_size_is_linear_in_residues():
    def numbers(g):
        tensors = [v for v in vars(g).values() if isinstance(v, torch.Tensor)]
        return sum(t.numel() for t in tensors) + sum(s.members.numel() for s in g.scales)

    small, large = numbers(graph(300)), numbers(graph(3000))
    assert large == pytest.approx(10 * small, rel=0.01)


def test_joined_graphs_have_no_edges_between_them():
    parts = [graph(40, seed=1), graph(70, seed=2)]
    whole = join(parts)
    assert len(whole) == 110
    assert bool((whole.neighbours[:40] < 40).all())
    assert bool((whole.neighbours[40:] >= 40).all())
    assert torch.equal(whole.neighbours[40:] - 40, parts[1].neighbours)
    for level, scale in enumerate(whole.scales):
        assert int(scale.group[39]) < int(scale.group[40])
        assert torch.equal(scale.members[40:] - parts[0].scales[level].count, parts[1].scales[level].members)
    assert whole.linked.tolist() == [*parts[0].linked[:-1].tolist(), *parts[1].linked.tolist()]


def test_trust_is_bounded():
    with pytest.raises(ValueError, match=r"domains 40\.0 must be in 0\.3-15"):
        Trust(domains=40.0)
