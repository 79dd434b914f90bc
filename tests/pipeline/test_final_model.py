"""From members to the final model: the number of states, their occupancies, and the files."""

import csv
from dataclasses import replace

import biotite.structure.io.pdbx as biotite_cif
import gemmi
import numpy as np
import pytest
import torch
from altloc_bonds import bonds_to_shared
from Bio.PDB.MMCIFParser import MMCIFParser
from small_crystal import OCCUPANCY
from small_report import bare_result

from densemble.atoms import Residue, ResidueId
from densemble.crystal.scaling import r_factors
from densemble.evaluation import ensemble_density, reference_states, start_ensemble
from densemble.inputs import load, problem_of
from densemble.io.finished import read_run
from densemble.io.models import alternates
from densemble.io.results import Metrics, RFactor, RFactors
from densemble.metrics.maps import rscc, voxels_near
from densemble.metrics.validation import validate_structure
from densemble.modelling import MOST_NAMED, final_model, validated, write_model
from densemble.pipeline import run_xray
from densemble.progress import Progress
from densemble.report import summary
from densemble.report.crystal_headline import headline
from densemble.report.writing import OWN_REPORT_FILES
from densemble.selection.amplitudes import AmplitudeJudge

REGION = "A:176-191"
"""All that has two states: what is outside of it is the truth."""


class Said(Progress):
    """Keeps what the user is told."""

    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture(scope="module")
def case(crystal):
    """Members as a sampler gives them: near the two states, and one near neither."""
    settings = crystal.settings(region=REGION)
    inputs = load(settings)
    problem = problem_of(settings, inputs)
    known = {
        name: torch.as_tensor(state.coords).float()
        for name, state in alternates(crystal.reference, inputs.stretches.topology).items()
        if np.isfinite(state.coords).all()
    }
    noise = torch.Generator().manual_seed(3)
    off = [0.1 * torch.randn(known["A"].shape, generator=noise) for _ in range(3)]
    members = torch.stack([known["A"] + off[0], known["B"] + off[1], (known["A"] + known["B"]) / 2 + off[2]])
    references = reference_states(crystal.reference, inputs.stretches)
    judge = AmplitudeJudge.of(problem.models, inputs.stretches.topology, inputs.reflections)
    modelled = final_model(inputs, problem, judge, members, cycles=2, references=references, tell=Progress())
    return inputs, problem, modelled


def test_two_states_are_found_with_their_occupancies(case):
    (part,) = case[2].record.states.parts
    assert [state.label for state in part.states] == ["A", "B"]
    found = {min(state.rmsd, key=state.rmsd.get): state for state in part.states}
    for name, occupancy in OCCUPANCY.items():
        assert found[name].occupancy == pytest.approx(occupancy, abs=0.06)
        assert found[name].rmsd[name] < 0.2
        assert found[name].interval.low <= found[name].occupancy <= found[name].interval.high
    assert found["A"].members == [1]  # members are counted from 1, the start is 0; the third is near neither
    assert found["B"].members == [0, 2]


def test_the_model_is_better_than_the_start_refined_alike(case):
    refinement = case[2].record.refinement
    assert refinement.model.r_free[1] < refinement.start.r_free[1] - 0.05
    assert refinement.start.r_free[1] < refinement.start.r_free[0]
    assert 0 < refinement.r_free_error < (refinement.start.r_free[1] - refinement.model.r_free[1]) / 2
    assert 0 < 2 * refinement.free_gain_error < refinement.free_gain
    assert set(case[2].record.validation) == {"start", "model"}


