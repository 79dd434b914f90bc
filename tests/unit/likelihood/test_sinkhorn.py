import math

import numpy as np
import pytest
import torch
from geomloss import SamplesLoss

from densemble.likelihood import sinkhorn
from densemble.likelihood.sinkhorn import Levels, half_transport_to_itself, softmin, transport


def measures(seed=0, n=40, k=17):
    g = torch.Generator().manual_seed(seed)
    x, y = (5 * torch.randn(m, 3, generator=g, dtype=torch.float64) for m in (n, k))
    a, b = (torch.rand(m, generator=g, dtype=torch.float64) + 0.1 for m in (n, k))
    return x, a / a.sum(), y, b / b.sum()


def levels_of(x, y, blur, scaling, reach):
    both = torch.cat([x, y])
    diameter = float((both.amax(0) - both.amin(0)).norm())
    return Levels.between(diameter, blur, scaling=scaling, reach=reach)


@pytest.mark.parametrize(("blur", "scaling", "reach"), [(0.05, 0.5, 10.0), (2.0, 0.7, 3.0), (0.5, 0.9, None)])
def test_is_geomloss(blur, scaling, reach):
    """The same iteration, for both kinds of term; its gradient has rho + eps / 2 in place of rho + eps."""
    x, a, y, b = measures()
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, reach=reach, scaling=scaling, backend="tensorized")
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        expected = loss(a, leaf, b, y)
        (slope,) = torch.autograd.grad(expected, leaf)
    if reach is not None:
        slope = slope * (reach**2 + blur**2) / (reach**2 + blur**2 / 2)
    levels = levels_of(x, y, blur, scaling, reach)
    value, gradient = transport(x, a, y, b, levels)
    own, own_gradient = half_transport_to_itself(x, a, levels)
    other, _ = half_transport_to_itself(y, b, levels, gradient=False)
    assert float(value - own - other) == pytest.approx(float(expected.detach()), rel=1e-9)
    np.testing.assert_allclose(gradient - own_gradient, slope, atol=1e-9 * float(slope.abs().max()))


def test_softmin_is_the_definition_in_any_blocks(monkeypatch):
    x, _, y, b = measures(1)
    z = b.log() - (x[:, None] - y).square().sum(-1) / 2 / 0.3
    for block in (1, 100, 10_000):
        monkeypatch.setattr(sinkhorn, "BLOCK", block)
        soft, mean = softmin(x, y, b.log(), 0.3, means=True)
        np.testing.assert_allclose(soft, -0.3 * z.logsumexp(1), rtol=1e-12)
        np.testing.assert_allclose(mean, z.softmax(1) @ y, rtol=1e-10, atol=1e-12)


def test_small_costs_are_exact_in_single_precision_far_from_the_origin():
    x = torch.tensor([[100.0, -80.0, 60.0]])
    y = x + torch.tensor([[0.0625, 0.0, 0.0]])
    soft, _ = softmin(x, y, torch.zeros(1), 0.0025)
    assert float(soft) == pytest.approx(0.0625**2 / 2, rel=1e-5)


def test_levels_fall_from_the_diameter_to_the_blur():
    levels = Levels.between(8.0, 1.0, scaling=0.5, reach=3.0)
    assert levels.eps == pytest.approx((64, 64, 16, 4, 1))
    assert levels.rho == 9.0
    assert levels.damping(1.0) == 0.9
    assert Levels.between(0.5, 1.0, scaling=0.5, reach=None).eps == (1.0, 1.0)
    assert math.isclose(Levels.between(0.5, 1.0, scaling=0.5, reach=None).damping(3.0), 1.0)
