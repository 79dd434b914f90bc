import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import MMCIFParser

from densemble.atoms import Region, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.models import alternates, anchors, bonded_to_next, read_model, require_cell

EXAMPLE = Path(__file__).parents[3] / "src" / "densemble" / "data" / "7rin"
CRYST = "CRYST1   30.000   40.000   50.000  90.00  95.00  90.00 P 1 21 1      2\n"
BACKBONE = (("N", 0.0, 0.0), ("CA", 1.3, 0.0), ("C", 2.5, 0.0), ("O", 2.5, 1.2))


def line(
    name, residue, number, x, y=0.0, z=0.0, *, alt=" ", occ=1.0, b=20.0, element=None, chain="A", code=" "
):
    """One coordinate record, columns as in the PDB format guide 3.3."""
    element = element or name[0]
    padded = name if len(element) == 2 or len(name) == 4 else f" {name}"
    kind = "ATOM  " if residue in ("GLY", "ALA", "SER", "THR", "CYS") else "HETATM"
    return (
        f"{kind}    1 {padded:<4}{alt}{residue:>3} {chain}{number:>4}{code}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occ:6.2f}{b:6.2f}          {element:>2}  \n"
    )


def residue(name, number, place, *, extra=(), **fields):
    """A residue of an extended chain, 3.8 Å a residue, so that C-N is 1.3 Å."""
    atoms = (*BACKBONE, *extra)
    return "".join(line(a, name, number, 3.8 * place + x, y, **fields) for a, x, y in atoms)


def save(folder, text, name="model.pdb", cryst=CRYST):
    path = folder / name
    path.write_text(cryst + text + "END\n")
    return path


def occupancies(model, rid):
    r = next(i for i, res in enumerate(model.topology.residues) if str(res.id) == rid)
    return {model.topology.names[i]: float(model.occupancy[i]) for i in model.topology.atoms_of([r])}


def x_of(model, rid, name):
    r = next(i for i, res in enumerate(model.topology.residues) if str(res.id) == rid)
    return model.coords[model.topology.atom_index[r, name], 0]


def test_names_numbers_and_kinds(tmp_path):
    text = (
        residue("GLY", -1, 0)
        + residue("GLY", 1, 1)
        + residue("ALA", 1, 2, code="A")
        + residue("XQZ", 1, 3, code="B")
        + residue("MSE", 2, 4)
        + line("SE", "MSE", 2, 16, 3, element="SE")
        + "TER\n"
        + residue("GLY", 7, 8, chain="B")
        + "TER\n"
        + line("CA", "CA", 301, 5, 20, element="CA")
        + line("C1", "GOL", 302, 5, 25)
        + line("O1", "GOL", 302, 6, 25)
        + line("O", "HOH", 401, 5, 30, element="O")
    )
    model = read_model(save(tmp_path, text))
    residues = model.topology.residues
    assert [str(r.id) for r in residues] == [
        *("A:-1", "A:1", "A:1A", "A:1B", "A:2"),
        *("A:301", "A:302", "A:401", "B:7"),
    ]
    kinds = {str(r.id): r.kind for r in residues}
    assert kinds["A:1B"] == "protein"  # a modified residue that no table knows
    assert kinds["A:2"] == "protein"  # MSE
    assert (kinds["A:301"], kinds["A:302"], kinds["A:401"]) == ("ion", "ligand", "water")
    elements = dict(zip(model.topology.names, model.topology.elements, strict=True))
    assert elements["SE"] == "Se"
    calcium = model.topology.atom_index[5, "CA"]
    alpha = model.topology.atom_index[0, "CA"]
    assert (model.topology.elements[calcium], model.topology.elements[alpha]) == ("Ca", "C")
    assert model.messages == ()
    assert Region.parse("A:-1-2").resolve(model.topology) == [[0, 1, 2, 3, 4]]


def test_a_calcium_ion_without_ter_is_no_residue_of_the_chain(tmp_path):
    text = residue("GLY", 1, 0) + residue("GLY", 2, 1) + line("CA", "CA", 3, 9, element="CA")
    kinds = [r.kind for r in read_model(save(tmp_path, text)).topology.residues]
    assert kinds == ["protein", "protein", "ion"]


def test_arrays_follow_the_structure_atom_by_atom(tmp_path):
    text = residue("GLY", 1, 0) + residue("SER", 2, 1, extra=[("CB", 1.3, -1.5), ("OG", 2.0, -2.5)], b=31.25)
    model = read_model(save(tmp_path, text))
    cras = list(model.structure[0].all())
    assert [c.atom.name for c in cras] == list(model.topology.names)
    assert [c.residue.seqid.num for c in cras] == [
        model.topology.residues[r].id.number for r in model.topology.residue_index
    ]
    np.testing.assert_array_equal(model.coords, [c.atom.pos.tolist() for c in cras])
    assert model.coords.dtype == np.float64
    assert set(model.b_iso[4:]) == {31.25}