def with_ligands(built, places):
    """The same with a carbon at each place, every one a residue of its own: held, and of no region."""
    structure = built.structure.clone()
    chain = gemmi.Chain("L")
    for number, place in enumerate(places, start=1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid, residue.het_flag = "LIG", gemmi.SeqId(str(number)), "H"
        residue.entity_type = gemmi.EntityType.NonPolymer
        atom.name, atom.element, atom.pos = "C1", gemmi.Element("C"), gemmi.Position(*place)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    return replace(built, structure=structure)


def places_beside_the_second_state(modelled):
    """2.6 Å from a CA or O far from the start, 3.7 Å or more from all of the start and from each other."""
    rng = np.random.default_rng(4)
    start = np.array([a.pos.tolist() for c in modelled.start.structure[0] for r in c for a in r])
    found = []
    for residue in modelled.built.structure[0]["A"]:
        for atom in (a for a in residue if a.name in ("CA", "O")):
            for direction in rng.normal(size=(200, 3)):
                place = np.array(atom.pos.tolist()) + 2.6 * direction / np.linalg.norm(direction)
                if np.linalg.norm(np.array([*start, *found]) - place, axis=1).min() > 3.7:
                    found.append(place)
                    break
    return found


def test_held_residues_that_clash_with_the_model_and_not_with_the_start_are_named(case):
    _, problem, modelled = case
    stretches, start, built = problem.stretches, modelled.start, modelled.built
    own = modelled.record.clashes_with_held
    assert validated(start, built, stretches) == (modelled.record.validation, own)
    first, *_ = places = places_beside_the_second_state(modelled)
    assert len(places) > MOST_NAMED

    def named(*places, stretches=stretches):
        return validated(with_ligands(start, places), with_ligands(built, places), stretches)[1]

    assert set(named(first)) == {"L:1 LIG", *own}
    # what clashes with the start already, or has free atoms as side chains of a window have, is not named
    (old,) = (a for r in start.structure[0]["A"] if r.seqid.num == 182 for a in r if a.name == "CA")
    both = np.array(old.pos.tolist()) + np.array([0, 0, 2.6])
    judged = validate_structure(with_ligands(built, [both]).structure, region=stretches.region)
    assert "L:1 LIG" in judged.outside
    assert named(both) == own
    window = Residue(ResidueId("L", 1), "LIG")
    topology = replace(stretches.topology, residues=(*stretches.topology.residues, window))
    assert named(first, stretches=replace(stretches, topology=topology)) == own
    assert len(named(*places)) == MOST_NAMED


def test_files_say_what_the_record_says(case, tmp_path):
    _, problem, modelled = case
    write_model(tmp_path, problem, start_ensemble(problem), modelled, tell=Progress())
    structure = gemmi.read_structure(str(tmp_path / "model.cif"))
    (part,) = modelled.record.states.parts
    for residue in structure[0]["A"]:
        by_atom: dict[str, float] = {}
        for atom in residue:
            by_atom[atom.name] = by_atom.get(atom.name, 0.0) + atom.occ
        assert all(total == pytest.approx(1.0, abs=1e-6) for total in by_atom.values())
    for state in part.states:
        occupancies = {
            round(atom.occ, 2) for r in structure[0]["A"] for atom in r if atom.altloc == state.label
        }
        assert len(occupancies) == 1
        assert occupancies.pop() == pytest.approx(state.occupancy, abs=0.0051)
    assert len({a.altloc for r in structure[0]["A"] if r.seqid.num == 174 for a in r}) == 1
    parsed = MMCIFParser(QUIET=True).get_structure("x", str(tmp_path / "model.cif"))
    assert sum(a.is_disordered() > 0 for a in parsed.get_atoms()) > 20
    assert gemmi.read_structure(str(tmp_path / "model.pdb"))[0].count_atom_sites() == (
        structure[0].count_atom_sites()
    )
    assert "constrained_group" in (tmp_path / "phenix.eff").read_text()
    rows = list(csv.DictReader((tmp_path / "residues.csv").read_text().splitlines()))
    assert len(rows) == len(problem.stretches.free)
    better = np.array([float(r["model"]) - float(r["start"]) for r in rows])
    assert better.mean() > 0.01


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    """The model's file."""
    _, problem, modelled = case
    folder = tmp_path_factory.mktemp("written")
    write_model(folder, problem, start_ensemble(problem), modelled, tell=Progress())
    return folder / "model.cif"


def test_bonds_of_altlocs_to_what_stands_once_are_of_the_right_length(written):
    """Each, whatever their root mean square: here the loop's to its held neighbours, 0.033 Å at most."""
    off = bonds_to_shared(gemmi.read_structure(str(written))[0]["A"])
    assert {"175 C-+N A", "175 C-+N B", "191 C-+N A", "191 C-+N B"} <= set(off)
    assert max(map(abs, off.values())) < 0.05


def test_biopython_and_biotite_read_the_states_of_the_model(case, written):
    (part,) = case[2].record.states.parts
    occupancy = {state.label: state.occupancy for state in part.states}
    chain = MMCIFParser(QUIET=True).get_structure("x", str(written))[0]["A"]
    assert chain[182]["CA"].disordered_get_id_list() == ["A", "B"]
    assert not chain[174]["CA"].is_disordered()
    biopython = {x: chain[182]["CA"].disordered_get(x) for x in "AB"}
    assert {x: a.occupancy for x, a in biopython.items()} == pytest.approx(occupancy, abs=0.0051)

    def read(which):
        file = biotite_cif.CIFFile.read(written)
        fields = ["occupancy", "b_factor"]
        return biotite_cif.get_structure(file, model=1, altloc=which, extra_fields=fields)

    every, heavier = read("all"), read("occupancy")
    assert len(every) == gemmi.read_structure(str(written))[0].count_atom_sites()
    split = every[every.altloc_id != "."]
    assert set(split.altloc_id) == {"A", "B"}
    for letter, atom in biopython.items():
        assert np.unique(split.occupancy[split.altloc_id == letter]).tolist() == [atom.occupancy]
        (ca,) = every[(every.res_id == 182) & (every.atom_name == "CA") & (every.altloc_id == letter)]
        assert ca.coord == pytest.approx(atom.coord, abs=1e-3)
        assert ca.b_factor == pytest.approx(atom.bfactor, abs=1e-2)
    split = split[split.chain_id == "A"]  # a water may stand in one state only
    assert np.sum(every.chain_id == "A") == np.sum(heavier.chain_id == "A") + np.sum(split.altloc_id == "B")
    assert heavier[(heavier.res_id == 182) & (heavier.atom_name == "CA")].coord[0] == pytest.approx(
        biopython["A"].coord, abs=1e-3
    )


def altlocs_of(path):
    return {site.atom.altloc for site in gemmi.read_structure(str(path))[0].all() if site.atom.has_altloc()}


def test_the_model_that_is_advised_is_the_model_and_the_other_stands_beside_it(case, tmp_path):
    """The states here are clearly supported; then the same with free reflections that speak against them."""
    _, problem, modelled = case
    record = modelled.record
    assert record.advised
    before = record.refinement.start.r_free[1]
    gain = record.refinement.free_gain
    unclear = record.refinement.model_copy(update={"free_gain_error": gain})
    assert record.model_copy(update={"refinement": unclear}).advised  # the fitted reflections decide
    against = record.refinement.model_copy(update={"free_gain": -gain})
    doubtful = replace(modelled, record=record.model_copy(update={"refinement": against}))
    assert not doubtful.record.advised
    for name, each in (("clear", modelled), ("doubtful", doubtful)):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, problem, start_ensemble(problem), each, tell=Progress())
        files = [tmp_path / name / file for file in ("model.cif", "alternative.cif")]
        found = [altlocs_of(file) for file in files]
        assert found == ([{"A", "B"}, set()] if name == "clear" else [set(), {"A", "B"}])
        assert [altlocs_of(file.with_suffix(".pdb")) for file in files] == found
        assert (tmp_path / name / "phenix.eff").exists()
    # both are refined: what is written is what the R factors are of
    one = gemmi.read_structure(str(tmp_path / "doubtful" / "model.cif"))
    r = r_factors(one, case[0].reflections)
    assert r.r_free == pytest.approx(before, abs=1e-4)


