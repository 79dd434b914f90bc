"""What is said of a result, against brute force and closed forms."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from small_crystal import write_crystal

from densemble.atoms import Ensemble
from densemble.errors import InputError
from densemble.evaluation import (
    Voxels,
    backbone_atoms,
    distances,
    ensemble_density,
    map_fit,
    map_fits,
    member_records,
    reference_states,
    residue_rows,
    start_ensemble,
)
from densemble.grid import DensityMap, Grid
from densemble.inputs import load, problem_of
from densemble.testing import chain_topology


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture(scope="module")
def problem(crystal):
    settings = crystal.settings()
    return problem_of(settings, load(settings))


@pytest.fixture(scope="module")
def states(crystal, problem):
    return reference_states(crystal.reference, problem.stretches)


def shown(problem, ensemble):
    """The problem with the atoms' density of an ensemble, on another scale, as its target."""
    density = problem.forward(
        ensemble.coords, ensemble.weights, ensemble.b_iso.clamp(min=problem.forward.b_min)
    )
    return replace(problem, target=DensityMap(problem.target.grid, 2.5 * density.detach()))


def both_states(problem, states) -> Ensemble:
    coords = torch.as_tensor(np.stack([states["A"], states["B"]]), dtype=torch.float32)
    b_iso = problem.b_start.expand(2, -1)
    return Ensemble(problem.stretches.topology, coords, torch.tensor([0.4, 0.6]), b_iso)


def test_reference_has_the_deposited_states(problem, states):
    assert list(states) == ["A", "B"]
    start = problem.stretches.start.numpy()
    assert np.abs(states["B"] - start).max() < 1e-3  # the start is state B
    assert np.linalg.norm(states["A"] - start, axis=1).max() > 3


def test_no_reference_no_states(problem):
    assert reference_states(None, problem.stretches) == {}


def test_reference_that_is_missing(problem, tmp_path):
    with pytest.raises(InputError, match=r"absent\.cif"):
        reference_states(tmp_path / "absent.cif", problem.stretches)


def test_voxels_of_states_are_those_within_two_angstrom_of_either():
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 9, 10))
    target = DensityMap(grid, torch.zeros(8, 9, 10))
    states = {
        "A": np.array([[2.0, 2.0, 2.0], [np.nan] * 3]),
        "B": np.array([[np.nan] * 3, [5.5, 6.0, 7.0]]),
    }
    voxels = Voxels.of_states(target, states, "truth.cif")
    centres = np.array([[2.0, 2.0, 2.0], [5.5, 6.0, 7.0]])
    near = np.linalg.norm(grid.points()[..., None, :] - centres, axis=-1).min(axis=-1) <= 2.0
    assert np.array_equal(voxels.inside.numpy(), near)
    assert 0 < near.sum() < near.size
    assert voxels.description == "within 2 Å of an atom of the region in truth.cif, state A or B"
    one = Voxels.of_states(target, {"": states["A"]}, "truth.cif")
    assert one.description.endswith("state its one state")


def test_voxels_of_models_hold_every_model_whatever_their_numbers():
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 9, 10))
    target = DensityMap(grid, torch.zeros(8, 9, 10))
    one, two = torch.full((1, 1, 3), 2.0), torch.tensor([[[5.0, 5.0, 5.0]], [[6.0, 6.0, 6.0]]])
    both = Voxels.of_models(target, one, two).inside
    assert torch.equal(both, Voxels.of_models(target, one).inside | Voxels.of_models(target, two).inside)
    assert bool(both[2, 2, 2])
    assert bool(both[6, 6, 8])
    assert not bool(both[0, 8, 0])


def test_distances_in_place_against_numpy():
    topology = chain_topology(3)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 12, 3))
    members = np.stack([a, b, (a + b) / 2])
    to, score = distances(topology, members, {"A": a, "B": b})
    apart = np.sqrt(((a - b) ** 2).sum(axis=1).mean())
    assert to["A"] == pytest.approx([0, apart, apart / 2])
    assert to["B"] == pytest.approx([apart, 0, apart / 2])
    assert score == pytest.approx([-1, 1, 0], abs=1e-9)
    _, none = distances(topology, members, {"A": a})
    assert none is None


