import numpy as np
import pytest
import torch

from densemble.grid import Grid
from densemble.metrics.maps import cosine, rscc, voxels_near

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
