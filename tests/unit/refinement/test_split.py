"""The altloc model: what is split, with which letters, and what other programs make of it."""

from decimal import Decimal
from pathlib import Path

import biotite.structure.io.pdb as biotite_pdb
import biotite.structure.io.pdbx as biotite_cif
import gemmi
import numpy as np
import pytest
import torch
from Bio.PDB import MMCIFParser, PDBParser
from small_structure import small_structure

import densemble
from densemble.atoms import Ensemble, Region
from densemble.errors import InputError
from densemble.io.altlocs import build_altlocs
from densemble.io.models import alternates, read_model
from densemble.io.results import write_structure
from densemble.refinement.split import BOND_TOLERANCE, split_where_different

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
ERROR = 0.15
LOOP = "A:176-191"
STRAND = "A:90-94"


@pytest.fixture(scope="module")
def model():
    return read_model(EXAMPLE / "model.cif")


def atoms_of(model, text):
    return model.topology.atoms_of(Region.parse(text).residues(model.topology))


def altlocs(model, parts, atoms, error):
    """The model with parts that are split where their states differ."""
    return build_altlocs(model, split_where_different(parts, error), atoms)


def loop_part(model):
    """Both deposited states, the less occupied first."""
    topology = model.topology.subset(atoms_of(model, LOOP))
    states = alternates(EXAMPLE / "deposited.cif", topology)
    coords = torch.tensor(np.stack([states["A"].coords, states["B"].coords]))
    b_iso = torch.full(coords.shape[:2], 25.5, dtype=torch.float64)
    return Ensemble(topology, coords, torch.tensor([0.39, 0.61], dtype=torch.float64), b_iso)


def part_of(model, text, *moves, weights=None):
    """States that differ from the model by displacements given as {(residue, atom): vector}."""
    atoms = atoms_of(model, text)
    topology = model.topology.subset(atoms)
    coords = torch.tensor(np.repeat(model.coords[atoms][None], 1 + len(moves), axis=0))
    for k, move in enumerate(moves, start=1):
        for (r, name), vector in move.items():
            coords[k, topology.atom_index[r, name]] += torch.tensor(vector, dtype=torch.float64)
    if weights is None:
        weights = [1 / len(coords)] * len(coords)
    b_iso = torch.tensor(model.b_iso[atoms]).expand(len(coords), -1)
    return Ensemble(topology, coords, torch.tensor(weights, dtype=torch.float64), b_iso)


def rigid(model, text, angle, ends=0):
    """A rotation of all but the end residues about the line through them, as displacements."""
    atoms = atoms_of(model, text)
    topology, x = model.topology.subset(atoms), model.coords[atoms]
    first, last = (x[topology.atom_index[r, "CA"]] for r in (0, len(topology.residues) - 1))
    axis = (last - first) / np.linalg.norm(last - first)
    turned = x - first
    turned = (
        turned * np.cos(angle)
        + np.cross(axis, turned) * np.sin(angle)
        + axis * (turned @ axis)[:, None] * (1 - np.cos(angle))
    )
    inside = range(ends, len(topology.residues) - ends)
    return {
        (int(r), name): (turned[i] + first - x[i]).tolist()
        for i, (r, name) in enumerate(zip(topology.residue_index, topology.names, strict=True))
        if r in inside
    }


def altlocs_by_residue(structure, chain="A"):
    """Letters of each residue that has any, with the names of the atoms that have them."""
    return {
        str(residue.seqid): (
            "".join(sorted({a.altloc for a in residue} - {"\0"})),
            [*dict.fromkeys(a.name for a in residue if a.has_altloc())],
        )
        for residue in structure[0][chain]
        if any(a.has_altloc() for a in residue)
    }


def assert_valid(structure):
    """Each atom sums to one in hundredths; in a residue a letter has one occupancy."""
    for residue in (residue for chain in structure[0] for residue in chain):
        sums, by_letter = {}, {}
        for atom in residue:
            if atom.has_altloc():
                occupancy = Decimal(f"{atom.occ:.6f}")
                sums[atom.name] = sums.get(atom.name, Decimal(0)) + occupancy
                by_letter.setdefault(atom.altloc, set()).add(occupancy)
        assert all(total == 1 for total in sums.values())
        assert all(len(values) == 1 for values in by_letter.values())


