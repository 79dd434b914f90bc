"""``densemble cryoem --ensemble --region``: two states of a loop in one map, and one state in another."""

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


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> SmallFlexible:
    return write_flexible(tmp_path_factory.mktemp("flexible"))


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A finished run on half maps of both states; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = files.settings(half1=files.half1, half2=files.half2, seed=1)
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


def test_one_state_stays_one(files, tmp_path):
    result = run_cryoem(files.settings(map=files.one), tmp_path / "out", reference=files.truth)
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
    assert "ensemble.cif" in said
    assert "contacts" in (folder / "trace.csv").read_text().splitlines()[0]


def test_a_killed_run_goes_on_to_the_same_region(run, files, tmp_path):
    folder, _ = run
    settings = files.settings(half1=files.half1, half2=files.half2, seed=1)
    with pytest.raises(StoppedError):
        run_cryoem(settings, tmp_path / "out", progress=StopAt(f"region {LOOP}", 12))
    seen = StopAt()
    run_cryoem(settings, tmp_path / "out", resume=True, progress=seen)
    assert seen.seen[0] == (f"region {LOOP}", 10)
    same = [(f / "ensemble.cif").read_bytes() for f in (folder, tmp_path / "out")]
    assert same[0] == same[1]


def test_the_best_model_is_held_where_it_fits_better_than_the_start(files, tmp_path):
    state = write_state(tmp_path)
    settings = state.settings(
        members=1,
        steps=20,
        ensemble=True,
        region="A:70-72",
        region_members=2,
        region_recipe=str(files.region_recipe),
    )
    result = run_cryoem(replace(settings), tmp_path / "out")
    assert result.best.fit.correlation > result.start.correlation
    best, mixed = (gemmi.read_structure(str(tmp_path / "out" / f"{n}.cif")) for n in ("best", "ensemble"))

    def outside(structure):
        return [s.atom.pos.tolist() for s in structure[0].all() if s.residue.seqid.num not in (70, 71, 72)]

    assert outside(mixed) == outside(best)
