from pathlib import Path

import gemmi
import numpy as np
import pytest

import densemble
from densemble.forward.solvent import displaced_volumes, displacement_factors, hydrogens_on
from densemble.io.models import read_model

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
RESIDUES = (
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
)


def test_hydrogen_counts_add_up_to_the_published_formulas():
    """Residues in a chain, ASP, GLU, LYS, ARG charged; C, H, N, O, S from their chemical formulas."""
    published = dict(
        zip(RESIDUES, (5, 13, 6, 4, 5, 8, 6, 3, 7, 11, 11, 13, 9, 9, 7, 5, 7, 10, 9, 9), strict=True)
    )
    topology = read_model(EXAMPLE / "deposited.cif", altloc="B").topology
    found = {}
    for r, residue in enumerate(topology.residues):
        if residue.kind == "protein" and (r, "OXT") not in topology.atom_index:
            atoms = topology.atoms_of([r])
            count = sum(hydrogens_on(residue.name, topology.names[a], topology.elements[a]) for a in atoms)
            found[residue.name] = max(count, found.get(residue.name, 0))
    assert found == published


def test_volume_per_mass_is_that_of_proteins():
    """0.73 cm^3/g, the usual partial specific volume, is 1.21 Å^3/Da."""
    model = read_model(EXAMPLE / "model.cif")
    protein = [r for r, residue in enumerate(model.topology.residues) if residue.kind == "protein"]
    topology = model.topology.subset(model.topology.atoms_of(protein))
    mass = sum(
        gemmi.Element(e).weight + 1.008 * hydrogens_on(topology.residues[r].name, n, e)
        for n, e, r in zip(topology.names, topology.elements, topology.residue_index, strict=True)
    )
    assert displaced_volumes(
        topology.residue_names, topology.names, topology.elements
    ).sum() / mass == pytest.approx(1.21, abs=0.05)


def test_factor_is_the_transform_of_the_gaussian():
    volume, density, b_solvent = 21.59, 0.35, 50.0
    a, b = displacement_factors(np.array([volume]), density=density, b_solvent=b_solvent)
    r = np.linspace(0, 30, 30001)
    profile = np.exp(-np.pi * r**2 / volume ** (2 / 3))
    for s in (1e-6, 0.05, 0.2, 0.4):
        transform = 4 * np.pi * np.trapz(profile * r**2 * np.sinc(2 * s * r), r)
        expected = -density * transform * np.exp(-b_solvent * s**2 / 4)
        assert a[0, 0] * np.exp(-b[0, 0] * s**2 / 4) == pytest.approx(expected, rel=1e-6)
