import dataclasses

import numpy as np
import pytest
import torch

from densemble.priors.segment_features import pair_features, residue_frames, with_beta
from densemble.priors.segment_geometry import (
    canonical_frame,
    context_size,
    describe,
    expected_course,
    nearest,
    stack,
    types_of,
)
from densemble.priors.segment_network import NetworkConfig, SegmentNetwork

SMALL = NetworkConfig(
    width=16, heads=2, hidden=24, context_layers=1, stages=(1, 1), pair=8, pair_value=4, condition=12
)


def random_chain(n, seed=0):
    rng = np.random.default_rng(seed)
    alphas = np.cumsum(rng.normal(size=(n, 1, 3)), axis=0) * 2.2
    return alphas + rng.normal(size=(n, 4, 3))


def segment(n=20, start=8, length=5, seed=0):
    atoms = random_chain(n, seed)
    fixed = np.r_[0:start, start + length : n]
    types = np.arange(n) % 20
    item, _, _ = describe(atoms[fixed], types[fixed], fixed - start, types[start : start + length])
    return item


def test_canonical_frame_is_right_handed_and_fixed_to_the_anchors():
    before, after = random_chain(2)
    for pair in ((before, after), (before, None), (None, after)):
        rotation, origin = canonical_frame(*pair)
        assert np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
    rotation, origin = canonical_frame(before, after)
    c, n = (before[2] - origin) @ rotation, (after[0] - origin) @ rotation
    half = np.linalg.norm(after[0] - before[2]) / 2
    assert np.allclose(c, [-half, 0, 0], atol=1e-9)
    assert np.allclose(n, [half, 0, 0], atol=1e-9)
    with pytest.raises(ValueError, match="at least one anchor"):
        canonical_frame(None, None)


def test_expected_course_runs_between_the_anchors():
    before, after = random_chain(2)
    mean, width = expected_course(7, before, after)
    line = (after[0] - before[2]) / np.linalg.norm(after[0] - before[2])
    assert np.allclose(np.cross(mean - before[2], line), 0, atol=1e-9)
    along = (mean[:, :3] - before[2]).reshape(-1, 3) @ line
    assert (np.diff(along) > 0).all()
    assert np.allclose(width[:, 1], width[::-1, 1])  # CA: symmetric about the middle
    assert width[3, 1] == width[:, 1].max()
    out_mean, out_width = expected_course(7, before, None)
    assert (np.diff(out_width[:, 1]) > 0).all()
    back_mean, back_width = expected_course(7, None, after)
    assert (np.diff(back_width[:, 1]) < 0).all()
    assert np.linalg.norm(out_mean[-1, 1] - before[2]) < 6.0
    assert np.linalg.norm(back_mean[0, 1] - after[0]) < 6.0


def test_nearest_is_sorted_and_complete():
    points = np.array([[5.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0], [9.0, 0, 0]])
    assert nearest(points, np.zeros((1, 3)), 2).tolist() == [1, 2]
    assert nearest(points, np.array([[9.0, 0, 0], [0, 0, 0]]), 9).tolist() == [3, 1, 2, 0]


def test_types():
    assert types_of("ACY").tolist() == [0, 1, 19]
    assert types_of("X?").tolist() == [20, 20]


def test_frames_and_beta():
    atoms = torch.tensor([[1.46, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.55, 1.42, 0.0], [0.2, 2.4, 0.0]]).double()
    frames = residue_frames(atoms)
    assert torch.allclose(frames.T @ frames, torch.eye(3).double(), atol=1e-3)
    assert torch.linalg.det(frames) == pytest.approx(1.0, abs=1e-3)
    beta = with_beta(atoms)[4]
    n, c = atoms[0], atoms[2]
    # tetrahedral: 1.52 Å from CA, about 110 degrees from both bonds, L amino acid
    assert float(beta.norm()) == pytest.approx(1.53, abs=0.03)
    for other in (n, c):
        angle = torch.rad2deg(torch.arccos(beta @ other / beta.norm() / other.norm()))
        assert float(angle) == pytest.approx(110.5, abs=2.0)
    assert float(torch.linalg.det(torch.stack([n, c, beta]))) > 0


def test_pair_features_are_invariant():
    atoms = torch.from_numpy(random_chain(6)).view(1, 1, 6, 4, 3)
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    turn = turn * torch.det(turn)
    moved = atoms @ turn.T + torch.tensor([3.0, -8.0, 20.0])

    def features(x):
        return pair_features(with_beta(x), residue_frames(x), with_beta(x), residue_frames(x))

    assert torch.allclose(features(atoms), features(moved), atol=1e-6)
    # first three numbers: N of the other residue in this one's frame, shrunk to the unit ball
    local = residue_frames(atoms)[0, 0, 2].T @ (atoms[0, 0, 4, 0] - atoms[0, 0, 2, 1])
    expected = local / (5 + local.norm())
    assert torch.allclose(features(atoms)[0, 0, 2, 4, :3], expected, atol=1e-4)


def test_untrained_network_is_the_independent_gaussian():
    """Zero heads leave the exact denoiser of N(mean, width^2), Karras et al. 2022."""
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).double().eval()
    given = stack([segment()]).to(torch.float64)
    x = torch.randn(1, 3, 5, 4, 3, dtype=torch.float64) * 3
    sigma = torch.tensor([[0.1, 1.0, 7.0]], dtype=torch.float64)
    result = network(x, sigma, given, network.encode(given))[-1]
    variance = given.width[0, None, :, :, None] ** 2
    gain = variance / (variance + sigma[0, :, None, None, None] ** 2)
    expected = given.mean[0] + gain * (x[0] - given.mean[0])
    assert torch.allclose(result[0], expected, atol=1e-10)


def test_padding_of_the_context_does_not_count():
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).double().eval()
    for stage in network.stages:
        torch.nn.init.normal_(stage.head.weight, std=0.2)
    given = stack([segment()]).to(torch.float64)
    assert context_size(5) > int(given.context_mask.sum()) == 15
    other = dataclasses.replace(
        given,
        context=torch.where(given.context_mask[..., None, None], given.context, 7.0),
        context_type=torch.where(given.context_mask, given.context_type, 3),
    )
    x, sigma = torch.randn(1, 2, 5, 4, 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        a = network(x, sigma, given, network.encode(given))[-1]
        b = network(x, sigma, other, network.encode(other))[-1]
    assert torch.allclose(a, b, atol=1e-10)


def test_copies_and_segments_do_not_mix():
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).double().eval()
    for stage in network.stages:
        torch.nn.init.normal_(stage.head.weight, std=0.2)
    given = stack([segment(seed=1), segment(seed=2)]).to(torch.float64)
    x, sigma = torch.randn(2, 3, 5, 4, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64) + 0.5
    with torch.no_grad():
        together = network(x, sigma, given, network.encode(given))[-1]
        one = stack([segment(seed=2)]).to(torch.float64)
        alone = network(x[1:, 2:], sigma[1:, 2:], one, network.encode(one))[-1]
    assert torch.allclose(together[1, 2], alone[0, 0], atol=1e-9)


def test_encoding_a_context_of_the_description_keeps_the_anchors():
    item = segment()
    places = item["context_place"][item["context_mask"]]
    assert {-1, 5} <= set(places.tolist())
    assert np.allclose(item["context"][np.flatnonzero(item["context_place"] == -1)[0]], item["anchors"][0])