def test_why_there_is_no_pdb_file_is_said(case, tmp_path, monkeypatch):
    monkeypatch.setattr("densemble.refinement.programs.pdb_obstacle", lambda structure: "chain 'AA'")
    _, problem, modelled = case
    said = Said()
    write_model(tmp_path, problem, start_ensemble(problem), modelled, tell=said)
    assert said.messages == [
        "no model.pdb: the model does not fit the PDB format (chain 'AA'); use model.cif"
    ]
    assert not (tmp_path / "model.pdb").exists()


@pytest.mark.parametrize("advised", [True, False])
def test_it_is_said_of_the_model_not_of_the_other(case, tmp_path, monkeypatch, advised):
    """The one with states is too large for the PDB format here, wherever it is written."""
    _, problem, modelled = case
    large = modelled.built.structure
    monkeypatch.setattr(
        "densemble.refinement.programs.pdb_obstacle",
        lambda structure: "large" if structure is large else None,
    )
    if not advised:
        refinement = modelled.record.refinement.model_copy(update={"free_gain": 0.0})
        modelled = replace(modelled, record=modelled.record.model_copy(update={"refinement": refinement}))
    said = Said()
    write_model(tmp_path, problem, start_ensemble(problem), modelled, tell=said)
    assert len(said.messages) == advised
    assert (tmp_path / "model.pdb").exists() is not advised


