"""Bonds, angles and centres of models with known deviations."""

import numpy as np
import pytest
from validation_models import atom, peptide, structure

from densemble.geometry import targets
from densemble.metrics.conformers import Conformers
from densemble.metrics.stereochemistry import is_wrong_hand, rmsz, stereochemistry

SEQUENCE = ["MET", "TRP", "PRO", "ILE", "HIS", "ARG", "GLY", "THR", "LEU", "ASP"]


def measured(atoms):
    model = Conformers.of(structure(*atoms))
    return model, stereochemistry(model)


def test_ideal_bonds_have_no_deviation():
    _, found = measured(peptide(SEQUENCE))
    closing = 1  # the bond that closes the ring of proline follows from the others
    assert sorted(abs(t.z) for t in found.bonds)[:-closing][-1] < 1.0
    assert len(found.bonds) == sum(len(targets.residue_bonds(n)) - 1 for n in SEQUENCE) + len(SEQUENCE) - 1
    assert len(found.chirals) == sum(len(targets.chiral_centres(n)) for n in SEQUENCE)
    assert not any(map(is_wrong_hand, found.chirals))


def test_rmsz_is_that_of_the_one_bond_that_is_wrong():
    """O moved by 4 s.d. along its bond in one of the bonds, which are one over all conformers."""
    atoms = peptide(["ALA", "ALA"])
    places = {(a[0], a[2]): np.array(a[3]) for a in atoms}
    target = next(t for t in targets.residue_bonds("ALA") if t.atoms == ("C", "O"))
    along = places["O", 1] - places["C", 1]
    moved = places["C", 1] + along / np.linalg.norm(along) * (target.mean + 4 * target.sd)
    atoms = [atom("O", "ALA", 1, moved) if (a[0], a[2]) == ("O", 1) else a for a in atoms]
    _, found = measured(atoms)
    (worst,) = (t for t in found.bonds if abs(t.z) > 1)
    assert worst.z == pytest.approx(4)
    rest = [t.z for t in found.bonds if t is not worst]
    assert rmsz(found.bonds) == pytest.approx(np.sqrt((16 + np.square(rest).sum()) / len(found.bonds)))


def test_a_mirrored_residue_and_a_flat_centre_have_the_wrong_hand():
    atoms = peptide(["ALA"])
    mirrored = [(*a[:3], (a[3][0], a[3][1], -a[3][2]), *a[4:]) for a in atoms]
    flat = [(*a[:3], (a[3][0], a[3][1], 0.0) if a[0] == "CB" else a[3], *a[4:]) for a in atoms]
    for what, wrong in ((atoms, False), (mirrored, True), (flat, True)):
        _, found = measured(what)
        assert [is_wrong_hand(t) for t in found.chirals] == [wrong]


def test_altlocs_are_measured_each_and_what_they_share_once():
    atoms = peptide(["ALA", "SER", "ALA"])
    shifted = [
        atom(
            a[0], a[1], a[2], np.array(a[3]) + (0.02 if letter == "B" else 0.0), altloc=letter, occupancy=0.5
        )
        for a in atoms
        if a[0] in ("CB", "OG") and a[1] == "SER"
        for letter in "AB"
    ]
    single = [a for a in atoms if not (a[0] in ("CB", "OG") and a[1] == "SER")]
    order = sorted([*single, *shifted], key=lambda a: a[2])
    _, plain = measured(atoms)
    model, found = measured(order)
    letters = [model.letter(t.atoms) for t in found.bonds]
    assert letters.count("A") == letters.count("B") == 2  # CA-CB, CB-OG
    assert len(found.bonds) == len(plain.bonds) + 2
    assert all(not {"A", "B"} <= {model.altlocs[i] for i in t.atoms} for t in [*found.bonds, *found.angles])


def test_disulfides_bring_their_bond_and_the_cystine_angle():
    first = peptide(["CYS"], chi={0: [-60.0]})
    sulphur = next(np.array(a[3]) for a in first if a[0] == "SG")
    beta = next(np.array(a[3]) for a in first if a[0] == "CB")
    away = (sulphur - beta) / np.linalg.norm(sulphur - beta)
    # the second is the first, turned by half a turn about an axis through the middle of the bond
    middle = sulphur + 2.033 / 2 * away
    axis = np.cross(away, [0.0, 0.0, 1.0])
    axis /= np.linalg.norm(axis)
    second = [
        atom(
            a[0],
            "CYS",
            1,
            middle + 2 * axis * (axis @ (np.array(a[3]) - middle)) - (np.array(a[3]) - middle),
            chain="B",
        )
        for a in first
    ]
    model, found = measured([*first, *second])
    (bond,) = (t for t in found.bonds if [model.names[i] for i in t.atoms] == ["SG", "SG"])
    assert bond.value == pytest.approx(2.033)
    assert bond.z == pytest.approx(0, abs=1e-6)
    at_sulphur = [t for t in found.angles if [model.names[i] for i in t.atoms] == ["CA", "CB", "SG"]]
    assert [t.z for t in at_sulphur] == pytest.approx([(114.2 - 114.0) / 1.8] * 2, abs=1e-3)


def test_published_deviations_of_1gbt():
    """Targets of what the PDB's file of 1GBT lists beyond 6 s.d. (``_pdbx_validate_rmsd_bond``)."""
    listed = [
        ("GLU", ("CD", "OE1"), 1.252, 0.011),
        ("SER", ("CB", "OG"), 1.418, 0.013),
        ("PRO", ("CD", "N"), 1.474, 0.014),
    ]
    for residue, names, mean, sd in listed:
        (target,) = (t for t in targets.residue_bonds(residue) if set(t.atoms) == set(names))
        assert (target.mean, target.sd) == (mean, sd)
