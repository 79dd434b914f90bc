import hashlib
import json
import os
from decimal import Decimal
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from Bio.PDB import MMCIFParser, PDBParser
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_structure import small_structure

from densemble.atoms import Ensemble, Region, Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.altlocs import build_structure, occupancies
from densemble.io.finished import read_run
from densemble.io.models import alternates, read_model
from densemble.io.output import InputFile, prepare_output, write_text
from densemble.io.results import (
    OWN_FILES,
    Member,
    Metrics,
    Result,
    RFactor,
    RFactors,
    write_ensemble,
    write_members,
    write_result_json,
    write_structure,
)

EXAMPLE = Path(__file__).parents[3] / "src" / "densemble" / "data" / "7rin"


def weights(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.cif"
    small_structure().make_mmcif_document().write_file(str(path))
    return read_model(path)


def ensemble_of(topology, coords, w, *, generator, spread=0.4):
    k = len(w)
    x = torch.as_tensor(coords) + spread * torch.randn(
        k, len(topology), 3, dtype=torch.float64, generator=generator
    )
    b = 10 + 20 * torch.rand(k, len(topology), dtype=torch.float64, generator=generator)
    return Ensemble(topology, x, w, b)


def region_of(model, text):
    stretches = Region.parse(text).resolve(model.topology)
    return model.topology.atoms_of([r for s in stretches for r in s])


def records(structure, skip=()):
    """Everything the file says about each atom outside some residues."""
    return [
        (
            *(chain.name, str(residue.seqid), residue.name, residue.het_flag, atom.name, atom.altloc),
            *(
                atom.element.name,
                atom.charge,
                atom.occ,
                atom.b_iso,
                *atom.pos.tolist(),
                *atom.aniso.elements_pdb(),
            ),
        )
        for chain in structure[0]
        for residue in chain
        if residue.seqid.num not in skip
        for atom in residue
    ]


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=26).filter(lambda w: sum(w) > 1e-3))
def test_occupancies_are_hundredths_that_sum_to_one(values):
    occ = occupancies(weights(*values))
    share = np.array(values) / sum(values)
    assert sum(Decimal(f"{x:.2f}") for x in occ) == 1
    np.testing.assert_allclose(occ * 100, np.round(occ * 100), atol=1e-9)
    assert (occ[share == 0] == 0).all()
    assert np.abs(occ - share).max() < 0.01


@pytest.mark.parametrize(
    ("given_weights", "expected"),
    [
        ((0.39, 0.61), (0.39, 0.61)),
        ((1, 1, 1), (0.34, 0.33, 0.33)),
        ((2.0,), (1.0,)),
        ((0, 3, 1), (0, 0.75, 0.25)),
        ((0.996, 0.002, 0.002), (1.0, 0, 0)),
        ((0.335, 0.335, 0.33), (0.34, 0.33, 0.33)),
    ],
)
def test_occupancies_by_hand(given_weights, expected):
    np.testing.assert_allclose(occupancies(weights(*given_weights)), expected, atol=1e-12)


@pytest.mark.parametrize("values", [(0.0, 0.0), (float("nan"), 1.0)])
def test_occupancies_need_weight(values):
    with pytest.raises(ValueError, match="above zero"):
        occupancies(weights(*values))


def test_members_become_altlocs_and_nothing_else_changes(model, tmp_path, generator):
    atoms = region_of(model, "A:2-3")
    topology = model.topology.subset(atoms)
    ensemble = ensemble_of(topology, model.coords[atoms], weights(0.2, 0.2, 0.1), generator=generator)
    path = write_ensemble(tmp_path, model, ensemble, atoms)
    assert path == tmp_path / "ensemble.cif"
    back = gemmi.read_structure(str(path))
    assert len(back) == 1
    assert records(back, skip=(2, 3)) == records(gemmi.read_structure(str(model.path)), skip=(2, 3))
    assert back.cell.parameters == model.structure.cell.parameters
    assert back.find_spacegroup().hm == "P 21 21 21"
    assert [r.name for r in back[0]["A"]] == ["GLY", "CYS", "ALA", "CYS", "ZN", "HOH"]
    for r, number in enumerate((2, 3)):
        residue = back[0]["A"][str(number)][0]
        names = [topology.names[i] for i in topology.atoms_of([r])]
        # atom by atom, each with all its altlocs
        assert [(a.name, a.altloc) for a in residue] == [(n, x) for n in names for x in "ABC"]
        assert [round(a.occ, 6) for a in residue] == [0.4, 0.4, 0.2] * len(names)
        for k, letter in enumerate("ABC"):
            own = [a for a in residue if a.altloc == letter]
            i = topology.atoms_of([r])
            np.testing.assert_allclose(
                [a.pos.tolist() for a in own], ensemble.coords[k, i].numpy(), atol=5.1e-4, rtol=0
            )
            np.testing.assert_allclose(
                [a.b_iso for a in own], ensemble.b_iso[k, i].numpy(), atol=5.1e-3, rtol=0
            )
            assert [a.element.name for a in own] == [topology.elements[j] for j in i]


