"""Sites of several parts, and the restraints on them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Ensemble, Region
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.restraints import build_restraints
from densemble.io.models import alternates, read_model
from densemble.refinement.conformers import Sites, flat, site_restraints, unflat
from densemble.refinement.restraints import BONDED_SD, STATES_SD, BRestraints

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"


@pytest.fixture(scope="module")
def loop():
    """Topology, restraints (waters left out) and both states of A:178-186."""
    model = read_model(DEPOSITED, altloc="B")
    topology = model.topology
    (residues,) = Region.parse("A:178-186").resolve(topology)
    atoms = topology.atoms_of(residues)
    water = np.flatnonzero([topology.residues[r].kind == "water" for r in topology.residue_index])
    restraints = build_restraints(topology, model.coords, atoms, absent=water)
    states = alternates(DEPOSITED, topology.subset(atoms))
    coords = torch.tensor(np.stack([states[x].coords for x in "AB"]))
    return topology.subset(atoms), restraints, coords


def part_of(topology, coords, residues, members):
    atoms = topology.atoms_of(residues)
    x = coords[members][:, atoms]
    return Ensemble(
        topology.subset(atoms), x, torch.full((len(members),), 1 / len(members)).double(), 20 + x[..., 0] * 0
    )


def test_conformers_of_parts_with_three_two_and_one_state(loop):
    topology, _, coords = loop
    three = torch.stack([coords[0], coords[1], coords.mean(0)])
    parts = [
        part_of(topology, three, [0, 1, 2], [0, 1, 2]),
        part_of(topology, three, [6, 7, 8], [0, 1]),
        part_of(topology, three, [3, 4, 5], [1]),
    ]
    sites = Sites.of(topology, parts)
    x = flat([p.coords for p in parts])[sites.index]
    assert sites.index.shape == (3, len(topology))
    for j, states in enumerate([(0, 0, 1), (1, 1, 1), (2, 0, 1)]):
        for part, k in zip(([0, 1, 2], [6, 7, 8], [3, 4, 5]), states, strict=True):
            own = topology.atoms_of(part)
            assert torch.equal(x[j, own], three[k, own])
    weights = torch.tensor([0.5, 0.3, 0.2, 0.6, 0.4, 1.0])
    occupancy = sites.occupancy(weights)
    torch.testing.assert_close(occupancy.sum(0), torch.ones(len(topology)))
    assert occupancy[2, topology.atoms_of([6])].eq(0).all()
    # each site counts once
    assert int(sites.first.sum()) == len(sites.atom)
    back = unflat(flat([p.coords for p in parts]), parts)
    assert all(torch.equal(a, p.coords) for a, p in zip(back, parts, strict=True))


def test_parts_must_make_up_the_region(loop):
    topology, _, coords = loop
    whole = part_of(topology, coords, range(9), [0])
    with pytest.raises(ValueError, match="in another part"):
        Sites.of(topology, [whole, part_of(topology, coords, [2], [0])])
    with pytest.raises(ValueError, match="are in no part"):
        Sites.of(topology, [part_of(topology, coords, range(8), [0])])


def test_two_states_of_everything_have_the_sum_of_their_geometries(loop):
    topology, restraints, coords = loop
    parts = [part_of(topology, coords, range(9), [0, 1])]
    sites = Sites.of(topology, parts)
    expanded = GeometryObjective(site_restraints(restraints, sites), dtype=torch.float64)
    alone = GeometryObjective(restraints, dtype=torch.float64)
    found = expanded.terms(flat([p.coords for p in parts])[None])
    expected = alone.terms(coords)
    for name, values in expected.items():
        torch.testing.assert_close(found[name][0], values.sum(), rtol=1e-9, atol=1e-9)
    assert float(expected["contacts"].sum()) < 0  # contacts take part, and none between the states


def test_shared_atoms_count_once(loop):
    topology, restraints, coords = loop
    same = coords.clone()
    same[:, topology.atoms_of([5, 6, 7, 8])] = coords[1, topology.atoms_of([5, 6, 7, 8])]
    parts = [part_of(topology, same, range(5), [0, 1]), part_of(topology, same, range(5, 9), [1])]
    sites = Sites.of(topology, parts)
    expanded = site_restraints(restraints, sites)
    # by hand: each term of each conformer, known by its atoms' places
    x = torch.cat([same, restraints.fixed.expand(2, -1, -1)], dim=1)
    for kind in ("bonds", "angles", "chirals", "omegas"):
        terms = getattr(restraints, kind)
        by_hand = {
            (t, *(tuple(x[j, i].tolist()) for i in atoms))
            for j in range(2)
            for t, atoms in enumerate(terms.atoms.tolist())
        }
        y = torch.cat([flat([p.coords for p in parts]), restraints.fixed])
        found = getattr(expanded, kind)
        rows = [tuple(tuple(y[i].tolist()) for i in atoms) for atoms in found.atoms.tolist()]
        assert len(rows) == len(by_hand)
        assert sorted(rows) == sorted(row[1:] for row in by_hand)
    objective = GeometryObjective(expanded, dtype=torch.float64)
    alone = GeometryObjective(restraints, dtype=torch.float64)
    together = float(objective(flat([p.coords for p in parts])[None]))
    assert float(alone(same).sum()) < together < float(alone(same[:1]))


def test_b_restraints_in_closed_form(loop):
    topology, restraints, coords = loop
    parts = [part_of(topology, coords, range(9), [0, 1])]
    sites = Sites.of(topology, parts)
    expanded = site_restraints(restraints, sites)
    prior = BRestraints.of(expanded, sites)
    n = len(topology)
    b = torch.full((2 * n,), 20.0, dtype=torch.float64)
    assert float(prior(b)) == 0
    b[n:] = 30.0
    assert float(prior(b)) == pytest.approx(-0.5 * n * (np.log(1.5) / STATES_SD) ** 2)
    b[n:] = 20.0
    i = topology.atom_index[4, "CA"]
    b[i] = 25.0
    bonds = 2 if topology.residues[4].name == "GLY" else 3  # to N, C and CB
    expected = -0.5 * np.log(1.25) ** 2 * (bonds / BONDED_SD**2 + 1 / STATES_SD**2)
    assert float(prior(b)) == pytest.approx(expected)
    assert torch.autograd.gradcheck(prior, (b.clone().requires_grad_(True),), eps=1e-5)
