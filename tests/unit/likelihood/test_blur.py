import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from densemble.forward.kernel import gaussian_density
from densemble.grid import Grid
from densemble.likelihood.blur import gaussian_blur

GRID = Grid((0.0, 0.0, 0.0), (0.5, 0.6, 0.7), (25, 21, 18))
CENTRE = torch.tensor([[6.1, 5.8, 6.0]], dtype=torch.float64)


def gaussian(variance):
    """A normalised Gaussian of this variance in Å^2."""
    alpha = torch.full((1, 1), 1 / (2 * variance), dtype=torch.float64)
    return gaussian_density(GRID, CENTRE, (alpha / torch.pi) ** 1.5, alpha, cutoff=1e-16)


@pytest.mark.parametrize("blur", [0.05, 0.3, 0.7])
def test_variances_add(blur):
    blurred = gaussian_blur(gaussian(0.6), GRID, blur)
    torch.testing.assert_close(blurred, gaussian(0.6 + blur**2), atol=2e-5, rtol=0)


def test_constant_stays_and_the_sum_is_kept(generator):
    torch.testing.assert_close(
        gaussian_blur(torch.full(GRID.shape, 0.3), GRID, 1.5), torch.full(GRID.shape, 0.3)
    )
    values = torch.rand(GRID.shape, generator=generator, dtype=torch.float64)
    assert float(gaussian_blur(values, GRID, 2.0).sum()) == pytest.approx(float(values.sum()))


def test_is_scipys_filter_with_reflecting_faces(generator):
    values = torch.rand(GRID.shape, generator=generator, dtype=torch.float64)
    expected = gaussian_filter(values.numpy(), 2.0 / np.array(GRID.spacing), mode="reflect", truncate=8)
    np.testing.assert_allclose(gaussian_blur(values, GRID, 2.0).numpy(), expected, atol=1e-6)


def test_none():
    values = gaussian(1.0)
    assert gaussian_blur(values, GRID, 0.0) is values