def test_structure_factors_are_the_weighted_mean_of_the_members(model, generator):
    # Independent check of coordinates, B factors and occupancies at once, in electrons.
    atoms = region_of(model, "A:2-3")
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(0.5, 0.3, 0.2), generator=generator
    )

    def f(structure):
        calculator = gemmi.StructureFactorCalculatorX(structure.cell)
        hkl = [(1, 0, 2), (2, 3, 1), (5, 1, 4)]
        return np.array([calculator.calculate_sf_from_model(structure[0], h) for h in hkl])

    members = [f(build_structure(model, ensemble.select([k], weights(1.0)), atoms)) for k in range(3)]
    expected = sum(w * m for w, m in zip((0.5, 0.3, 0.2), members, strict=True))
    np.testing.assert_allclose(f(build_structure(model, ensemble, atoms)), expected, atol=1e-4)
    assert np.abs(members[0] - expected).max() > 1


def test_links_to_split_atoms_are_written_for_each_altloc(model, tmp_path, generator):
    atoms = region_of(model, "A:2-3")
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(1, 1), generator=generator
    )
    back = gemmi.read_structure(str(write_ensemble(tmp_path, model, ensemble, atoms)))
    links = {(x.name, x.type, x.partner1.altloc, x.partner2.altloc) for x in back.connections}
    disulfide = gemmi.ConnectionType.Disulf
    assert links == {("disulf1A", disulfide, "A", "\0"), ("disulf1B", disulfide, "B", "\0")}
    built = build_structure(model, ensemble, atoms)
    assert [(x.partner1.altloc, x.partner2.altloc) for x in built.connections] == [("A", "\0"), ("B", "\0")]
    both = region_of(model, "A:2,A:4")
    ensemble = ensemble_of(
        model.topology.subset(both), model.coords[both], weights(1, 1), generator=generator
    )
    built = build_structure(model, ensemble, both)
    assert [(x.partner1.altloc, x.partner2.altloc) for x in built.connections] == [("A", "A"), ("B", "B")]
    untouched = region_of(model, "A:3")
    ensemble = ensemble_of(
        model.topology.subset(untouched), model.coords[untouched], weights(1, 1), generator=generator
    )
    assert [x.name for x in build_structure(model, ensemble, untouched).connections] == ["disulf1"]


@pytest.mark.parametrize("w", [(0.7,), (0.0, 0.7)])
def test_one_member_has_no_altloc_and_full_occupancy(model, generator, w):
    atoms = region_of(model, "A:2-3")
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(*w), generator=generator
    )
    structure = build_structure(model, ensemble, atoms)
    assert [cra.atom.name for cra in structure[0].all()] == list(model.topology.names)
    assert not any(cra.atom.has_altloc() for cra in structure[0].all())
    assert {cra.atom.occ for cra in structure[0].all() if cra.residue.name != "HOH"} == {1.0}
    x = np.array([cra.atom.pos.tolist() for cra in structure[0].all()])
    np.testing.assert_allclose(x[atoms], ensemble.coords[-1].numpy(), atol=5.1e-4, rtol=0)
    assert [x.name for x in structure.connections] == ["disulf1"]


def test_the_model_itself_is_left_alone(model, generator):
    before = records(model.structure)
    atoms = region_of(model, "A:2-3")
    build_structure(
        model,
        ensemble_of(model.topology.subset(atoms), model.coords[atoms], weights(1, 1), generator=generator),
        atoms,
    )
    assert records(model.structure) == before
    assert len(model.structure.connections) == 1


def test_atoms_the_model_lacks_are_added_and_those_the_ensemble_lacks_removed(model, generator):
    # ALA 3 of the model becomes a residue with CG but without O.
    atoms = region_of(model, "A:3")
    topology = Topology(
        ("N", "CA", "C", "CB", "CG"),
        ("N", "C", "C", "C", "C"),
        np.zeros(5, dtype=np.int64),
        (Residue(ResidueId("A", 3), "ALA"),),
    )
    ensemble = ensemble_of(topology, np.zeros((5, 3)), weights(1, 1), generator=generator)
    structure = build_structure(model, ensemble, atoms)
    residue = structure[0]["A"]["3"][0]
    assert [a.name + a.altloc for a in residue] == [n + x for n in topology.names for x in "AB"]
    assert residue.find_atom("CG", "B").element.name == "C"
    assert records(structure, skip=(3,)) == records(model.structure, skip=(3,))


