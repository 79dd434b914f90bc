"""What is restrained: links, gaps, termini, cis peptides, disulfides, contacts."""

import numpy as np
import pytest
import torch

from densemble.atoms import Residue, ResidueId, Topology
from densemble.geometry.contacts import contact_limit, within_bonds
from densemble.geometry.restraints import build_restraints

BACKBONE = ("N", "CA", "C", "O")


def chain(
    names: list[str], *, extra: dict[int, dict[str, np.ndarray]] | None = None
) -> tuple[Topology, np.ndarray]:
    """An extended chain: residues 3.6 Å apart along x, geometry close to ideal."""
    template = {"N": (0.0, 0.0, 0.0), "CA": (1.2, 0.8, 0.0), "C": (2.4, 0.0, 0.0), "O": (2.4, -1.2, 0.0)}
    atoms, index, coords = [], [], []
    for i, _ in enumerate(names):
        own = {a: np.add(p, (3.6 * i, 0, 0)) for a, p in template.items()} | (extra or {}).get(i, {})
        for atom, position in own.items():
            atoms.append(atom)
            index.append(i)
            coords.append(position)
    topology = Topology(
        names=tuple(atoms),
        elements=tuple(a[0] for a in atoms),
        residue_index=np.array(index),
        residues=tuple(Residue(ResidueId("A", i + 1), name) for i, name in enumerate(names)),
    )
    return topology, np.array(coords)


def test_a_stretch_is_tied_to_its_fixed_neighbours() -> None:
    topology, xyz = chain(["GLY"] * 5)
    restraints = build_restraints(topology, xyz, topology.atoms_of([1, 2, 3]))
    assert len(restraints.topology) == 12
    assert len(restraints.bonds) == 3 * 3 + 4  # within, and four peptide bonds, two of them to fixed atoms
    assert len(restraints.omegas) == 4
    assert len(restraints.phipsi) == 3
    assert (restraints.bonds.atoms < 12).any(dim=1).all()
    assert restraints.fixed.shape == (8, 3)


def test_two_stretches_and_a_terminus() -> None:
    topology, xyz = chain(["GLY"] * 7)
    restraints = build_restraints(topology, xyz, topology.atoms_of([0, 3, 4]))
    assert len(restraints.bonds) == 3 * 3 + 1 + 3
    assert len(restraints.phipsi) == 5  # residues 1 and 2, 5 share atoms with free ones; 0 has no phi


def test_a_gap_is_not_bridged() -> None:
    topology, xyz = chain(["GLY"] * 4)
    xyz[8:] += [6.0, 0, 0]
    restraints = build_restraints(topology, xyz, topology.atoms_of([1, 2]))
    assert len(restraints.omegas) == 2
    assert len(restraints.phipsi) == 0


def test_unplaced_atoms_are_linked_by_number() -> None:
    topology, xyz = chain(["GLY"] * 3)
    xyz[4:8] = np.nan
    assert len(build_restraints(topology, xyz, topology.atoms_of([1])).omegas) == 2


def test_cis_proline_is_kept_and_other_peptides_are_trans() -> None:
    for name, turned, wanted in (("PRO", False, 0.0), ("PRO", True, np.pi), ("ALA", False, np.pi)):
        topology, xyz = chain(["ALA", name])  # as built the two CA are on one side: cis
        if turned:
            xyz[5:] *= [1, -1, -1]  # about the C-N bond, which lies on the x axis
        restraints = build_restraints(topology, xyz, np.arange(len(topology)))
        assert restraints.omegas.mean.tolist() == pytest.approx([wanted])


def test_disulfide_bond_is_found_by_distance() -> None:
    sulphur = {0: {"SG": np.array([0, 4.0, 0])}, 1: {"SG": np.array([0, 6.0, 0])}}
    topology, xyz = chain(["CYS", "CYS"], extra=sulphur)
    free = np.arange(len(topology))
    names = [topology.names[i] for i in build_restraints(topology, xyz, free).bonds.atoms.flatten().tolist()]
    assert names.count("SG") == 2
    xyz[topology.atom_index[1, "SG"], 1] = 8.0
    names = [topology.names[i] for i in build_restraints(topology, xyz, free).bonds.atoms.flatten().tolist()]
    assert names.count("SG") == 0


def test_unknown_residue_only_makes_contacts() -> None:
    topology, xyz = chain(["GLY", "XYZ", "GLY"])
    restraints = build_restraints(topology, xyz, topology.atoms_of([1]))
    within = [b for b in restraints.bonds.atoms.tolist() if max(b) < 4]
    assert within == []
    n, o = 0, 3
    assert restraints.contact_limit[n, o] == 0  # three bonds apart, found by distance
    assert (restraints.contact_limit > 0).any()


def test_absent_atoms_do_not_exist() -> None:
    topology, xyz = chain(["ALA"] * 3, extra={1: {"CB": np.array([4.8, 1.6, 1.2])}})
    beta = topology.atom_index[1, "CB"]
    free = topology.backbone([1]).ravel()
    restraints = build_restraints(topology, xyz, free, absent=[beta])
    assert len(restraints.chirals) == 0
    assert len(restraints.fixed) == 8
    with pytest.raises(ValueError, match="both free and absent"):
        build_restraints(topology, xyz, free, absent=[int(free[0])])


def test_contacts_count_each_pair_once_and_copies_too() -> None:
    topology, xyz = chain(["GLY"] * 3)
    free = topology.atoms_of([1])
    copies = np.array([[100.0, 0, 0], [3.6, 3.0, 0]])
    restraints = build_restraints(topology, xyz, free, copies=copies, copy_elements=["Ca", "O"])
    limit = restraints.contact_limit
    assert limit.shape == (4, 4 + len(restraints.fixed))
    assert torch.equal(limit[:, :4].tril(), torch.zeros(4, 4, dtype=limit.dtype))
    assert (limit[:, -2] == 0).all()  # a metal makes no contact
    assert limit[:, -1].tolist() == [2.5, 2.8, 2.8, 2.5]
    with pytest.raises(ValueError, match="do not agree"):
        build_restraints(topology, xyz, free, copies=copies, copy_elements=["O"])


def test_contact_limits_and_separation() -> None:
    assert contact_limit("C", "C") == 3.2
    assert contact_limit("O", "C") == 2.8
    assert contact_limit("S", "C") == pytest.approx(3.1)
    assert contact_limit("SE", "C") == pytest.approx(3.2)
    assert contact_limit("Mg", "O") == 0.0
    line = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert within_bonds(5, line).toarray()[0].tolist() == [True, True, True, True, False]
    assert within_bonds(5, line, 1).toarray()[2].tolist() == [False, True, True, True, False]
