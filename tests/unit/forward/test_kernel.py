import subprocess
import sys
from functools import partial

import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from densemble.forward import kernel, plan
from densemble.forward.kernel import gaussian_density
from densemble.grid import Grid

NAMES = ["coords", "amplitude", "alpha"]
GRID = Grid(origin=(-3.0, 1.0, 2.0), spacing=(0.5, 0.6, 0.7), shape=(17, 14, 11))


def problem(seed, atoms, terms, dtype=torch.float64, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    extent = torch.tensor([8.0, 8.0, 7.0], dtype=dtype)
    coords = torch.tensor(GRID.origin, dtype=dtype) + extent * (
        0.5 + spread * (torch.rand(atoms, 3, generator=g, dtype=dtype) - 0.5)
    )
    amplitude = torch.randn(atoms, terms, generator=g, dtype=dtype)
    alpha = 0.3 + 3 * torch.rand(atoms, terms, generator=g, dtype=dtype)
    return coords, amplitude, alpha


def all_pairs(grid, coords, amplitude, alpha):
    """The definition, voxel by voxel."""
    points = torch.as_tensor(grid.points(), dtype=coords.dtype)
    r2 = (points[..., None, :] - coords).square().sum(-1)
    return (amplitude * torch.exp(-alpha * r2[..., None])).sum((-1, -2))


@pytest.mark.parametrize(("atoms", "terms"), [(1, 1), (7, 3), (60, 5)])
def test_is_the_definition(atoms, terms):
    coords, amplitude, alpha = problem(0, atoms, terms, spread=1.5)
    density = gaussian_density(GRID, coords, amplitude, alpha, cutoff=1e-16)
    torch.testing.assert_close(density, all_pairs(GRID, coords, amplitude, alpha), atol=1e-13, rtol=0)


def test_elsewhere_gives_the_same():
    """Nothing of it is left on the CPU where the atoms are on another device."""
    given = problem(2, 60, 3, spread=1.5)
    found = []
    for device in ("cpu", ELSEWHERE):
        with Elsewhere():
            leaves = [x.to(device).requires_grad_() for x in given]
            density = gaussian_density(GRID, *leaves, cutoff=1e-16)
            gradients = torch.autograd.grad(density.square().sum(), leaves)
            found.append([x.cpu().detach() for x in (density, *gradients)])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=1e-11, rtol=1e-11)


def test_single_precision():
    coords, amplitude, alpha = problem(1, 60, 4)
    exact = all_pairs(GRID, coords, amplitude, alpha)
    density = gaussian_density(GRID, coords.float(), amplitude.float(), alpha.float(), cutoff=1e-7)
    assert float((density - exact).abs().max() / exact.abs().max()) < 3e-6


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), cutoff=st.sampled_from([1e-3, 1e-5]))
def test_cutoff_bounds_the_error(seed, cutoff):
    coords, amplitude, alpha = problem(seed, 20, 2, spread=2.0)
    density = gaussian_density(GRID, coords, amplitude, alpha, cutoff=cutoff)
    error = (density - all_pairs(GRID, coords, amplitude, alpha)).abs().max()
    assert error <= cutoff * amplitude.abs().max() * amplitude.numel()


def value_and_gradients(coords, amplitude, alpha):
    """The density, and the gradients of its sum of squares."""
    inputs = [v.clone().requires_grad_() for v in (coords, amplitude, alpha)]
    density = gaussian_density(GRID, *inputs, cutoff=1e-16)
    density.square().sum().backward()
    return [density.detach(), *(v.grad for v in inputs)]


