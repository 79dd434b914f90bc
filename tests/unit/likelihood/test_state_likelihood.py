"""The likelihood of a map given one conformation, against the profile likelihood written out."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.likelihood.blur import gaussian_blur
from densemble.likelihood.state import NARROWEST, WIDEST, StateLikelihood

ELEMENTS = ("C", "N", "O", "S", "C", "C")
RESOLUTION = 4.0


@pytest.fixture
def atoms() -> torch.Tensor:
    return 4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def noisy(atoms) -> DensityMap:
    grid = Grid.around(atoms.numpy(), margin=7.0, spacing=1.0)
    clean = MolmapDensity(grid, ELEMENTS, resolution=RESOLUTION, dtype=torch.float64).members(atoms[None])[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return DensityMap(grid, 3.0 * clean - 1.0 + noise)


def likelihood_of(
    target: DensityMap, mask: torch.Tensor | None = None, volume: float = 500.0
) -> StateLikelihood:
    mask = torch.ones(target.grid.shape) if mask is None else mask
    return StateLikelihood(target, mask, ELEMENTS, resolution=RESOLUTION, volume=volume)


def test_is_the_gaussian_likelihood_at_its_best_scale_offset_and_noise(noisy, atoms):
    mask = torch.rand(noisy.grid.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    likelihood = likelihood_of(noisy, mask)
    moved = torch.stack([atoms, atoms + 0.5])
    model = MolmapDensity(noisy.grid, ELEMENTS, resolution=RESOLUTION, dtype=torch.float64).members(moved)
    root = mask.flatten().sqrt()[:, None].numpy()
    target = noisy.values.flatten()[:, None].numpy()

    def left(columns: np.ndarray) -> float:
        """Weighted sum of squares that a linear fit leaves."""
        return float(np.linalg.lstsq(root * columns, root * target, rcond=None)[1][0])

    ones = np.ones_like(target)
    data = 500.0 * 4 * math.pi / (3 * RESOLUTION**3)
    expected = [
        -data / 2 * math.log(left(np.hstack([m.flatten()[:, None].numpy(), ones])) / left(ones))
        for m in model
    ]
    np.testing.assert_allclose(likelihood(moved).numpy(), expected, rtol=1e-8)


def test_scale_and_offset_of_the_map_do_not_matter(noisy, atoms):
    other = DensityMap(noisy.grid, 0.01 * noisy.values + 7.0)
    torch.testing.assert_close(likelihood_of(other)(atoms[None]), likelihood_of(noisy)(atoms[None]))


def test_members_do_not_depend_on_each_other(noisy, atoms):
    likelihood = likelihood_of(noisy)
    together = likelihood(torch.stack([atoms, atoms + 1.0]))
    torch.testing.assert_close(together[1:], likelihood(atoms[None] + 1.0))
    assert together[0] > together[1]


def test_an_ensemble_is_the_sum_of_its_members(noisy, atoms):
    likelihood = likelihood_of(noisy)
    torch.testing.assert_close(
        likelihood.together(atoms[None], torch.ones(1).double()), likelihood(atoms[None])[0]
    )
    two, weights = torch.stack([atoms, atoms + 0.5]), torch.tensor([0.7, 0.3], dtype=torch.float64)
    sharp = MolmapDensity(noisy.grid, ELEMENTS, resolution=RESOLUTION, dtype=torch.float64).members(two)
    mixed = (weights[:, None, None, None] * sharp).sum(0).flatten()
    r = float(torch.corrcoef(torch.stack([noisy.values.flatten(), mixed]))[0, 1])
    expected = -likelihood.data / 2 * math.log(1 - r**2)
    # Gaussians are cut off relative to the largest amplitude, which the weights change
    assert float(likelihood.together(two, weights)) == pytest.approx(expected, rel=1e-4)
    assert gradcheck(likelihood.together, (two.clone().requires_grad_(), weights.requires_grad_()), atol=1e-6)


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_an_ensemble_has_the_one_b_that_suits_it(noisy, atoms, blur):
    likelihood = likelihood_of(noisy)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(
        likelihood.together(atoms[None], one, blur=blur, solve_b=True),
        likelihood(atoms[None], blur=blur, solve_b=True)[0],
    )
    two, weights = torch.stack([atoms, atoms + 0.8]), torch.tensor([0.4, 0.6], dtype=torch.float64)
    level = likelihood._level(blur)
    values = [
        float(level.log_likelihood(level.correlation(level.narrow(two, weights, blur=s)[None]))[0])
        for s in np.linspace(0, level.most, 40)
    ]
    solved = float(likelihood.together(two, weights, blur=blur, solve_b=True))
    assert solved == pytest.approx(max(values), rel=2e-3)
    assert solved > float(likelihood.together(two, weights, blur=blur))


def test_a_model_that_anticorrelates_has_no_likelihood_to_lose(noisy, atoms):
    turned = likelihood_of(DensityMap(noisy.grid, -noisy.values))
    assert float(turned(atoms[None])) == 0.0
    assert float(turned.correlation(atoms[None])) < -0.5


@pytest.mark.parametrize("blur", [1.0, 3.0])
def test_coarse_voxels_of_a_blurred_map_are_enough(noisy, atoms, blur):
    likelihood = likelihood_of(noisy)
    found = likelihood.correlation(atoms[None] + 0.7, blur=blur)
    target = gaussian_blur(noisy.values, noisy.grid, blur).flatten()
    forward = MolmapDensity(noisy.grid, ELEMENTS, resolution=RESOLUTION, dtype=torch.float64)
    sharp = forward.members(atoms[None] + 0.7)[0]
    model = gaussian_blur(sharp, noisy.grid, blur).flatten()
    expected = float(torch.corrcoef(torch.stack([target, model]))[0, 1])
    # the box's faces count differently on either grid, and its faces are where blurring guesses
    assert float(found) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_gradient(noisy, atoms, blur):
    likelihood = likelihood_of(noisy)
    start = (torch.stack([atoms, atoms + 0.4]) + 0.2).requires_grad_()
    assert gradcheck(lambda x: likelihood(x, blur=blur), start, atol=1e-6)


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_gradient_with_b_solved_is_that_of_the_profile(noisy, atoms, blur):
    """At its optimum B does not matter to the gradient: as exactly as the optimum is found."""
    likelihood = likelihood_of(noisy)

    def value(x: torch.Tensor) -> torch.Tensor:
        return likelihood(x, blur=blur, solve_b=True).sum()

    start = (atoms[None] + 0.2).requires_grad_()
    (gradient,) = torch.autograd.grad(value(start), start)
    steps = 1e-4 * torch.eye(start.numel(), dtype=torch.float64).view(-1, *start.shape)
    with torch.no_grad():
        numerical = torch.stack([(value(start + h) - value(start - h)) / 2e-4 for h in steps])
    assert float((gradient.flatten() - numerical).norm() / numerical.norm()) < 0.01


@pytest.mark.parametrize("drawn", [3.4, 4.0, 6.5])
@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_b_of_a_map_is_found_at_any_blur(atoms, drawn, blur):
    """A map is as sharp as it is, whatever its resolution is said to be; B is 4 d^2 of ``molmap``."""
    grid = Grid.around(atoms.numpy(), margin=12.0, spacing=1.0)
    values = MolmapDensity(grid, ELEMENTS, resolution=drawn, dtype=torch.float64).members(atoms[None])[0]
    likelihood = likelihood_of(DensityMap(grid, 2.0 * values + 1.0))
    spread = float(likelihood.spread(atoms[None], blur=blur))
    b = 4 * (NARROWEST * RESOLUTION) ** 2 + 8 * math.pi**2 * spread**2
    assert b == pytest.approx(4 * drawn**2, abs=0.02 * 4 * (WIDEST * RESOLUTION) ** 2)
    assert float(likelihood.correlation(atoms[None], blur=blur, solve_b=True)) > 0.998


def test_each_member_has_the_b_that_suits_it(noisy, atoms):
    likelihood = likelihood_of(noisy)
    two = torch.stack([atoms, atoms + 0.8])
    spread = likelihood.spread(two)
    assert float(spread[1]) > float(spread[0]) + 0.3  # what stands beside its density is better drawn wide
    torch.testing.assert_close(likelihood.spread(two[1:]), spread[1:])
    fixed, solved = likelihood(two), likelihood(two, solve_b=True)
    assert bool((solved >= fixed - 1e-3 * fixed.abs()).all())
    assert float(solved[1]) > 1.2 * float(fixed[1])


@pytest.mark.parametrize("mask", [torch.zeros(3, 3, 3), -torch.ones(3, 3, 3), torch.ones(3, 3, 2)])
def test_mask_must_fit(mask):
    target = DensityMap(Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3, 3, 3)), torch.ones(3, 3, 3))
    with pytest.raises(ValueError, match="mask"):
        likelihood_of(target, mask)