def test_a_side_chain_alone_can_be_split(model, generator):
    atoms = np.array([i for i in region_of(model, "A:2") if model.topology.names[i] in ("CB", "SG")])
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(1, 1), generator=generator
    )
    residue = build_structure(model, ensemble, atoms)[0]["A"]["2"][0]
    names = [a.name + a.altloc.strip("\0") for a in residue]
    assert names == ["N", "CA", "C", "O", "CBA", "CBB", "SGA", "SGB"]


def test_an_ensemble_that_does_not_fit_the_region(model, generator):
    atoms = region_of(model, "A:2-3")
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(1, 1), generator=generator
    )
    with pytest.raises(ValueError, match="residue A:3, which the region has not"):
        build_structure(model, ensemble, region_of(model, "A:2"))
    with pytest.raises(ValueError, match="atom SG of A:2 is in the ensemble and in its context"):
        build_structure(model, ensemble, np.array([a for a in atoms if model.topology.names[a] != "SG"]))
    many = ensemble_of(model.topology.subset(atoms), model.coords[atoms], torch.ones(27), generator=generator)
    with pytest.raises(ValueError, match="27 members"):
        build_structure(model, many, atoms)


def test_refinement_statistics_of_the_old_model_are_not_repeated(model, tmp_path, generator):
    statistics = gemmi.RefinementInfo()
    statistics.r_free, statistics.r_work, statistics.id = 0.154, 0.132, "X-RAY DIFFRACTION"
    model.structure.meta.refinement = [statistics]
    assert "0.154" in write_structure(tmp_path / "start.cif", model.structure).read_text()
    atoms = region_of(model, "A:3")
    ensemble = ensemble_of(
        model.topology.subset(atoms), model.coords[atoms], weights(1, 1), generator=generator
    )
    assert "0.154" not in write_ensemble(tmp_path, model, ensemble, atoms).read_text()


@pytest.fixture(scope="module")
def example():
    """The packaged start, with the two deposited states of the loop as an ensemble."""
    model = read_model(EXAMPLE / "model.cif")
    atoms = region_of(model, "A:176-191")
    topology = model.topology.subset(atoms)
    states = alternates(EXAMPLE / "deposited.cif", topology)
    coords = torch.tensor(np.stack([states["A"].coords, states["B"].coords]))
    return model, Ensemble(topology, coords, weights(0.39, 0.61), torch.full(coords.shape[:2], 25.5)), atoms


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_other_programs_see_the_same_hierarchy(example, tmp_path, suffix):
    model, ensemble, atoms = example
    path = write_structure(tmp_path / f"ensemble{suffix}", build_structure(model, ensemble, atoms))
    parser = MMCIFParser(QUIET=True) if suffix == ".cif" else PDBParser(QUIET=True)
    structure = parser.get_structure("x", str(path))
    assert len(structure) == 1
    loop = range(176, 192)
    index = ensemble.topology.atom_index
    for residue in structure[0]["A"]:
        inside = residue.id[1] in loop
        assert all(bool(atom.is_disordered()) == inside for atom in residue)
        if not inside:
            continue
        r = residue.id[1] - 176
        assert {a.get_name() for a in residue} == {n for (s, n) in index if s == r}
        for atom in residue:
            assert atom.disordered_get_id_list() == ["A", "B"]
            parts = [atom.disordered_get(x) for x in "AB"]
            assert [p.get_occupancy() for p in parts] == pytest.approx([0.39, 0.61])
            for k, part in enumerate(parts):
                np.testing.assert_allclose(
                    part.coord, ensemble.coords[k, index[r, atom.get_name()]], atol=6e-4
                )
    assert len(list(structure.get_atoms())) == len(model.topology)


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_outside_the_region_the_files_agree_to_the_last_digit(example, tmp_path, suffix):
    model, ensemble, atoms = example
    path = write_structure(tmp_path / f"ensemble{suffix}", build_structure(model, ensemble, atoms))
    source = gemmi.read_structure(str(model.path))
    # Both go through the same format, so that the comparison can be exact.
    reference = gemmi.read_structure(str(write_structure(tmp_path / f"start{suffix}", source)))
    back = gemmi.read_structure(str(path))
    loop = range(176, 192)
    assert len(records(back, skip=loop)) == len(model.topology) - len(atoms)
    assert records(back, skip=loop) == records(reference, skip=loop)
    if suffix == ".cif":
        assert records(back, skip=loop) == records(source, skip=loop)
        assert [e.full_sequence for e in back.entities] == [e.full_sequence for e in source.entities]
    assert back.spacegroup_hm == source.spacegroup_hm
    assert back.cell.parameters == source.cell.parameters