@pytest.mark.parametrize(
    ("leaf", "vector", "batch"), [((1, 3), 3, 1), ((6, 9), 1, 5000), ((1000, 2000), 1, 1)]
)
def test_leaves_and_batches_do_not_matter(monkeypatch, leaf, vector, batch):
    arguments = problem(2, 50, 3, spread=1.5)
    reference = value_and_gradients(*arguments)
    monkeypatch.setattr(plan, "LEAF", leaf)
    monkeypatch.setattr(plan, "VECTOR", vector)
    monkeypatch.setattr(plan, "BATCH", batch)
    for found, expected in zip(value_and_gradients(*arguments), reference, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_members_are_separate():
    coords, amplitude, alpha = (
        torch.stack(v) for v in zip(*(problem(s, 12, 2, spread=1.3) for s in range(3)), strict=True)
    )
    members = gaussian_density(GRID, coords, amplitude, alpha)
    assert members.shape == (3, *GRID.shape)
    for k in range(3):
        # Not to rounding: the cutoff is relative to the largest amplitude of all members.
        alone = gaussian_density(GRID, coords[k], amplitude[k], alpha[k], cutoff=1e-12)
        torch.testing.assert_close(members[k], alone, atol=5e-4, rtol=0)


COARSE = Grid(origin=(-3.0, 1.0, 2.0), spacing=(2.1, 1.7, 1.9), shape=(4, 5, 3))


def test_gradients():
    coords, amplitude, alpha = problem(3, 4, 2, spread=1.2)
    inputs = [v.requires_grad_() for v in (coords, amplitude, alpha)]
    assert torch.autograd.gradcheck(lambda x, a, w: gaussian_density(COARSE, x, a, w, cutoff=1e-15), inputs)


def test_gradients_of_members():
    coords, amplitude, alpha = (v.view(2, 2, -1).requires_grad_() for v in problem(4, 4, 2))
    assert torch.autograd.gradcheck(
        lambda x, a, w: gaussian_density(COARSE, x, a, w, cutoff=1e-15), (coords, amplitude, alpha)
    )


def test_gradient_is_that_of_the_definition_in_single_precision():
    coords, amplitude, alpha = problem(5, 40, 3)
    weight = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact = [v.clone().requires_grad_() for v in (coords, amplitude, alpha)]
    (all_pairs(GRID, *exact) * weight).sum().backward()
    single = [v.float().requires_grad_() for v in (coords, amplitude, alpha)]
    (gaussian_density(GRID, *single) * weight.float()).sum().backward()
    for s, e in zip(single, exact, strict=True):
        assert float((s.grad - e.grad).abs().max() / e.grad.abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alone", range(3))
def test_a_gradient_alone_is_the_one_among_all(dtype, alone):
    """Bit for bit: by coordinates, by heights and by exponents, where the others are not asked for."""
    given = problem(10, 70, 3, dtype=dtype, spread=1.5)
    weight = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(10), dtype=dtype)
    found = []
    for asked in (range(3), [alone]):
        inputs = [v.clone().requires_grad_(i in asked) for i, v in enumerate(given)]
        gaussian_density(GRID, *inputs).backward(weight)
        assert [i for i, v in enumerate(inputs) if v.grad is not None] == list(asked)
        found.append(inputs[alone].grad)
    assert float(found[0].abs().max()) > 0
    assert torch.equal(found[1], found[0])


@pytest.mark.parametrize("alone", range(3))
def test_a_gradient_alone_is_that_of_the_definition(alone):
    given = problem(11, 30, 2)
    weight = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    found = []
    for density in (all_pairs, partial(gaussian_density, cutoff=1e-16)):
        inputs = [v.clone().requires_grad_(i == alone) for i, v in enumerate(given)]
        density(GRID, *inputs).backward(weight)
        found.append(inputs[alone].grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("alone", "expected"), [(0, ["coords"]), (1, ["amplitude"]), (2, ["alpha"]), (None, NAMES)]
)
def test_what_is_not_asked_for_is_not_made(monkeypatch, alone, expected):
    """Gradients that go back to the atoms, by name of what they are of."""
    inputs = dict(zip(NAMES, problem(12, 20, 2), strict=True))
    for i, v in enumerate(inputs.values()):
        v.requires_grad_(alone is None or i == alone)
    made = []

    def noted(like, values, atoms):
        made.extend(name for name, v in inputs.items() if v.data_ptr() == like.data_ptr())
        return at_atoms(like, values, atoms)

    at_atoms = kernel._at_atoms
    monkeypatch.setattr(kernel, "_at_atoms", noted)
    gaussian_density(GRID, *inputs.values()).sum().backward()
    assert made == expected


def test_incoming_gradient_may_be_a_view():
    coords, amplitude, alpha = problem(9, 10, 2)
    several = torch.randn(3, *GRID.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = []
    for gradient in (several[1], several[1].clone(), several[1].transpose(0, 2).contiguous().transpose(0, 2)):
        x = coords.clone().requires_grad_()
        gaussian_density(GRID, x, amplitude, alpha).backward(gradient)
        found.append(x.grad)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[1])


def test_atoms_far_from_the_box_cost_and_give_nothing():
    coords, amplitude, alpha = problem(6, 5, 1)
    coords = (coords + 100.0).requires_grad_()
    density = gaussian_density(GRID, coords, amplitude, alpha)
    density.sum().backward()
    assert float(density.detach().abs().max()) == 0.0
    assert float(coords.grad.abs().max()) == 0.0


def test_default_cutoff_is_good_to_a_hundred_thousandth():
    """Of the largest density, and to 1e-4 of the largest gradient, where atoms are packed as in protein."""
    g = torch.Generator().manual_seed(8)
    grid = Grid((0.0,) * 3, (0.7,) * 3, (24,) * 3)
    coords = 3 + 11 * torch.rand(80, 3, generator=g, dtype=torch.float64)
    amplitude = torch.tensor([2.3, 1.0, 1.6, 0.9, 0.2], dtype=torch.float64).expand(80, 5)
    width = torch.tensor([20.8, 10.2, 0.6, 51.7, 0.0], dtype=torch.float64) + 20
    alpha = (4 * torch.pi**2 / width).expand(80, 5)
    amplitude = amplitude / width**1.5
    weight = torch.randn(grid.shape, generator=g, dtype=torch.float64)
    exact, single = coords.clone().requires_grad_(), coords.float().requires_grad_()
    reference = all_pairs(grid, exact, amplitude, alpha)
    density = gaussian_density(grid, single, amplitude.float(), alpha.float())
    assert float((density - reference).detach().abs().max() / reference.detach().abs().max()) < 1e-5
    (reference * weight).sum().backward()
    (density * weight.float()).sum().backward()
    assert float((single.grad - exact.grad).abs().max() / exact.grad.abs().max()) < 1e-4


def test_no_atoms():
    density = gaussian_density(GRID, torch.zeros(0, 3), torch.zeros(0, 2), torch.ones(0, 2))
    assert density.shape == GRID.shape
    assert float(density.abs().max()) == 0.0


def test_integral_is_that_of_the_gaussians():
    """On a fine grid that holds all of it, the sum over voxels is a (pi / alpha)^(3/2)."""
    grid = Grid(origin=(-6.0,) * 3, spacing=(0.25,) * 3, shape=(49,) * 3)
    coords = torch.tensor([[0.03, -0.11, 0.2]], dtype=torch.float64)
    amplitude = torch.tensor([[1.0, -0.4]], dtype=torch.float64)
    alpha = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    total = gaussian_density(grid, coords, amplitude, alpha, cutoff=1e-15).sum() * grid.voxel_volume
    expected = (amplitude * (torch.pi / alpha) ** 1.5).sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-10)


