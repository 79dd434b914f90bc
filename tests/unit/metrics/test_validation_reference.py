"""Deposited files beside figures of other programs; docs/validation.md has the whole comparison.

cctbx 2025.11 (``ramalyze``; Probe2 on the hydrogens of Reduce 4.15) gave the Ramachandran and clash figures.
"""

import gemmi
import pytest
from shared_data import SHARED, needs

from densemble.crystal.scaling import r_factors
from densemble.io.reflections import read_reflections
from densemble.metrics.validation import validate_structure

MODELS = SHARED / "data"
pytestmark = needs(MODELS, "the shared models")


def protein(path):
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.remove_ligands_and_waters()
    structure.remove_empty_chains()
    return validate_structure(structure)


def test_5me2_protein():
    """542 favoured, 16 allowed, none outside; 25 clashes of 8594 atoms: 24 are found, and four more."""
    found = protein(MODELS / "cryoem" / "5me2.pdb")
    verdicts = [row.ramachandran for row in found.residues]
    assert [verdicts.count(v) for v in ("favoured", "allowed", "outlier")] == [542, 16, 0]
    assert found.totals.clashscore == pytest.approx(25 / 8.594, abs=4 / 8.594)
    worst = max((pair for row in found.residues for pair in row.clashes), key=lambda pair: pair.overlap)
    assert {worst.first, worst.second} in ({f"{chain}:85 ASP HA", f"{chain}:89 HIS HD2"} for chain in "AC")


def test_4hg7():
    """Four clashes of 1640 atoms: 0.66, 0.58, 0.47 and 0.44 Å; all residues favoured."""
    found = validate_structure(gemmi.read_structure(str(MODELS / "xray" / "4hg7_no_ligand.pdb")))
    assert found.totals.clashscore == pytest.approx(4 / 1.640)
    assert found.totals.ramachandran_favoured == 1
    pairs = {(p.first, p.second): p.overlap for row in found.residues for p in row.clashes}
    assert sorted(pairs.values(), reverse=True) == pytest.approx([0.66, 0.58, 0.47, 0.44], abs=0.06)


def test_7mm1():
    """291 favoured, 4 allowed and ILE 261 an outlier, of the first conformers."""
    found = validate_structure(gemmi.read_structure(str(MODELS / "xray" / "7mm1.pdb")))
    outliers = [row for row in found.residues if row.ramachandran == "outlier"]
    assert [(row.name, row.number) for row in outliers] == [("ILE", 261)]
    first = {}
    for row in found.residues:
        if row.ramachandran is not None:
            first.setdefault(row.number, row.ramachandran)
    assert [list(first.values()).count(v) for v in ("favoured", "allowed", "outlier")] == [291, 4, 1]


@pytest.mark.parametrize("entry", ["7rin", "7mm1"])
def test_r_factors_are_near_those_of_the_header(entry):
    """Of PHENIX, over Friedel mates as separate reflections: 0.132 and 0.154, 0.129 and 0.139."""
    deposited = gemmi.read_structure(str(MODELS / "xray" / f"{entry}.pdb"))
    found = r_factors(deposited, read_reflections(MODELS / "xray" / f"{entry}.mtz"))
    (header,) = deposited.meta.refinement
    assert (found.r_work, found.r_free) == pytest.approx((header.r_work, header.r_free), abs=0.01)
    assert header.r_work < header.r_free < 0.16