def test_the_example_comes_back_through_our_own_reader(example, tmp_path):
    model, ensemble, atoms = example
    path = write_ensemble(tmp_path, model, ensemble, atoms)
    states = alternates(path, ensemble.topology)
    for k, letter in enumerate("AB"):
        np.testing.assert_allclose(states[letter].coords, ensemble.coords[k].numpy(), atol=5.1e-4, rtol=0)
        again = read_model(path, altloc=letter)
        assert again.topology.names == model.topology.names
        assert set(again.occupancy[atoms]) == {1.0}


def test_region_atoms_are_isotropic_with_three_decimals(example, tmp_path):
    # The start's ANISOU describe the start; the members have B factors of their own.
    model, ensemble, atoms = example
    shifted = Ensemble(
        ensemble.topology, ensemble.coords + 1 / 3, ensemble.weights, ensemble.b_iso + torch.pi
    )
    path = write_ensemble(tmp_path, model, shifted, atoms)
    inside = [a for a in records(gemmi.read_structure(str(path))) if a[5] != "\0"]
    assert len(inside) == 2 * len(atoms)
    assert not np.array([a[-6:] for a in inside]).any()
    assert any(cra.atom.aniso.nonzero() for cra in model.structure[0].all())
    block = gemmi.cif.read(str(path)).sole_block()
    columns = ["Cartn_x", "Cartn_y", "Cartn_z", "B_iso_or_equiv"]
    for *xyz, b in block.find("_atom_site.", columns):
        assert all(len(value.partition(".")[2]) <= 3 for value in xyz)
        assert len(b.partition(".")[2]) <= 2


def test_occupancies_in_the_text_of_the_file_sum_to_one(example, tmp_path):
    model, ensemble, atoms = example
    three = ensemble.select([0, 1, 0], weights=weights(1, 1, 1))
    block = gemmi.cif.read(str(write_ensemble(tmp_path, model, three, atoms))).sole_block()
    columns = ["label_atom_id", "label_alt_id", "auth_seq_id", "occupancy"]
    sums = {}
    for atom, alt, number, occ in block.find("_atom_site.", columns):
        if alt != ".":
            sums[number, atom] = sums.get((number, atom), Decimal(0)) + Decimal(occ)
    assert len(sums) == len(atoms)
    assert set(sums.values()) == {Decimal(1)}


def test_each_member_is_a_model_of_its_own(example, tmp_path):
    model, ensemble, atoms = example
    paths = write_members(tmp_path, model, ensemble, atoms, ids=[3, 12])
    assert [str(p.relative_to(tmp_path)) for p in paths] == ["members/member_03.cif", "members/member_12.cif"]
    for k, path in enumerate(paths):
        member = read_model(path)
        assert member.topology.names == model.topology.names
        assert member.messages == ()
        np.testing.assert_allclose(member.coords[atoms], ensemble.coords[k].numpy(), atol=5.1e-4, rtol=0)
        rest = np.setdiff1d(np.arange(len(model.topology)), atoms)
        np.testing.assert_array_equal(member.coords[rest], model.coords[rest])
    assert [p.name for p in write_members(tmp_path, model, ensemble, atoms)] == [
        "member_01.cif",
        "member_02.cif",
    ]


def test_a_structure_that_does_not_fit_the_pdb_format(tmp_path):
    structure = small_structure()
    structure[0]["A"].name = "LONG"
    with pytest.raises(InputError, match="does not fit the PDB format"):
        write_structure(tmp_path / "a.pdb", structure)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", "old Å")
    assert path.read_text(encoding="utf-8") == "old Å"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text(encoding="utf-8") == "old Å"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_output_folder(tmp_path):
    out = prepare_output(tmp_path / "deep" / "out", own=OWN_FILES)
    assert out.is_dir()
    assert prepare_output(out, own=OWN_FILES) == out  # empty
    (out / "members").mkdir()
    ours = [out / "ensemble.cif", out / "checkpoint.pt", out / "members" / "member_07.cif"]
    foreign = [out / "notes.txt", out / "members" / "mine.cif", out / "model.cif"]
    for file in (*ours, *foreign):
        file.write_text("x")
    with pytest.raises(InputError, match=r"is not empty; choose another, or --force"):
        prepare_output(out, own=OWN_FILES)
    prepare_output(out, resume=True, own=OWN_FILES)
    assert all(f.exists() for f in (*ours, *foreign))
    ours.append(out / "result.json")
    ours[-1].write_text("x")
    with pytest.raises(InputError, match="its run is finished"):
        prepare_output(out, resume=True, own=OWN_FILES)
    prepare_output(out, force=True, own=OWN_FILES)
    assert not any(f.exists() for f in ours)
    assert all(f.exists() for f in foreign)


