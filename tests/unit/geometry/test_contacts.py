"""Contacts of whole models: sparse exclusions and kept lists of neighbours, against all pairs."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from densemble.geometry.contacts import Contacts, ContactSearch, contact_limit
from densemble.geometry.objective import TERMS, GeometryObjective
from densemble.geometry.restraints import Restraints, build_restraints
from densemble.geometry.validation import CLASH, validate
from densemble.io.models import Model, read_model

DEPOSITED = Path(str(resources.files("densemble") / "data/7rin/deposited.cif"))
ELEMENTS = ("C", "N", "O", "S", "Mg")


def separations(count: int, bonds: list[tuple[int, int]]) -> np.ndarray:
    """Bonds between any two atoms, by breadth-first steps over neighbour lists; 99: not connected."""
    near: list[set[int]] = [set() for _ in range(count)]
    for a, b in bonds:
        near[a].add(b)
        near[b].add(a)
    steps = np.full((count, count), 99)
    for start in range(count):
        reached, edge = {start}, {start}
        for step in range(count):
            steps[start, sorted(edge)] = step
            edge = set().union(*(near[a] for a in edge)) - reached
            reached |= edge
            if not edge:
                break
    return steps


def all_pairs(elements: list[str], count: int, bonds: list[tuple[int, int]]) -> np.ndarray:
    """The limit of every pair by the definition: a loop over pairs."""
    steps = separations(len(elements), bonds)
    limit = np.zeros((count, len(elements)))
    for i in range(count):
        for j in range(i + 1, len(elements)):
            limit[i, j] = contact_limit(elements[i], elements[j]) if steps[i, j] > 3 else 0.0
    return limit


def random_contacts(generator: torch.Generator) -> tuple[Contacts, np.ndarray]:
    """20 free and 30 fixed atoms with a branched chain of bonds through both, and their limits."""
    elements = [ELEMENTS[i] for i in torch.randint(5, (50,), generator=generator).tolist()]
    order = torch.randperm(50, generator=generator).tolist()
    bonds = [(order[i], order[max(i - 1 - i % 2, 0)]) for i in range(1, 40)]
    return Contacts.between(elements, 20, np.array(bonds)), all_pairs(elements, 20, bonds)


def found(search: ContactSearch, coords: torch.Tensor) -> list[tuple[int, ...]]:
    return list(zip(*(t.tolist() for t in search(coords)), strict=True))


def expected(limit: np.ndarray, coords: torch.Tensor, fixed: torch.Tensor) -> list[tuple[int, ...]]:
    distance = torch.cdist(coords, torch.cat([coords, fixed.expand(len(coords), -1, -1)], dim=1))
    return [tuple(p) for p in (distance < torch.as_tensor(limit)).nonzero().tolist()]


def test_limits_of_all_pairs(generator: torch.Generator) -> None:
    contacts, limit = random_contacts(generator)
    np.testing.assert_array_equal(contacts.dense().numpy(), limit)
    i, j = (t.reshape(-1) for t in torch.meshgrid(torch.arange(20), torch.arange(50), indexing="ij"))
    np.testing.assert_array_equal(contacts.counts(i, j).numpy(), limit.reshape(-1) > 0)
    assert (limit > 0).sum() > 300
    assert len(contacts.excluded) > 100


def test_search_finds_what_all_pairs_find_wherever_members_go(generator: torch.Generator) -> None:
    """Small steps (lists kept), large ones of a single atom or member (made anew), fewer members."""
    contacts, limit = random_contacts(generator)
    free = 8 * torch.rand(3, 20, 3, generator=generator, dtype=torch.float64) + 50
    fixed = 8 * torch.rand(30, 3, generator=generator, dtype=torch.float64) + 50
    search = ContactSearch(contacts, fixed)
    seen = []
    for size in (0.0, 0.05, 0.05, 0.05, 0.2, 0.5, 2.0, 0.01):
        step = size * torch.randn(free.shape, generator=generator, dtype=torch.float64)
        free = free + step * (torch.rand(3, 20, 1, generator=generator) < 0.5)
        seen.append(found(search, free))
        assert seen[-1] == expected(limit, free, fixed)
    assert len({tuple(pairs) for pairs in seen}) > 5
    free[1, 7] = fixed[3] + 0.5
    assert found(search, free) == expected(limit, free, fixed)
    assert found(search, free[:2]) == expected(limit, free[:2], fixed)
    assert found(search, free[:0]) == []


def test_lists_are_made_anew_only_for_a_member_that_moved_half_the_skin(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    contacts, _ = random_contacts(generator)
    made: list[int] = []
    listing = ContactSearch._list

    def recorded(self: ContactSearch, coords: torch.Tensor, member: int) -> torch.Tensor:
        made.append(member)
        return listing(self, coords, member)

    monkeypatch.setattr(ContactSearch, "_list", recorded)
    free = 8 * torch.rand(2, 20, 3, generator=generator, dtype=torch.float64)
    search = ContactSearch(contacts, torch.zeros(30, 3, dtype=torch.float64), skin=1.0)
    search(free)
    assert made == [0, 1]
    search(free + torch.tensor([0.28, 0.28, 0.28]))  # 0.485 Å
    assert made == [0, 1]
    free[1, 4, 0] += 0.52
    search(free)
    assert made == [0, 1, 1]


def test_a_member_that_is_not_finite_has_no_pairs_and_recovers(generator: torch.Generator) -> None:
    contacts, limit = random_contacts(generator)
    free = 8 * torch.rand(2, 20, 3, generator=generator, dtype=torch.float64)
    fixed = 8 * torch.rand(30, 3, generator=generator, dtype=torch.float64)
    search, broken = ContactSearch(contacts, fixed), free.clone()
    broken[0, 3, 1] = torch.inf
    assert found(search, broken) == [p for p in expected(limit, free, fixed) if p[0] == 1]
    assert found(search, free) == expected(limit, free, fixed)


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(DEPOSITED, altloc="B")


@pytest.fixture(scope="module")
def whole(model: Model) -> tuple[Restraints, torch.Tensor]:
    """All of the protein of 7RIN free, its waters fixed."""
    topology = model.topology
    free = np.flatnonzero([topology.residues[r].kind == "protein" for r in topology.residue_index])
    return build_restraints(topology, model.coords, free), torch.tensor(model.coords[free])[None]


def test_exclusions_of_a_whole_protein(whole: tuple[Restraints, torch.Tensor]) -> None:
    """Against shortest paths over bonds found by distance, not by our table (7RIN has no disulfide)."""
    restraints, x = whole
    n = x.shape[1]
    near = cKDTree(x[0].numpy()).query_pairs(1.95, output_type="ndarray").astype(np.int32)
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(n, n))
    steps = dijkstra(graph, directed=False, unweighted=True, limit=3)
    excluded = restraints.contact_limit[:, :n].numpy() == 0
    np.testing.assert_array_equal(np.triu(excluded, 1), np.triu(np.isfinite(steps), 1))


def test_contacts_of_a_whole_protein_equal_those_of_all_pairs(
    whole: tuple[Restraints, torch.Tensor], generator: torch.Generator
) -> None:
    restraints, x = whole
    noise = 0.3 * torch.randn(2, *x.shape[1:], generator=generator, dtype=torch.float64)
    weights = {name: 0.0 for name in TERMS if name != "contacts"}
    objective = GeometryObjective(restraints, weights=weights, dtype=torch.float64)
    limit = restraints.contact_limit
    for step in (0.2, 0.4, 1.0):  # lists kept and made anew
        coords = (x + step * noise).requires_grad_()
        here = torch.cat([coords, restraints.fixed.expand(2, -1, -1)], dim=1)
        k, i, j = (torch.cdist(coords.detach(), here.detach()) < limit).nonzero(as_tuple=True)
        gap = limit[i, j] - (coords[k, i] - here[k, j]).square().sum(-1).add(1e-12).sqrt()
        dense = -0.5 * (gap / 0.2).square().sum()
        (wanted,) = torch.autograd.grad(dense, coords)
        value = objective(coords)
        (gradient,) = torch.autograd.grad(value, coords)
        assert value.item() == pytest.approx(dense.item(), rel=1e-10)
        assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-8)
    clashes = torch.bincount(k[gap > CLASH])
    assert validate(restraints, coords.detach()).clashes.tolist() == clashes.tolist()
    assert clashes.min() > 10
