"""What a guided step waits for on a device: every answer that the host asks for empties the queue."""

import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere

from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.likelihood.cloud import PointCloud
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.priors.edm import EDM
from densemble.sampler import sample
from densemble.testing import chain_topology

DENSITY = {"plan._most": 1, "plan.of": 3}
"""How many atoms reach the box; where the windows are, and the order and place of the leaves back there."""
CLOUD = {"transport.of_members": 1}
"""The coordinates, for how far they are apart."""
ALWAYS = {"sampler.sample": 1}
"""Whether the samples are finite."""
STEPS = 4


def guided_by(term, start):
    """A prior that draws atoms to the start, elsewhere."""
    center = start.to(ELSEWHERE)

    class Shrinker:
        topology = chain_topology(4)
        process = EDM(center=center, sigma_max=2.0)

        def denoise(self, x_t, t):
            return center + (x_t - center) / (1 + t**2)

    return GuidedPrior(Shrinker(), [] if term is None else [Stage("pull", term, mode="ratio", weight=0.2)])


@pytest.fixture
def start(generator):
    return 4 * torch.randn(16, 3, generator=generator)


def likelihood_of(start):
    grid = Grid.around(start.double().numpy(), margin=8.0, spacing=1.5)
    elements = ["N", "C", "C", "O"] * 4
    values = MolmapDensity(grid, elements, resolution=4.0)(start[None] + 0.5, torch.ones(1))
    target = DensityMap(grid, values)
    return StateLikelihood(target, torch.ones(grid.shape), elements, resolution=4.0, volume=272.0)


def waits_of_a_step(prior):
    """Of the last step: in the first everything that stays is made."""
    with Elsewhere() as mode:
        sample(
            prior,
            steps=STEPS,
            members=2,
            generator=torch.Generator().manual_seed(1),
            on_step=lambda state: mode.waits.clear() if state.step < STEPS else None,
        )
    assert len(prior.trace) == (STEPS if prior.stages else 0)
    return mode


def test_an_unguided_step_waits_once(start):
    with Elsewhere():
        prior = guided_by(None, start)
    assert waits_of_a_step(prior).waits == ALWAYS


@pytest.mark.parametrize("solve_b", [False, True])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_a_step_guided_by_the_density_waits_for_the_windows_alone(start, solve_b, blur):
    with Elsewhere():
        likelihood = likelihood_of(start).to(ELSEWHERE)
        prior = guided_by(lambda x, sigma: likelihood(x, blur=blur, solve_b=solve_b).sum(), start)
    drawn = 2 if solve_b else 1  # first narrow, to find the B factor, then with it
    mode = waits_of_a_step(prior)
    assert mode.waits == ALWAYS | {place: drawn * count for place, count in DENSITY.items()}
    # a GPU may add to all windows of one call at once, and they overlap
    assert not any("_foreach" in name for name in mode.operations)


def test_a_step_guided_by_a_cloud_waits_for_the_coordinates_alone(start):
    divergence = SinkhornDivergence(PointCloud(start.double() + 1.0, torch.ones(16).double()))
    with Elsewhere():
        prior = guided_by(lambda x, sigma: -divergence(x).sum(), start)
    assert waits_of_a_step(prior).waits == ALWAYS | CLOUD


def test_what_waits_is_seen(start):
    """A term that asks for its value, one that asks which atoms, and one that reads a table of the host."""
    table = torch.ones(16, 3)

    def asks(x, sigma):
        return x.sum() if float(x.detach().sum()) > 0 else -x.sum()

    def chooses(x, sigma):
        return x[x > 0].sum()

    def fetches(x, sigma):
        return (table.to(x) * x).sum()

    for term in (asks, chooses, fetches):
        with Elsewhere():
            prior = guided_by(term, start)
        assert waits_of_a_step(prior).waits == ALWAYS | {"guided.denoise": 1}
