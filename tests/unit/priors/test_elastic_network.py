import numpy as np
import torch
from peptides import backbone, two_helices
from shared_data import SHARED, needs

from densemble.atoms import Residue, ResidueId, Topology
from densemble.io.models import read_model
from densemble.metrics.coordinates import superpose
from densemble.priors import elastic_network
from densemble.priors.elastic_network import ElasticNetwork
from densemble.testing import chain_topology

PAIRS = SHARED / "data" / "conformations"


def with_others(topology, coords, others):
    """A chain and further residues: (name, kind, atom names, coordinates) each."""
    names, elements, index = list(topology.names), list(topology.elements), list(topology.residue_index)
    residues, places = list(topology.residues), [coords]
    for number, (name, kind, atoms, place) in enumerate(others):
        names += atoms
        elements += [atom[0] for atom in atoms]
        index += [len(residues)] * len(atoms)
        residues.append(Residue(ResidueId("B", number + 1), name, kind))
        places.append(np.asarray(place, dtype=float).reshape(-1, 3))
    whole = Topology(tuple(names), tuple(elements), np.array(index), tuple(residues))
    return whole, np.concatenate(places)


def test_hessian_is_that_of_the_energy():
    coords = backbone([(-62, -42)] * 4)
    network = ElasticNetwork(chain_topology(4), coords)
    first, second = torch.from_numpy(network.springs.pairs).T
    constants = torch.from_numpy(network.springs.constants)
    start = torch.from_numpy(coords)
    rest = (start[first] - start[second]).norm(dim=-1)

    def energy(x):
        return (constants * ((x[first] - x[second]).norm(dim=-1) - rest) ** 2).sum() / 2

    full = torch.autograd.functional.hessian(energy, start).reshape(48, 48).numpy()
    basis = elastic_network._rigid_basis(coords, network.block)
    np.testing.assert_allclose(network.hessian(basis).toarray(), basis.T @ full @ basis, atol=1e-10)
    np.testing.assert_allclose((basis.T @ basis).toarray(), np.eye(24), atol=1e-12)


def test_modes_solve_the_eigenproblem_and_exclude_the_whole():
    topology, coords, _ = two_helices()
    network = ElasticNetwork(topology, coords)
    values, vectors = network.modes(12)
    basis = elastic_network._rigid_basis(coords, network.block)
    flat = vectors.reshape(12, -1).T
    hessian = basis @ network.hessian(basis) @ basis.T
    np.testing.assert_allclose(hessian @ flat, flat * values, atol=1e-9)
    np.testing.assert_allclose(flat.T @ flat, np.eye(12), atol=1e-10)
    np.testing.assert_allclose(network.rigid.reshape(6, -1) @ flat, 0, atol=1e-9)
    np.testing.assert_allclose(hessian @ network.rigid.reshape(6, -1).T, 0, atol=1e-9)
    assert (np.diff(values) >= 0).all()
    assert values[0] > 0


def test_sparse_and_dense_solvers_agree(monkeypatch):
    topology, coords, _ = two_helices()
    network = ElasticNetwork(topology, coords)
    dense = network.modes(10)
    monkeypatch.setattr(elastic_network, "_DENSE", 0)
    iterated = network.modes(10)
    np.testing.assert_allclose(iterated[0], dense[0], rtol=1e-6)
    overlap = np.abs(np.einsum("mnc,mnc->m", iterated[1], dense[1]))
    np.testing.assert_allclose(overlap, 1, atol=1e-5)


def test_residues_in_rows_have_nearly_the_same_lowest_modes():
    topology, coords, _ = two_helices()
    network = ElasticNetwork(topology, coords)
    values, vectors = network.modes(6)
    coarse, other = network.modes(6, most=26)
    assert (coarse > values).all()  # a smaller space: Rayleigh's bound
    overlap = np.linalg.svd(vectors.reshape(6, -1) @ other.reshape(6, -1).T)[1]
    assert overlap.min() > 0.9


def test_every_kind_of_residue_takes_part_and_loose_ones_are_tied():
    topology, coords = chain_topology(8), backbone([(-62, -42)] * 8)
    centre = coords.mean(axis=0)
    ring = [[np.cos(k), np.sin(k), 0.0] for k in np.arange(6) * np.pi / 3]
    others = [
        (
            "BNZ",
            "ligand",
            ["C1", "C2", "C3", "C4", "C5", "C6"],
            1.4 * np.array(ring) + centre + np.array([8, 0, 0]),
        ),
        ("HOH", "water", ["O"], centre + np.array([0, 6, 0])),
        ("HOH", "water", ["O"], centre + np.array([0, 60, 0])),  # far from everything
        ("ZN", "ion", ["ZN"], centre + np.array([0, 0, -7])),
        ("G", "nucleic", ["P", "C1'", "N9"], centre + np.array([[9, 9, 0], [11, 9, 0], [11, 10.4, 0]])),
    ]
    topology, coords = with_others(topology, coords, others)
    network = ElasticNetwork(topology, coords)
    assert len(network.sizes) == 13
    values, vectors = network.modes(100)
    assert len(values) == 8 * 6 + 6 + 3 + 3 + 3 + 6 - 6
    assert values[0] > 1e-8 * values[-1]
    assert np.linalg.norm(vectors, axis=(0, 2)).min() > 0


def test_chains_out_of_reach_of_each_other_are_one_network():
    once = backbone([(-62, -42)] * 12)
    topology = chain_topology(24)
    coords = np.concatenate([once, once + np.array([0, 80, 0])])
    values, _ = ElasticNetwork(topology, coords).modes(5)
    assert values[0] > 1e-7 * values[-1]


def conformations(folder):
    """First model, and the way of its atoms to the second, superposed on common alpha carbons."""
    first, second = (read_model(path) for path in sorted(folder.glob("*.pdb")))
    places = []
    for model in (first, second):
        numbers = [model.topology.residues[r].id.number for r in model.topology.residue_index]
        places.append({key: i for i, key in enumerate(zip(numbers, model.topology.names, strict=True))})
    common = [key for key in places[0] if key in places[1]]
    own, other = (np.array([place[key] for key in common]) for place in places)
    alphas = np.array([i for i, (_, name) in enumerate(common) if name == "CA"])
    moved = superpose(second.coords[other], first.coords[own], fit=alphas)
    return first, own, moved - first.coords[own]


@needs(PAIRS, "the pairs of conformations")
def test_low_modes_point_along_real_changes_of_conformation():
    few, more = [], []
    for folder in sorted(PAIRS.iterdir()):
        model, atoms, change = conformations(folder)
        _, vectors = ElasticNetwork(model.topology, model.coords).modes(30)
        for count, found in ((10, few), (30, more)):
            space = np.linalg.qr(vectors[:count, atoms].reshape(count, -1).T)[0]
            found.append(np.linalg.norm(space.T @ change.ravel()) / np.linalg.norm(change))
    assert min(few) > 0.75
    assert np.mean(few) > 0.88
    assert min(more) > 0.83
