"""The score against plain transcriptions of its formula, and its gradient."""

import numpy as np
import pytest
import torch
from globule import chain, density_of
from scipy.spatial.transform import Rotation

from densemble.align.overlap import BAND, Overlap, Spectrum, local_correlation
from densemble.align.points import Points
from densemble.align.search import moved_score
from densemble.grid import DensityMap
from densemble.likelihood.blur import gaussian_blur

COORDS = chain(80)
POINTS = Points.of(COORDS, np.linspace(1, 2, 80))
TURNS = np.concatenate([np.eye(3)[None], Rotation.random(3, random_state=2).as_matrix()])
PLACES = POINTS.centre + np.array([[0, 0, 0], [2, -3, 1], [0, 4, 4], [-3, 0, 2]])


@pytest.fixture(scope="module")
def density():
    return density_of(COORDS)


def coefficients(overlap, rotation, position):
    """``sum_i w_i exp(-2 pi i s x_i)`` on the box's frequencies, and s."""
    nx, ny, nz = overlap.shape
    hx, hy, hz = overlap.spacing
    s = np.meshgrid(np.fft.fftfreq(nx, hx), np.fft.fftfreq(ny, hy), np.fft.fftfreq(nz, hz), indexing="ij")
    x = POINTS.offsets @ rotation.T + position - overlap.origin
    phases = sum(np.multiply.outer(x[:, k], s[k]) for k in range(3))
    return np.tensordot(POINTS.weights, np.exp(-2j * np.pi * phases), 1), np.sqrt(sum(f**2 for f in s))


@pytest.mark.parametrize("even", [True, False])
def test_score_is_the_formula(density, even):
    spectrum, d = Spectrum(density, margin=8.0), 9.0
    overlap = Overlap(spectrum, POINTS, resolution=d, sampling=5.0, even=even)
    assert (overlap.shape == spectrum.shape).all()  # the map's own voxels
    values = np.fft.fftn(
        np.pad(
            density.values.numpy() - np.median(density.values),
            [(0, n - m) for n, m in zip(spectrum.shape, density.grid.shape, strict=True)],
        )
    )
    got = overlap.score(torch.from_numpy(TURNS).float(), torch.from_numpy(PLACES).float()).numpy()
    for k in range(len(TURNS)):
        own, s = coefficients(overlap, TURNS[k], PLACES[k])
        g = np.exp(-(d**2) * s**2) * (s > 0) * (s < BAND / d)
        if even:
            shell = np.rint(s * spectrum.edges.max()).astype(int)
            mean = [np.bincount(shell.ravel(), (abs(v) ** 2).ravel()) for v in (values, own)]
            norm = np.sqrt(mean[0] * mean[1]) / np.bincount(shell.ravel())
            expected = (g * (values * own.conj()).real / norm[shell]).sum() / g.sum()
        else:
            product = (g**2 * (values * own.conj()).real).sum()
            expected = product / np.linalg.norm(g * values) / np.linalg.norm(g * own)
        assert got[k] == pytest.approx(expected, abs=0.02)
    assert got[0] > 0.95  # its own map
    assert got[1:].max() < 0.9


def test_all_translations_are_single_scores(density):
    overlap = Overlap(Spectrum(density, margin=POINTS.radius), POINTS, resolution=9.0, sampling=3.0)
    turns = torch.from_numpy(TURNS).float()
    scores = overlap.correlate(turns)
    voxels = np.array([[5, 6, 5], [6, 5, 7], [4, 6, 6], [7, 7, 5]])
    places = torch.from_numpy(voxels * overlap.spacing + overlap.origin).float()
    inside = (POINTS.offsets @ TURNS[0].T + places[0].numpy() - overlap.origin).min() > 0
    assert inside
    expected = overlap.score(turns, places).numpy()
    found = [scores[k, i, j, m] for k, (i, j, m) in enumerate(voxels)]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


def test_neither_scale_nor_sharpening_matters(density):
    grid = density.grid
    other = DensityMap(grid, 40 + 7 * gaussian_blur(density.values, grid, 1.5))
    scores = [
        Overlap(Spectrum(m, margin=8.0), POINTS, resolution=8.0, sampling=4.0).score(
            torch.from_numpy(TURNS).float(), torch.from_numpy(PLACES).float()
        )
        for m in (density, other)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)


def test_gradient_of_a_move(density):
    overlap = Overlap(Spectrum(density, margin=8.0), POINTS.thinned(4.0), resolution=9.0, sampling=4.0)
    turns, places = torch.from_numpy(TURNS), torch.from_numpy(PLACES)
    twist = 0.1 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda t: moved_score(overlap, turns, places, t), twist.requires_grad_(), eps=1e-6, atol=1e-7
    )


def test_local_correlation_tells_right_from_wrong(density):
    spectrum = Spectrum(density, margin=POINTS.radius)
    points, options = Points.of(COORDS, np.ones(80)), {"resolution": 8.0, "map_resolution": 5.0}
    places = points.centre + PLACES - PLACES[0]
    values = [
        local_correlation(spectrum, points, turn, place, **options)
        for turn, place in zip(TURNS, places, strict=True)
    ]
    assert values[0] > 0.97
    assert max(values[1:]) < 0.8


def test_thinned_points_keep_weight_and_centre():
    thin = POINTS.thinned(5.0)
    assert len(thin.weights) < len(POINTS.weights)
    assert thin.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(thin.weights @ thin.offsets, 0, atol=1e-12)