def test_distances_are_over_the_backbone_alone(problem, states):
    topology = problem.stretches.topology
    atoms = backbone_atoms(topology)
    assert {topology.names[i] for i in atoms} == {"N", "CA", "C", "O"}
    assert len(atoms) == 4 * len(topology.residues)
    moved = states["B"].copy()
    moved[np.setdiff1d(np.arange(len(topology)), atoms)] += 5.0
    to, _ = distances(topology, moved[None], states)
    assert to["B"] == pytest.approx([0.0])


def test_fit_of_the_density_itself_is_perfect(problem, states):
    ensemble = both_states(problem, states)
    exact = shown(problem, ensemble)
    voxels = Voxels.of_states(exact.target, states, "truth.cif")
    fit = map_fit(exact.forward, exact.target, voxels, ensemble)
    assert (fit.rscc, fit.cosine) == pytest.approx((1.0, 1.0), abs=1e-5)
    one = map_fit(exact.forward, exact.target, voxels, ensemble.select([1]))
    assert one.rscc < 0.95


def test_map_fit_is_pearson_and_cosine_of_the_voxels(problem, states):
    ensemble = start_ensemble(problem)
    voxels = Voxels.of_states(problem.target, states, "truth.cif")
    fit = map_fit(problem.forward, problem.target, voxels, ensemble)
    with torch.no_grad():
        density = problem.forward(ensemble.coords, ensemble.weights, problem.b_start[None])
    a, b = (v[voxels.inside].double().numpy() for v in (density, problem.target.values))
    assert fit.rscc == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert fit.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-6)


def test_start_is_one_member(problem):
    ensemble = start_ensemble(problem)
    assert ensemble.coords.shape == (1, len(problem.stretches.topology), 3)
    assert ensemble.weights.tolist() == [1.0]
    assert torch.equal(ensemble.coords[0], problem.stretches.start)


def test_all_subjects_are_compared_on_the_same_voxels(problem, states):
    """The figure of a subject does not depend on the others where there is a reference."""
    subjects = {"start": start_ensemble(problem), "ensemble": both_states(problem, states)}
    metrics, voxels = map_fits(problem, subjects, states, "truth.cif")
    for name, ensemble in subjects.items():
        assert metrics.rscc[name] == map_fit(problem.forward, problem.target, voxels, ensemble).rscc
    swapped = {"start": subjects["start"], "ensemble": subjects["start"]}
    assert map_fits(problem, swapped, states, "truth.cif")[0].rscc["start"] == metrics.rscc["start"]


def test_members_without_weight_are_not_where_the_fit_is_taken(problem):
    start = start_ensemble(problem)
    astray = Ensemble(
        start.topology,
        torch.cat([start.coords, start.coords + 4.0]),
        torch.tensor([1.0, 0.0]),
        start.b_iso.expand(2, -1),
    )
    with_astray, _ = map_fits(problem, {"start": start, "ensemble": astray}, {}, "")
    alone, _ = map_fits(problem, {"start": start, "ensemble": start}, {}, "")
    assert with_astray == alone
    assert "in the start or any ensemble" in alone.voxels


def test_records_of_members(problem, states):
    ensemble = both_states(problem, states)
    exact = shown(problem, ensemble)
    voxels = Voxels.of_states(exact.target, states, "truth.cif")
    coords = torch.cat([ensemble.coords, ensemble.coords[:1] + 1.0])
    records = member_records(exact, voxels, coords, {0: 0.4, 1: 0.6}, problem.b_start, states)
    assert [r.id for r in records] == [1, 2, 3]
    assert [r.selected for r in records] == [True, True, False]
    assert [r.weight for r in records] == [0.4, 0.6, 0.0]
    assert [r.bimodality for r in records[:2]] == pytest.approx([-1, 1], abs=1e-4)
    assert records[2].rmsd["A"] == pytest.approx(3**0.5, abs=1e-4)
    alone = map_fit(exact.forward, exact.target, voxels, ensemble.select([0], weights=torch.ones(1)))
    assert records[0].rscc == pytest.approx(alone.rscc, abs=1e-6)
    assert records[2].rscc < records[0].rscc


