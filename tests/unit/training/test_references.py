import numpy as np
import pytest

from chain_task import SIGMA_MAX, SIGMA_MIN, random_levels
from densemble.metrics.coordinates import rmsd, superpose
from densemble.priors.chain_graph import Trust
from references import follow, hinge, made_whole, random_reference, random_trust, shear, slow_modes, wave


def two_balls():
    """Two helical bundles of 40 residues each, N, CA, C, O, joined once: a chain with an obvious hinge."""
    n = 80
    step = np.arange(n)
    angle = np.deg2rad(100.0 * step[:, None] + np.array([-28.0, 0.0, 26.0, 22.0]))
    radius = np.array([1.56, 2.29, 1.67, 2.0])
    z = 1.5 * (step % 20)[:, None] + np.array([-0.9, 0.0, 1.1, 2.3])
    z = np.where((step[:, None] // 20) % 2 == 0, z, 30 - z)
    atoms = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
    atoms[:, :, 0] += 9.0 * (step[:, None] // 20) + np.where(step[:, None] >= 40, 8.0, 0.0)
    return atoms


def bonds(x):
    return np.linalg.norm(x[1:, 0] - x[:-1, 2], axis=-1)


def inside(x):
    """CA distances within each half."""
    return [np.linalg.norm(h[:, None, 1] - h[None, :, 1], axis=-1) for h in (x[:38], x[42:])]


def test_slow_modes_are_those_of_the_contact_network():
    modes = slow_modes(two_balls()[:, 1])
    assert np.allclose(modes.vectors.T @ modes.vectors, np.eye(12), atol=1e-9)
    assert np.allclose(modes.vectors.sum(0), 0, atol=1e-9)  # none is the constant one
    assert (np.diff(modes.stiffness) >= 0).all()
    assert modes.stiffness[0] > 0
    first = modes.vectors[:, 0]
    assert abs(np.sign(first[:38]).sum()) == abs(np.sign(first[42:]).sum()) == 38


@pytest.mark.parametrize("field", [hinge, shear, wave])
def test_fields_move_by_the_size_wanted(field):
    truth = two_balls()
    modes = slow_modes(truth[:, 1])
    moved = field(truth, modes, 1.5, np.random.default_rng(2))
    assert np.sqrt(((moved - truth)[:, 1] ** 2).sum(-1).mean()) == pytest.approx(1.5, rel=0.25)


def test_hinge_keeps_the_shape_of_its_two_parts():
    truth = two_balls()
    modes = slow_modes(truth[:, 1])
    only = type(modes)(modes.vectors[:, :1], modes.stiffness[:1])
    rng = np.random.default_rng(0)
    best = min(
        max(
            abs(a - b).max() for a, b in zip(inside(hinge(truth, only, 6.0, rng)), inside(truth), strict=True)
        )
        for _ in range(20)
    )
    assert best < 1.0  # although the whole moved by 6 Å


def test_residues_follow_turns():
    truth = two_balls()
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    moved = truth[:, 1] @ turn.T - truth[:, 1]
    assert np.allclose(follow(truth, moved), truth @ turn.T, atol=1e-2)


def test_made_whole_again():
    truth = two_balls()
    rng = np.random.default_rng(0)
    broken = truth + 0.3 * rng.normal(size=truth.shape)
    mended = made_whole(broken, truth)
    assert abs(bonds(broken) - bonds(truth)).max() > 0.4
    assert abs(bonds(mended) - bonds(truth)).max() < 0.1
    assert np.sqrt(((mended - truth) ** 2).sum(-1).mean()) < 0.6


def test_trust_says_how_far_references_are():
    truth = two_balls()

    def median(trust):
        rng = np.random.default_rng(0)
        found = [random_reference(truth, trust, rng) for _ in range(12)]
        return np.median([rmsd(superpose(x[:, 1], truth[:, 1]), truth[:, 1]) for x in found])

    near, far = median(Trust(0.5, 0.1)), median(Trust(8.0, 0.1))
    assert near < 1.0
    assert far > 2.5
    assert median(Trust(0.5, 2.0)) > near + 0.3


def test_references_are_seeded():
    truth = two_balls()
    a, b = (random_reference(truth, Trust(), np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(a, b)
    rng = np.random.default_rng(0)
    trusts = [random_trust(rng) for _ in range(50)]
    assert min(t.domains for t in trusts) < 1.0 < 8.0 < max(t.domains for t in trusts)


def test_levels_are_stratified_over_the_whole_range():
    rng = np.random.default_rng(0)
    levels = np.stack([random_levels(6, rng) for _ in range(300)])
    assert levels.min() > SIGMA_MIN * 0.99
    assert levels.max() < SIGMA_MAX * 1.01
    assert (np.diff(levels, axis=1) > 0).all()
    assert 0.25 < (levels < 0.5).mean() < 0.35
