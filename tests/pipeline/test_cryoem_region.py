"""``densemble cryoem --ensemble --region``: two states of a loop in one map, and one state in another."""

import csv
from dataclasses import replace

import gemmi
import numpy as np
import pytest
from small_crystal import OCCUPANCY, StopAt, StoppedError
from small_flexible import LOOP, SmallFlexible, write_flexible
from small_state import write_state

from densemble.cryoem import run_cryoem
from densemble.io.models import read_model
from densemble.io.state_results import StateResult
from densemble.report import state_summary

FLEXIBLE = range(176, 192)


def both_halves(files: SmallFlexible) -> dict:
    return {"half1": files.half1, "half2": files.half2, "seed": 1, "states": True, "cycles": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> SmallFlexible:
    return write_flexible(tmp_path_factory.mktemp("flexible"))


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A finished run on half maps of both states; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = files.settings(**both_halves(files))
    return folder, run_cryoem(settings, folder, reference=files.truth)


def kept(result: StateResult):
    return [m for m in result.region.members if m.selected]


def test_both_states_get_weight(run):
    """The start is the second state alone; the first is up to 6 Å away."""
    _, result = run
    weight = {"A": 0.0, "B": 0.0}
    for member in kept(result):
        nearest = min(member.rmsd, key=member.rmsd.get)
        assert member.rmsd[nearest] < 1.0
        weight[nearest] += member.weight
    for letter, occupancy in OCCUPANCY.items():
        assert weight[letter] == pytest.approx(occupancy, abs=0.15)


def test_the_half_map_held_out_agrees(run):
    _, result = run
    region = result.region
    assert region.metrics.rscc["ensemble"] > region.metrics.rscc["start"] + 0.05
    assert region.held_out["ensemble"] > region.held_out["start"] + 0.05


def test_the_model_has_as_many_states_as_the_half_maps_have(run):
    """What is fitted is the first half map; the second, with as much in it, must be better explained."""
    _, result = run
    model = result.region.model
    (part,) = model.states.parts
    assert [state.label for state in part.states] == ["A", "B"]
    found = {min(state.rmsd, key=state.rmsd.get): state for state in part.states}
    for letter, occupancy in OCCUPANCY.items():
        assert found[letter].rmsd[letter] < 0.7
        assert found[letter].occupancy == pytest.approx(occupancy, abs=0.12)
        assert found[letter].interval.low < occupancy < found[letter].interval.high
    one, two, *more = part.evidence
    assert two.chosen
    assert two.held_out > one.held_out + 2 * two.error
    assert not any(step.chosen for step in more)
    assert "held out must be better: log-likelihood of the other half map in blocks of 2.5 Å" in (
        model.states.rule
    )
    refinement = model.refinement
    assert refinement.start.r_free is None
    before, after = refinement.held_out_rscc
    assert after > before + 2 * refinement.held_out_error > before


def test_the_model_is_written_with_what_goes_on_from_it(run):
    folder, result = run
    structure = gemmi.read_structure(str(folder / "model.cif"))
    (part,) = result.region.model.states.parts
    stated = {state.label: state.occupancy for state in part.states}
    altlocs = {(s.atom.altloc, round(s.atom.occ, 2)) for s in structure[0].all() if s.atom.has_altloc()}
    assert altlocs == {(letter, round(occ, 2)) for letter, occ in stated.items()}
    assert all(s.residue.seqid.num in FLEXIBLE for s in structure[0].all() if s.atom.has_altloc())
    assert gemmi.read_structure(str(folder / "model.pdb"))[0].count_atom_sites() == (
        structure[0].count_atom_sites()
    )
    assert "occupancy group id 1" in (folder / "refmac.txt").read_text()
    assert not (folder / "phenix.eff").exists()  # phenix.refine takes amplitudes
    other = gemmi.read_structure(str(folder / "alternative.cif"))  # one state, refined alike
    assert not any(site.atom.has_altloc() for site in other[0].all())
    rows = list(csv.DictReader((folder / "residues.csv").read_text().splitlines()))
    own = [row for row in rows if row["model"]]
    assert {int(row["residue"][2:]) for row in own} >= set(FLEXIBLE)
    assert all(row["rscc"] for row in rows)
    assert len(own) <= len(rows)
    gain = [float(row["model"]) - float(row["start"]) for row in own]
    assert np.mean(gain) > 0.03


def test_one_state_stays_one(files, tmp_path):
    settings = files.settings(map=files.one, states=True, cycles=1)
    result = run_cryoem(settings, tmp_path / "out", reference=files.truth)
    model = result.region.model
    assert not model.several
    assert model.refinement.held_out_rscc is None
    assert not any(
        site.atom.has_altloc() for site in gemmi.read_structure(str(tmp_path / "out" / "model.cif"))[0].all()
    )
    assert not (tmp_path / "out" / "refmac.txt").exists()
    assert not (tmp_path / "out" / "alternative.cif").exists()
    said = state_summary(result, tmp_path / "out")
    assert f"One state of {LOOP} is enough" in said or "One state: no two members differ" in said
    (member,) = kept(result)
    assert member.weight == 1.0
    assert member.rmsd["B"] < 0.2
    structure = gemmi.read_structure(str(tmp_path / "out" / "ensemble.cif"))
    assert not any(site.atom.has_altloc() for site in structure[0].all())


def test_altlocs_are_in_the_region_and_the_rest_is_held(run, files):
    folder, result = run
    structure = gemmi.read_structure(str(folder / "ensemble.cif"))
    start = read_model(files.start)
    place = {
        (start.topology.residues[r].id.number, name): x
        for r, name, x in zip(start.topology.residue_index, start.topology.names, start.coords, strict=True)
    }
    occupancy = {}
    for site in structure[0].all():
        number = site.residue.seqid.num
        assert site.atom.has_altloc() == (number in FLEXIBLE)
        if number in FLEXIBLE:
            occupancy.setdefault((number, site.atom.name), []).append(site.atom.occ)
        else:  # the docked start is held here, since no sample of four steps fits better
            np.testing.assert_allclose(site.atom.pos.tolist(), place[number, site.atom.name], atol=2e-3)
            assert site.atom.b_iso == pytest.approx(result.region.b_around, abs=0.01)
    assert all(sum(values) == pytest.approx(1.0) for values in occupancy.values())
    assert len(kept(result)) == len(occupancy[180, "CA"])
    assert {p.name for p in (folder / "members").iterdir()} == {f"member_{k:02d}.cif" for k in range(1, 9)}


def test_it_is_recorded_and_said(run):
    folder, result = run
    assert StateResult.model_validate_json((folder / "result.json").read_bytes()) == result
    assert result.ensemble is None
    assert result.settings["region"] == LOOP
    assert result.settings["region_recipe_values"]["noise"]["steps"] == 20
    said = state_summary(result, folder)
    assert LOOP in said
    assert "model.cif, ensemble.cif" in said
    assert f"The data support two states of {LOOP}." in said
    assert "in half map 2, held out, " in said
    assert "contacts" in (folder / "trace.csv").read_text().splitlines()[0]


def test_a_killed_run_goes_on_to_the_same_region(run, files, tmp_path):
    """Also without a reference: what is known of the truth has no part in anything but distances."""
    folder, _ = run
    settings = files.settings(**both_halves(files))
    with pytest.raises(StoppedError):
        run_cryoem(settings, tmp_path / "out", progress=StopAt(f"region {LOOP}", 12))
    seen = StopAt()
    run_cryoem(settings, tmp_path / "out", resume=True, progress=seen)
    assert seen.seen[0] == (f"region {LOOP}", 10)
    for name in ("ensemble.cif", "model.cif"):
        first, second = ((f / name).read_bytes() for f in (folder, tmp_path / "out"))
        assert first == second


def test_the_best_model_is_held_where_it_fits_better_than_the_start(files, tmp_path):
    state = write_state(tmp_path)
    settings = state.settings(
        members=1,
        steps=20,
        ensemble=True,
        region="A:70-72",
        region_members=2,
        states=False,
        region_recipe=str(files.region_recipe),
    )
    result = run_cryoem(replace(settings), tmp_path / "out")
    assert result.best.fit.correlation > result.start.correlation
    best, mixed = (gemmi.read_structure(str(tmp_path / "out" / f"{n}.cif")) for n in ("best", "ensemble"))

    def outside(structure):
        return [s.atom.pos.tolist() for s in structure[0].all() if s.residue.seqid.num not in (70, 71, 72)]

    assert outside(mixed) == outside(best)


def test_a_model_that_cannot_be_made_does_not_cost_the_ensemble(files, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr("densemble.em.flexible.region_model", fails)
    result = run_cryoem(files.settings(region_members=2, states=True), tmp_path / "out")
    assert result.region.model is None
    assert result.region.model_failure == "LinAlgError: Singular matrix"
    written = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"ensemble.cif", "residues.csv", "model.log"} <= written
    assert "model.cif" not in written
    assert "No final model: LinAlgError: Singular matrix" in state_summary(result, tmp_path / "out")
