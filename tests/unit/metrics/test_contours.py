"""Ramachandran classes and rotamers against values that MolProbity's own tests publish, and closed forms."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from validation_models import peptide, structure

import densemble
from densemble.metrics.conformers import Conformers
from densemble.metrics.contours import contours, ramachandran, rotamers

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"

# cctbx 2025.11, mmtbx/validation/regression/tst_ramalyze.py: class, phi, psi, value in %, verdict
RAMACHANDRAN = [
    ("general", -83.26, 131.88, 35.07),
    ("general", -111.53, 71.36, 0.74),
    ("pre-proline", -42.39, 121.87, 2.66),
    ("trans-proline", -39.12, -31.84, 0.31),
    ("general", -62.97, -53.28, 56.44),
    ("general", -44.36, -45.50, 8.89),
    ("ile-val", -60.38, -51.85, 68.24),
    ("general", -37.21, -36.12, 0.13),
    ("general", -89.81, -41.45, 11.84),
    ("general", -58.30, -41.39, 84.33),
]
# ... tst_rotalyze.py, "top500 version": residue, chi angles, value in %
ROTAMERS = [
    ("met", [29.2, 173.3, 287.9], 3.3),
    ("ser", [277.9], 4.2),
    ("asn", [252.4, 343.6], 2.0),
    ("ile", [84.2, 186.7], 2.0),
    ("glu", [272.7, 65.9, 287.8], 0.4),
    ("ile", [292.9, 199.6], 5.0),
    ("phetyr", [153.7, 68.6], 5.4),
    ("asp", [321.4, 145.1], 2.2),
    ("glu", [311.7, 166.2, 160.1], 45.3),
    ("thr", [309.4], 23.5),
]


@pytest.mark.parametrize(("kind", "phi", "psi", "percent"), RAMACHANDRAN)
def test_ramachandran_values_are_molprobitys(kind, phi, psi, percent):
    """Printed there to 0.01, at angles printed to 0.01 degrees: 1 % for the steep places."""
    value = 100 * contours()[f"rama-{kind}"].at(np.array([[phi, psi]]))[0]
    assert value == pytest.approx(percent, rel=0.01, abs=0.006)


@pytest.mark.parametrize(("table", "chi", "percent"), ROTAMERS)
def test_rotamer_values_are_molprobitys_of_the_top_500(table, chi, percent):
    """Printed there to 0.1; a byte holds steps of 3.9 %."""
    value = 100 * contours()[f"rota-{table}"].at(np.array([chi]))[0]
    assert value == pytest.approx(percent, abs=0.05 + 0.02 * percent)


def test_angles_are_periodic_and_interpolated_between_points():
    table = contours()["rama-general"]
    here = table.at(np.array([[-60.0, -45.0], [300.0, 315.0], [-420.0, -405.0]]))
    assert here[0] > 0.5
    assert here == pytest.approx(here[0])
    ends = table.at(np.array([[-61.0, -45.0], [-59.0, -45.0]]))  # points of the grid along phi
    assert here[0] == pytest.approx(ends.mean())


@pytest.mark.parametrize(
    ("sequence", "phi", "psi", "omega", "verdict"),
    [
        (["ALA"] * 3, -60, -45, 180, "favoured"),  # helix
        (["ALA"] * 3, -120, 130, 180, "favoured"),  # strand
        (["ALA"] * 3, 0, 0, 180, "outlier"),
        (["ALA", "GLY", "ALA"], 85, 5, 180, "favoured"),  # only glycine goes there
        (["ALA", "ALA", "ALA"], 85, 5, 180, "allowed"),
        (["ALA", "ALA", "PRO"], -90, 0, 180, "outlier"),  # before proline
        (["ALA", "ALA", "ALA"], -90, 0, 180, "favoured"),
        (["ALA", "VAL", "ALA"], 57, 43, 180, "allowed"),  # left-handed helix
        (["ALA", "ASN", "ALA"], 57, 43, 180, "favoured"),
    ],
)
def test_classes_of_residues(sequence, phi, psi, omega, verdict):
    model = Conformers.of(structure(*peptide(sequence, phi=phi, psi=psi, omega=omega)))
    assert [(t.residue, t.verdict) for t in ramachandran(model)] == [(1, verdict)]


def test_cis_proline_has_its_own_table():
    angles = {"phi": -75.0, "psi": 150.0}
    trans, cis = (
        ramachandran(Conformers.of(structure(*peptide(["ALA", "PRO", "ALA"], omega=w, **angles))))[0].value
        for w in (180.0, 0.0)
    )
    point = np.array([[angles["phi"], angles["psi"]]])
    assert trans == pytest.approx(contours()["rama-trans-proline"].at(point)[0], rel=1e-6)
    assert cis == pytest.approx(contours()["rama-cis-proline"].at(point)[0], rel=1e-6)
    assert trans != pytest.approx(cis, rel=0.2)


def test_the_deposited_7rin_as_cctbx_judges_it():
    """By ramalyze of cctbx 2025.11, first conformers: 289 favoured, 6 allowed, ILE 261 an outlier."""
    model = Conformers.of(gemmi.read_structure(str(DEPOSITED)))
    first = {}
    for t in sorted(ramachandran(model), key=lambda t: model.letter(t.atoms)):
        first.setdefault(t.residue, t)
    verdicts = [t.verdict for t in first.values()]
    assert [verdicts.count(v) for v in ("favoured", "allowed", "outlier")] == [289, 6, 1]
    (outlier,) = (t for t in first.values() if t.verdict == "outlier")
    assert (model.residues[outlier.residue].name, model.residues[outlier.residue].id.number) == ("ILE", 261)


@pytest.mark.parametrize(
    ("name", "chi", "verdict"),
    [
        ("LYS", [-67, 180, 180, 180], "favoured"),  # mttt
        ("LYS", [0, 0, 0, 0], "outlier"),
        ("LEU", [-65, 175], "favoured"),  # mt
        ("LEU", [-65, -65], "allowed"),
        ("LEU", [0, 0], "outlier"),
        ("VAL", [175], "favoured"),
        ("PHE", [-65, -85], "favoured"),
        ("PHE", [-65, 95], "favoured"),  # turned by 180 degrees: the same atoms
        ("TRP", [0, 0], "outlier"),
        ("MSE", [-65, 180, 70], "favoured"),  # as methionine
    ],
)
def test_rotamers_at_modes_and_away_from_them(name, chi, verdict):
    model = Conformers.of(structure(*peptide(["ALA", name, "ALA"], chi={1: chi})))
    assert [t.verdict for t in rotamers(model)] == [verdict]


def test_what_has_no_rotamers_is_not_judged():
    whole = peptide(["ALA", "LYS", "GLY"])
    assert len(rotamers(Conformers.of(structure(*whole)))) == 1
    trimmed = [a for a in whole if a[0] != "NZ"]
    assert rotamers(Conformers.of(structure(*trimmed))) == []
