"""The table of targets against a well-refined structure, and against itself."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import densemble
from densemble.geometry import targets
from densemble.geometry.restraints import Restraints, build_restraints
from densemble.geometry.targets import Target
from densemble.io.models import read_model

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"


def measure(points: np.ndarray) -> float:
    """Independent of the package: Å, degrees or the volume of unit vectors for two, three or four points."""
    if len(points) == 2:
        return float(np.linalg.norm(points[0] - points[1]))
    if len(points) == 3:
        u, v = points[0] - points[1], points[2] - points[1]
        return float(np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))
    arms = points[1:] - points[0]
    return float(np.linalg.det(arms / np.linalg.norm(arms, axis=1, keepdims=True)))


@pytest.fixture(scope="module")
def observed() -> dict[tuple[str, Target], list[float]]:
    """Every target that 7RIN's protein has an instance of, atoms with B above 40 Å^2 left out."""
    model = read_model(DEPOSITED, altloc="B")
    topology = model.topology
    found: dict[tuple[str, Target], list[float]] = {}
    protein = [i for i, r in enumerate(topology.residues) if r.kind == "protein"]
    for i, j in pairwise([*protein, protein[-1] + 1]):
        name = topology.residues[i].name
        wanted = [
            (name, t)
            for t in (
                *targets.residue_bonds(name),
                *targets.residue_angles(name),
                *targets.chiral_centres(name),
            )
        ]
        if topology.residues[j].kind == "protein":
            following = topology.residues[j].name
            link = (*targets.peptide_bonds(name, following), *targets.peptide_angles(name, following))
            wanted += [("link", t) for t in link]
        for label, target in wanted:
            atoms = [topology.atom_index.get((j if a[0] == "+" else i, a.lstrip("+"))) for a in target.atoms]
            if None not in atoms and (model.b_iso[atoms] < 40).all() and "OXT" not in target.atoms:
                found.setdefault((label, target), []).append(measure(model.coords[atoms]))
    return found


def test_targets_agree_with_a_refined_structure(observed: dict) -> None:
    deviation = {key: (np.mean(v) - key[1].mean) / key[1].sd for key, v in observed.items()}
    worst = max(deviation, key=lambda key: abs(deviation[key]))
    assert len(deviation) > 320  # nearly all of the table
    assert abs(deviation[worst]) < 2, worst
    assert np.sqrt(np.mean(np.square(list(deviation.values())))) < 0.4


def test_every_residue_is_complete() -> None:
    """Each heavy atom has a bond and an angle, the bonds connect them all, each angle has its two bonds."""
    assert len(targets.known_residues()) == 21
    for name in targets.known_residues():
        bonds = [t.atoms for t in targets.residue_bonds(name)]
        atoms = {a for bond in bonds for a in bond}
        assert {"N", "CA", "C", "O", "OXT"} <= atoms
        assert len(bonds) >= len(atoms) - 1
        assert len({frozenset(b) for b in bonds}) == len(bonds)
        angle_atoms = {a for t in targets.residue_angles(name) for a in t.atoms}
        assert angle_atoms == atoms
        for first, middle, last in (t.atoms for t in targets.residue_angles(name)):
            assert {frozenset((first, middle)), frozenset((middle, last))} <= {frozenset(b) for b in bonds}


@pytest.mark.parametrize(("name", "degrees"), [("PHE", 720), ("TYR", 720), ("TRP", 540), ("HIS", 540)])
def test_ring_angles_sum_to_a_plane(name: str, degrees: float) -> None:
    rings = {
        "PHE": ("CG", "CD1", "CE1", "CZ", "CE2", "CD2"),
        "TYR": ("CG", "CD1", "CE1", "CZ", "CE2", "CD2"),
        "TRP": ("CG", "CD1", "NE1", "CE2", "CD2"),
        "HIS": ("CG", "ND1", "CE1", "NE2", "CD2"),
    }
    ring = rings[name]
    n = len(ring)
    total = sum(targets.bond_angle(name, ring[i - 1], ring[i], ring[(i + 1) % n]) for i in range(n))
    assert total == pytest.approx(degrees, abs=0.6)


def test_chiral_volume_is_that_of_the_ideal_tetrahedron() -> None:
    centre = targets.chiral_centres("ALA")[0]
    assert centre.atoms == ("CA", "N", "C", "CB")
    assert centre.mean * 1.459 * 1.525 * 1.520 == pytest.approx(2.51, abs=0.01)  # Å^3
    assert centre.sd * 1.459 * 1.525 * 1.520 == pytest.approx(0.2)
    assert targets.chiral_centres("GLY") == ()
    assert {t.atoms[0]: np.sign(t.mean) for t in targets.chiral_centres("ILE")} == {"CA": 1, "CB": 1}


def test_peptide_classes() -> None:
    assert targets.peptide_bonds("ALA", "SER")[0].mean == 1.336
    assert targets.peptide_bonds("GLY", "SER")[0].mean == 1.326
    trans = {t.atoms: t.mean for t in targets.peptide_angles("ALA", "PRO")}
    cis = {t.atoms: t.mean for t in targets.peptide_angles("ALA", "PRO", cis=True)}
    assert (trans["C", "+N", "+CA"], cis["C", "+N", "+CA"]) == (119.3, 127.0)
    assert ("C", "+N", "+CD") in cis


def test_unknown_residue_has_no_targets() -> None:
    assert targets.residue_bonds("SEP") == ()
    with pytest.raises(KeyError, match="no target for CA-XX in ALA"):
        targets.bond_length("ALA", "CA", "XX")


def test_whole_structure_is_within_its_standard_deviations() -> None:
    model = read_model(DEPOSITED, altloc="B")
    protein = np.array([r.kind == "protein" for r in model.topology.residues])
    free = np.flatnonzero(protein[model.topology.residue_index])
    restraints: Restraints = build_restraints(model.topology, model.coords, free)
    z = [
        (measure(model.coords[free][atoms]) * scale - mean) / sd
        for terms, scale in ((restraints.bonds, 1), (restraints.angles, np.pi / 180))
        for atoms, mean, sd in zip(terms.atoms.numpy(), terms.mean.tolist(), terms.sd.tolist(), strict=True)
        if atoms.max() < len(free)
    ]
    assert len(z) > 5400
    assert np.sqrt(np.mean(np.square(z))) < 0.7