def test_the_example_has_its_two_states(model):
    structure = altlocs(model, [loop_part(model)], atoms_of(model, LOOP), ERROR)
    found = altlocs_by_residue(structure)
    assert set(found) <= {str(n) for n in range(176, 192)}
    assert {letters for letters, _ in found.values()} == {"AB"}
    assert {str(n) for n in range(179, 188)} <= set(found)
    assert_valid(structure)
    # A is the most occupied: the second of the part
    atom = structure[0]["A"]["181"][0].find_atom("CA", "A")
    assert atom.occ == pytest.approx(0.61)
    part = loop_part(model)
    place = part.coords[1, part.topology.atom_index[5, "CA"]].tolist()
    np.testing.assert_allclose(atom.pos.tolist(), place, atol=6e-4)
    assert structure[0].count_atom_sites() == len(model.topology) + sum(len(n) for _, n in found.values())


def test_what_does_not_differ_is_written_once_at_the_mean(model):
    move = {(2, "CB"): [0.10, 0, 0], (0, "CA"): [0, 0.1, 0]}
    part = part_of(model, STRAND, move, weights=[0.25, 0.75])
    structure = altlocs(model, [part], atoms_of(model, STRAND), ERROR)
    assert not any(site.atom.has_altloc() for site in structure[0].all())
    atom = structure[0]["A"]["92"][0].find_atom("CB", "*")
    shift = np.array(atom.pos.tolist()) - part.coords[0, part.topology.atom_index[2, "CB"]].numpy()
    np.testing.assert_allclose(shift, [0.075, 0, 0], atol=6e-4)
    assert {site.atom.occ for site in structure[0].all() if site.residue.seqid.num in range(90, 95)} <= {1.0}


def test_a_side_chain_alone_is_split_from_cb_on(model):
    name = model.topology.residues[model.topology.residue_index[atoms_of(model, "A:92")[0]]].name
    side = [n for n in part_of(model, "A:92").topology.names if n not in ("N", "CA", "C", "O")]
    assert len(side) > 2, name
    part = part_of(model, STRAND, {(2, side[-1]): [1.0, 1.0, 0]})
    structure = altlocs(model, [part], atoms_of(model, STRAND), ERROR)
    assert altlocs_by_residue(structure) == {"92": ("AB", side)}
    names = [a.name + a.altloc.strip("\0") for a in structure[0]["A"]["92"][0]]
    assert names == ["N", "CA", "C", "O", *(n + x for n in side for x in "AB")]
    assert_valid(structure)


def test_a_moved_backbone_atom_splits_the_residue_whole(model):
    part = part_of(model, STRAND, {(2, "O"): [0, 0, 0.4]})
    structure = altlocs(model, [part], atoms_of(model, STRAND), ERROR)
    every = [n for r, n in zip(part.topology.residue_index, part.topology.names, strict=True) if r == 2]
    assert altlocs_by_residue(structure) == {"92": ("AB", every)}


def test_two_names_of_one_conformation_are_no_difference(model):
    topology = model.topology
    asp = next(
        r for r, residue in enumerate(topology.residues) if residue.name == "ASP" and residue.id.number > 100
    )
    text = str(topology.residues[asp].id)
    x = {n: model.coords[topology.atom_index[asp, n]] for n in ("OD1", "OD2")}
    swap = {
        (0, "OD1"): (x["OD2"] - x["OD1"]).tolist(),
        (0, "OD2"): (x["OD1"] - x["OD2"]).tolist(),
    }
    parts = split_where_different([part_of(model, text, swap)], ERROR)
    assert [len(part) for part in parts] == [1]
    np.testing.assert_allclose(parts[0].coords[0], model.coords[atoms_of(model, text)], atol=1e-9)


def test_bonds_to_shared_neighbours_hold(model):
    """Rotated by little, residues at the ends differ by less than the error, and yet their bonds must fit."""
    for angle in (0.1, 0.2, 0.4, 0.8):
        part = part_of(model, "A:88-96", rigid(model, "A:88-96", angle))
        structure = altlocs(model, [part], atoms_of(model, "A:88-96"), ERROR)
        bonds = bonds_by_altloc(structure, range(88, 96))
        reference = bonds_by_altloc(model.structure, range(88, 96))
        assert len(bonds) > len(reference)
        for (number, names, _), length in bonds.items():
            assert length == pytest.approx(reference[number, names, "\0"], abs=BOND_TOLERANCE + 2e-3)


