import math

import numpy as np
import pytest
import torch

from densemble.grid import Grid
from densemble.metrics.fsc import (
    ShellCorrelation,
    fourier_shell_correlation,
    map_model_resolution,
    resolution_at,
)

GRID = Grid(origin=(4.0, -3.0, 0.0), spacing=(1.0, 1.3, 0.8), shape=(40, 27, 36))


def frequency(grid=GRID):
    """(sx, sy, sz) in 1/Å of every coefficient of the full transform."""
    axes = (np.fft.fftfreq(n, h) for n, h in zip(grid.shape, grid.spacing, strict=True))
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def filtered(seed, amplitude, grid=GRID):
    """White noise of variance 1, multiplied in reciprocal space."""
    white = np.random.default_rng(seed).normal(size=grid.shape)
    return torch.from_numpy(np.fft.ifftn(np.fft.fftn(white) * amplitude).real)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])  # even and odd along the axis that is halved
def test_is_the_definition_shell_by_shell(axes):
    spacing, shape = ([values[axis] for axis in axes] for values in (GRID.spacing, GRID.shape))
    grid = Grid(GRID.origin, tuple(spacing), tuple(shape))
    a, b = filtered(0, 1.0, grid), filtered(1, 1.0, grid)
    b = b + 0.7 * a
    fa, fb = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    s = np.linalg.norm(frequency(grid), axis=0)
    width = 1 / 28.8  # the shortest edge: 36 voxels of 0.8 Å
    curve = fourier_shell_correlation(a, b, grid)
    limit = 13 / (27 * 1.3)  # the last frequency along the coarsest axis
    assert len(curve.s) == math.floor(limit / width)
    for n, (mean, fsc, count) in enumerate(zip(curve.s, curve.fsc, curve.count, strict=True), start=1):
        shell = (s > (n - 0.5) * width) & (s < (n + 0.5) * width)
        x, y = fa[shell], fb[shell]
        expected = (x * y.conj()).sum().real / math.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum())
        assert fsc == pytest.approx(expected, abs=1e-12)
        assert mean == pytest.approx(s[shell].mean())
        assert count == round(shell.sum() / 2)


def test_signal_in_noise_gives_the_known_curve():
    """One signal and two noises: FSC = SNR / (1 + SNR), here with SNR = 4 exp(-(s / 0.15)^2)."""
    s = np.linalg.norm(frequency(), axis=0)
    signal = filtered(0, 2 * np.exp(-((s / 0.15) ** 2) / 2))
    curve = fourier_shell_correlation(signal + filtered(1, 1.0), signal + filtered(2, 1.0), GRID)
    snr = 4 * np.exp(-((curve.s / 0.15) ** 2))
    expected = snr / (1 + snr)
    assert expected[0] > 0.78
    assert expected[-1] < 0.02
    # Saxton and Baumeister's error of a correlation, at four standard deviations
    error = (1 - expected**2) / np.sqrt(curve.count)
    assert (np.abs(curve.fsc - expected) < 4 * error)[1:].all()
    assert np.abs((curve.fsc - expected)[1:] / error[1:]).mean() == pytest.approx(0.8, abs=0.5)


def test_a_shift_turns_the_phases_by_a_known_angle():
    """Shifted by t along x, |A|^2 is weighted with cos(2 pi sx t): sinc(2 s t) on average over a sphere."""
    grid, t = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (48, 48, 48)), 1.7
    sx = frequency(grid)[0]
    a = filtered(3, 1.0, grid)
    b = torch.from_numpy(np.fft.ifftn(np.fft.fftn(a.numpy()) * np.exp(2j * np.pi * sx * t)).real)
    curve = fourier_shell_correlation(a, b, grid)
    error = math.sqrt(0.5) / np.sqrt(curve.count)  # of the mean of a cosine over that many coefficients
    assert (np.abs(curve.fsc - np.sinc(2 * curve.s * t)) < 4 * error)[2:].all()
    assert curve.fsc.min() < -0.15


def test_scale_and_offset_do_not_matter_and_sign_does():
    a = filtered(0, 1.0)
    for factor in (0.01, -3.0):
        curve = fourier_shell_correlation(a, factor * a + 11, GRID)
        np.testing.assert_allclose(curve.fsc, math.copysign(1, factor), atol=1e-12)
    assert (fourier_shell_correlation(a, torch.zeros_like(a), GRID).fsc == 0).all()


def test_mask_multiplies_both():
    a, b, mask = filtered(0, 1.0), filtered(1, 1.0), filtered(2, 1.0).abs()
    masked, product = (
        fourier_shell_correlation(a, b, GRID, mask=mask),
        fourier_shell_correlation(a * mask, b * mask, GRID),
    )
    np.testing.assert_allclose(masked.fsc, product.fsc, atol=1e-12)
    assert np.abs(masked.fsc - fourier_shell_correlation(a, b, GRID).fsc).max() > 0.01


def test_shapes_must_agree():
    a = filtered(0, 1.0)
    with pytest.raises(ValueError, match="fourier_shell_correlation"):
        fourier_shell_correlation(a[1:], a[1:], GRID)


def test_threshold_is_met_between_shells():
    s = np.array([0.1, 0.2, 0.3, 0.4])
    curve = ShellCorrelation(s, np.array([0.9, 0.8, 0.2, 0.3]), np.ones(4, dtype=int))
    assert resolution_at(curve, 0.5) == pytest.approx(1 / 0.25)
    assert resolution_at(curve, 0.25) == pytest.approx(1 / (0.2 + 0.1 * 0.55 / 0.6))
    assert resolution_at(curve, 0.1) == pytest.approx(2.5)
    assert resolution_at(curve, 0.95) == math.inf


def test_map_and_model_agree_up_to_where_noise_is_thrice_the_signal():
    """FSC of signal and signal with noise: sqrt(SNR / (1 + SNR)), 0.5 at SNR = 1/3: s = 0.15 sqrt(ln 12)."""
    grid = Grid(GRID.origin, GRID.spacing, (80, 60, 84))
    s = np.linalg.norm(frequency(grid), axis=0)
    signal, noise = filtered(0, 2 * np.exp(-((s / 0.15) ** 2) / 2), grid), filtered(1, 1.0, grid)
    found = map_model_resolution(signal + noise, signal, grid)
    assert found == pytest.approx(1 / (0.15 * math.sqrt(math.log(12))), rel=0.03)
    silent = torch.zeros(grid.shape, dtype=torch.float64)
    silent[:40] = 1.0
    noisy = signal + 20 * noise * (1 - silent)
    assert map_model_resolution(noisy, signal, grid, mask=silent) < 3.0
    assert map_model_resolution(noisy, signal, grid) > 5.0
