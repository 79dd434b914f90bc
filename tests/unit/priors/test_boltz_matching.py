"""From a model to the input of Boltz and back: sequences, atoms paired by alignment, names and numbers."""

import gemmi
import numpy as np
import pytest

pytest.importorskip("boltz", reason="needs densemble[boltz]: make boltz")

from boltz_models import RISE, Chain, protein, write_model
from boltz_networks import boltz_files

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.priors.boltz.inputs import input_of_model, read_input
from densemble.priors.boltz.matching import matched, renamed
from densemble.priors.boltz.model_sequences import model_contents

SEQUENCE = [*protein("GSHMKTAY"), "SEP", *protein("IAGLEW")]
A_NUMBERS = [None, None, None, "10", "11", "11A", "12", "13", "14", None, None, "17", "18", "19", "20"]
C_NUMBERS = [None, *(str(n) for n in range(2, 15)), None]
CHAIN_A = Chain("A", SEQUENCE, A_NUMBERS, [("GOL", "301"), ("ZN", "302"), ("HOH", "401")])
CHAIN_C = Chain("C", SEQUENCE, C_NUMBERS, [("ZN", "302"), ("UNL", "303")])
CHAIN_D = Chain("D", ["DG", "DA", "DT", "DC"], ["1", "2", "3", "4"])
LINK = (("A", "10", "SD"), ("A", "301", "O1"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.cif"
    return read_model(write_model(path, [CHAIN_A, CHAIN_C, CHAIN_D], [LINK]))


@pytest.fixture(params=["boltz1", "boltz2"])
def files(request, boltz_cache):
    return boltz_files(request.param, boltz_cache)


def topology(**chains):
    """A topology of polymers with alpha carbons alone, from three-letter codes, numbered from 1."""
    residues = [
        Residue(ResidueId(chain, k + 1), name)
        for chain, names in chains.items()
        for k, name in enumerate(names)
    ]
    n = len(residues)
    return Topology(("CA",) * n, ("C",) * n, np.arange(n), tuple(residues))


def model_of(folder, *chains):
    return read_model(write_model(folder / "model.cif", chains))


def test_contents_of_a_model(model):
    found = model_contents(model)
    changes = [{"position": 9, "ccd": "SEP"}]
    entity = {"sequence": "GSHMKTAYSIAGLEW", "modifications": changes, "msa": "empty"}
    assert found.schema["sequences"] == [
        {"protein": {"id": "A"} | entity},
        {"ligand": {"id": "B", "ccd": "GOL"}},
        {"ligand": {"id": "E", "ccd": "ZN"}},
        {"protein": {"id": "C"} | entity},
        {"ligand": {"id": "F", "ccd": "ZN"}},
        {"dna": {"id": "D", "sequence": "GATC"}},
    ]
    assert found.schema["constraints"] == [{"bond": {"atom1": ["A", 4, "SD"], "atom2": ["B", 1, "O1"]}}]
    assert any("UNL C:303 is left out" in message for message in found.messages)
    assert any("without alignments" in message for message in found.messages)


def test_links_between_neighbours_are_no_constraints(tmp_path):
    """The PDB lists the peptide bonds of modified residues as covalent links."""
    path = write_model(tmp_path / "m.cif", [CHAIN_A], [(("A", "13", "C"), ("A", "14", "N"))])
    assert "constraints" not in model_contents(read_model(path)).schema


def test_model_that_does_not_state_its_sequence(tmp_path):
    chain = Chain("A", protein("MKTAY"), ["1", "2", None, "4", "5"], stated=False)
    found = model_contents(model_of(tmp_path, chain))
    assert found.schema["sequences"][0]["protein"]["sequence"] == "MKAY"
    assert any("what is missing between 2-4 is not modelled" in message for message in found.messages)


def test_selenomethionine(files, tmp_path):
    """Boltz knows it as methionine; all atoms but the selenium are paired."""
    chain = Chain("A", [*protein("AK"), "MSE", *protein("TW")], ["1", "2", "3", "4", "5"])
    model = model_of(tmp_path, chain)
    found = input_of_model(model, files)
    assert any("selenomethionine is modelled as methionine" in message for message in found.messages)
    match = matched(found.topology, model)
    assert [found.topology.residues[r].name for r in np.flatnonzero(match.residues == 2)] == ["MET"]
    missing = set(range(len(model.topology))) - set(match.model_atoms.tolist())
    assert [model.topology.names[i] for i in missing] == ["SE"]


def test_model_of_nothing_that_boltz_models(tmp_path):
    chain = Chain("A", [], [], [("HOH", "1"), ("UNL", "2")])
    with pytest.raises(InputError, match=r"model\.cif: no protein, nucleic acid or ligand"):
        model_contents(model_of(tmp_path, chain))


def test_component_that_is_not_in_the_dictionary(files, tmp_path):
    model = model_of(tmp_path, Chain("A", protein("MKT"), ["1", "2", "3"], [("QQQ", "5")]))
    with pytest.raises(
        InputError, match=r"model .*model\.cif: chain .: the component QQQ is not in.*--sequence.*smiles"
    ):
        input_of_model(model, files)


def test_every_atom_of_the_model_is_paired_with_itself(files, model):
    found = input_of_model(model, files)
    match = matched(found.topology, model)
    ours, theirs = found.topology, model.topology
    assert [ours.names[i] for i in match.atoms] == [theirs.names[j] for j in match.model_atoms]
    assert [ours.elements[i] for i in match.atoms] == [theirs.elements[j] for j in match.model_atoms]
    left = set(range(len(theirs))) - set(match.model_atoms.tolist())
    assert {theirs.residues[theirs.residue_index[j]].name for j in left} == {"HOH", "UNL"}
    assert np.all(np.diff(match.atoms) > 0)
    assert match.chains == {"A": "A", "C": "C", "D": "D"}
    assert match.identity == {"A": 1.0, "C": 1.0, "D": 1.0}
    assert match.messages == ()
    back = renamed(ours, match, model)
    for i, j in zip(match.atoms, match.model_atoms, strict=True):
        assert back.residues[back.residue_index[i]].id == theirs.residues[theirs.residue_index[j]].id


def test_numbers_of_what_has_no_coordinates(files, model):
    found = input_of_model(model, files)
    back = renamed(found.topology, matched(found.topology, model), model)
    ids = [str(residue.id) for residue in back.residues]
    assert ids[:15] == [
        f"A:{n}"
        for n in ["7", "8", "9", "10", "11", "11A", "12", "13", "14", "15", "16", "17", "18", "19", "20"]
    ]
    assert ids[15:30] == [f"C:{n}" for n in range(1, 16)]
    assert ids[30:] == ["A:301", "A:302", "C:302", "D:1", "D:2", "D:3", "D:4"]
    assert len(set(ids)) == len(ids)


def test_tags_offsets_and_gaps(files, model, tmp_path):
    """The sequence of a construct, in other chains, in another order: with a tag, without an end."""
    path = tmp_path / "construct.yaml"
    path.write_text(
        "sequences:\n  - dna: {id: X, sequence: GATC}\n"
        "  - protein: {id: [Y, C], sequence: HHHHHHGSHMKTAYSIAGLE, msa: empty}\n"
        "  - ligand: {id: A, ccd: ZN}\n"
    )
    found = read_input(path, files)
    match = matched(found.topology, model)
    assert match.chains == {"X": "D", "Y": "A", "C": "C"}  # C by its name, so Y is the other
    pairs = [
        (found.topology.residues[r], model.topology.residues[m])
        for r, m in enumerate(match.residues)
        if m >= 0 and found.topology.residues[r].kind == "protein"
    ]
    serine = [(own.name, other.name) for own, other in pairs if own.name != other.name]
    assert serine == [("SER", "SEP"), ("SER", "SEP")]  # written unmodified in the sequence
    assert len(pairs) == 9 + 13  # TRP 20 of chain A is not in the sequence
    assert match.messages == ()
    back = renamed(found.topology, match, model)
    assert [str(r.id) for r in back.residues[:4]] == ["D:1", "D:2", "D:3", "D:4"]
    assert [r.id.number for r in back.residues[4:13]] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert str(back.residues[-1].id) == "A:302"


def test_a_mutation_keeps_the_backbone(files, tmp_path):
    model = model_of(tmp_path, Chain("A", protein("MKTAYWAGLE"), [str(n) for n in range(1, 11)]))
    path = tmp_path / "mutant.yaml"
    path.write_text("sequences:\n  - protein: {id: A, sequence: MKTAYKAGLE, msa: empty}\n")
    match = matched(read_input(path, files).topology, model)
    assert match.identity == {"A": 0.9}
    names = [
        model.topology.names[j]
        for j in match.model_atoms
        if model.topology.residues[model.topology.residue_index[j]].name == "TRP"
    ]
    assert names == ["N", "CA", "C", "O"]


def test_a_gap_is_where_the_chain_is_broken(tmp_path):
    """Of AAAAAAAA between two ends the middle lacks four residues: the break tells which."""
    names = protein("MKW" + "A" * 8 + "WKM")
    numbers = [str(k + 1) if k not in range(5, 9) else None for k in range(len(names))]
    model = model_of(tmp_path, Chain("A", names, numbers))
    found = matched(topology(A=names), model).residues
    present = [k for k, number in enumerate(numbers) if number is not None]
    assert found.tolist() == [present.index(k) if k in present else -1 for k in range(len(names))]
    x = model.coords[[model.topology.atom_index[r, "CA"] for r in range(len(present))], 0]
    assert np.allclose(np.diff(x), [RISE] * 4 + [5 * RISE] + [RISE] * 4)


def test_chains_of_one_sequence_are_paired_one_to_one(tmp_path):
    names = protein("MKTAYIAGLE")
    chains = [Chain(name, names, [str(n) for n in range(1, 11)]) for name in "ABC"]
    model = model_of(tmp_path, *chains)
    assert matched(topology(P=names, Q=names, R=names), model).chains == {"P": "A", "Q": "B", "R": "C"}
    assert matched(topology(B=names, A=names), model).chains == {"A": "A", "B": "B"}
    found = matched(topology(Q=names), model)
    assert found.chains == {"Q": "A"}
    assert found.messages == ("chain B, C of the model is not in the sequences",)


def test_the_longest_common_part_decides(tmp_path):
    """Two chains alike but for their ends: each goes to its own."""
    first, second = protein("MKTAYIAGLEWWWW"), protein("MKTAYIAGLEPPPP")
    model = model_of(
        tmp_path, *(Chain(c, s, [str(n) for n in range(1, 15)]) for c, s in (("A", first), ("B", second)))
    )
    assert matched(topology(A=second, B=first), model).chains == {"A": "B", "B": "A"}


def test_another_molecule_is_an_error(tmp_path):
    model = model_of(tmp_path, Chain("A", protein("MKTAYIAGLE"), [str(n) for n in range(1, 11)]))
    with pytest.raises(
        InputError, match=r"model\.cif: the sequence of chain P is not that of the model: \d+%"
    ):
        matched(topology(P=protein("WWPPNNDDQQ")), model)


def test_nucleic_acid_for_a_protein_is_an_error(files, tmp_path):
    model = model_of(tmp_path, Chain("A", protein("MKTAYIAGLE"), [str(n) for n in range(1, 11)]))
    path = tmp_path / "rna.yaml"
    path.write_text("sequences:\n  - rna: {id: R, sequence: GACUGACU}\n")
    with pytest.raises(InputError, match="it has no chain of the kind of chain R"):
        matched(read_input(path, files).topology, model)


def test_a_chain_that_the_model_lacks(tmp_path):
    names = protein("MKTAYIAGLE")
    model = model_of(tmp_path, Chain("A", names, [str(n) for n in range(1, 11)]))
    given = topology(B=names, A=protein("GSHWVNDPQRCF"))
    found = matched(given, model)
    assert found.chains == {"B": "A"}
    assert found.messages == ("chain A of the sequences is not in the model",)
    back = renamed(given, found, model)
    assert [r.id.chain for r in back.residues] == ["A"] * 10 + [
        "C"
    ] * 12  # A is taken, B is a name of the input


def test_numbers_without_room_come_last(tmp_path):
    """Residues are missing, but the numbers go on; and a tail would run into a ligand's number."""
    names = protein("MKTAYIAGLE")
    numbers = ["1", "2", None, None, "3", "4", "5", "6", None, None]
    model = model_of(tmp_path, Chain("A", names, numbers, [("ZN", "8")]))
    given = topology(A=names)
    back = renamed(given, matched(given, model), model)
    assert [r.id.number for r in back.residues] == [1, 2, 9, 10, 3, 4, 5, 6, 11, 12]


def test_of_equal_ligands_the_bonded_one_is_taken(files, tmp_path):
    """The input binds its first zinc to the chain that is the second in the model; the other is free."""
    first, second = protein("MKTAYIAGLE"), protein("GSHWVNDPQRCF")
    numbers = [str(n) for n in range(1, 13)]
    model = model_of(
        tmp_path,
        Chain("A", first, numbers[:10], [("ZN", "301")]),
        Chain("B", second, numbers, [("ZN", "302")]),
    )
    path = tmp_path / "linked.yaml"
    path.write_text(
        "sequences:\n  - protein: {id: P, sequence: MKTAYIAGLE, msa: empty}\n"
        "  - protein: {id: Q, sequence: GSHWVNDPQRCF, msa: empty}\n  - ligand: {id: [Y, Z], ccd: ZN}\n"
        "constraints:\n  - bond: {atom1: [Q, 11, SG], atom2: [Y, 1, ZN]}\n"
    )
    found = read_input(path, files)
    assert [[str(found.topology.residues[r].id) for r in pair] for pair in found.links] == [["Q:11", "Y:1"]]
    match = matched(found.topology, model, links=found.links)
    partners = [str(model.topology.residues[m].id) for m in match.residues[-2:]]
    assert partners == ["B:302", "A:301"]
    in_order = matched(found.topology, model)
    assert [str(model.topology.residues[m].id) for m in in_order.residues[-2:]] == ["A:301", "B:302"]


def test_a_ligand_bound_to_the_very_residue_goes_first(files, tmp_path):
    """Both are in the chain that the input names; the second has a bond with the residue."""
    names = protein("MKTAYIAGLE")
    chain = Chain("A", names, [str(n) for n in range(1, 11)], [("GOL", "301"), ("GOL", "302")])
    model = model_of(tmp_path, chain)
    index = model.topology.atom_index
    rows = [str(r.id) for r in model.topology.residues]
    model.coords[index[rows.index("A:302"), "O1"]] = model.coords[index[1, "NZ"]] + [1.4, 0, 0]
    path = tmp_path / "linked.yaml"
    path.write_text(
        "sequences:\n  - protein: {id: A, sequence: MKTAYIAGLE, msa: empty}\n"
        "  - ligand: {id: [Y, Z], ccd: GOL}\nconstraints:\n  - bond: {atom1: [A, 2, NZ], atom2: [Y, 1, O1]}\n"
    )
    found = read_input(path, files)
    match = matched(found.topology, model, links=found.links)
    assert [rows[m] for m in match.residues[-2:]] == ["A:302", "A:301"]


def test_ligands_without_a_partner_are_named(files, tmp_path):
    model = model_of(tmp_path, Chain("A", protein("MKT"), ["1", "2", "3"], [("ZN", "5")]))
    path = tmp_path / "ligands.yaml"
    path.write_text(
        "sequences:\n  - protein: {id: A, sequence: MKT, msa: empty}\n  - ligand: {id: [Z, Y], ccd: ZN}\n"
        "  - ligand: {id: L, smiles: CCO}\n"
    )
    found = read_input(path, files)
    match = matched(found.topology, model)
    assert match.messages == (
        "not paired with a ligand of the model, which go by component codes: ZN Y, LIG1 L",
    )
    back = renamed(found.topology, match, model)
    assert [str(r.id) for r in back.residues] == ["A:1", "A:2", "A:3", "A:5", "Y:1", "L:1"]


def test_file_of_the_helper_is_a_model(model):
    """The helper's residues are what gemmi takes them for."""
    assert gemmi.find_tabulated_residue("SEP").one_letter_code.upper() == "S"
    assert {r.kind for r in model.topology.residues} == {"protein", "nucleic", "ligand", "ion", "water"}
