"""Assignment of equal chains: against superposing every arrangement by itself."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.metrics import chains as chains_module
from densemble.metrics.chains import best_chain_assignment, interchangeable_chains
from densemble.metrics.coordinates import rmsd, superpose

SEQUENCES = {"a": ["GLY", "ALA", "SER", "LEU", "TRP", "GLY", "LYS"], "b": ["PRO", "ALA", "SER", "GLU", "GLY"]}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def oligomer(kinds: str, rng: np.random.Generator) -> tuple[Topology, np.ndarray]:
    """Chains of N and CA atoms, one fold for each kind, each chain placed and turned at random."""
    folds = {k: 3 * rng.normal(size=(2 * len(s), 3)).cumsum(0) for k, s in SEQUENCES.items()}
    residues, coords = [], []
    for chain, kind in zip("ABCDEFGHIJ", kinds, strict=False):
        residues += [Residue(ResidueId(chain, 5 + i), name) for i, name in enumerate(SEQUENCES[kind])]
        coords.append(folds[kind] @ Rotation.random(random_state=rng).as_matrix().T + 25 * rng.normal(size=3))
    count = len(residues)
    topology = Topology(
        ("N", "CA") * count, ("N", "C") * count, np.repeat(np.arange(count), 2), tuple(residues)
    )
    return topology, np.concatenate(coords)


def of_chain(topology: Topology, chain: str) -> np.ndarray:
    return np.flatnonzero([topology.residues[r].id.chain == chain for r in topology.residue_index])


def rearranged(topology: Topology, coords: np.ndarray, places: dict[str, str]) -> np.ndarray:
    """Chain a gets the coordinates of chain places[a]; all chains whole."""
    result = coords.copy()
    for a, b in places.items():
        result[of_chain(topology, a)] = coords[of_chain(topology, b)]
    return result


def moved(coords: np.ndarray, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    rotation = Rotation.random(random_state=rng).as_matrix()
    return (coords + noise * rng.normal(size=coords.shape)) @ rotation.T + [40.0, -7.0, 300.0]


@pytest.mark.parametrize("kinds", ["a", "aaa", "abab", "aaaaaa"])
def test_finds_the_arrangement_that_was_undone(kinds, rng):
    topology, reference = oligomer(kinds, rng)
    places = {}
    for kind in set(kinds):
        own = [chain for chain, k in zip("ABCDEF", kinds, strict=False) if k == kind]
        places |= dict(zip(own, own[1:] + own[:1], strict=True))
    x = moved(rearranged(topology, reference, places), rng, 0.3)
    found = best_chain_assignment(topology, x, reference)
    assert {b: a for a, b in found.chains.items()} == places
    np.testing.assert_array_equal(found.coords, rearranged(topology, x, found.chains))
    alpha = np.arange(1, len(x), 2)
    assert found.rmsd == pytest.approx(
        rmsd(superpose(found.coords, reference, fit=alpha)[alpha], reference[alpha]), abs=1e-6
    )
    assert 0.2 < found.rmsd < 0.8


def test_is_the_best_of_all_arrangements_tried_one_by_one(rng):
    """Model and reference have nothing in common, so that no arrangement stands out."""
    topology, reference = oligomer("aaaa", rng)
    x = 20 * rng.normal(size=reference.shape)
    alpha = np.arange(1, len(x), 2)
    tried = {}
    for order in itertools.permutations("ABCD"):
        y = rearranged(topology, x, dict(zip("ABCD", order, strict=True)))
        tried[order] = float(rmsd(superpose(y, reference, fit=alpha)[alpha], reference[alpha]))
    best = min(tried, key=tried.get)
    found = best_chain_assignment(topology, x, reference)
    assert tuple(found.chains.values()) == best
    assert found.rmsd == pytest.approx(tried[best], abs=1e-6)
    assert sorted(tried.values())[1] > tried[best] + 1e-3


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_many_chains_are_assigned_by_turns(noise, rng, monkeypatch):
    topology, reference = oligomer("abaabababa", rng)
    own = {"a": "ACDFHJ", "b": "BEGI"}
    places = {a: b for chains in own.values() for a, b in zip(chains, chains[::-1], strict=True)}
    x = moved(rearranged(topology, reference, places), rng, noise)
    exact = best_chain_assignment(topology, x, reference)
    monkeypatch.setattr(chains_module, "_EXACT", 1)
    found = best_chain_assignment(topology, x, reference)
    assert found.chains == exact.chains == places
    assert found.rmsd == pytest.approx(exact.rmsd, abs=1e-9)


def test_unknown_atoms_and_missing_residues_do_not_count(rng):
    topology, reference = oligomer("aa", rng)
    x = moved(rearranged(topology, reference, {"A": "B", "B": "A"}), rng)
    kept = np.setdiff1d(np.arange(len(x)), [2, 3])  # chain A lacks its second residue
    topology, x, reference = topology.subset(kept), x[kept], reference[kept]
    x[-1], reference[0] = np.nan, np.nan
    found = best_chain_assignment(topology, x, reference)
    assert found.chains == {"A": "B", "B": "A"}
    assert found.rmsd == pytest.approx(0, abs=1e-5)
    lacking = ~np.isfinite(found.coords).all(axis=1)
    second = of_chain(topology, "B")[[2, 3]]
    assert set(np.flatnonzero(lacking)) == {*second, of_chain(topology, "A")[-1]}


def test_ligands_go_with_their_chain_and_waters_stay(rng):
    topology, reference = oligomer("aa", rng)
    ligands = [
        Residue(ResidueId(chain, number), name, kind)
        for chain in "AB"
        for number, name, kind in ((201, "HEM", "ligand"), (301, "HOH", "water"))
    ]
    n = len(topology.residues)
    topology = Topology(
        (*topology.names, "FE", "O", "FE", "O"),
        (*topology.elements, "Fe", "O", "Fe", "O"),
        np.concatenate([topology.residue_index, n + np.arange(4)]),
        (*topology.residues, *ligands),
    )
    reference = np.concatenate([reference, 10 * rng.normal(size=(4, 3))])
    half, waters, irons = len(reference) // 2 - 2, [-3, -1], [-4, -2]
    x = reference.copy()
    x[:half], x[half : 2 * half] = reference[half : 2 * half], reference[:half]
    x[irons] = reference[irons[::-1]]
    found = best_chain_assignment(topology, x, reference)
    assert found.chains == {"A": "B", "B": "A"}
    np.testing.assert_array_equal(found.coords, reference)
    np.testing.assert_array_equal(found.coords[waters], x[waters])


def test_which_chains_are_interchangeable(rng):
    topology, _ = oligomer("abab", rng)
    assert interchangeable_chains(topology) == [["A", "C"], ["B", "D"]]
    shorter = topology.subset(np.setdiff1d(np.arange(len(topology)), of_chain(topology, "C")[:4]))
    assert interchangeable_chains(shorter) == [["A", "C"], ["B", "D"]]
    fragment = topology.subset(np.setdiff1d(np.arange(len(topology)), of_chain(topology, "C")[:8]))
    assert interchangeable_chains(fragment) == [["A"], ["B", "D"], ["C"]]


def renamed(topology: Topology, chain: str, which: list[int]) -> Topology:
    """With residues of a chain called VAL."""
    first = next(r for r, residue in enumerate(topology.residues) if residue.id.chain == chain)
    residues = [
        replace(residue, name="VAL") if r - first in which else residue
        for r, residue in enumerate(topology.residues)
    ]
    return replace(topology, residues=tuple(residues))


def straight(*chains: tuple[str, range]) -> Topology:
    """Glycines of N, CA and CB (as no glycine has)."""
    residues = tuple(Residue(ResidueId(chain, k), "GLY") for chain, numbers in chains for k in numbers)
    n = len(residues)
    return Topology(("N", "CA", "CB") * n, ("N", "C", "C") * n, np.repeat(np.arange(n), 3), residues)


def test_point_mutations_do_not_make_another_chain(rng):
    topology = straight(("A", range(1, 41)), ("B", range(1, 41)))
    assert interchangeable_chains(renamed(topology, "B", [4, 9])) == [["A", "B"]]
    assert interchangeable_chains(renamed(topology, "B", [4, 9, 17])) == [["A"], ["B"]]
    mutated = renamed(topology, "B", [4, 9])
    reference = 10 * rng.normal(size=(len(topology), 3))
    found = best_chain_assignment(
        mutated, moved(rearranged(mutated, reference, {"A": "B", "B": "A"}), rng), reference
    )
    assert found.chains == {"A": "B", "B": "A"}
    assert found.rmsd == pytest.approx(0, abs=1e-5)
    lacking = np.flatnonzero(~np.isfinite(found.coords).all(axis=1))
    np.testing.assert_array_equal(lacking, [3 * k + 2 + first for first in (0, 120) for k in (4, 9)])


def test_a_chain_must_be_like_every_other_of_its_group():
    """The second and third are like the first, but share no residue."""
    topology = straight(("A", range(1, 101)), ("B", range(1, 51)), ("C", range(51, 101)))
    assert interchangeable_chains(topology) == [["A", "B"], ["C"]]


def test_sixty_chains_in_little_time(rng):
    """Also where pairs share most residues only; 24 chains took two seconds when every pair was labelled."""
    names = [f"{a}{b}" for a in "ABCDEF" for b in "ABCDEFGHIJ"]
    numbers = [range(1 + k % 3, 101) for k in range(60)]
    topology = straight(*zip(names, numbers, strict=True))
    fold = 10 * rng.normal(size=(300, 3))
    reference = np.concatenate([fold[3 * (k % 3) :] + 50 * rng.normal(size=3) for k in range(60)])
    order = [names[k] for k in np.arange(60).reshape(20, 3)[::-1].ravel()]
    places = dict(zip(names, order, strict=True))
    x = moved(rearranged(topology, reference, places), rng, 0.5)
    start = time.process_time()
    found = best_chain_assignment(topology, x, reference)
    assert time.process_time() - start < 5
    assert found.chains == {b: a for a, b in places.items()}


def test_too_few_atoms_are_refused(rng, monkeypatch):
    topology, reference = oligomer("aa", rng)
    with pytest.raises(ValueError, match="fewer than three"):
        best_chain_assignment(topology, np.full(reference.shape, np.nan), reference)
    monkeypatch.setattr(chains_module, "_EXACT", 1)
    with pytest.raises(ValueError, match="fewer than three"):
        best_chain_assignment(topology, np.full(reference.shape, np.nan), reference)


def test_deviation_of_every_pair_in_the_superposition_of_one(rng):
    """What the search by turns assigns by, against moving the coordinates."""
    topology, reference = oligomer("aaa", rng)
    x = moved(reference, rng, 2.0)
    atoms = chains_module._labelled(topology)
    moments = chains_module._Moments.of(topology, x, reference, ["ABC"], atoms)
    alpha = {chain: of_chain(topology, chain)[1::2] for chain in "ABC"}
    rotation, _ = Rotation.align_vectors(
        reference[alpha["A"]] - reference[alpha["A"]].mean(0), x[alpha["B"]] - x[alpha["B"]].mean(0)
    )
    y = rotation.apply(x - x[alpha["B"]].mean(0)) + reference[alpha["A"]].mean(0)
    expected = [[rmsd(y[alpha[b]], reference[alpha[a]]) ** 2 for b in "ABC"] for a in "ABC"]
    np.testing.assert_allclose(moments.superposed(np.array([[1, -1, -1]]))[0], expected, rtol=1e-9)