def test_a_neighbour_is_split_where_a_bond_would_not_fit(model):
    """State 2 moves one residue along its bond to the next by 0.3 Å, and the next by less than the error."""
    place = model.topology.atom_index
    r = model.topology.residue_index[atoms_of(model, "A:92")[0]]
    bond = model.coords[place[r + 1, "N"]] - model.coords[place[r, "C"]]
    along = bond / np.linalg.norm(bond)
    shifts = {2: (0.3 * along).tolist(), 3: (0.14 * along).tolist()}
    own = part_of(model, STRAND).topology
    move = {
        (int(s), name): shifts[s] for s, name in zip(own.residue_index, own.names, strict=True) if s in shifts
    }
    region = atoms_of(model, STRAND)
    # the mean of the next residue is 0.13 Å from its place in state 1, whose bond would be as much too long
    uneven = altlocs(model, [part_of(model, STRAND, move, weights=[0.1, 0.9])], region, ERROR)
    assert {"92", "93"} <= set(altlocs_by_residue(uneven))
    far = {key: vector for key, vector in move.items() if key[0] == 2}
    one = altlocs(model, [part_of(model, STRAND, far, weights=[0.1, 0.9])], region, ERROR)
    assert set(altlocs_by_residue(one)) == {"92"}  # what does not move at all fits both


def bonds_by_altloc(structure, numbers):
    """Lengths of C-N, CA-CB and N-CA-C bonds for every altloc of either atom."""
    found = {}
    for number in numbers:
        residue, after = (structure[0]["A"][str(n)][0] for n in (number, number + 1))
        for a, b, other in (
            ("N", "CA", residue),
            ("CA", "C", residue),
            ("CA", "CB", residue),
            ("C", "N", after),
        ):
            first = {atom.altloc: atom for atom in residue if atom.name == a}
            second = {atom.altloc: atom for atom in other if atom.name == b}
            for letter in {*first, *second} - ({"\0"} if len(first) + len(second) > 2 else set()):
                ends = [atoms.get(letter, atoms.get("\0")) for atoms in (first, second)]
                if None not in ends:
                    found[number, a + b, letter] = ends[0].pos.dist(ends[1].pos)
    return found


def parts_of_three(model):
    three = part_of(
        model, STRAND, rigid(model, STRAND, 0.7, 1), rigid(model, STRAND, -0.7, 1), weights=[0.2, 0.5, 0.3]
    )
    return [loop_part(model), three], np.concatenate([atoms_of(model, STRAND), atoms_of(model, LOOP)])


def test_two_parts_have_letters_and_occupancies_of_their_own(model):
    parts, atoms = parts_of_three(model)
    structure = altlocs(model, parts, atoms, ERROR)
    assert_valid(structure)
    found = altlocs_by_residue(structure)
    assert found["92"][0] == "ABC"
    assert found["182"][0] == "AB"
    occupancy = {a.altloc: round(a.occ, 2) for a in structure[0]["A"]["92"][0] if a.name == "CA"}
    assert occupancy == {"A": 0.5, "B": 0.3, "C": 0.2}


def test_a_state_that_rounds_to_nothing_is_left_out(model):
    part = part_of(model, STRAND, rigid(model, STRAND, 0.7, 1), weights=[0.998, 0.002])
    parts = split_where_different([part], ERROR)
    assert [part.weights.tolist() for part in parts] == [[1.0]]


@pytest.mark.parametrize("size", [0.02, 0.06, 0.1, 0.5])
def test_no_atom_is_lost_or_doubled(model, size, generator):
    part = part_of(model, STRAND, {}, {})
    noise = size * torch.randn(part.coords.shape, generator=generator, dtype=torch.float64)
    part = Ensemble(part.topology, part.coords + noise, part.weights, part.b_iso)
    parts = split_where_different([part], ERROR)
    names = [
        (p.topology.residues[r].id, n)
        for p in parts
        for r, n in zip(p.topology.residue_index, p.topology.names, strict=True)
    ]
    own = part.topology
    assert sorted(names) == sorted(
        (own.residues[r].id, n) for r, n in zip(own.residue_index, own.names, strict=True)
    )
    assert sum(len(p) == 1 for p in parts) <= 1
    assert_valid(build_altlocs(model, parts, atoms_of(model, STRAND)))