def test_coordinates_that_are_not_finite_are_refused():
    coords, amplitude, alpha = problem(7, 3, 1)
    coords[1, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        gaussian_density(GRID, coords, amplitude, alpha)


COMPILED = """
import torch
from densemble.forward.kernel import gaussian_density
from densemble.forward.molmap import MolmapDensity
from densemble.grid import Grid

grid = Grid((-5.0, -5.0, -5.0), (1.0, 1.0, 1.0), (11, 11, 11))
molmap = MolmapDensity(grid, ["C", "N"] * 5, resolution=4.0)

def sums(coords, heights):
    density = gaussian_density(grid, 2 * coords - 1, heights, 0.2 * heights.square() + 0.1)
    return (density.square() + molmap.members(coords)).sum()

given = torch.randn(2, 10, 3), torch.randn(2, 10, 2)
for backend in ("eager", "aot_eager"):
    found = []
    for call in (sums, torch.compile(sums, fullgraph=True, backend=backend)):
        leaves = [x.clone().requires_grad_() for x in given]
        value = call(*leaves)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-5)
print("done")
"""
"""As users have it: what checks shapes while tests run cannot be compiled."""


def test_to_the_compiler_it_is_one_operation():
    """Without a break of the graph, forward and, by the second backend, backward."""
    child = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert child.stdout == "done\n", child.stderr
