"""Regions of every kind: at a chain end, several at once, with side chains that the model lacks."""

from itertools import pairwise

import gemmi
import numpy as np
import pytest
from small_crystal import truth

from densemble.io.models import read_model
from densemble.pipeline import run_xray


def peptide_bonds(path) -> np.ndarray:
    """C-N distances along chain A of every altloc, Å."""
    found = []
    for letter in "AB":
        chain = [r for r in gemmi.read_structure(str(path))[0]["A"] if r.name != "HOH"]
        for left, right in pairwise(chain):
            c, n = (
                next(a for a in residue if a.name == name and a.altloc in ("\0", letter))
                for residue, name in ((left, "C"), (right, "N"))
            )
            found.append(c.pos.dist(n.pos))
    return np.array(found)


def changed_residues(path, start) -> set[int]:
    """Residues of chain A of which an atom is elsewhere, or split."""

    def sites(file):
        return {
            residue.seqid.num: [(a.name, a.altloc, *a.pos.tolist()) for a in residue]
            for residue in gemmi.read_structure(str(file))[0]["A"]
        }

    before, after = sites(start), sites(path)
    assert before.keys() == after.keys()
    return {number for number in before if before[number] != after[number]}


@pytest.mark.parametrize(
    ("region", "numbers"), [("A:172-176", range(172, 177)), ("A:190-194", range(190, 195))]
)
def test_region_at_a_chain_end_has_one_anchor(crystal, tmp_path, region, numbers):
    result = run_xray(crystal.settings(region=region), tmp_path / "out")
    assert result.region == region
    assert changed_residues(tmp_path / "out" / "ensemble.cif", crystal.model) == set(numbers)
    assert peptide_bonds(tmp_path / "out" / "ensemble.cif") == pytest.approx(1.33, abs=0.35)


def test_several_regions_move_together(crystal, tmp_path):
    out = tmp_path / "out"
    run_xray(crystal.settings(region="A:175-178,A:183-187"), out)
    assert changed_residues(out / "ensemble.cif", crystal.model) == {*range(175, 179), *range(183, 188)}
    start, member = read_model(crystal.model), read_model(out / "members" / "member_01.cif")
    moved = np.linalg.norm(member.coords - start.coords, axis=1)
    for i, residue in enumerate(start.topology.residues):
        inside = residue.id.chain == "A" and residue.id.number in {*range(175, 179), *range(183, 188)}
        assert (moved[start.topology.atoms_of([i])].max() > 0) == inside


def without_side_chain(source, path, number: int) -> None:
    structure = gemmi.read_structure(str(source))
    residue = next(r for r in structure[0]["A"] if r.seqid.num == number)
    for i in reversed(range(len(residue))):
        if residue[i].name not in ("N", "CA", "C", "O"):
            del residue[i]
    structure.make_mmcif_document().write_file(str(path))


@pytest.mark.parametrize("number", [179, 180, 182])  # TRP, PRO, PHE
def test_missing_side_chain_atoms_are_completed(crystal, tmp_path, number):
    whole = next(r for r in truth()[0]["A"] if r.seqid.num == number)
    without_side_chain(crystal.model, tmp_path / "start.cif", number)
    settings = crystal.settings(model=tmp_path / "start.cif")
    run_xray(settings, tmp_path / "out")
    for file in [tmp_path / "out" / "ensemble.cif", *(tmp_path / "out" / "members").iterdir()]:
        residue = next(r for r in gemmi.read_structure(str(file))[0]["A"] if r.seqid.num == number)
        assert {atom.name for atom in residue} == {atom.name for atom in whole}
        assert all(0 < atom.b_iso < 500 for atom in residue)
        assert {atom.element.name for atom in residue} == {atom.element.name for atom in whole}


def test_residues_outside_the_region_are_not_completed(crystal, tmp_path):
    without_side_chain(crystal.model, tmp_path / "start.cif", 191)
    run_xray(crystal.settings(model=tmp_path / "start.cif"), tmp_path / "out")
    written = gemmi.read_structure(str(tmp_path / "out" / "ensemble.cif"))
    assert [a.name for a in next(r for r in written[0]["A"] if r.seqid.num == 191)] == ["N", "CA", "C", "O"]


def test_whole_chain_without_any_anchor(crystal, tmp_path):
    """Only waters stay, and they have no part in what surrounds the region."""
    run_xray(crystal.settings(region="A:172-194"), tmp_path / "out")
    assert changed_residues(tmp_path / "out" / "ensemble.cif", crystal.model) == set(range(172, 195))
