import math

import numpy as np
import pytest
import torch

from densemble.grid import Grid
from densemble.metrics.fsc import (
    ShellCorrelation,
    fourier_shell_correlation,
    map_model_resolution,
    mask_corrected_correlation,
    phase_randomised,
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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_phases_keep_amplitudes_and_what_is_coarser():
    values = filtered(0, 1.0) + 5
    found = phase_randomised(values, GRID, beyond=0.2, generator=seeded())
    before, after = np.fft.fftn(values.numpy()), np.fft.fftn(found.numpy())
    np.testing.assert_allclose(abs(after), abs(before), rtol=1e-9)
    coarse = np.linalg.norm(frequency(), axis=0) <= 0.2
    np.testing.assert_allclose(after[coarse], before[coarse], rtol=1e-9, atol=1e-9)
    turned = (after / before)[~coarse]
    for power in (1, 2):  # uniform angles, also where the coefficient is its own mate's
        assert abs((turned**power).mean()) < 4 / math.sqrt(len(turned) / 2)
    same, other = (phase_randomised(values, GRID, beyond=0.2, generator=seeded(k)) for k in (0, 1))
    assert torch.equal(found, same)
    assert (found - other).std() > 0.5


def tight_mask(grid=GRID):
    """Sharp: a ball of 8 Å."""
    centre = np.array(grid.origin) + np.array(grid.shape) * grid.spacing / 2
    inside = np.linalg.norm(grid.points() - centre, axis=-1) < 8
    return torch.from_numpy(inside.reshape(grid.shape).astype(float))


def test_what_a_tight_mask_adds_to_noise_is_taken_off():
    """Two noises of mean 1 have nothing in common but the mask that cuts them."""
    mask, total, left = tight_mask(), [], []
    for seed in range(6):
        a, b = (filtered(10 * seed + k, 1.0) + 1 for k in (1, 2))
        masked = fourier_shell_correlation(a, b, GRID, mask=mask)
        corrected = mask_corrected_correlation(a, b, GRID, mask=mask, generator=seeded(seed))
        assert resolution_at(masked, 0.143) < 8
        assert resolution_at(corrected, 0.143) > 10  # of a box of 29 Å
        total.append(masked.fsc[3:])
        left.append(corrected.fsc[3:])
    assert np.mean(total) > 0.3
    assert abs(np.mean(left)) < 0.1


def test_correction_is_the_published_one():
    s = np.linalg.norm(frequency(), axis=0)
    signal = 5 * filtered(0, np.exp(-((s / 0.15) ** 2))) + 3
    a, b, mask = signal + filtered(1, 1.0), signal + filtered(2, 1.0), tight_mask()
    start = 1 / resolution_at(fourier_shell_correlation(a, b, GRID), 0.8)
    assert 0.1 < start < 0.2
    generator = seeded(5)
    random = [phase_randomised(v, GRID, beyond=start, generator=generator) for v in (a, b)]
    total, noise = (fourier_shell_correlation(*v, GRID, mask=mask) for v in ((a, b), random))
    corrected = mask_corrected_correlation(a, b, GRID, mask=mask, generator=seeded(5))
    first = int((total.s < start).sum()) + 2
    np.testing.assert_allclose(corrected.fsc[:first], total.fsc[:first], atol=1e-12)
    expected = (total.fsc - noise.fsc) / (1 - noise.fsc)
    np.testing.assert_allclose(corrected.fsc[first:], expected[first:], atol=1e-12)
    assert (total.fsc - corrected.fsc)[first:].mean() > 0.1
