"""Hydrogens and clashes: atoms at known overlaps, what does not count, and figures of Reduce and Probe."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from validation_models import atom, peptide, structure
from validation_models import placed as point

import densemble
from densemble.metrics.clashes import find_clashes
from densemble.metrics.conformers import Conformers
from densemble.metrics.covalent import BondPaths, bonds
from densemble.metrics.hydrogens import place_hydrogens
from densemble.metrics.stereochemistry import stereochemistry

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"


def contacts(*atoms):
    model = Conformers.of(structure(*atoms))
    return find_clashes(model, stereochemistry(model))


def ligand(number, x, *, element="C", **more):
    """One atom at (x, 0, 0), a residue of its own."""
    return atom(f"{element}1", "LIG", number, (x, 0.0, 0.0), element=element, **more)


def overlaps(*atoms):
    return [c.overlap for c in contacts(*atoms).clashes]


def near(*expected):
    """What dots see of overlaps: at most 0.025 Å less."""
    return pytest.approx([value - 0.0125 for value in expected], abs=0.0126)


@pytest.mark.parametrize(("distance", "clashes"), [(2.9, [0.5]), (2.97, [0.43]), (3.001, []), (5.0, [])])
def test_two_carbons_clash_from_an_overlap_of_0_4(distance, clashes):
    """Radii 1.70 Å."""
    found = contacts(ligand(1, 0.0), ligand(2, distance))
    assert [c.overlap for c in found.clashes] == near(*clashes)
    assert found.counted.sum() == 2


def test_what_one_metal_coordinates_does_not_clash():
    """CO and a nitrogen of haem, 2.77 Å apart, are both bound to its iron; without it they clash."""
    pair = ligand(1, 0.0), ligand(2, 2.77, element="N")
    iron = atom("FE", "FE", 3, (1.385, 1.4, 0.0), element="Fe")
    away = atom("FE", "FE", 3, (1.385, 2.5, 0.0), element="Fe")  # 2.86 Å from both
    assert overlaps(*pair) == overlaps(*pair, away) == near(0.48)
    assert overlaps(*pair, iron) == []


def test_radii_are_those_of_the_elements():
    """Sulphur 1.80, bromine 1.95 Å."""
    assert overlaps(ligand(1, 0, element="S"), ligand(2, 3.2, element="Br")) == near(0.55)


def test_different_altlocs_do_not_meet_but_one_without_does():
    def pair(a, b):
        return overlaps(ligand(1, 0.0, altloc=a), ligand(2, 2.8, altloc=b))

    assert pair("A", "B") == []
    assert pair("A", "A") == pair("", "B") == pair("A", "") == pair("", "") == near(0.6)


def test_atoms_that_are_hardly_there_do_not_count():
    found = contacts(ligand(1, 0.0), ligand(2, 2.8, occupancy=0.1))
    assert found.clashes == []
    assert found.counted.sum() == 1
    assert overlaps(ligand(1, 0.0), ligand(2, 2.8, occupancy=0.11)) == near(0.6)


def test_waters_clash_with_others_but_not_with_each_other():
    water = atom("O", "HOH", 10, (0, 0, 0))
    assert overlaps(water, atom("O", "HOH", 11, (2.0, 0, 0))) == []
    found = contacts(ligand(1, -2.6), water)
    assert [c.overlap for c in found.clashes] == near(0.5)  # 1.70 + 1.40
    assert found.counted.sum() == 1  # waters are not among the thousand


def test_bonded_atoms_are_left_out_and_the_fifth_counts():
    """A chain of carbons bent into a ring: 1-4 never clash, 1-5 do."""
    angles = np.radians([0, 40, 80, 120, 160])
    ring = [atom(f"C{i + 1}", "LIG", 1, (2.2 * np.cos(a), 2.2 * np.sin(a), 0)) for i, a in enumerate(angles)]
    lengths = [np.linalg.norm(np.subtract(ring[i][3], ring[j][3])) for i, j in ((0, 1), (0, 3))]
    assert lengths[0] < 1.82  # bonded by distance
    assert lengths[1] > 1.82  # not bonded
    model = Conformers.of(structure(*ring))
    paths = BondPaths.of(5, bonds(model, stereochemistry(model)))
    assert sorted(paths.neighbours(1).tolist()) == [0, 2]
    first = np.zeros(4, dtype=np.int64)
    assert paths.within(3, first, np.arange(1, 5)).tolist() == [True, True, True, False]


def test_an_overlap_behind_a_bonded_atom_is_not_seen():
    """A third carbon, bonded to the first and between the two, covers what they share."""
    apart = (ligand(1, 0.0), ligand(2, 2.9))
    assert overlaps(*apart) == near(0.5)
    between = atom("C2", "LIG", 1, (1.4, 0.0, 0.0))
    found = contacts(apart[0], between, apart[1])
    pairs = {(found.names[c.first], found.names[c.second]) for c in found.clashes}
    assert ("C1", "C1") not in pairs


def test_a_residue_of_which_only_n_is_left_is_bonded():
    whole = peptide(["ALA", "ALA", "ALA", "ALA"])
    rest = [a for a in whole if a[2] < 4 or a[0] == "N"]
    assert contacts(*rest).clashes == []


def test_a_donor_and_an_acceptor_do_not_clash():
    """The amide hydrogen of a peptide, pressed against an oxygen and against a carbon."""
    chain = peptide(["ALA", "ALA"])
    model = Conformers.of(structure(*chain))
    paths = BondPaths.of(len(model), bonds(model, stereochemistry(model)))
    placed = place_hydrogens(model, paths)
    amide = placed.coords[placed.names.index("H")]
    nitrogen = model.coords[placed.parents[placed.names.index("H")]]
    spot = amide + 1.55 * (amide - nitrogen) / np.linalg.norm(amide - nitrogen)

    def with_atom(element):
        found = contacts(*chain, atom(f"{element}9", "LIG", 50, spot, element=element, chain="B"))
        return {(found.names[c.first], found.names[c.second]) for c in found.clashes} & {
            ("H", f"{element}9"),
            (f"{element}9", "H"),
        }

    assert with_atom("O") == set()
    assert with_atom("C") != set()


def test_hydrogens_are_at_their_lengths_and_apart():
    sequence = [
        "MET",
        "TRP",
        "PRO",
        "ILE",
        "HIS",
        "ARG",
        "GLY",
        "THR",
        "LEU",
        "ASP",
        "LYS",
        "TYR",
        "CYS",
        "GLN",
    ]
    model = Conformers.of(structure(*peptide(sequence)))
    placed = place_hydrogens(model, BondPaths.of(len(model), bonds(model, stereochemistry(model))))
    lengths = np.linalg.norm(placed.coords - model.coords[placed.parents], axis=1)
    by = {}
    for name, parent, length in zip(placed.names, placed.parents, lengths, strict=True):
        by.setdefault((model.residues[model.residue_index[parent]].name, name), length)
    expected = {
        ("TRP", "H"): 0.86,
        ("TRP", "HA"): 0.97,
        ("TRP", "HD1"): 0.93,
        ("TRP", "HE1"): 0.86,
        ("LYS", "HZ1"): 0.89,
        ("TYR", "HH"): 0.84,
        ("CYS", "HG"): 1.20,
        ("MET", "HE3"): 0.97,
        ("MET", "H2"): 0.89,
    }
    assert {key: by[key] for key in expected} == pytest.approx(expected)
    counts = {"MET": 11, "TRP": 10, "PRO": 7, "ILE": 11, "HIS": 8, "ARG": 13, "GLY": 3, "THR": 7, "LEU": 11}
    counts |= {"ASP": 4, "LYS": 13, "TYR": 9, "CYS": 5, "GLN": 8}  # both protons of histidine, to choose from
    owners = [model.residues[model.residue_index[p]].name for p in placed.parents]
    assert {name: owners.count(name) for name in counts} == counts
    distances = np.linalg.norm(placed.coords[:, None] - placed.coords, axis=-1)[
        np.triu_indices(len(owners), 1)
    ]
    assert distances.min() > 1.3  # of one methylene: 1.58 Å; of an NH3+, 1.45 Å


def test_chains_that_begin_later_have_a_bare_nitrogen():
    """As with Reduce: residues are missing before."""

    def hydrogens_of_first(first):
        model = Conformers.of(structure(*peptide(["SER", "ALA"], first=first)))
        placed = place_hydrogens(model, BondPaths.of(len(model), bonds(model, stereochemistry(model))))
        return [n for n, p in zip(placed.names, placed.parents, strict=True) if model.names[p] == "N"]

    assert hydrogens_of_first(1) == ["H1", "H2", "H3", "H"]
    assert hydrogens_of_first(17) == ["H"]


def test_a_hydroxyl_turns_to_its_acceptor():
    """Of serine, with an oxygen 2.7 Å from OG on the far side of where the hydrogen starts."""
    chain = peptide(["ALA", "SER", "ALA"], phi=-120.0, psi=130.0, chi={1: [180.0]})
    places = {(a[0], a[2]): np.array(a[3]) for a in chain}
    og, cb, ca = places["OG", 2], places["CB", 2], places["CA", 2]
    acceptor = point(ca, cb, og, 2.7, 109.5, 70.0)
    found = contacts(*chain, atom("O9", "LIG", 50, acceptor, chain="B"))
    hydrogen = found.atoms.coords[found.names.index("HG")]
    best = point(ca, cb, og, 0.84, 109.5, 70.0)
    assert np.linalg.norm(hydrogen - best) < 0.08  # half a step of 10 degrees
    assert found.names.count("HG") == 1


def test_histidine_keeps_the_proton_that_makes_the_hydrogen_bond():
    chain = peptide(["ALA", "HIS", "ALA"], chi={1: [-65.0, 80.0]})
    places = {a[0]: np.array(a[3]) for a in chain if a[1] == "HIS"}

    def named(*more):
        return {n for n in contacts(*chain, *more).names if n in ("HD1", "HE2")}

    def beyond(nitrogen, *neighbours):
        away = sum((places[nitrogen] - places[n] for n in neighbours), np.zeros(3))
        return places[nitrogen] + 2.8 * away / np.linalg.norm(away)

    delta = atom("O8", "LIG", 50, beyond("ND1", "CG", "CE1"), chain="B")
    epsilon = atom("O9", "LIG", 51, beyond("NE2", "CD2", "CE1"), chain="B")
    assert len(named()) == 1
    assert named(delta) == {"HD1"}
    assert named(epsilon) == {"HE2"}
    assert named(delta, epsilon) == {"HD1", "HE2"}


def test_the_deposited_7rin():
    """Reduce 4.15 places 2801 hydrogens on the protein; three histidines get both protons here, one there.

    For the clashes see docs/validation.md; what is pinned here is our own figure.
    """
    model = Conformers.of(gemmi.read_structure(str(DEPOSITED)))
    found = find_clashes(model, stereochemistry(model))
    assert len(found.names) - len(model) == 2801 + 3
    score = 1000 * len(found.clashes) / found.counted.sum()
    assert score == pytest.approx(3.5, abs=0.4)
