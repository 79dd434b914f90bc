"""Which voxels and atoms are compared, and where a start must stand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from small_state import RESOLUTION, write_state

from densemble.docking import shown
from densemble.em.evaluation import Judge
from densemble.em.inputs import load
from densemble.em.preparation import prepare
from densemble.em.problem import (
    ASTRAY,
    GIVEN,
    ZONE,
    StateProblem,
    beyond,
    check_inside,
    compared,
    problem_of,
    zone_of,
)
from densemble.em.sampling import terms_of
from densemble.errors import InputError
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map, write_map
from densemble.io.models import read_model
from densemble.likelihood.state import StateLikelihood
from densemble.progress import Progress
from densemble.recipes.state import load_state_recipe


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return write_state(tmp_path_factory.mktemp("state"))


def test_a_map_of_the_model_is_compared_wherever_it_has_density(state):
    problem = problem_of(state.settings(), load(state.settings()), Progress())
    torch.testing.assert_close(problem.likelihood.mask, problem.prepared.mask)
    assert not any("times the volume" in message for message in problem.messages)


@pytest.fixture(scope="module")
def four(state):
    """Four copies of the molecule side by side, of which one is modelled; the map, and where they are."""
    model = read_model(state.truth)
    size = np.ptp(model.coords, axis=0).max() + 3.0
    copies = [model.coords + size * np.array([i, j, 0]) for i in range(2) for j in range(2)]
    everything = np.concatenate(copies)
    grid = Grid.around(everything, margin=8.0, spacing=1.3)
    density = MolmapDensity(grid, model.topology.elements * 4, resolution=RESOLUTION)
    values = density.members(torch.from_numpy(everything).float()[None])[0]
    prepared = prepare(DensityMap(grid, values), resolution=RESOLUTION, source="the map", dilation=8.0)
    return model, prepared, copies


def standing(*, agrees):
    return replace(GIVEN, agrees=agrees)


@pytest.mark.parametrize(("agrees", "reach"), [(True, ZONE), (False, ZONE + ASTRAY)])
def test_a_map_that_shows_much_more_is_compared_near_the_start(four, agrees, reach):
    """Further around a start that does not fit the map: it may be of another state."""
    model, prepared, _ = four
    mask, voxels, said = compared(prepared, model, RESOLUTION, zone=zone_of(standing(agrees=agrees)))
    distance = cKDTree(model.coords).query(prepared.density.grid.points())[0]
    assert float(mask[torch.from_numpy(distance > reach + 0.51)].max()) == 0.0
    near = torch.from_numpy(distance < reach - 0.01)
    torch.testing.assert_close(mask[near], prepared.mask[near])
    assert f"within {reach:g} Å of the docked start" in voxels
    assert len(said) == 1
    assert "times the volume" in said[0]


def test_a_sample_beyond_what_is_compared_is_said(four):
    model, prepared, copies = four
    mask, voxels, _ = compared(prepared, model, RESOLUTION)
    likelihood = StateLikelihood(
        prepared.density, mask, model.topology.elements, resolution=RESOLUTION, volume=1e4
    )
    problem = StateProblem(model, GIVEN, prepared, likelihood, voxels, None, ())
    assert beyond(problem, model.coords) == ()
    assert beyond(problem, model.coords + 500.0) == ()  # in no density at all
    (said,) = beyond(problem, copies[3])
    assert "of the best sample are in density more than 6 Å from the docked start" in said
    few = model.coords.copy()
    few[: len(few) // 10] = copies[3][: len(few) // 10]
    count = int(beyond(problem, few)[0].split()[0])
    assert 0.08 * len(few) < count <= len(few) // 10


def test_a_placed_start_must_stand_in_the_map(state):
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (60, 60, 60))
    model = read_model(state.placed)
    check_inside(model, grid, state.settings())
    with pytest.raises(InputError, match=r"placed\.cif is said to be --placed"):
        check_inside(replace(model, coords=model.coords + 50.0), grid, state.settings())


def test_waters_and_empty_sites_are_not_shown(state):
    model = read_model(state.truth)
    occupancy = np.ones(len(model.topology))
    occupancy[3] = 0.0
    last = len(model.topology.residues) - 1
    residues = (*model.topology.residues[:-1], replace(model.topology.residues[-1], kind="water"))
    wet = replace(model, occupancy=occupancy, topology=replace(model.topology, residues=residues))
    found = shown(wet)
    assert float(found[3]) == 0.0
    np.testing.assert_array_equal(found[model.topology.residue_index == last], 0.0)
    assert int((found == 1).sum()) == len(found) - 1 - int((model.topology.residue_index == last).sum())


def test_an_offset_of_the_map_does_not_matter(state, tmp_path):
    """Maps whose solvent is not zero: map fit, FSC and what guides are as without the offset."""
    given, recipe = read_map(state.map), load_state_recipe("cryoboltz-2025")
    write_map(tmp_path / "offset.ccp4", DensityMap(given.grid, given.values + 50.0))
    found = []
    for path in (state.map, tmp_path / "offset.ccp4"):
        settings = state.settings(map=path)
        problem = problem_of(settings, load(settings), Progress())
        x = torch.from_numpy(problem.model.coords).float()
        fit = Judge(problem.model, problem.likelihood, kind="molmap").fit(x)
        terms = terms_of(settings, problem, recipe)
        guides = {name: float(terms[name](x[None], 1.0)) for name in ("cloud", "density")}
        found.append(fit.model_dump(exclude={"held_out_rscc"}) | guides)
    plain, offset = found
    assert offset == pytest.approx(plain, rel=1e-4)
