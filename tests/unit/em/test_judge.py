"""Judging models of a state: the reference matched by name, figures that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_state import RESOLUTION, write_state

from densemble.em.evaluation import Judge, matched
from densemble.grid import DensityMap
from densemble.io.maps import read_map
from densemble.io.models import read_model
from densemble.likelihood.state import StateLikelihood


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    state = write_state(tmp_path_factory.mktemp("state"))
    model, density = read_model(state.truth), read_map(state.map)
    mask = torch.ones(density.grid.shape)
    likelihood = StateLikelihood(density, mask, model.topology.elements, resolution=RESOLUTION, volume=5000.0)
    return model, density, likelihood


def judge_of(case, held_out=None, reference=None) -> Judge:
    model, _, likelihood = case
    return Judge(model, likelihood, kind="molmap", held_out=held_out, reference=reference)


def test_atoms_are_matched_by_name_whatever_their_order(case):
    model, _, _ = case
    order = np.arange(len(model.topology))[::-1]
    turned = replace(
        model,
        topology=replace(
            model.topology,
            names=tuple(model.topology.names[i] for i in order),
            elements=tuple(model.topology.elements[i] for i in order),
            residue_index=(len(model.topology.residues) - 1 - model.topology.residue_index[order]),
            residues=model.topology.residues[::-1],
        ),
        coords=model.coords[order],
    )
    np.testing.assert_array_equal(matched(model.topology, turned), model.coords)


def test_what_the_reference_lacks_is_not_known(case):
    model, _, _ = case
    few = model.topology.atoms_of(range(10))
    part = replace(
        model,
        topology=model.topology.subset(few),
        coords=model.coords[few],
        b_iso=model.b_iso[few],
        occupancy=model.occupancy[few],
    )
    found = matched(model.topology, part)
    assert np.isfinite(found).all(axis=1).sum() == len(few)
    fit = judge_of(case, reference=part).reference_fit()
    assert 0.1 < fit.correlation < 0.9  # a fifth of the density


def test_distance_is_after_superposition(case):
    model, _, _ = case
    judge = judge_of(case, reference=model)
    turn = Rotation.from_rotvec([0.3, 1.0, -0.2]).as_matrix()
    found = judge.distance(model.coords @ turn.T + 12.0)
    assert found.ca_rmsd == pytest.approx(0, abs=1e-6)
    assert found.all_atom_rmsd == pytest.approx(0, abs=1e-6)
    assert found.tm_score == pytest.approx(1.0)
    assert found.ca_rmsd_in_place > 5
    assert judge.distance(model.coords + np.array([0.0, 3.0, 4.0])).ca_rmsd_in_place == pytest.approx(5.0)
    assert judge_of(case).distance(model.coords) is None
    assert judge_of(case).reference_fit() is None


def test_local_distance_is_of_the_selection_superposed_on_the_rest(case):
    model, _, likelihood = case
    moved = model.coords + np.where(
        np.isin(model.topology.residue_index, [20, 21])[:, None], [0.0, 2.0, 0.0], 0
    )
    judge = Judge(model, likelihood, kind="molmap", reference=model, selection=[20, 21])
    assert judge.distance(moved).local_rmsd == pytest.approx(2.0, abs=1e-6)
    assert judge.distance(model.coords).local_rmsd == pytest.approx(0.0, abs=1e-6)
    # paper 2's: of CA atoms, superposed on all of them, so that the two pull the rest along
    alpha = np.flatnonzero(np.array(model.topology.names) == "CA")
    x, y = moved[alpha], model.coords[alpha]
    turn, _ = Rotation.align_vectors(y - y.mean(0), x - x.mean(0))
    off = np.linalg.norm(turn.apply(x - x.mean(0)) + y.mean(0) - y, axis=1)
    chosen = np.isin(model.topology.residue_index[alpha], [20, 21])
    expected = np.sqrt((off[chosen] ** 2).mean())
    assert judge.distance(moved).local_ca_rmsd == pytest.approx(expected, rel=1e-6)
    assert 0 < expected < 1.99


def test_the_truth_fits_its_own_map_and_a_shifted_one_does_not(case):
    model, _, _ = case
    judge = judge_of(case)
    true, off = (judge.fit(torch.from_numpy(model.coords + shift).float()) for shift in (0.0, 1.5))
    assert true.correlation > 0.999
    assert true.rscc > 0.999
    assert off.correlation < true.correlation - 0.1
    assert off.q_score < true.q_score
    assert true.fsc_05 < off.fsc_05


def test_held_out_figures_are_of_the_other_map(case):
    model, density, _ = case
    x = torch.from_numpy(model.coords).float()
    same = judge_of(case, held_out=density).fit(x)
    assert same.held_out_rscc == pytest.approx(same.rscc)
    noise = torch.randn(density.grid.shape, generator=torch.Generator().manual_seed(0))
    other = judge_of(case, held_out=DensityMap(density.grid, noise)).fit(x)
    assert abs(other.held_out_rscc) < 0.1


def test_mixture_is_the_weighted_sum(case):
    model, density, _ = case
    x = torch.from_numpy(model.coords).float()
    members = torch.stack([x, x + 1.0])
    judge = judge_of(case)
    values, _ = judge.voxel_values(members, judge.form(x))
    mixed = density.values.clone()
    mixed[judge.likelihood.mask > 0.5] = torch.from_numpy(0.6 * values[0] + 0.4 * values[1]).float()
    other = StateLikelihood(
        DensityMap(density.grid, mixed), judge.likelihood.mask, judge.likelihood.elements,
        resolution=RESOLUTION, volume=5000.0,
    )  # fmt: skip
    judge = Judge(model, other, kind="molmap", held_out=DensityMap(density.grid, mixed))
    found = judge.mixture(members, keep=3)
    values, target = judge.voxel_values(members, judge.form(members[0]))
    expected = np.corrcoef(np.array(found.weights) @ values[[k - 1 for k in found.members]], target)[0, 1]
    assert found.members == [1, 2]
    assert found.weights == pytest.approx([0.6, 0.4], abs=0.03)
    assert found.correlation == pytest.approx(expected)
    assert found.held_out == pytest.approx(expected)
    assert found.best_alone == pytest.approx(np.corrcoef(values[0], target)[0, 1])


def test_geometry_of_the_deposited_piece_is_sound(case):
    model, _, _ = case
    found = judge_of(case).geometry(torch.from_numpy(model.coords).float())
    assert found.bond_rmsz < 1.5
    assert found.wrong_hand == 0
    assert found.favoured + found.allowed + found.outliers == 48  # of 50 residues in a row