def test_some_residues_alone_stay_one_in_structure_and_arrays():
    """Waters among those left out, and a whole chain of them: what remains is as it was."""
    model = read_model(EXAMPLE / "deposited.cif", altloc="B")
    kept = [r for r, residue in enumerate(model.topology.residues) if residue.kind == "protein"][5:60:3]
    some = model.only(kept)
    assert [r.id for r in some.topology.residues] == [model.topology.residues[r].id for r in kept]
    atoms = [cra.atom for cra in some.structure[0].all()]
    assert tuple(atom.name for atom in atoms) == some.topology.names
    assert np.array([atom.pos.tolist() for atom in atoms]) == pytest.approx(some.coords, abs=1e-9)
    own = model.topology.atoms_of(kept)
    assert (some.coords == model.coords[own]).all()
    assert (some.b_iso == model.b_iso[own]).all()
    assert (some.occupancy == model.occupancy[own]).all()
    assert all(len(chain) for chain in some.structure[0])
    assert model.structure[0].count_atom_sites() == len(model.topology)


def test_label_numbers_exist_without_a_sequence(tmp_path):
    model = read_model(save(tmp_path, residue("GLY", 51, 0) + residue("SER", 52, 1)))
    assert [r.label_seq for r in model.structure[0][0]] == [1, 2]
    assert [str(r.id) for r in model.topology.residues] == ["A:51", "A:52"]


def test_hydrogens_and_deuterium_are_counted_and_left_out(tmp_path):
    text = residue("GLY", 1, 0) + line("HA2", "GLY", 1, 1, 1, element="H") + line("D", "GLY", 1, 1, 2)
    model = read_model(save(tmp_path, text + line("DOD", "HOH", 2, 9, 9, element="D")))
    assert set(model.topology.elements) == {"C", "N", "O"}
    assert len(model.topology.residues) == 1  # nothing is left of the water
    assert model.messages == ("model.pdb: hydrogens ignored: 3",)


def test_unknown_elements_are_left_out_with_a_message(tmp_path):
    model = read_model(save(tmp_path, residue("GLY", 1, 0) + line("UNK", "UNX", 2, 9, element="X")))
    assert len(model.topology) == 4
    assert "unknown element" in model.messages[0]


def split_text():
    side = [("CB", 1.3, -1.5)]
    return (
        residue("ALA", 1, 0)
        # two conformers, the second one more occupied
        + residue("ALA", 2, 1, extra=side, alt="A", occ=0.4)
        + residue("ALA", 2, 1.1, extra=side, alt="B", occ=0.6)
        # blank backbone, side chain in A and B, a tie
        + residue("SER", 3, 2)
        + line("CB", "SER", 3, 50, alt="A", occ=0.5)
        + line("CB", "SER", 3, 51, alt="B", occ=0.5)
        # no B here
        + line("O", "HOH", 4, 60, alt="A", occ=0.3, element="O")
        + line("O", "HOH", 4, 61, alt="C", occ=0.7, element="O")
        # one letter alone: partly occupied, not split
        + line("O", "HOH", 5, 70, alt="B", occ=0.35, element="O")
    )


def test_highest_occupancy_by_default(tmp_path):
    model = read_model(save(tmp_path, split_text()))
    assert x_of(model, "A:2", "CA") == pytest.approx(3.8 * 1.1 + 1.3, abs=1e-3)
    assert x_of(model, "A:3", "CB") == 50  # of equals the first
    assert x_of(model, "A:4", "O") == 61
    assert set(occupancies(model, "A:2").values()) == {1.0}
    assert occupancies(model, "A:5")["O"] == pytest.approx(0.35)
    assert not any(c.atom.has_altloc() for c in model.structure[0].all())
    assert [c.atom.occ for c in model.structure[0].all()] == list(model.occupancy)
    assert "A in 1, B in 2, C in 1" in model.messages[0]


@pytest.mark.parametrize(("altloc", "ca", "cb", "water"), [("A", 3.8, 50, 60), ("B", 4.18, 51, 61)])
def test_a_chosen_altloc_is_taken_everywhere(tmp_path, altloc, ca, cb, water):
    model = read_model(save(tmp_path, split_text()), altloc=altloc)
    assert x_of(model, "A:2", "CA") == pytest.approx(ca + 1.3, abs=1e-3)
    assert x_of(model, "A:3", "CB") == cb
    assert x_of(model, "A:4", "O") == water
    if altloc == "B":
        assert "without altloc B" in model.messages[-1]
        assert "A:4 (C)" in model.messages[-1]


