"""Waters beside states: which give way, to which altlocs, and what programs are told of them."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from small_crystal import OCCUPANCY, one_state, truth

import densemble
from densemble.atoms import Ensemble, Region, ResidueId
from densemble.io.model_results import FinalModel, States
from densemble.io.models import alternates, read_model
from densemble.io.results import write_structure
from densemble.refinement.programs import occupancy_groups, phenix_parameters, refmac_keywords, write_model
from densemble.refinement.split import split_where_different
from densemble.refinement.waters import make_room, model_structure, too_near

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
LOOP = "A:176-191"
REGION = {ResidueId("A", n, "") for n in range(176, 192)}
BESIDE_LOOP = {538, 548, 550, 565, 578, 600, 601, 638}
"""Waters deposited with altloc B that state A of the loop comes near; two more are near Arg 221 alone."""


def atoms_of(model, text=LOOP):
    return model.topology.atoms_of(Region.parse(text).residues(model.topology))


def both_states(model, reference):
    """The deposited states of the loop, as parts; the more occupied, B, is the first."""
    topology = model.topology.subset(atoms_of(model))
    states = alternates(reference, topology)
    coords = torch.tensor(np.stack([states[x].coords for x in "AB"]))
    b_iso = torch.full(coords.shape[:2], 25.0, dtype=torch.float64)
    part = Ensemble(topology, coords, torch.tensor([OCCUPANCY[x] for x in "AB"]).double(), b_iso)
    return split_where_different([part], 0.2)


@pytest.fixture(scope="module")
def example():
    model = read_model(EXAMPLE / "model.cif")
    return model, both_states(model, EXAMPLE / "deposited.cif")


def waters_of(structure):
    return {r.seqid.num: r for chain in structure[0] for r in chain if r.is_water()}


def add_residue(structure, *, name="HOH", element="O", at, number=900):
    """One atom more, in a chain of its own."""
    chain = gemmi.Chain(f"X{number}")
    residue, atom = gemmi.Residue(), gemmi.Atom()
    residue.name, residue.seqid, residue.het_flag = name, gemmi.SeqId(str(number)), "H"
    residue.entity_type = gemmi.EntityType.Water if name == "HOH" else gemmi.EntityType.NonPolymer
    atom.name = "O" if name == "HOH" else name
    atom.element, atom.pos, atom.occ, atom.b_iso = gemmi.Element(element), at, 1.0, 30.0
    residue.add_atom(atom)
    chain.add_residue(residue)
    structure[0].add_chain(chain)
    return structure


def free_place(structure, at, distance, *, letter):
    """A place so far from an atom, and nowhere nearer to what can be there with its altloc."""
    other = [
        site.atom.pos.tolist()
        for site in structure[0].all()
        if site.atom.altloc in ("\0", letter) and (site.atom.pos - at).length() > 1e-6
    ]
    directions = np.random.default_rng(0).normal(size=(4000, 3))
    places = np.array(at.tolist()) + distance * directions / np.linalg.norm(directions, axis=1)[:, None]
    nearest = np.linalg.norm(places[:, None] - np.array(other), axis=-1).min(1)
    return gemmi.Position(*places[nearest.argmax()].tolist()), float(nearest.max())


def test_the_waters_of_the_deposited_states_are_told_apart_as_deposited(example):
    model, parts = example
    structure, displaced = model_structure(model, parts, atoms_of(model))
    assert displaced.removed == ()
    assert {water.water.number for water in displaced.partial} == BESIDE_LOOP
    deposited = waters_of(gemmi.read_structure(str(EXAMPLE / "deposited.cif")))
    for number, residue in waters_of(structure).items():
        if number in BESIDE_LOOP:
            assert [(a.altloc, round(a.occ, 2)) for a in residue] == [("A", OCCUPANCY["B"])]
            assert [a.altloc for a in deposited[number]] == ["B"]
        else:
            assert [(a.altloc, a.occ) for a in residue] == [("\0", 1.0)]


def test_the_start_alone_displaces_none_of_its_waters(example):
    model, _ = example
    own = atoms_of(model)
    coords, b_iso = torch.tensor(model.coords[own])[None], torch.tensor(model.b_iso[own])[None]
    start = Ensemble(model.topology.subset(own), coords, torch.ones(1), b_iso)
    structure, displaced = model_structure(model, [start], own)
    assert displaced.removed == displaced.partial == ()
    assert structure[0].count_atom_sites() == len(model.topology)


@pytest.mark.parametrize(("name", "limit"), [("O", 2.3), ("N", 2.3), ("CA", 2.8)])
def test_how_near_is_too_near(name, limit):
    assert too_near("O", name[0]) == pytest.approx(limit)
    structure = one_state(truth())
    atom = structure[0]["A"]["183"][0][name][0]
    for distance, gone in ((limit - 0.02, True), (limit + 0.02, False)):
        at = atom.pos + gemmi.Position(0, 0, distance)
        alone = structure.clone()
        for chain in alone[0]:  # nothing but the atom, for what is beside it does not matter here
            for r in reversed(range(len(chain))):
                if (chain.name, chain[r].seqid.num) != ("A", 183):
                    del chain[r]
                    continue
                for i in reversed(range(len(chain[r]))):
                    if chain[r][i].name != name:
                        del chain[r][i]
        displaced = make_room(add_residue(alone, at=at), REGION)
        assert [str(x) for x in displaced.removed] == (["X900:900"] if gone else [])


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "by symmetry"])
@pytest.mark.parametrize(("beside", "left"), [("A", "B"), ("B", "A")])
def test_a_water_on_one_state_goes_with_the_other(beside, left, moved):
    structure = truth()
    atom = next(a for a in structure[0]["A"]["182"][0] if a.name == "CZ" and a.altloc == beside)
    at = atom.pos
    assert free_place(structure, at, 0.5, letter=left)[1] > 3.0
    if moved:
        operation = list(structure.find_spacegroup().operations())[1]
        fractional = operation.apply_to_xyz(structure.cell.fractionalize(at).tolist())
        at = structure.cell.orthogonalize(
            gemmi.Fractional(fractional[0] - 1, fractional[1], fractional[2] + 1)
        )
    displaced = make_room(add_residue(structure, at=at), REGION)
    mine = [water for water in displaced.partial if water.water.number == 900]
    assert [(water.altlocs, water.beside.number) for water in mine] == [((left,), 182)]
    (water,) = structure[0]["X900"]
    assert [(a.altloc, round(a.occ, 2), a.pos.tolist()) for a in water] == [
        (left, OCCUPANCY[left], at.tolist())
    ]


def test_a_water_on_all_states_is_removed_with_its_links_and_an_ion_stays():
    structure = truth()
    shared = structure[0]["A"]["174"][0]["CA"][0]
    assert not shared.has_altloc()
    for residue, letter in ((structure[0]["A"]["174"][0], "\0"), (structure[0]["A"]["182"][0], "A")):
        number = 900 + residue.seqid.num
        atom = next(a for a in residue if a.name == "CA" and a.altloc == letter)
        add_residue(structure, at=atom.pos, number=number)
        add_residue(structure, name="CL", element="Cl", at=atom.pos, number=number - 500)
        link = gemmi.Connection()
        link.name, link.type = f"metalc{number}", gemmi.ConnectionType.MetalC
        link.partner1 = gemmi.AtomAddress(f"X{number}", gemmi.SeqId(number, " "), "HOH", "O", "\0")
        link.partner2 = gemmi.AtomAddress(
            f"X{number - 500}", gemmi.SeqId(number - 500, " "), "CL", "CL", "\0"
        )
        structure.connections.append(link)
    displaced = make_room(structure, {*REGION, ResidueId("A", 174, "")})
    assert ResidueId("X1074", 1074, "") in displaced.removed
    assert [c.name for c in structure[0] if c.name.startswith("X")] == ["X574", "X1082", "X582"]
    assert [(x.name, x.partner1.altloc, x.partner2.altloc) for x in structure.connections] == [
        ("metalc1082B", "B", "\0")
    ]


def three_states(*, second):
    """The truth, 0.39 of which is now 0.30 and 0.09: state A as it was, and moved by a vector as C."""
    structure = truth()
    for residue in structure[0]["A"]:
        for atom in [a.clone() for a in residue if a.altloc == "A"]:
            copy = atom.clone()
            copy.altloc, copy.occ, copy.pos = "C", 0.09, atom.pos + gemmi.Position(*second)
            residue.add_atom(copy)
        for atom in residue:
            if atom.altloc == "A":
                atom.occ = 0.30
    return structure


def test_two_states_that_leave_a_place_have_the_water_once_for_each_letter():
    structure = three_states(second=(0, 0, 0))
    atom = next(a for a in structure[0]["A"]["182"][0] if a.name == "CZ" and a.altloc == "B")
    make_room(add_residue(structure, at=atom.pos), REGION)
    (water,) = structure[0]["X900"]
    assert [(a.altloc, round(a.occ, 2)) for a in water] == [("A", 0.30), ("C", 0.09)]
    assert water[0].pos.tolist() == water[1].pos.tolist() == atom.pos.tolist()
    assert sum(a.occ for a in water) <= 1
    structure = three_states(second=(0, 0, 0))
    atom = next(a for a in structure[0]["A"]["182"][0] if a.name == "CZ" and a.altloc == "A")
    make_room(add_residue(structure, at=atom.pos), REGION)
    assert [a.altloc for a in structure[0]["X900"][0]] == ["B"]


def test_between_two_parts_a_water_goes_with_the_one_that_leaves_it_the_least():
    structure = truth()
    for residue in structure[0]["A"]:
        if residue.seqid.num == 182:  # a part of its own, by occupancy
            for atom in residue:
                atom.occ = {"A": 0.7, "B": 0.3}[atom.altloc]
    first, second = (
        next(a for a in structure[0]["A"][number][0] if a.name == name and a.altloc == "A")
        for number, name in (("182", "N"), ("181", "C"))
    )
    middle = (first.pos + second.pos) / 2
    for letters, left in (("AA", [("B", 0.3)]), ("AB", None)):
        case = structure.clone()
        if letters == "AB":  # A goes with A in all parts, so that no letter is left
            for atom in case[0]["A"]["181"][0]:
                atom.altloc = {"A": "B", "B": "A"}[atom.altloc]
        displaced = make_room(add_residue(case, at=middle), REGION)
        if left is None:
            assert "X900:900" in [str(x) for x in displaced.removed]
            continue
        (water,) = case[0]["X900"]
        assert [(a.altloc, round(a.occ, 2)) for a in water] == left
        assert [w.beside.number for w in displaced.partial if w.water.number == 900] == [182]


def test_every_altloc_atom_is_in_one_group_of_its_letter(example, tmp_path):
    model, parts = example
    structure, displaced = model_structure(model, parts, atoms_of(model))
    (group,) = occupancy_groups(structure, parts, displaced.partial)
    for letter in "AB":
        numbers = {n for run in group.runs_of(letter) for n in range(run.first.number, run.last.number + 1)}
        assert numbers == {
            site.residue.seqid.num for site in structure[0].all() if site.atom.altloc == letter
        }
    write_model(tmp_path, structure, displaced, parts)
    phenix = [x for x in phenix_parameters([group]).splitlines() if "selection" in x]
    assert ["resseq 538 " in x for x in phenix] == [True, False]
    assert phenix[0].endswith("and altloc A")
    assert (tmp_path / "phenix.eff").read_text() == phenix_parameters([group])
    refmac = refmac_keywords([group]).splitlines()
    assert [x for x in refmac if "residue 538" in x] == ["occupancy group id 1 chain A residue 538 alt A"]
    assert "occupancy group alts complete 1 2" in refmac
    assert (tmp_path / "refmac.txt").read_text().splitlines() == refmac


def test_the_file_keeps_the_waters_altlocs(example, tmp_path):
    model, parts = example
    structure, _ = model_structure(model, parts, atoms_of(model))
    for name in ("model.cif", "model.pdb"):
        back = waters_of(gemmi.read_structure(str(write_structure(tmp_path / name, structure))))
        assert {
            n for n, r in back.items() if r[0].altloc == "A" and round(r[0].occ, 2) == 0.61
        } == BESIDE_LOOP


def test_records_of_before_say_of_no_waters():
    old = FinalModel(states=States(rule="", coordinate_error=0.2, parts=[])).model_dump()
    del old["waters_displaced"], old["waters_partial"]
    assert FinalModel.model_validate(old).waters_displaced == []
