from pathlib import Path

import gemmi
import numpy as np
import pytest

import densemble
from densemble.atoms import ResidueId
from densemble.errors import InputError
from densemble.io.sites import Sites

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"

PDB = """\
ATOM      1  N   ALA A   5A      1.000   2.000   3.000  1.00 11.00           N
ATOM      2  H   ALA A   5A      1.100   2.100   3.100  1.00 12.00           H
ATOM      3  CA AALA A   5A      2.000   2.500   3.500  0.60 13.00           C
ATOM      4  CA BALA A   5A      2.200   2.700   3.600  0.40 14.00           C
ATOM      5  HA AALA A   5A      2.500   2.100   3.900  0.60 15.00           H
ATOM      6  HA BALA A   5A      2.600   2.100   3.900  0.40 16.00           H
ATOM      7  C   ALA A   5A      3.000   3.500   3.700  1.00 17.00           C
HETATM    8 CA    CA A   9       9.000   3.500   3.700  0.50 18.00          CA
HETATM    9 UNK  UNX A  10       5.000   3.500   3.700  1.00 18.00           X
END
"""


def test_all_altlocs_and_no_hydrogens(tmp_path):
    path = tmp_path / "m.pdb"
    path.write_text(PDB)
    sites = Sites.read(path)
    assert sites.elements == ("N", "C", "C", "C", "Ca")
    assert sites.b_iso.tolist() == [11, 13, 14, 17, 18]
    np.testing.assert_allclose(sites.occupancy, [1, 0.6, 0.4, 1, 0.5], atol=1e-7)
    np.testing.assert_allclose(sites.coords[2], [2.2, 2.7, 3.6])
    assert sites.residues == (ResidueId("A", 5, "A"),) * 4 + (ResidueId("A", 9),)
    assert sites.structure[0].count_atom_sites() == 5
    assert len(sites.model.topology) == 4


def test_the_deposited_example():
    sites = Sites.read(DEPOSITED)
    deposited = [site.atom for site in gemmi.read_structure(str(DEPOSITED))[0].all()]
    assert len(sites.elements) == len(deposited)
    assert sites.occupancy.sum() == pytest.approx(sum(atom.occ for atom in deposited))


def test_an_altloc_that_is_not_a_number(tmp_path):
    path = tmp_path / "m.cif"
    text = gemmi.read_pdb_string(PDB).make_mmcif_document().as_string()
    assert text.count(" 2.7 ") == 1  # y of altloc B, which a single conformation leaves out
    path.write_text(text.replace(" 2.7 ", " ? "))
    with pytest.raises(InputError, match=r"m\.cif: an altloc"):
        Sites.read(path)