def test_a_backbone_atom_that_the_conformer_lacks_comes_from_another_but_no_side_chain_atom(tmp_path):
    text = residue("SER", 1, 0, extra=[("CB", 1.3, -1.5), ("OG", 2.0, -2.0)], alt="A", occ=0.7)
    text += line("N", "SER", 1, 9, alt="B", occ=0.3) + line("CB", "SER", 1, 10, alt="B", occ=0.3)
    model = read_model(save(tmp_path, text), altloc="B")
    assert model.topology.names == ("CA", "C", "O", "N", "CB")
    assert x_of(model, "A:1", "N") == 9
    assert set(model.occupancy) == {1.0}


@pytest.mark.parametrize(
    ("altloc", "name", "kind"), [("A", "SER", "OG"), ("B", "THR", "OG1"), (None, "THR", "OG1")]
)
def test_a_point_mutation_by_altloc_leaves_one_residue(tmp_path, altloc, name, kind):
    text = residue("GLY", 1, 0) + residue("SER", 2, 1, extra=[("OG", 2, -2)], alt="A", occ=0.4)
    text += residue("THR", 2, 1, extra=[("OG1", 2, -2)], alt="B", occ=0.6) + residue("GLY", 3, 2)
    model = read_model(save(tmp_path, text), altloc=altloc)
    assert [r.name for r in model.topology.residues] == ["GLY", name, "GLY"]
    assert kind in model.topology.names
    assert bonded_to_next(model.topology, model.coords).tolist() == [True, True, False]


def test_residues_that_share_a_number_without_sharing_a_site_both_stay(tmp_path):
    text = residue("GLY", 1, 0) + "TER\n" + line("C1", "GOL", 5, 9)
    text += line("O", "HOH", 5, 20, alt="A", occ=0.4) + line("O", "HOH", 5, 21, alt="B", occ=0.6)
    model = read_model(save(tmp_path, text))
    assert [r.name for r in model.topology.residues] == ["GLY", "GOL", "HOH"]
    assert model.coords[-1, 0] == 21


def test_b_factor_of_an_anisotropic_atom_is_its_equivalent(tmp_path):
    u = np.array([1000, 2000, 3500])  # 1e-4 Å^2
    text = line("CA", "GLY", 1, 0, b=99.0)
    text += f"ANISOU    1  CA  GLY A   1  {u[0]:7d}{u[1]:7d}{u[2]:7d}{100:7d}{0:7d}{-50:7d}       C  \n"
    model = read_model(save(tmp_path, text))
    assert model.b_iso[0] == pytest.approx(8 * np.pi**2 * u.sum() * 1e-4 / 3, rel=1e-5)


def mmcif(number="177", x="1.5", alt="."):
    return f"""data_t
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.B_iso_or_equiv
_atom_site.auth_seq_id
_atom_site.auth_asym_id
_atom_site.pdbx_PDB_model_num
ATOM 1 C CA {alt} GLY A 1 5 B {x} 2.0 3.0 1.0 20.0 {number} H 1
"""


def test_mmcif_gives_the_authors_names(tmp_path):
    path = tmp_path / "model.cif"
    path.write_text(mmcif())
    model = read_model(path)
    assert model.topology.residues[0].id == ResidueId("H", 177, "B")
    np.testing.assert_array_equal(model.coords, [[1.5, 2.0, 3.0]])


