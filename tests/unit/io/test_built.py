"""A model made from a topology is the same after it was written and read."""

from pathlib import Path

import gemmi
import numpy as np
import pytest

from densemble.atoms import Residue, ResidueId, Topology
from densemble.io.built import built_model
from densemble.io.models import read_model

RESIDUES = (
    Residue(ResidueId("A", 5), "GLY"),
    Residue(ResidueId("A", 5, "A"), "ALA"),
    Residue(ResidueId("B", 1), "DA", "nucleic"),
    Residue(ResidueId("B", 2), "DT", "nucleic"),
    Residue(ResidueId("L", 1), "LIG", "ligand"),
    Residue(ResidueId("Z", 1), "CA", "ion"),
)
ATOMS = {
    0: "N CA C O", 1: "N CA C O CB", 2: "P OP1 OP2 O5' C1' N9", 3: "P O5' C1' N1", 4: "C1 O1 CL2", 5: "CA",
}  # fmt: skip
ELEMENTS = {"CL2": "Cl"}


@pytest.fixture
def topology():
    names = [(i, name) for i, written in ATOMS.items() for name in written.split()]
    elements = tuple("Ca" if i == 5 else ELEMENTS.get(name, name[0]) for i, name in names)
    return Topology(tuple(n for _, n in names), elements, np.array([i for i, _ in names]), RESIDUES)


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_it_survives_a_file(topology, suffix, tmp_path):
    rng = np.random.default_rng(2)
    coords, b_iso = rng.normal(size=(len(topology), 3)) * 20, rng.uniform(10, 50, len(topology))
    model = built_model(topology, coords, b_iso, source=Path("query.yaml"))
    path = tmp_path / f"model{suffix}"
    if suffix == ".cif":
        model.structure.make_mmcif_document().write_file(str(path))
    else:
        model.structure.write_pdb(str(path))
    read = read_model(path)
    assert read.topology.names == topology.names
    assert [e.upper() for e in read.topology.elements] == [e.upper() for e in topology.elements]
    assert read.topology.residues == topology.residues
    np.testing.assert_allclose(read.coords, coords, atol=1e-3)
    np.testing.assert_allclose(read.b_iso, b_iso, atol=1e-2)
    polymers = [e for e in read.structure.entities if e.entity_type == gemmi.EntityType.Polymer]
    assert [list(e.full_sequence) for e in polymers] == [["GLY", "ALA"], ["DA", "DT"]]


def test_a_chain_may_come_in_parts(topology, tmp_path):
    """The ligand is of chain A, after chain B: the order of the atoms stays."""
    parts = (*RESIDUES[:4], Residue(ResidueId("A", 101), "LIG", "ligand"), RESIDUES[5])
    split = Topology(topology.names, topology.elements, topology.residue_index, parts)
    coords = np.arange(3.0 * len(split)).reshape(-1, 3)
    model = built_model(split, coords, np.zeros(len(split)), source=Path("x"))
    atoms = [atom.name for chain in model.structure[0] for residue in chain for atom in residue]
    assert atoms == list(split.names)
    model.structure.make_mmcif_document().write_file(str(tmp_path / "m.cif"))
    read = read_model(tmp_path / "m.cif")
    assert sorted(str(r.id) for r in read.topology.residues) == sorted(str(r.id) for r in parts)
    by_id = {(str(read.topology.residues[r].id), n): x for r, n, x in
             zip(read.topology.residue_index, read.topology.names, read.coords, strict=True)}  # fmt: skip
    for r, name, x in zip(split.residue_index, split.names, coords, strict=True):
        np.testing.assert_allclose(by_id[str(parts[r].id), name], x, atol=1e-3)
    subchains = {c.name: {r.subchain for r in c} for c in read.structure[0]}
    assert len(subchains["A"]) == 2  # polymer and ligand
