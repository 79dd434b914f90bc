"""The map of a region alone: what is left when the rest is taken out, whatever the scale of the map."""

import numpy as np
import pytest
import torch
from small_flexible import LOOP, RESOLUTION, grid_of, write_flexible

from densemble.atoms import Region
from densemble.em.flexible import region_problem, standing
from densemble.em.rest import Rest, box_around
from densemble.errors import InputError
from densemble.forward.cryoem import AtomForm
from densemble.grid import DensityMap, Grid
from densemble.io.models import read_model
from densemble.recipes import load_recipe

KINDS = ("electron", "molmap")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(write_flexible(tmp_path_factory.mktemp("flexible")).start)


@pytest.fixture(scope="module")
def region(model):
    (stretch,) = Region.parse(LOOP).resolve(model.topology)
    return model.topology.atoms_of(stretch)


def drawn(model, kind, atoms, grid) -> torch.Tensor:
    elements = [model.topology.elements[i] for i in atoms]
    forward, b_iso = AtomForm.of(kind, RESOLUTION).with_b(grid, elements)
    return forward.members(torch.from_numpy(model.coords[atoms]).float()[None], torch.tensor(b_iso))[0]


def rest_of(model, kind, density, region) -> Rest:
    return Rest.of(density, model, region, kind=kind, resolution=RESOLUTION, margin=6.0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_the_region_in_the_unit_of_the_model(model, region, kind):
    grid = grid_of(model)
    density = DensityMap(grid, 3.0 * drawn(model, kind, np.arange(len(model.topology)), grid) + 0.4)
    rest = rest_of(model, kind, density, region)
    alone = rest.taken_out(density)
    expected = drawn(model, kind, region, alone.grid)
    inside = box_within(alone.grid, grid)  # beyond the map there is solvent at zero, not at 0.4
    error = (alone.values - expected)[inside].abs().max() / expected.max()
    assert float(error) < 0.02
    assert rest.form.spread == pytest.approx(AtomForm.of(kind, RESOLUTION).spread, rel=0.03)


def box_within(inner: Grid, outer: Grid) -> torch.Tensor:
    low, points = np.array(outer.origin), inner.points()
    high = low + np.array(outer.spacing) * (np.array(outer.shape) - 1)
    return torch.from_numpy(((points > low - 1e-6) & (points < high + 1e-6)).all(axis=-1))


def test_where_the_region_is_now_has_no_part_in_the_scale(model, region):
    """What the map shows in the region's place may differ: a second state, or nothing."""
    grid = grid_of(model)
    others = np.setdiff1d(np.arange(len(model.topology)), region)
    density = DensityMap(grid, 3.0 * drawn(model, "electron", others, grid))
    rest = rest_of(model, "electron", density, region)
    assert float(rest.taken_out(density).values.abs().max() / rest.density.values.max()) < 0.02


def test_a_map_of_something_else_is_refused(model, region):
    grid = grid_of(model)
    density = DensityMap(grid, -drawn(model, "electron", np.arange(len(model.topology)), grid))
    with pytest.raises(InputError, match="does not show the atoms around"):
        rest_of(model, "electron", density, region).taken_out(density)


def test_a_region_that_leaves_nothing_around_it_is_refused(model):
    everything = np.arange(len(model.topology))
    density = DensityMap(grid_of(model), drawn(model, "electron", everything, grid_of(model)))
    with pytest.raises(InputError, match="choose a shorter region"):
        rest_of(model, "electron", density, everything)


def test_box_is_on_the_voxels_of_the_map():
    grid = Grid((1.0, -2.0, 0.5), (0.9, 1.1, 1.0), (40, 40, 40))
    points = np.array([[10.0, 12.0, 8.0], [14.0, 13.0, 9.0]])
    box = box_around(grid, points, margin=3.0)
    index = (np.array(box.origin) - grid.origin) / grid.spacing
    np.testing.assert_allclose(index, np.rint(index), atol=1e-9)
    high = np.array(box.origin) + np.array(box.spacing) * (np.array(box.shape) - 1)
    for edge in (points.min(0) - box.origin, high - points.max(0)):
        assert (edge >= 3.0 - 1e-9).all()
        assert (edge < 3.0 + np.array(grid.spacing)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_problem_of_a_region_is_solved_by_what_made_the_map(model, kind):
    grid = grid_of(model)
    density = DensityMap(grid, 3.0 * drawn(model, kind, np.arange(len(model.topology)), grid))
    problem, _ = region_problem(
        density,
        standing(model, model.coords, 30.0),
        Region.parse(LOOP),
        load_recipe("embedded"),
        kind=kind,
        resolution=RESOLUTION,
    )
    likelihood = problem.likelihood("ensemble", problem.b_start)
    start = problem.stretches.start[None]
    fit = likelihood.fit(start, torch.ones(1))
    assert float(fit.scale) == pytest.approx(1.0, abs=0.03)
    power = (problem.mask * problem.target.values.square()).sum()
    assert float(fit.residual / power) < 1e-3
    assert len(problem.around.copies) == 0  # nothing of a crystal


def test_a_placed_model_is_in_no_crystal(model):
    moved = standing(model, model.coords + 5.0, 42.0)
    assert not moved.structure.cell.is_crystal()
    atoms = [atom for chain in moved.structure[0] for residue in chain for atom in residue]
    np.testing.assert_allclose([a.pos.tolist() for a in atoms], model.coords + 5.0)
    assert {a.b_iso for a in atoms} == {42.0}