def test_gzipped_and_several_models(tmp_path):
    one = residue("GLY", 1, 0)
    text = f"MODEL        1\n{one}ENDMDL\nMODEL        2\n{residue('GLY', 1, 5)}ENDMDL\n"
    path = tmp_path / "model.pdb.gz"
    path.write_bytes(gzip.compress((CRYST + text).encode()))
    model = read_model(path)
    assert len(model.topology) == 4
    assert model.coords[0, 0] == 0
    assert len(model.structure) == 1
    assert model.messages == ("model.pdb.gz: only the first of 2 models is used",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.pdb", "hello\nworld\n", "no atoms in this file"),
        ("a.pdb", "", "no atoms in this file"),
        ("a.cif", "hello world", "cannot be read as mmCIF"),
        ("a.cif", "", "cannot be read as mmCIF"),
        ("a.cif", "data_sf\n_cell.length_a 5\n", "no atoms in this file"),
        ("a.mtz", "MTZ ", "cannot be read as mmCIF"),
        ("a.cif", mmcif(x="?"), "CA of GLY H:177B"),
        ("a.cif", mmcif(x="nan"), "CA of GLY H:177B"),
        ("a.pdb", line("H", "GLY", 1, 0), "nothing but hydrogens"),
        ("a.pdb", line("CA", "GLY", 1, 0) * 2, "atom CA of GLY A:1 occurs 2 times"),
        ("a.pdb", line("CA", "GLY", 1, 0, alt="A") * 2, "occurs 2 times with altloc A"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_model(tmp_path / "missing.pdb")
    with pytest.raises(InputError, match="no such file"):
        read_model(tmp_path)


def test_an_altloc_that_does_not_exist_names_those_that_do(tmp_path):
    with pytest.raises(InputError, match=r"altloc 'D' \(it has A, B, C\)"):
        read_model(save(tmp_path, split_text()), altloc="D")
    with pytest.raises(InputError, match="no altlocs at all"):
        read_model(save(tmp_path, residue("GLY", 1, 0)), altloc="B")


def test_require_cell(tmp_path):
    require_cell(read_model(save(tmp_path, residue("GLY", 1, 0))))
    with pytest.raises(InputError, match="no unit cell"):
        require_cell(read_model(save(tmp_path, residue("GLY", 1, 0), cryst="")))
    nonsense = CRYST.replace("P 1 21 1", "P 9 9 9 ")
    with pytest.raises(InputError, match="space group 'P 9 9 9' is not known"):
        require_cell(read_model(save(tmp_path, residue("GLY", 1, 0), cryst=nonsense)))


def test_anchors_follow_bonds_not_numbers(tmp_path):
    # 1, 2, 5 are bonded whatever the numbers say; 6 is 3.8 Å further on; B:7 is another chain.
    text = residue("GLY", 1, 0) + residue("GLY", 2, 1) + residue("GLY", 5, 2) + residue("GLY", 6, 4)
    model = read_model(save(tmp_path, text + "TER\n" + residue("GLY", 7, 5, chain="B") + "TER\n"))
    t, x = model.topology, model.coords
    assert bonded_to_next(t, x).tolist() == [True, True, False, False, False]

    def ends(stretch):
        found = anchors(t, x, stretch)
        return found.before, found.after

    assert ends([1]) == (0, 2)
    assert ends([0, 1]) == (None, 2)
    assert ends([1, 2]) == (0, None)
    assert ends([3]) == (None, None)
    assert ends([4]) == (None, None)


def test_links_keep_to_the_conformer_that_is_kept(tmp_path):
    structure = gemmi.read_pdb_string(
        CRYST
        + residue("GLY", 1, 0)
        + residue("CYS", 2, 1)
        + line("SG", "CYS", 2, 4, 8, alt="A", occ=0.4)
        + line("SG", "CYS", 2, 5, 8, alt="B", occ=0.6)
        + line("ZN", "ZN", 9, 5, 10, element="ZN")
    )
    structure.setup_entities()
    for altloc in "AB":
        link = gemmi.Connection()
        link.name, link.type = f"metalc{altloc}", gemmi.ConnectionType.MetalC
        link.partner1 = gemmi.AtomAddress("A", gemmi.SeqId(2, " "), "CYS", "SG", altloc)
        link.partner2 = gemmi.AtomAddress("A", gemmi.SeqId(9, " "), "ZN", "ZN", "\0")
        structure.connections.append(link)
    path = tmp_path / "linked.cif"
    structure.make_mmcif_document().write_file(str(path))
    assert len(gemmi.read_structure(str(path)).connections) == 2
    links = read_model(path, altloc="B").structure.connections
    assert [(link.name, link.partner1.altloc) for link in links] == [("metalcB", "\0")]


def test_alternates_agree_with_biopython_on_the_deposited_example():
    start = read_model(EXAMPLE / "model.cif")
    stretch = Region.parse("A:176-191").resolve(start.topology)[0]
    topology = start.topology.subset(start.topology.atoms_of(stretch))
    states = alternates(EXAMPLE / "deposited.cif", topology)
    chain = MMCIFParser(QUIET=True).get_structure("x", str(EXAMPLE / "deposited.cif"))[0]["A"]
    assert list(states) == ["A", "B"]
    assert states["A"].occupancy == pytest.approx(0.39)
    assert states["B"].occupancy == pytest.approx(0.61)
    for letter, state in states.items():
        for i, (r, name) in enumerate(zip(topology.residue_index, topology.names, strict=True)):
            atom = chain[topology.residues[r].id.number][name].disordered_get(letter)
            np.testing.assert_allclose(state.coords[i], atom.coord, atol=1e-5)


def described(model):
    """Everything that is read of each atom, by residue and name."""
    residues = [model.topology.residues[r] for r in model.topology.residue_index]
    return {
        (str(r.id), r.name, name): (element, tuple(x), occupancy, b)
        for r, name, element, x, occupancy, b in zip(
            residues,
            model.topology.names,
            model.topology.elements,
            model.coords.round(3).tolist(),
            model.occupancy.tolist(),
            model.b_iso.tolist(),
            strict=True,
        )
    }


def test_the_example_is_altloc_b_of_the_deposited_model():
    # model.cif was made by a script of its own (tests/reference)
    start = read_model(EXAMPLE / "model.cif")
    both = read_model(EXAMPLE / "deposited.cif", altloc="B")
    assert described(both) == described(start)
    assert len(described(start)) == len(start.topology) == 2460
    assert "A:281 (A), A:282 (A), A:283 (A), A:284 (A) and 14 more" in both.messages[-1]
    # without a word about altlocs, what is there is the most occupied
    numbers = {r.id.number for r in read_model(EXAMPLE / "deposited.cif").topology.residues}
    assert set(range(281, 299)) <= numbers


def test_an_altloc_asked_for_is_alone_and_fully_occupied(tmp_path):
    text = (
        residue("GLY", 1, 0)
        # in A only, and A is not always there
        + residue("GLY", 2, 1, alt="A", occ=0.7)
        # a side chain in A only, on a backbone of one conformation
        + residue("SER", 3, 2)
        + line("CB", "SER", 3, 9, alt="A", occ=0.4)
        # A and C, always one of them
        + residue("GLY", 4, 3, alt="A", occ=0.38)
        + residue("GLY", 4, 3.1, alt="C", occ=0.6)
        + "TER\n"
        + line("O", "HOH", 5, 50, alt="B", occ=0.35, element="O")
        + line("O", "HOH", 6, 60, occ=0.5, element="O")
        # nothing is left of this chain
        + line("O", "HOH", 7, 70, alt="A", occ=0.9, element="O", chain="W")
    )
    path = save(tmp_path, text)
    model = read_model(path, altloc="B")
    assert [str(r.id) for r in model.topology.residues] == ["A:1", "A:3", "A:4", "A:5", "A:6"]
    assert set(occupancies(model, "A:3")) == {"N", "CA", "C", "O"}
    assert x_of(model, "A:4", "CA") == pytest.approx(3.8 * 3.1 + 1.3, abs=1e-3)
    assert occupancies(model, "A:5")["O"] == 1.0
    assert occupancies(model, "A:6")["O"] == 0.5  # no altloc: as in the file
    assert [c.name for c in model.structure[0]] == ["A"]
    assert len(model.messages) == 3
    assert model.messages[1].endswith("without altloc B keep their highest occupancy: A:4 (C)")
    assert model.messages[2].endswith("other altlocs than B are left out: A:2 (A), A:3 (A), W:7 (A)")
    assert "A:2" in {str(r.id) for r in read_model(path).topology.residues}


def test_alternates_of_shared_and_missing_atoms(tmp_path):
    path = save(tmp_path, split_text())
    names = ("CA", "CA", "CB", "OG", "O")
    full = read_model(path).topology.residues
    topology = Topology(names, ("C", "C", "C", "O", "O"), np.array([0, 1, 2, 2, 3]), full[:4])
    states = alternates(path, topology)
    assert list(states) == ["A", "B", "C"]
    a, b, c = (states[x].coords[:, 0] for x in "ABC")
    assert a[0] == b[0] == c[0] == pytest.approx(1.3)  # no altloc: in every state
    np.testing.assert_allclose(a[1:3], [5.1, 50])
    assert b[2] == 51
    assert np.isnan(c[1])  # split, but not into C
    assert np.isnan([a[3], b[3], c[3]]).all()  # not in the file
    assert np.isnan(b[4])
    assert states["C"].occupancy == pytest.approx(0.7)


def test_alternates_without_any_altloc_or_any_atom(tmp_path):
    path = save(tmp_path, residue("GLY", 1, 0))
    model = read_model(path)
    states = alternates(path, model.topology)
    assert list(states) == [""]
    np.testing.assert_array_equal(states[""].coords, model.coords)
    assert states[""].occupancy == 1.0
    other = read_model(save(tmp_path, residue("GLY", 1, 0, chain="Z"), name="z.pdb")).topology
    with pytest.raises(InputError, match="none of the 4 atoms"):
        alternates(path, other)