def test_residues_are_judged_where_the_model_s_states_stand_too(case, tmp_path):
    """Voxels within 2 Å of any conformation compared: without the model's, its own places would not count."""
    _, problem, modelled = case
    start = start_ensemble(problem)
    write_model(tmp_path, problem, start, modelled, tell=Progress())
    rows = {r["residue"]: r for r in csv.DictReader((tmp_path / "residues.csv").read_text().splitlines())}
    topology, target = problem.stretches.topology, problem.target
    number = next(r for r, residue in enumerate(topology.residues) if residue.id.number == 182)
    own = start.coords[0, topology.atoms_of([number])]
    (residue,) = (r for r in gemmi.read_structure(str(tmp_path / "model.cif"))[0]["A"] if r.seqid.num == 182)
    states = torch.tensor([atom.pos.tolist() for atom in residue])
    inside = voxels_near(target.grid, torch.cat([own, states]), 2.0)
    assert inside.sum() > 1.3 * voxels_near(target.grid, own, 2.0).sum()
    expected = rscc(ensemble_density(problem.forward, start), target.values, inside)
    assert float(rows["A:182"]["start"]) == pytest.approx(expected, abs=2e-3)


def test_the_terminal_says_what_the_model_is(case, crystal):
    record = case[2].record
    factor = RFactor(r_work=0.2, r_free=0.2)
    fits = {"start": 0.8, "ensemble": 0.9}
    result = bare_result(
        region=REGION,
        metrics=Metrics(voxels="somewhere", rscc=fits, cosine=fits),
        r_factors=RFactors(start=factor, ensemble=factor),
        model=record,
    )
    text = summary(result, crystal.model.parent)
    (part,) = record.states.parts
    for state in part.states:
        assert f"{part.region} {state.label}" in text
        assert f"{state.interval.low:.2f}-{state.interval.high:.2f}" in text
    assert f"{record.refinement.start.r_free[1]:.4f} of one state" in text
    assert f"{record.refinement.model.r_free[1]:.4f} of the model of states" in text
    assert "they had a say in the number of states" in text
    assert "used for nothing else" not in text
    assert "model.cif" in text


