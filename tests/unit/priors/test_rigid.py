import numpy as np
import torch
from scipy.spatial.transform import Rotation

from densemble.priors.rigid import nearest_rotation


def test_superposes_as_scipy_does():
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(20, 3))
    moved = fixed @ Rotation.random(random_state=1).as_matrix().T + 0.3 * rng.normal(size=(20, 3))
    expected = Rotation.align_vectors(moved, fixed)[0].as_matrix()
    found = nearest_rotation(torch.from_numpy(moved.T @ fixed))
    assert np.allclose(found.numpy(), expected, atol=1e-10)


def test_is_proper_and_best_also_where_a_reflection_is_nearer():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)
    assert int((torch.linalg.det(matrix) < 0).sum()) > 10
    rotation = nearest_rotation(matrix)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    assert torch.allclose(rotation @ rotation.mT, eye, atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))
    best = (rotation * matrix).sum((-1, -2))
    others = torch.from_numpy(Rotation.random(500, random_state=2).as_matrix())
    values = torch.einsum("oxy,nxy->no", others, matrix)
    assert bool((values <= best[:, None]).all())


def test_gradient_also_of_reflections_and_equal_singular_values():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(6, 3, 3, generator=generator, dtype=torch.float64)
    assert set(torch.linalg.det(matrix).sign().tolist()) == {-1.0, 1.0}
    matrix = torch.cat([matrix, 2.0 * torch.eye(3, dtype=torch.float64)[None]])
    assert torch.autograd.gradcheck(nearest_rotation, matrix.requires_grad_())


def test_gradient_is_finite_where_the_rotation_is_not_determined():
    matrix = torch.diag(torch.tensor([1.0, 0.0, 0.0])).requires_grad_()
    nearest_rotation(matrix).square().sum().backward()
    assert bool(torch.isfinite(matrix.grad).all())
