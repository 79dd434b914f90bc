import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble.metrics.coordinates import rmsd, superpose
from evaluate_chains import NOISE, AlphaMap, moves, place


def cloud(n=60):
    """An elongated, handed cloud without symmetry."""
    return np.random.default_rng(0).normal(size=(n, 3)) * [14.0, 9.0, 5.0]


def test_map_knows_the_model_that_made_it():
    alpha = torch.from_numpy(cloud()).float()
    made = AlphaMap(alpha, 4.0, torch.Generator().manual_seed(0))
    assert float(made.correlation(alpha)) > 1 - NOISE
    assert float(made.correlation(alpha + 2.0)) < 0.5
    both = torch.stack([alpha, alpha + 0.5])
    parts = sum(float(made.log_likelihood(x[None], 1.0)) for x in both)
    assert float(made.log_likelihood(both, 1.0)) == pytest.approx(parts, rel=1e-4)


def test_likelihood_gradient():
    alpha = torch.from_numpy(cloud(5)).double()
    made = AlphaMap(alpha.float(), 6.0, torch.Generator().manual_seed(0))
    made.values = made.values.double()
    x = (alpha + 0.4)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: made.log_likelihood(x, 2.0), x, atol=1e-5)


def test_model_is_placed_by_the_map_alone():
    truth = cloud()
    made = AlphaMap(torch.from_numpy(truth).float(), 4.0, torch.Generator().manual_seed(0))
    away = (truth @ Rotation.random(random_state=3).as_matrix().T + [40.0, -10.0, 7.0]).astype(np.float32)
    rotation, shift = place(torch.from_numpy(away), made, seed=1)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert float(rmsd(away @ rotation.T + shift, truth)) < 0.3


def test_modes_of_samples_hold_the_direction_they_were_drawn_along():
    reference = cloud()
    rng = np.random.default_rng(1)
    # bend: no rotation or translation in it
    way = np.stack([np.zeros(60), reference[:, 0] ** 2 / 100, np.zeros(60)], axis=-1)
    way -= way.mean(0)
    truth = reference + way
    along = reference + rng.normal(size=(12, 1, 1)) * way + 0.01 * rng.normal(size=(12, 60, 3))
    slow = np.zeros((2, 180))
    inside = superpose(truth, reference) - reference  # the rotation that the bend holds taken away
    slow[0] = inside.ravel() / np.linalg.norm(inside)
    slow[1, ::3] = 60**-0.5  # along x, at right angles to the bend
    found = moves(along, reference, truth, slow)
    assert found["overlap_first"] > 0.95
    assert found["variance_in_elastic"] > 0.95
    assert found["overlap_elastic"] > 0.95
    assert moves(along, reference, truth, slow[1:])["overlap_elastic"] < 0.1
    nowhere = moves(reference + 0.5 * rng.normal(size=(12, 60, 3)), reference, truth, slow)
    assert nowhere["variance_in_elastic"] < 0.1
    assert nowhere["overlap_first"] < 0.4
    assert found["nearest_to_truth"] < 1.0 < float(rmsd(reference, truth)) < nowhere["nearest_to_truth"] + 1.0
    assert nowhere["moved_median"] == pytest.approx(0.5 * 3**0.5, rel=0.1)
