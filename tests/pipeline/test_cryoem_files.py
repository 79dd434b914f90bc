"""``densemble cryoem`` from files to files on a small case: what is written, what is used, what is not."""

import json
from dataclasses import replace

import gemmi
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from small_crystal import StopAt, StoppedError, contents
from small_state import HINGE, RESOLUTION, SmallState, write_state

import densemble.em.sampling
from densemble.cli import main
from densemble.cryoem import run_cryoem
from densemble.errors import InputError
from densemble.grid import DensityMap
from densemble.io.maps import read_map, write_map
from densemble.io.models import read_model
from densemble.io.state_results import StateResult
from densemble.report import state_summary
from densemble.report.command import command_of


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> SmallState:
    return write_state(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def run(state, tmp_path_factory):
    """A finished run with half maps and a reference; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = state.settings(half1=state.half1, half2=state.half2, fit_in_b=True)
    return folder, run_cryoem(settings, folder, reference=state.truth)


def coordinates(path) -> np.ndarray:
    return np.array(
        [site.atom.pos.tolist() for model in gemmi.read_structure(str(path)) for site in model.all()]
    )


def test_result_is_nearer_to_the_truth_and_to_the_map_than_the_start(run):
    _, result = run
    assert result.best.reference.ca_rmsd < 0.6 * result.start_reference.ca_rmsd
    assert result.best.fit.correlation > result.start.correlation + 0.05
    assert result.best.fit.held_out_rscc > result.start.held_out_rscc


def test_a_large_motion_neither_tears_nor_shears_the_chain(tmp_path):
    """Half of the chain moves by 7.6 Å on average, by the recipe as it is shipped."""
    state = write_state(tmp_path, degrees=45.0)
    start, truth = (read_model(path) for path in (state.placed, state.truth))
    number = np.array([start.topology.residues[r].id.number for r in start.topology.residue_index])
    far = (np.array(start.topology.names) == "CA") & (number > HINGE)
    assert np.linalg.norm(start.coords[far] - truth.coords[far], axis=1).mean() > 7
    settings = state.settings(recipe="densemble", members=1, model=state.placed)
    best = run_cryoem(settings, tmp_path / "out", reference=state.truth).best
    assert best.reference.ca_rmsd < 0.7
    assert best.geometry.bond_rmsz < 0.6
    assert best.geometry.angle_rmsz < 0.9
    assert (best.geometry.twisted, best.geometry.wrong_hand) == (0, 0)


def test_members_are_ranked_by_the_map_alone(run):
    _, result = run
    assert [m.model for m in result.members] == [1, 2]
    assert sorted(m.sample for m in result.members) == [1, 2]
    fits = [m.fit.correlation for m in result.members]
    assert fits == sorted(fits, reverse=True)


def test_models_are_read_elsewhere_without_editing(run, state):
    folder, _ = run
    start = gemmi.read_structure(str(state.placed))
    best, models = (gemmi.read_structure(str(folder / name)) for name in ("best.cif", "models.cif"))
    assert len(best) == 1
    assert [model.name for model in models] == ["1", "2"]

    def names(model):
        return [(s.chain.name, str(s.residue.seqid), s.residue.name, s.atom.name) for s in model.all()]

    assert names(best[0]) == names(models[0]) == names(models[1]) == names(start[0])
    assert coordinates(folder / "best.cif") == pytest.approx(
        np.array([s.atom.pos.tolist() for s in models[0].all()])
    )
    assert not best.cell.is_crystal()


def test_fit_of_each_residue_is_in_the_b_column_and_in_the_table(run):
    folder, _ = run
    rows = (folder / "residues.csv").read_text().splitlines()
    assert rows[0] == "residue,name,rscc,q_score"
    table = {row.split(",")[0]: float(row.split(",")[2]) for row in rows[1:]}
    best = read_model(folder / "best.cif")
    assert len(table) == len(best.topology.residues)
    for r, b in zip(best.topology.residue_index, best.b_iso, strict=True):
        assert b == pytest.approx(100 * table[str(best.topology.residues[r].id)], abs=0.02)
    first, second = gemmi.read_structure(str(folder / "models.cif"))
    shown = [np.array([site.atom.b_iso for site in model.all()]) for model in (first, second)]
    assert shown[0] == pytest.approx(best.b_iso, abs=0.02)
    assert all(0 < b.mean() <= 100 and len(np.unique(b)) > 10 for b in shown)
    assert not np.allclose(*shown)


def test_record_says_what_was_done(run):
    folder, result = run
    read = StateResult.model_validate_json((folder / "result.json").read_bytes())
    assert read == result
    record = json.loads((folder / "result.json").read_text())
    assert record["schema"] == "densemble.cryoem/1"
    assert {f["name"] for f in record["inputs"]} == {
        "placed.cif", "map.ccp4", "half1.ccp4", "half2.ccp4", "truth.cif",
    }  # fmt: skip
    assert record["map"]["resolution"] == RESOLUTION
    assert record["settings"]["recipe_values"]["name"] == "small"
    assert len((folder / "trace.csv").read_text().splitlines()) > 2 * 5


def test_neither_the_reference_nor_the_other_half_has_a_part_in_it(run, state, tmp_path):
    folder, _ = run
    other = read_map(state.half2)
    write_map(tmp_path / "half2.ccp4", DensityMap(other.grid, other.values.flip(0)))
    settings = state.settings(half1=state.half1, half2=tmp_path / "half2.ccp4")
    result = run_cryoem(settings, tmp_path / "out")
    assert coordinates(tmp_path / "out" / "models.cif") == pytest.approx(coordinates(folder / "models.cif"))
    assert result.start_reference is None
    assert all(m.reference is None for m in result.members)


def test_resolution_of_half_maps_is_estimated(state, tmp_path):
    settings = state.settings(half1=state.half1, half2=state.half2, resolution=None, members=1, steps=2)
    result = run_cryoem(settings, tmp_path / "out")
    assert "half maps" in result.map.resolution_source
    assert 2.0 < result.map.resolution < 6.0


def test_a_killed_run_goes_on_to_the_same_result(run, state, tmp_path, monkeypatch):
    folder, _ = run
    settings = state.settings(half1=state.half1, half2=state.half2, fit_in_b=True)
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run_cryoem(settings, out, progress=StopAt("samples", 14))
    assert contents(out).keys() == {"checkpoint.pt", "map.ccp4"}
    with pytest.raises(InputError, match="other inputs or settings"):
        run_cryoem(replace(settings, seed=1), out, resume=True)
    seen = StopAt()
    # What the result is compared with is not part of it.
    run_cryoem(settings, out, resume=True, progress=seen, reference=state.truth, selection="A:70-75")
    assert seen.seen[0] == ("samples", 10)
    assert coordinates(out / "models.cif") == pytest.approx(coordinates(folder / "models.cif"))
    assert not (out / "checkpoint.pt").exists()


def test_members_in_several_batches(state, tmp_path, monkeypatch):
    monkeypatch.setattr(densemble.em.sampling, "TOGETHER", 50)
    result = run_cryoem(state.settings(steps=3), tmp_path / "out")
    assert sorted(m.sample for m in result.members) == [1, 2]
    assert "batch" in (tmp_path / "out" / "trace.csv").read_text().splitlines()[0]


def test_an_ensemble_explains_the_map_together(state, tmp_path):
    settings = state.settings(half1=state.half1, half2=state.half2, ensemble=True, members=3, steps=10)
    result = run_cryoem(settings, tmp_path / "out")
    mixture = result.ensemble
    assert mixture.correlation >= mixture.best_alone - 1e-9
    assert mixture.held_out is not None
    assert sum(mixture.weights) == pytest.approx(1.0)
    assert set(mixture.members) <= {1, 2, 3}
    assert "Together, models" in state_summary(result, tmp_path / "out")


def test_elastic_prior_runs(state, tmp_path):
    result = run_cryoem(state.settings(prior="elastic", steps=6, members=1), tmp_path / "out")
    assert np.isfinite(result.best.fit.correlation)


def test_the_paper_s_recipe_runs(state, tmp_path):
    result = run_cryoem(state.settings(recipe="cryoboltz-2025", steps=12, members=1), tmp_path / "out")
    columns = (tmp_path / "out" / "trace.csv").read_text().splitlines()[0].split(",")
    assert {"cloud", "density"} <= set(columns)
    assert len(result.members) == 1


def backbone_rmsd(path, reference, first: int, last: int) -> float:
    """Over a stretch, with all other CA atoms superposed."""
    models = [read_model(p) for p in (path, reference)]
    topology = models[0].topology
    number = np.array([topology.residues[r].id.number for r in topology.residue_index])
    chosen, names = (number >= first) & (number <= last), np.array(topology.names)
    around = ~chosen & (names == "CA")
    x, y = (model.coords - model.coords[around].mean(0) for model in models)
    turn, _ = Rotation.align_vectors(y[around], x[around])
    over = chosen & np.isin(names, ["N", "CA", "C", "O"])
    return float(np.sqrt(np.square(turn.apply(x[over]) - y[over]).sum(axis=1).mean()))


def test_distance_over_a_selection_is_stated_with_its_residues(state, tmp_path):
    out = tmp_path / "out"
    options = ["--model", state.placed, "--placed", "--resolution", RESOLUTION, "--recipe", state.recipe]
    options += ["--steps", 2, "--members", 1, "--quiet", "--out", out]
    options += ["--reference", state.truth, "--selection", "A:95-100"]
    done = CliRunner().invoke(main, ["cryoem", str(state.map), *map(str, options)])
    assert done.exit_code == 0, done.output
    result = StateResult.model_validate_json((out / "result.json").read_bytes())
    assert result.selection == "A:95-100"
    for found, file in ((result.start_reference, "start.cif"), (result.best.reference, "best.cif")):
        assert found.local_rmsd == pytest.approx(backbone_rmsd(out / file, state.truth, 95, 100), abs=2e-3)
    assert "Selection: the backbone of A:95-100" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("model 1"))
    assert row.split()[-1] == f"{result.best.reference.local_rmsd:.2f}"
    assert command_of(result).endswith("--selection A:95-100 --reference truth.cif --out again")


def test_command_docks_a_start_from_anywhere(state, tmp_path):
    out = tmp_path / "out"
    options = ["--model", state.start, "--resolution", RESOLUTION, "--recipe", state.recipe, "--members", 1]
    options += ["--reference", state.truth, "--quiet", "--out", out]
    done = CliRunner().invoke(main, ["cryoem", str(state.map), *map(str, options)])
    assert done.exit_code == 0, done.output
    assert "CA RMSD" in done.stdout
    record = json.loads((out / "result.json").read_text())
    (message,) = record["messages"]
    assert f"Warning: {message}" in done.stdout.splitlines()  # with --quiet too
    assert record["placement"]["docked"]
    away = coordinates(state.placed)
    docked = coordinates(out / "start.cif")
    assert np.sqrt(((away - docked) ** 2).sum(-1).mean()) < 4.0  # conformations differ: the pose is between
    moved = coordinates(state.start) @ np.array(record["placement"]["rotation"]).T
    assert moved + record["placement"]["translation"] == pytest.approx(docked, abs=2e-3)