def test_splitting_again_changes_nothing(model):
    parts, _ = parts_of_three(model)
    once = split_where_different(parts, ERROR)
    again = split_where_different(once, ERROR)
    assert [len(part) for part in once] == [len(part) for part in again]
    for a, b in zip(once, again, strict=True):
        assert a.topology.names == b.topology.names
        torch.testing.assert_close(a.coords, b.coords, rtol=0, atol=1e-12)
        torch.testing.assert_close(a.weights, b.weights, rtol=0, atol=1e-12)


def test_parts_that_share_an_atom_or_a_residue(model):
    part = part_of(model, STRAND, rigid(model, STRAND, 0.7, 1))
    with pytest.raises(ValueError, match="atom N of A:90 is in two parts"):
        build_altlocs(model, [part, part], atoms_of(model, STRAND))
    names = np.array(part.topology.names)
    main = np.isin(names, ("N", "CA", "C", "O"))
    halves = [
        Ensemble(part.topology.subset(i), part.coords[:, i], part.weights, part.b_iso[:, i])
        for i in (np.flatnonzero(main), np.flatnonzero(~main))
    ]
    with pytest.raises(ValueError, match="is split by two parts"):
        build_altlocs(model, halves, atoms_of(model, STRAND))


LINKS = (
    ("disulf1", gemmi.ConnectionType.Disulf, (121, "CYS", "SG"), (226, "CYS", "SG")),
    ("covale1", gemmi.ConnectionType.Covale, (215, "CYS", "SG"), (401, "TRS", "O1")),
    ("covale2", gemmi.ConnectionType.Covale, (181, "ASP", "OD1"), (522, "HOH", "O")),
)
"""None is in the example; the last is to an atom of the loop."""


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """The example, with link records."""
    source = gemmi.read_structure(str(EXAMPLE / "model.cif"))
    for name, kind, *ends in LINKS:
        link = gemmi.Connection()
        link.name, link.type = name, kind
        link.partner1, link.partner2 = (
            gemmi.AtomAddress("A", gemmi.SeqId(number, " "), residue, atom, "\0")
            for number, residue, atom in ends
        )
        source.connections.append(link)
    path = tmp_path_factory.mktemp("linked") / "start.cif"
    source.make_mmcif_document().write_file(str(path))
    return read_model(path)


def links_of(structure):
    """Kind, and number, name, atom and altloc of both ends, of every link; all of them are of atoms there."""
    for link in structure.connections:
        assert None not in [structure[0].find_cra(end).atom for end in (link.partner1, link.partner2)]
    return {
        (
            link.type,
            *(
                (end.res_id.seqid.num, end.res_id.name, end.atom_name, end.altloc.strip("\0"))
                for end in (link.partner1, link.partner2)
            ),
        )
        for link in structure.connections
    }


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_round_trip_keeps_everything_else(linked, tmp_path, suffix):
    parts, atoms = parts_of_three(linked)
    structure = altlocs(linked, parts, atoms, ERROR)
    path = write_structure(tmp_path / f"model{suffix}", structure)
    start = write_structure(tmp_path / f"start{suffix}", linked.structure)
    back, before = gemmi.read_structure(str(path)), gemmi.read_structure(str(start))
    assert_valid(back)
    assert altlocs_by_residue(back) == altlocs_by_residue(structure)
    outside = [
        (site.chain.name, str(site.residue), site.atom.name, site.atom.pos.tolist(), site.atom.occ)
        for site in before[0].all()
        if site.residue.seqid.num not in (*range(90, 95), *range(176, 192)) or site.chain.name != "A"
    ]
    kept = {
        (site.chain.name, str(site.residue), site.atom.name, *site.atom.pos.tolist(), site.atom.occ)
        for site in back[0].all()
    }
    assert all((c, r, n, *x, q) in kept for c, r, n, x, q in outside)
    kinds = {r.name for chain in back[0] for r in chain if r.het_flag == "H"}
    assert kinds == {r.name for chain in before[0] for r in chain if r.het_flag == "H"}
    assert "HOH" in kinds
    assert len(kinds) > 1  # ligands
    assert [len(e.full_sequence) for e in back.entities] == [len(e.full_sequence) for e in before.entities]
    assert links_of(back) == {
        (kind, (*one, letter), (*other, ""))
        for _, kind, one, other in LINKS
        for letter in ("AB" if one[0] == 181 else [""])
    }
    assert len(back.connections) == len(LINKS) + 1
    text = path.read_text()
    assert ("TER" in text and "SEQRES" in text) if suffix == ".pdb" else "_entity_poly_seq.mon_id" in text


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_biopython_and_biotite_read_the_states(model, tmp_path, suffix):
    parts, atoms = parts_of_three(model)
    structure = altlocs(model, parts, atoms, ERROR)
    path = write_structure(tmp_path / f"model{suffix}", structure)
    parser = MMCIFParser(QUIET=True) if suffix == ".cif" else PDBParser(QUIET=True)
    chain = parser.get_structure("x", str(path))[0]["A"]
    assert chain[92]["CA"].disordered_get_id_list() == ["A", "B", "C"]
    assert chain[182]["CA"].disordered_get_id_list() == ["A", "B"]
    assert not chain[60]["CA"].is_disordered()
    read = (
        (lambda which: biotite_cif.get_structure(biotite_cif.CIFFile.read(path), model=1, altloc=which))
        if suffix == ".cif"
        else (lambda which: biotite_pdb.PDBFile.read(path).get_structure(model=1, altloc=which))
    )
    assert len(read("all")) == structure[0].count_atom_sites()
    most = read("occupancy")
    assert len(most) == len(model.topology)
    for number in (92, 182):
        at = most.coord[(most.chain_id == "A") & (most.res_id == number) & (most.atom_name == "CA")]
        expected = structure[0]["A"][str(number)][0].find_atom("CA", "A").pos.tolist()
        np.testing.assert_allclose(at, [expected], atol=1e-3)


