"""Samples moved as a whole: back from a known motion, not without need, and as if moved before the step."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from densemble.atoms import Residue, ResidueId, Topology
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.realign import Moves, Realignment
from densemble.guidance.stage import Stage
from densemble.priors.edm import EDM
from densemble.priors.protocol import NoiseProcess, Prior
from densemble.sampler import sample

ATOMS = 12
PLACE = 6 * torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 20.0
SD = 0.5
TURN = torch.from_numpy(Rotation.from_euler("xyz", [25.0, -15.0, 30.0], degrees=True).as_matrix())
SHIFT = torch.tensor([3.0, -2.0, 1.5], dtype=torch.float64)


def likelihood(atoms: torch.Tensor, sigma: float) -> torch.Tensor:
    """Atoms are wanted at ``PLACE``."""
    return -(atoms - PLACE).square().sum((1, 2)) / (2 * SD**2)


def displaced(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-2, keepdim=True)) @ TURN.T + x.mean(-2, keepdim=True) + SHIFT


def realignment(**changes) -> Realignment:
    return Realignment(
        **{"term": likelihood, "stage": "map", "every": 2, "gain": 6.0, "evaluations": 30} | changes
    )


class Shrinking:
    """A prior that turns and moves with its input: the estimate is the input drawn toward its centre."""

    def __init__(self) -> None:
        self.topology = Topology(
            ("C",) * ATOMS,
            ("C",) * ATOMS,
            np.zeros(ATOMS, dtype=np.int64),
            (Residue(ResidueId("A", 1), "LIG"),),
        )
        self.process = EDM(center=PLACE, sigma_max=4.0, churn=0.0)

    def denoise(self, x_t: torch.Tensor, t: float) -> torch.Tensor:
        centre = x_t.mean(1, keepdim=True)
        return centre + (x_t - centre) / (1 + 0.1 * t)


def stage(weight: float) -> Stage:
    return Stage("map", lambda atoms, sigma: likelihood(atoms, sigma).sum(), high=3.0, weight=weight)


def test_a_known_motion_is_undone():
    moves = realignment()(displaced(PLACE)[None], 1.0)
    torch.testing.assert_close(moves.apply(displaced(PLACE)[None])[0], PLACE, atol=5e-3, rtol=0)
    torch.testing.assert_close(moves.rotation[0], TURN.T, atol=1e-3, rtol=0)


def test_who_stands_right_stays_and_who_gains_little_too():
    nearly = PLACE + torch.tensor(
        [0.2, 0.0, 0.0], dtype=torch.float64
    )  # costs 12 * 0.2^2 / (2 * 0.5^2) = 0.96
    both = torch.stack([nearly, displaced(PLACE)])
    moves = realignment()(both, 1.0)
    torch.testing.assert_close(moves.apply(both)[0], nearly)
    torch.testing.assert_close(moves.apply(both)[1], PLACE, atol=5e-3, rtol=0)
    assert realignment()(nearly[None], 1.0) is None
    assert realignment(gain=0.9)(nearly[None], 1.0) is not None


def test_a_worse_place_is_never_taken():
    """Not even where the gradient leads the wrong way."""

    def misleading(atoms: torch.Tensor, sigma: float) -> torch.Tensor:
        value = likelihood(atoms, sigma)
        return value.detach() - (value - value.detach())

    assert realignment(term=misleading)(displaced(PLACE)[None], 1.0) is None


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_it_is_as_if_the_sample_had_been_moved_before_the_step(weight, generator):
    prior = Shrinking()
    start = displaced(PLACE)[None] + 0.3 * torch.randn(2, ATOMS, 3, generator=generator, dtype=torch.float64)
    guided = GuidedPrior(prior, [stage(weight)], realign=realignment())
    assert isinstance(guided, Prior)
    assert isinstance(guided.process, NoiseProcess)
    found = guided.process.step(guided.denoise, start, 2.0, 1.0, generator)
    moves = realignment()(prior.denoise(start, 2.0), 2.0)
    plain = GuidedPrior(prior, [stage(weight)])
    expected = plain.process.step(plain.denoise, moves.apply(start), 2.0, 1.0, generator)
    torch.testing.assert_close(found, expected)
    assert guided.trace[0]["moved"] > 3.0


def test_it_is_done_with_its_stage_at_every_so_many_steps_also_after_a_pause(generator):
    guided = GuidedPrior(Shrinking(), [stage(0.0)], realign=realignment())
    away = displaced(PLACE)[None]
    for _ in range(4):
        guided.denoise(away, 2.0)
    assert ["moved" in row for row in guided.trace] == [True, False, True, False]
    resumed = GuidedPrior(Shrinking(), [stage(0.0)], realign=realignment())
    resumed.trace = guided.trace[:1]
    resumed.denoise(away, 2.0)
    assert "moved" not in resumed.trace[1]
    before = GuidedPrior(Shrinking(), [stage(0.0)], realign=realignment())
    x = before.process.step(before.denoise, away, 3.5, 3.2, generator)  # the stage begins at 3
    torch.testing.assert_close(x, Shrinking().process.step(Shrinking().denoise, away, 3.5, 3.2, generator))


def test_a_sample_from_noise_ends_where_it_is_wanted():
    """The prior knows the shape alone; rigid motions bring it to its place, guidance has no weight."""

    class Shape(Shrinking):
        def denoise(self, x_t, t):
            centre = x_t.mean(1, keepdim=True)
            shape = displaced(PLACE)
            return centre + (shape - shape.mean(0)) + 0 * x_t

    guided = GuidedPrior(Shape(), [stage(0.0)], realign=realignment(every=1))
    x = sample(guided, steps=10, members=2, generator=torch.Generator().manual_seed(1))
    near = (x - PLACE).square().sum(-1).mean(1).sqrt()
    assert float(near.max()) < 0.3, near


def test_moves_keep_distances_and_are_differentiable():
    twist = torch.tensor([[0.5, -1.0, 2.0, 3.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    centre, radius = PLACE.mean(0)[None], torch.tensor([7.0], dtype=torch.float64)
    moved = Moves.about(centre, radius, twist).apply(PLACE[None])[0]
    torch.testing.assert_close(torch.cdist(moved, moved), torch.cdist(PLACE, PLACE))
    torch.testing.assert_close(moved.mean(0) - PLACE.mean(0), twist[0, 3:])
    assert torch.autograd.gradcheck(lambda t: Moves.about(centre, radius, t).apply(PLACE[None]), (twist,))
