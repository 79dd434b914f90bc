import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from densemble.em.preparation import boxed, prepare
from densemble.errors import InputError
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid

GRID = Grid(origin=(-7.0, 3.0, 12.5), spacing=(1.0, 1.1, 0.9), shape=(56, 50, 60))
CENTRE = np.array(GRID.origin) + np.array(GRID.spacing) * np.array(GRID.shape) / 2


SITES = np.stack(np.meshgrid(*[np.arange(-12.0, 13.0, 2.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
SITES = SITES[((SITES / [12.0, 10.0, 8.0]) ** 2).sum(axis=1) < 1]
ATOMS = CENTRE + SITES + np.random.default_rng(0).uniform(-0.5, 0.5, size=SITES.shape)
PROTEIN = len(ATOMS) * 12.011 * 1.08 * 1.21  # Å^3; hydrogens are 8 % of a protein's heavy atoms' mass


def simulated(resolution: float = 4.0) -> np.ndarray:
    density = MolmapDensity(GRID, ["C"] * len(ATOMS), resolution=resolution)
    return density(torch.as_tensor(ATOMS[None], dtype=torch.float32), torch.ones(1)).numpy()


def noise(smooth: float = 0.0, seed: int = 1) -> np.ndarray:
    """Of standard deviation 1."""
    values = np.random.default_rng(seed).normal(size=GRID.shape)
    values = ndimage.gaussian_filter(values, smooth, mode="wrap") if smooth else values
    return values / values.std()


def as_map(values: np.ndarray, grid: Grid = GRID) -> DensityMap:
    return DensityMap(grid, torch.from_numpy(values.astype(np.float32)))


def run(values: np.ndarray, **options):
    return prepare(as_map(values), source="the.mrc", **{"resolution": 4.0, **options})


def distance_to_atoms(grid: Grid) -> np.ndarray:
    return np.asarray(cKDTree(ATOMS).query(grid.points())[0])


def test_contour_of_a_simulated_map_encloses_the_protein():
    prepared = run(simulated())
    assert PROTEIN < prepared.volume < 1.35 * PROTEIN  # a body this small is mostly surface
    assert prepared.volume == pytest.approx(float(prepared.inside.sum()) * 0.99)
    assert prepared.rule.startswith("automatic")
    assert prepared.noise == 0
    assert any("flat" in message for message in prepared.messages)
    depth = distance_to_atoms(prepared.density.grid)
    inside = prepared.inside.numpy()
    assert inside[depth < 1.0].all()
    assert depth[inside].max() < 3.0


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_contour_stays_on_the_density_in_noise(smooth):
    values = simulated()
    sigma = 0.05 * values.max()
    prepared = run(values + sigma * noise(smooth))
    assert prepared.noise == pytest.approx(sigma, rel=0.05)
    depth = distance_to_atoms(prepared.density.grid)
    inside = prepared.inside.numpy()
    assert (depth[inside] < 3.0).mean() > 0.98
    assert inside[depth < 0.7].mean() > 0.97
    assert prepared.messages == ()


def test_scale_and_offset_of_the_map_do_not_matter():
    values = simulated() + 0.3 * noise()
    a, b = (run(v) for v in (values, 0.02 * values - 1.5))
    assert b.level == pytest.approx(0.02 * a.level - 1.5, abs=1e-5)
    assert b.noise == pytest.approx(0.02 * a.noise, rel=1e-3)
    assert b.density.grid == a.density.grid
    assert float((a.inside == b.inside).double().mean()) > 0.9999
    offset = run(simulated() - 2.0)  # the constant outside a mask need not be 0
    assert (offset.inside == run(simulated()).inside).all()


def test_noise_of_a_masked_map_is_that_within_the_mask():
    values = simulated()
    sigma, depth = 0.03 * values.max(), distance_to_atoms(GRID)
    wide = run(np.where(depth < 16, values + sigma * noise(1.0), 0.0))
    assert wide.noise == pytest.approx(sigma, rel=0.1)
    assert any("masked" in message for message in wide.messages)
    tight = run(np.where(depth < 5, values + sigma * noise(1.0), 0.0))
    assert tight.noise == pytest.approx(sigma, rel=0.2)
    assert any("upper limit" in message for message in tight.messages)


def test_a_map_of_small_integers():
    values = np.rint(simulated() * (100 / simulated().max()) + 3 * noise(1.0))
    prepared = run(values)
    assert prepared.noise == pytest.approx(3.0, rel=0.3)
    assert (distance_to_atoms(prepared.density.grid)[prepared.inside.numpy()] < 3.0).mean() > 0.98


@pytest.mark.parametrize("smooth", [0.0, 1.0, 2.0])
def test_nothing_stands_out_of_pure_noise(smooth):
    with pytest.raises(InputError, match=r"the\.mrc: no density stands out"):
        run(noise(smooth))


def blobs() -> np.ndarray:
    """Seven connected voxels, four, and three that touch them only at an edge."""
    values = np.zeros(GRID.shape)
    values[20:27, 20, 20] = [3, 3, 4, 9, 4, 3, 3]
    values[40:44, 30, 30] = 5
    values[44:47, 31, 30] = 5
    return values


def test_dust_is_dropped():
    assert run(blobs(), level=2.0).inside.sum() == 7
    five = blobs()
    five[44, 30, 30] = 5
    assert run(five, level=2.0).inside.sum() == 7 + 8  # now all touch through faces
    five[44:47, 31, 30] = 0
    assert run(five, level=2.0).inside.sum() == 7 + 5
    prepared = run(blobs(), level=2.0)
    assert (prepared.level, prepared.rule) == (2.0, "given")
    assert prepared.volume == pytest.approx(7 * 0.99)


def test_levels_that_leave_nothing():
    with pytest.raises(InputError, match=r"the\.mrc: at the level 3\.5 there is only dust"):
        run(blobs(), level=3.5)
    for level in (9.0, 12.0):
        with pytest.raises(InputError, match=r"the\.mrc: the level .* is not below the map's maximum, 9"):
            run(blobs(), level=level)


def test_box_is_cut_and_goes_on_beyond_the_map_in_place():
    values = blobs() - 0.25
    prepared = run(values, level=1.0, dilation=19.0, softness=2.0)
    grid = prepared.density.grid
    assert grid.spacing == GRID.spacing
    steps = [21, 20, 24]  # 21 Å along each axis, rounded up to voxels
    assert grid.shape == tuple(n + 2 * s for n, s in zip((7, 1, 1), steps, strict=True))
    first = np.array([20, 20, 20]) - steps
    np.testing.assert_allclose(grid.origin, np.array(GRID.origin) + first * GRID.spacing)
    at = {tuple(p): v for p, v in zip(np.ndindex(*GRID.shape), values.ravel(), strict=True)}
    expected = [at.get(tuple(np.array(i) + first), -0.25) for i in np.ndindex(*grid.shape)]
    np.testing.assert_array_equal(prepared.density.values.numpy().ravel(), expected)
    assert float(prepared.mask[0].max()) == pytest.approx(0, abs=1e-6)  # the mask has room
    narrow = run(values, level=1.0, dilation=2.0, softness=1.0)
    assert narrow.density.grid.shape == (7 + 2 * 10, 1 + 2 * 10, 1 + 2 * 12)  # 10 Å


def test_density_at_a_face_is_reported():
    values = blobs()
    values[0:6, 10, 10] = 5
    assert any("face" in message for message in run(values, level=2.0).messages)
    assert not any("face" in message for message in run(blobs(), level=2.0).messages)


def test_mask_falls_on_a_cosine_beyond_the_dilation():
    prepared = run(simulated(), dilation=3.0, softness=2.5)
    points = prepared.density.grid.points()
    distance = cKDTree(points[prepared.inside.numpy()]).query(points)[0]
    expected = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 3.0) / 2.5, 0, 1))
    np.testing.assert_allclose(prepared.mask.numpy(), expected, atol=1e-6)


def test_resolution_beyond_the_voxels_is_reported():
    assert "2.1 Å is finer than twice the voxel size of 1.1 Å" in run(simulated(), resolution=2.1).messages[0]
    assert not any("voxel size" in message for message in run(simulated(), resolution=2.3).messages)
    with pytest.raises(ValueError, match="positive"):
        run(simulated(), resolution=0.0)


def test_level_below_the_solvent_is_reported():
    assert any("solvent" in message for message in run(simulated() + 0.05 * noise(), level=-0.01).messages)


def test_another_map_of_the_same_voxels_gets_the_same_box():
    values = simulated() + 0.01 * noise()
    prepared = prepare(as_map(values), resolution=4.0, source="the map")
    again = boxed(as_map(values), prepared.density.grid, background=-5.0)
    inside = again.values != -5.0
    torch.testing.assert_close(again.values[inside], prepared.density.values[inside])
    assert bool(inside[prepared.inside].all())
    wide = Grid(tuple(np.array(GRID.origin) - 3 * np.array(GRID.spacing)), GRID.spacing, (70, 70, 70))
    around = boxed(as_map(values), wide, background=-5.0)
    np.testing.assert_array_equal(around.values[3:59, 3:53, 3:63].numpy(), values.astype(np.float32))
    assert float(around.values[0, 0, 0]) == -5.0


def cut_off(values: np.ndarray) -> np.ndarray:
    """Without the planes up to the middle of the density along x."""
    return values[GRID.shape[0] // 2 :]


def test_mask_is_zero_where_nothing_was_measured():
    values = cut_off(simulated() + 0.01 * noise())
    grid = Grid(GRID.origin, GRID.spacing, values.shape)
    prepared = prepare(as_map(values, grid), resolution=4.0, source="the.mrc")
    outside = round((grid.origin[0] - prepared.density.grid.origin[0]) / grid.spacing[0])
    assert outside >= 6
    assert float(prepared.mask[:outside].max()) == 0
    assert bool((prepared.mask[outside:][prepared.inside[outside:]] == 1).all())
    assert float(prepared.mask[outside].max()) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_solvent_is_told_in_the_unit_of_the_map(masked):
    values = simulated() + 0.01 * noise()
    values = np.where(distance_to_atoms(GRID).reshape(GRID.shape) < 14, values, 0.0) if masked else values
    prepared = run(0.02 * values - 1.5)
    assert prepared.solvent == pytest.approx(-1.5, abs=0.02 * 0.001)


@pytest.mark.parametrize("away", [True, False])  # whether voxels of the map are outside the box
def test_another_map_goes_on_with_its_own_solvent(away):
    values = 3 * (simulated() + 0.01 * noise()) + 40.0
    shift = np.array([20, 0, 0]) if away else np.array([-5, -5, -5])
    shape = (60, 50, 60) if away else (70, 70, 70)
    grid = Grid(tuple(np.array(GRID.origin) + shift * GRID.spacing), GRID.spacing, shape)
    around = boxed(as_map(values), grid)
    assert float(around.values[-1, -1, -1]) == pytest.approx(40.0, abs=0.03)
    assert bool((around.values > 39).all())