def test_member_of_weight_zero_is_not_selected(problem, states):
    ensemble = both_states(problem, states)
    voxels = Voxels.of_states(problem.target, states, "truth.cif")
    records = member_records(problem, voxels, ensemble.coords, {0: 1.0, 1: 0.0}, problem.b_start, {})
    assert [r.selected for r in records] == [True, False]
    assert [(r.bimodality, r.rmsd) for r in records] == [(None, None)] * 2


def test_states_without_a_backbone_are_no_states(crystal, problem, tmp_path):
    """A third letter on a side chain alone, as refinement programs write it."""
    structure = gemmi.read_structure(str(crystal.reference))
    residue = next(r for r in structure[0]["A"] if r.seqid.num == 182)
    extra = next(atom for atom in residue if atom.name == "CB").clone()
    extra.altloc = "C"
    residue.add_atom(extra)
    path = tmp_path / "three.cif"
    structure.make_mmcif_document().write_file(str(path))
    found = reference_states(path, problem.stretches)
    assert list(found) == ["A", "B"]
    to, score = distances(problem.stretches.topology, problem.stretches.start[None].double().numpy(), found)
    assert to["B"][0] < 1e-3
    assert score[0] > 0.99


def test_reference_without_any_backbone(crystal, problem, tmp_path):
    structure = gemmi.read_structure(str(crystal.reference))
    for residue in structure[0]["A"]:
        for i in reversed(range(len(residue))):
            if residue[i].name in ("N", "CA", "C", "O"):
                del residue[i]
    path = tmp_path / "bare.cif"
    structure.make_mmcif_document().write_file(str(path))
    with pytest.raises(InputError, match=r"bare\.cif: has no backbone atom of A:179-186"):
        reference_states(path, problem.stretches)


def test_states_that_share_no_atom_have_no_bimodality():
    topology = chain_topology(2)
    a = np.arange(24.0).reshape(8, 3)
    first, second = a.copy(), a.copy()
    first[4:], second[:4] = np.nan, np.nan
    to, score = distances(topology, a[None], {"A": first, "B": second})
    assert (to["A"][0], to["B"][0]) == (0, 0)
    assert score is None


def test_residues_have_the_correlation_of_their_own_voxels(problem, states):
    """What makes the target correlates fully; the start by numpy over the voxels near each residue."""
    truth, start = both_states(problem, states), start_ensemble(problem)
    made = shown(problem, truth)
    densities = {
        "start": ensemble_density(made.forward, start),
        "ensemble": ensemble_density(made.forward, truth),
    }
    rows = residue_rows(made, densities, truth.coords)
    topology, grid = problem.stretches.topology, made.target.grid
    assert [row["residue"] for row in rows] == [str(r.id) for r in topology.residues]
    assert [row["ensemble"] for row in rows] == pytest.approx([1.0] * len(rows))
    points = grid.points().reshape(-1, 3)
    for r, row in enumerate(rows):
        near = truth.coords[:, topology.atoms_of([r])].reshape(-1, 3).double().numpy()
        inside = np.linalg.norm(points[:, None] - near, axis=-1).min(axis=1) <= 2.0
        pair = [x.double().numpy().reshape(-1)[inside] for x in (densities["start"], made.target.values)]
        assert row["start"] == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-6)
    assert min(row["start"] for row in rows) < 0.9


def test_a_residue_outside_the_map_has_no_figure(problem, states):
    truth = both_states(problem, states)
    away = truth.coords + 500.0
    (row, *_) = residue_rows(problem, {"start": ensemble_density(problem.forward, truth)}, away)
    assert np.isnan(row["start"])