def test_insertion_codes(tmp_path):
    source = gemmi.read_structure(str(EXAMPLE / "model.cif"))
    for number, icode in ((91, "A"), (92, "B")):
        source[0]["A"][str(number)][0].seqid = gemmi.SeqId(90, icode)
    source.make_mmcif_document().write_file(str(tmp_path / "start.cif"))
    model = read_model(tmp_path / "start.cif")
    part = part_of(model, "A:90-94", rigid(model, "A:90-94", 0.7, 1))
    structure = altlocs(model, [part], atoms_of(model, "A:90-94"), ERROR)
    for suffix in (".cif", ".pdb"):
        back = gemmi.read_structure(str(write_structure(tmp_path / f"model{suffix}", structure)))
        found = altlocs_by_residue(back)
        assert {"90A", "90B"} <= set(found)
        assert "90" not in found or found["90"][0] == "AB"
        assert_valid(back)


def test_a_disulfide_to_a_split_cysteine(tmp_path):
    path = tmp_path / "small.cif"
    small_structure().make_mmcif_document().write_file(str(path))
    model = read_model(path)
    part = part_of(model, "A:2-3", {(0, "SG"): [1.0, 0, 0]}, {(0, "SG"): [0, 1.0, 0]})
    structure = altlocs(model, [part], atoms_of(model, "A:2-3"), ERROR)
    links = [(x.name, x.partner1.altloc, x.partner2.altloc) for x in structure.connections]
    assert links == [(f"disulf1{x}", x, "\0") for x in "ABC"]
    # another atom of the same residue split: the link is one, to the atom that stands once
    part = part_of(model, "A:2-3", {(1, "CB"): [1.0, 0, 0]})
    structure = altlocs(model, [part], atoms_of(model, "A:2-3"), ERROR)
    assert [x.name for x in structure.connections] == ["disulf1"]
    back = gemmi.read_structure(str(write_structure(tmp_path / "model.cif", structure)))
    assert [(x.name, x.type) for x in back.connections] == [("disulf1", gemmi.ConnectionType.Disulf)]


@pytest.mark.parametrize("what", ["chain", "number", "residue", "atoms"])
def test_a_model_that_does_not_fit_the_pdb_format(tmp_path, what):
    structure = small_structure()
    chain = structure[0]["A"]
    if what == "chain":
        chain.name = "LONG"
    elif what == "number":
        chain[5].seqid = gemmi.SeqId(12345, " ")
    elif what == "residue":
        chain[5].name = "A1BCD"
    else:
        for _ in range(100_000):
            chain[5].add_atom(chain[5][0])
    with pytest.raises(InputError, match=r"does not fit the PDB format \(.+\); write \.cif instead"):
        write_structure(tmp_path / "model.pdb", structure)
    assert not (tmp_path / "model.pdb").exists()
