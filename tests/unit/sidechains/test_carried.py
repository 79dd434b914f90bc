"""What is not backbone goes along with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

import densemble
from densemble.io.models import read_model
from densemble.sidechains.carried import CarriedAtoms

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"


@pytest.fixture(scope="module")
def piece():
    """Twelve residues of PTP1B with the waters nearest to them."""
    model = read_model(EXAMPLE)
    topology = model.topology
    protein = [i for i, r in enumerate(topology.residues) if r.kind == "protein" and 100 <= r.id.number < 112]
    centre = model.coords[topology.atoms_of(protein)].mean(0)
    waters = [i for i, r in enumerate(topology.residues) if r.kind == "water"]
    waters.sort(key=lambda i: np.linalg.norm(model.coords[topology.atoms_of([i])][0] - centre))
    atoms = topology.atoms_of([*protein, *waters[:3]])
    return topology.subset(atoms), model.coords[atoms]


def carried(topology, coords):
    protein = [i for i, r in enumerate(topology.residues) if r.kind == "protein"]
    backbone = topology.backbone(protein)
    atoms = np.sort(backbone.ravel())
    return CarriedAtoms(topology, coords, backbone, atoms, dtype=torch.float64), atoms


def test_the_reference_comes_back(piece):
    topology, coords = piece
    completion, atoms = carried(topology, coords)
    found = completion(torch.from_numpy(coords[atoms])[None])
    np.testing.assert_allclose(found[0].numpy(), coords, atol=1e-9)


def test_rigid_motion_moves_everything(piece):
    topology, coords = piece
    completion, atoms = carried(topology, coords)
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    moved = coords @ turn.T + [3.0, -20.0, 5.0]
    found = completion(torch.from_numpy(np.stack([coords, moved])[:, atoms]))
    np.testing.assert_allclose(found.numpy(), np.stack([coords, moved]), atol=1e-9)


def test_each_side_chain_follows_its_own_residue(piece):
    topology, coords = piece
    completion, atoms = carried(topology, coords)
    residue = 5
    own = topology.atoms_of([residue])
    turn = Rotation.from_rotvec([0.0, 0.6, 0.2]).as_matrix()
    moved = coords.copy()
    moved[own] = coords[own] @ turn.T + [1.0, 2.0, 0.5]
    found = completion(torch.from_numpy(moved[atoms])[None])[0].numpy()
    protein = topology.atoms_of([i for i, r in enumerate(topology.residues) if r.kind == "protein"])
    np.testing.assert_allclose(found[protein], moved[protein], atol=1e-9)


def test_waters_keep_their_shape_and_follow_their_neighbours(piece):
    topology, coords = piece
    completion, atoms = carried(topology, coords)
    water = topology.atoms_of([i for i, r in enumerate(topology.residues) if r.kind == "water"])
    generator = torch.Generator().manual_seed(0)
    shaken = torch.from_numpy(coords[atoms]) + 0.1 * torch.randn(len(atoms), 3, generator=generator)
    found = completion(shaken[None] + torch.tensor([10.0, 0.0, 0.0]))[0].numpy()
    off = found[water] - coords[water] - [10.0, 0.0, 0.0]
    assert 0 < np.abs(off).max() < 0.5


def test_gradient(piece):
    topology, coords = piece
    completion, atoms = carried(topology, coords)
    weights = torch.randn(len(topology), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.from_numpy(coords[atoms])[None] + 0.05
    start = start.requires_grad_()
    assert gradcheck(lambda x: (weights * completion(x)).sum(), start)