def test_output_folder_that_cannot_be_one(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="a file of this name exists"):
        prepare_output(file, force=True, own=OWN_FILES)
    with pytest.raises(InputError, match="cannot be used"):
        prepare_output(file / "below", own=OWN_FILES)


def result(**changes):
    values = {
        "inputs": [InputFile(name="a.mtz", sha256="0" * 64)],
        "settings": {"members": 16, "guide": "ensemble", "stages": [{"weight": 0.5}], "reference": None},
        "seed": 1,
        "versions": {"densemble": "0.1.0"},
        "device": "cpu",
        "timings": {"total": 12.5},
        "region": "A:176-191",
        "metrics": Metrics(
            voxels="within 2 Å of the start's loop",
            rscc={"start": 0.79, "ensemble": 0.83, "none": 0.5, "each": 0.8},
            cosine={"start": 0.8, "ensemble": 0.85, "none": 0.6, "each": 0.81},
        ),
        "r_factors": RFactors(
            start=RFactor(r_work=0.18, r_free=0.193), ensemble=RFactor(r_work=0.17, r_free=0.192)
        ),
        "members": [
            Member(id=1, selected=True, weight=0.6, rscc=0.8, bimodality=0.9, rmsd={"A": 4.5, "B": 0.4}),
            Member(id=2, selected=False, weight=0.0, rscc=0.4),
        ],
    }
    return Result(**(values | changes))


def test_result_round_trip_and_its_keys(tmp_path):
    path = write_result_json(tmp_path / "result.json", result())
    assert read_run(tmp_path) == result()
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data) == [
        *("schema", "inputs", "settings", "seed", "versions", "device", "timings", "region"),
        *("metrics", "r_factors", "members"),
    ]
    assert data["schema"] == "densemble.result/1"
    assert data["metrics"]["rscc"]["ensemble"] == 0.83
    assert data["r_factors"]["start"] == {"r_work": 0.18, "r_free": 0.193}
    assert data["members"][0]["rmsd"] == {"A": 4.5, "B": 0.4}
    assert "bimodality" not in data["members"][1]  # what is not known is left out


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("extra",), 1),
        (("seed",), "1"),
        (("seed",), 1.5),
        (("inputs", 0, "sha256"), "abc"),
        (("metrics", "rscc", "final"), 0.5),
        (("metrics", "rscc", "each"), "0.5"),
        (("members", 0, "weight"), -0.1),
        (("members", 0, "rscc"), None),
        (("r_factors", "start"), {"r_work": 0.2}),
    ],
)
def test_result_is_strict(tmp_path, where, value):
    data = json.loads(write_result_json(tmp_path / "result.json", result()).read_text(encoding="utf-8"))
    place = data
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"does not follow densemble.result/1: {where[0]}"):
        read_run(tmp_path)


def test_metrics_name_the_same_subjects_and_hold_numbers():
    with pytest.raises(ValidationError, match="same keys"):
        Metrics(voxels="", rscc={"start": 1.0, "ensemble": 1.0}, cosine={"start": 1.0})
    with pytest.raises(ValidationError, match="same keys"):
        Metrics(voxels="", rscc={"start": 1.0}, cosine={"start": 1.0})
    with pytest.raises(ValidationError, match="finite"):
        Metrics(
            voxels="", rscc={"start": float("nan"), "ensemble": 1.0}, cosine={"start": 1.0, "ensemble": 1.0}
        )


def test_reading_a_result_that_is_missing_or_not_json(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(InputError, match="is not a record of a run"):
            read_run(tmp_path)


def test_reading_a_result_of_another_version(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": "densemble.result/2"}')
    with pytest.raises(InputError, match=r"has schema 'densemble\.result/2', and what is known here is"):
        read_run(tmp_path)


def test_input_file_is_recorded_by_name_and_hash(tmp_path):
    path = tmp_path / "data.mtz"
    path.write_bytes(b"abc")
    # FIPS 180-4's example for the message "abc"
    assert InputFile.of(path).sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert InputFile.of(path).name == "data.mtz"
    assert InputFile.of(path).sha256 == hashlib.sha256(b"abc").hexdigest()
