"""Figures and rows of whole models."""

import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from validation_models import atom, peptide, structure

import densemble
from densemble.atoms import Region, RegionError
from densemble.errors import InputError
from densemble.metrics.validation import ModelValidation, validate_structure

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"
STRAND = {"phi": -120.0, "psi": 130.0}


def test_an_ideal_strand_has_nothing_to_show():
    found = validate_structure(
        structure(*peptide(["ALA", "VAL", "SER", "ALA"], chi={1: [175], 2: [65]}, **STRAND))
    )
    totals = found.totals
    assert totals.atoms == 5 + 7 + 6 + 5
    assert (totals.clashscore, totals.ramachandran_favoured, totals.ramachandran_outliers) == (0, 1, 0)
    assert (totals.rotamer_outliers, totals.chirality_outliers) == (0, 0)
    assert totals.bond_rmsz < 0.2
    assert [row.name for row in found.residues] == ["ALA", "VAL", "SER", "ALA"]
    assert [row.ramachandran for row in found.residues] == [None, "favoured", "favoured", None]
    assert [row.rotamer for row in found.residues] == [None, "favoured", "favoured", None]


def test_rows_say_what_is_wrong_and_where():
    """A D-alanine, an O far from its carbon, a clash with a ligand; each in its residue's row."""
    atoms = peptide(["ALA", "ALA", "ALA", "ALA"], **STRAND)
    places = {(a[0], a[2]): np.array(a[3]) for a in atoms}
    n, ca, c, cb = (places[name, 2] for name in ("N", "CA", "C", "CB"))
    normal = np.cross(n - ca, c - ca)
    normal /= np.linalg.norm(normal)
    swapped = cb - 2 * normal * ((cb - ca) @ normal)  # CB in the mirror of the plane N, CA, C
    stretched = places["C", 3] + (places["O", 3] - places["C", 3]) * 1.3
    changed = {("CB", 2): swapped, ("O", 3): stretched}
    atoms = [atom(a[0], a[1], a[2], changed.get((a[0], a[2]), a[3])) for a in atoms]
    outward = places["CB", 4] - places["CA", 4]
    near = places["CB", 4] + 2.6 * outward / np.linalg.norm(outward)
    found = validate_structure(structure(*atoms, atom("S1", "LIG", 90, near, element="S", chain="B")))
    rows = {row.number: row for row in found.residues}
    assert rows[2].wrong_hand == ["CA"]
    assert found.totals.chirality_outliers == 1
    assert rows[3].bond.atoms == "C-O"
    assert rows[3].bond.z == pytest.approx(0.3 * 1.229 / 0.019)
    named = {pair.first for row in (rows[4], rows[90]) for pair in row.clashes} | {
        pair.second for row in (rows[4], rows[90]) for pair in row.clashes
    }
    assert "B:90 LIG S1" in named
    assert {pair.overlap for pair in rows[90].clashes} <= {pair.overlap for pair in rows[4].clashes}
    assert rows[90].ramachandran is None  # only there because it clashes


def test_a_region_is_judged_in_its_surroundings():
    atoms = peptide(["ALA"] * 5, **STRAND)
    whole, part = structure(*atoms), Region.parse("A:2-3")
    found = validate_structure(whole, region=part)
    assert [row.number for row in found.residues] == [2, 3]
    assert all(row.ramachandran == "favoured" for row in found.residues)  # by its neighbours
    assert found.totals.atoms == 10
    alpha, beta = (next(np.array(a[3]) for a in atoms if (a[0], a[2]) == (name, 2)) for name in ("CA", "CB"))
    beside = beta + 2.6 * (beta - alpha) / np.linalg.norm(beta - alpha)
    clashing = structure(*atoms, atom("S1", "LIG", 90, beside, element="S", chain="B"))
    assert validate_structure(clashing, region=part).totals.clashscore > 0
    assert validate_structure(clashing, region=Region.parse("A:5")).totals.clashscore == 0


def test_residues_outside_of_a_region_are_counted_by_their_clashes_with_it():
    atoms = peptide(["ALA"] * 5, **STRAND)
    places = {(a[0], a[2]): np.array(a[3]) for a in atoms}

    def beside(number, away):
        outward = places["CB", number] - places["CA", number]
        return places["CB", number] + away * outward / np.linalg.norm(outward)

    one = atom("S1", "LIG", 91, beside(2, 2.9), element="S", chain="B")  # touches CB alone
    two = atom("S1", "LIG", 92, beside(3, 2.6), element="S", chain="B")  # and its hydrogens
    far = atom("S1", "LIG", 93, beside(5, 2.6), element="S", chain="B")
    model = structure(*atoms, one, two, far)
    found = validate_structure(model, region=Region.parse("A:2-3"))
    assert list(found.outside) == ["B:92 LIG", "B:91 LIG"]
    assert found.outside == {"B:92 LIG": 4, "B:91 LIG": 1}
    assert validate_structure(model).outside == {}
    assert set(validate_structure(model, region=Region.parse("A:5")).outside) == {"B:93 LIG"}


def test_altlocs_have_a_row_each():
    """Two conformers of a side chain, one at a rotamer and one not; what they share counts once."""
    good, bad = (peptide(["ALA", "VAL", "ALA"], chi={1: [chi]}, **STRAND) for chi in (175, 0))
    mixed = []
    for a, b in zip(good, bad, strict=True):
        if a[1] == "VAL" and a[0] in ("CG1", "CG2"):
            mixed += [atom(*a[:4], altloc="A", occupancy=0.5), atom(*b[:4], altloc="B", occupancy=0.5)]
        else:
            mixed.append(a)
    found = validate_structure(structure(*mixed))
    rows = {(row.number, row.altloc): row for row in found.residues}
    assert set(rows) == {(1, ""), (2, "A"), (2, "B"), (3, "")}
    assert (rows[2, "A"].rotamer, rows[2, "B"].rotamer) == ("favoured", "outlier")
    assert rows[2, "A"].ramachandran == rows[2, "B"].ramachandran == "favoured"
    assert found.totals.rotamer_outliers == 0.5
    assert found.totals.ramachandran_favoured == 1


def test_what_cannot_be_judged_is_none():
    found = validate_structure(structure(atom("S1", "LIG", 1, (0, 0, 0), element="S")))
    assert found.totals.model_dump(exclude_none=True) == {"atoms": 1, "clashscore": 0.0}
    assert found.residues == []


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (gemmi.Structure(), InputError, "no atoms"),
        (structure(atom("H1", "LIG", 1, (0, 0, 0), element="H")), InputError, "hydrogens"),
        (structure(atom("C1", "LIG", 1, (np.nan, 0, 0))), InputError, "not numbers"),
    ],
)
def test_bad_models_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        validate_structure(model)


def test_a_region_that_is_not_there_is_refused():
    with pytest.raises(RegionError, match="not in the model"):
        validate_structure(structure(*peptide(["ALA"] * 3)), region=Region.parse("A:7-9"))


def test_records_survive_json():
    found = validate_structure(gemmi.read_structure(str(DEPOSITED)), region=Region.parse("A:176-191"))
    again = ModelValidation.model_validate_json(found.model_dump_json())
    assert again == found
    rows = {(row.number, row.altloc): row for row in found.residues}
    assert {number for number, _ in rows} == set(range(176, 192))
    assert rows[181, "A"].altloc == "A"
    assert json.loads(found.model_dump_json())["totals"]["atoms"] == 256