def test_waters_stand_where_the_model_leaves_them_room_and_the_record_says_which_gave_way(case, tmp_path):
    inputs, problem, modelled = case
    write_model(tmp_path, problem, start_ensemble(problem), modelled, tell=Progress())
    structure = gemmi.read_structure(str(tmp_path / "model.cif"))
    assert len(modelled.record.waters_displaced) + len(modelled.record.waters_partial) >= 2
    waters = {f"W:{r.seqid}": r for r in structure[0]["W"]}
    before = {f"W:{r.seqid}" for r in inputs.model.structure[0]["W"]}
    assert set(modelled.record.waters_displaced) == before - set(waters)
    partial = {n: ", ".join(a.altloc for a in r) for n, r in waters.items() if r[0].has_altloc()}
    assert modelled.record.waters_partial == [f"{n} altloc {letters}" for n, letters in partial.items()]
    near = gemmi.NeighborSearch(structure[0], structure.cell, 4.0).populate()
    for atom in (atom for residue in waters.values() for atom in residue):
        for mark in near.find_atoms(atom.pos, atom.altloc, radius=2.8):
            other = mark.to_cra(structure[0])
            if other.chain.name == "A":
                apart = structure.cell.find_nearest_pbc_image(atom.pos, other.atom.pos, mark.image_idx).dist()
                assert apart > (2.8 if other.atom.element.name == "C" else 2.3) - 0.001
    selections = (tmp_path / "phenix.eff").read_text().split("altloc A")[0]
    assert [f"resseq {n[2:]} " in selections for n in partial] == ["A" in x for x in partial.values()]


def test_a_run_writes_its_model_and_can_leave_it(crystal, tmp_path):
    settings = crystal.settings(states=True, cycles=1, members=2, steps=3)
    result = run_xray(settings, tmp_path / "out")
    assert result.model is not None
    assert (tmp_path / "out" / "model.cif").exists()
    assert read_run(tmp_path / "out").model == result.model
    assert result.model.refinement.cycles == 1
    again = run_xray(crystal.settings(members=2, steps=3), tmp_path / "out", force=True)
    assert again.model is None
    assert not (tmp_path / "out" / "model.cif").exists()


def test_a_model_that_cannot_be_made_does_not_cost_the_ensemble(crystal, tmp_path, monkeypatch):
    """A run of hours must not end with nothing but a traceback."""

    def fails(*arguments, **options):
        (tmp_path / "out" / "model.cif").write_text("half a model")
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr("densemble.pipeline.write_model", fails)
    monkeypatch.setattr("densemble.pipeline.final_model", lambda *arguments, **options: None)
    said = Said()
    settings = crystal.settings(states=True, members=2, steps=3)
    result = run_xray(settings, tmp_path / "out", progress=said)
    assert result.model is None
    assert result.model_failure == "LinAlgError: Singular matrix"
    assert any("LinAlgError: Singular matrix" in text for text in said.messages)
    assert read_run(tmp_path / "out") == result
    written = {f.name for f in (tmp_path / "out").iterdir()}
    assert written == {"ensemble.cif", "members", "map.ccp4", "trace.csv", "result.json", "model.log"}
    assert "Singular matrix" in (tmp_path / "out" / "model.log").read_text()
    assert "could not be told" in " ".join(headline(result).answer)
    assert "No final model: LinAlgError: Singular matrix" in summary(result, tmp_path / "out")


def test_a_new_run_leaves_no_report_of_the_one_before(crystal, tmp_path):
    settings = crystal.settings(members=2, steps=3)
    run_xray(settings, tmp_path / "out")
    for name in OWN_REPORT_FILES:
        (tmp_path / "out" / name).write_text("of the run before")
    (tmp_path / "out" / "notes.txt").write_text("the user's")
    run_xray(settings, tmp_path / "out", force=True)
    left = {f.name for f in (tmp_path / "out").iterdir()}
    assert not left & set(OWN_REPORT_FILES)
    assert "notes.txt" in left
