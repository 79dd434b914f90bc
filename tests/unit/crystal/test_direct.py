"""Direct summation against gemmi's, in electrons."""

import gemmi
import numpy as np
import pytest

from densemble.crystal.direct import DirectFactors
from densemble.forward.scattering import xray_form_factors


def crystal(group: str, cell: tuple[float, ...], atoms: int = 7) -> gemmi.Structure:
    rng = np.random.default_rng(3)
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*cell), group
    chain, model = gemmi.Chain("A"), gemmi.Model("1")
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    for i in range(atoms):
        atom = gemmi.Atom()
        atom.name, atom.element = f"X{i}", gemmi.Element("CNOS"[i % 4])
        atom.pos = structure.cell.orthogonalize(gemmi.Fractional(*rng.uniform(size=3)))
        atom.b_iso, atom.occ = float(rng.uniform(10, 60)), 1.0
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_cell_images()
    return structure


@pytest.mark.parametrize(
    ("group", "cell"),
    [
        ("P 31 2 1", (30, 30, 40, 90, 90, 120)),
        ("C 1 2 1", (30, 40, 50, 90, 110, 90)),
        ("P 1", (20, 21, 22, 80, 95, 99)),
    ],
)
def test_equals_direct_summation_of_gemmi(group, cell):
    structure = crystal(group, cell)
    spacegroup = gemmi.SpaceGroup(group)
    hkl = gemmi.make_miller_array(structure.cell, spacegroup, dmin=2.5)
    sites = [site.atom for site in structure[0].all()]
    coords = np.array([a.pos.tolist() for a in sites])
    b_iso = np.array([a.b_iso for a in sites])
    factors = xray_form_factors([a.element.name for a in sites])
    direct = DirectFactors(factors, hkl, structure.cell, spacegroup)
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    wanted = np.array([calculator.calculate_sf_from_model(structure[0], [int(i) for i in h]) for h in hkl])
    found = direct(np.arange(len(sites)), coords, b_iso)
    # gemmi's small structure calculator sums in double precision; ours in single
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    some = np.array([1, 4, 6])
    alone = direct(some, coords[some], b_iso[some])
    others = direct(
        np.setdiff1d(np.arange(len(sites)), some), *(np.delete(v, some, 0) for v in (coords, b_iso))
    )
    assert np.allclose(alone + others, found, atol=1e-4 * np.abs(wanted).max())
