import numpy as np
import pytest
import torch

from densemble.atoms import Residue, ResidueId, Topology
from densemble.grid import Grid
from densemble.metrics.maps import blocks_of, cosine, model_fit, rscc, rscc_gain_error, voxels_near

GRID = Grid((1.0, -2.0, 0.5), (0.5, 0.75, 1.0), (9, 8, 7))


@pytest.fixture
def maps(generator):
    a, b = torch.randn(2, *GRID.shape, generator=generator)
    return a, b + 0.5 * a, torch.rand(GRID.shape, generator=generator) < 0.3


def test_rscc_is_numpys_pearson_over_the_region_only(maps):
    a, b, region = maps
    expected = np.corrcoef(a[region].numpy(), b[region].numpy())[0, 1]
    assert rscc(a, b, region) == pytest.approx(expected, rel=1e-6)
    a[~region] = 1e6
    assert rscc(a, b, region) == pytest.approx(expected, rel=1e-6)
    assert rscc(a, 3 * a - 7, region) == pytest.approx(1.0)


def test_cosine_is_the_definition_and_depends_on_the_offset(maps):
    a, b, region = maps
    x, y = a[region].double(), b[region].double()
    assert cosine(a, b, region) == pytest.approx(float(x @ y / (x @ x * (y @ y)) ** 0.5), rel=1e-9)
    assert cosine(a, 3 * a, region) == pytest.approx(1.0)
    assert cosine(a, -2 * a, region) == pytest.approx(-1.0)
    assert abs(cosine(a, b + 2, region) - cosine(a, b, region)) > 0.1


def test_voxels_near_is_the_brute_force_answer():
    coords = torch.tensor([[[2.0, 0.0, 2.5]], [[3.0, 1.0, 5.5]]])
    points = GRID.points()
    expected = (np.linalg.norm(points[..., None, :] - coords.reshape(-1, 3).numpy(), axis=-1) <= 1.3).any(-1)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(voxels_near(GRID, coords, 1.3).numpy(), expected)


def test_the_radius_is_inclusive():
    assert voxels_near(GRID, torch.tensor([[1.0, -2.0, 0.5]]), 0.5)[1, 0, 0]


def test_what_is_undefined_is_refused(maps):
    a, b, region = maps
    nothing = torch.zeros_like(region)
    for measure in (cosine, rscc):
        with pytest.raises(ValueError, match="no voxels"):
            measure(a, b, nothing)
        with pytest.raises(ValueError, match="in the region"):
            measure(a, torch.zeros_like(b), region)


@pytest.fixture
def three_residues():
    residues = tuple(Residue(ResidueId("A", i), "GLY") for i in range(4))
    topology = Topology(
        ("N", "CA", "N", "CA", "CA"), ("N", "C") * 2 + ("C",), np.array([0, 0, 1, 1, 2]), residues
    )
    coords = np.array([[2.0, 0, 2.5], [2.5, 0.4, 3], [3, 1, 4], [3.7, 1.2, 5.5], [1.0, -2.0, 0.5]])
    return topology, coords


def test_model_fit_is_rscc_over_the_voxels_near(maps, three_residues):
    """Each residue and the whole against ``voxels_near`` and ``rscc``, with shared voxels and box edges."""
    a, b, _ = maps
    topology, coords = three_residues
    for radius in (0.9, 1.3, 2.5):
        fit = model_fit(a, b, GRID, topology, coords, radius=radius)
        for r in range(3):
            region = voxels_near(GRID, torch.as_tensor(coords[topology.residue_index == r]), radius)
            assert fit.voxels[r] == int(region.sum())
            assert fit.residues[r] == pytest.approx(rscc(a, b, region), abs=1e-9)
        assert fit.voxels[3] == 0
        assert np.isnan(fit.residues[3])
        assert fit.overall == pytest.approx(rscc(a, b, voxels_near(GRID, torch.as_tensor(coords), radius)))
        assert fit.voxels.sum() > int(voxels_near(GRID, torch.as_tensor(coords), radius).sum())


def test_model_fit_leaves_out_unknown_atoms_and_refuses_nonsense(maps, three_residues):
    a, b, _ = maps
    topology, coords = three_residues
    expected = model_fit(
        a, b, GRID, topology.subset(np.array([0, 2, 3, 4])), coords[[0, 2, 3, 4]], radius=1.3
    )
    coords[1] = np.nan
    fit = model_fit(a, b, GRID, topology, coords, radius=1.3)
    np.testing.assert_allclose(fit.residues[:3], expected.residues)
    with pytest.raises(ValueError, match="no voxel"):
        model_fit(a, b, GRID, topology, coords + 100, radius=1.3)
    with pytest.raises(ValueError, match="constant"):
        model_fit(a, torch.full_like(b, 0.1), GRID, topology, coords, radius=1.3)


def test_model_fit_in_blocks(maps, three_residues):
    """A radius beyond the box: every voxel is near every residue."""
    a, b, _ = maps
    topology, coords = three_residues
    fit = model_fit(a, b, GRID, topology, coords, radius=30.0)
    np.testing.assert_array_equal(fit.voxels, [a.numel()] * 3 + [0])
    np.testing.assert_allclose(fit.residues[:3], np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1], atol=1e-6)


def test_blocks_are_cubes_of_the_edge_numbered_without_gaps():
    grid = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 0.5), (5, 4, 8))
    inside = torch.ones(grid.shape, dtype=torch.bool)
    inside[:2, :2, :4] = False  # one block is empty
    found = blocks_of(grid, inside, 2.0)
    assert found.max() + 1 == 3 * 2 * 2 - 1
    assert np.bincount(found).tolist() == [16, 16, 16, 16, 16, 16, 16, 8, 8, 8, 8]


def test_error_of_a_gain_in_rscc_is_its_scatter_over_maps():
    """Blocks of one voxel with noise of their own; two models of which each lacks something."""
    grid, generator = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (9, 9, 9)), torch.Generator().manual_seed(2)
    truth, *more = torch.randn(3, *grid.shape, generator=generator).double()
    first, second = (truth + 0.5 * other for other in more)
    inside = torch.ones(grid.shape, dtype=torch.bool)
    block = blocks_of(grid, inside, 1.0)
    gains, errors = [], []
    for _ in range(60):
        # all is drawn anew: the jackknife takes the voxels for a sample
        order = torch.randint(truth.numel(), (truth.numel(),), generator=generator)
        a, b, t = (x.reshape(-1)[order].reshape(grid.shape) for x in (first, second, truth))
        target = t + 0.7 * torch.randn(grid.shape, generator=generator)
        gains.append(rscc(b, target, inside) - rscc(a, target, inside))
        errors.append(rscc_gain_error(a, b, target, inside, block))
    assert np.mean(errors) == pytest.approx(np.std(gains, ddof=1), rel=0.25)
    assert rscc_gain_error(first, first, truth, inside, block) == pytest.approx(0, abs=1e-12)
    assert np.isnan(rscc_gain_error(first, second, truth, inside, 0 * block))
