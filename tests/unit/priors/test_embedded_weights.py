"""What the weights that ship with the package must do; floors well below what was measured."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Region
from densemble.io.models import read_model
from densemble.priors.embedded import WEIGHTS, EmbeddedPrior

MODEL = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"


@pytest.fixture(scope="module")
def prior():
    model = read_model(MODEL)
    stretches = Region.parse("A:176-191").resolve(model.topology)
    return EmbeddedPrior(model.topology, model.coords, stretches), torch.from_numpy(model.coords)


def test_weights_fit_into_the_wheel():
    assert WEIGHTS.stat().st_size < 20e6


def test_denoises_a_real_loop(prior):
    prior, coords = prior
    truth = coords[prior.atoms].float()
    generator = torch.Generator().manual_seed(0)
    for sigma, bound in ((0.1, 0.8), (0.5, 0.6), (2.0, 0.6)):
        x = truth + sigma * torch.randn(8, *truth.shape, generator=generator)
        error = float((prior.denoise(x, sigma) - truth).square().mean().sqrt())
        assert error < bound * sigma


def test_bonds_of_the_denoised_loop(prior):
    """From noise of 0.3 Å the peptide bonds come back to within 0.03 Å for most residues."""
    prior, coords = prior
    truth = coords[prior.atoms].float()
    x = truth + 0.3 * torch.randn(8, *truth.shape, generator=torch.Generator().manual_seed(1))
    loop = prior.denoise(x, 0.3).unflatten(1, (-1, 4)).numpy()
    bonds = np.linalg.norm(loop[:, 1:, 0] - loop[:, :-1, 2], axis=-1)
    assert (np.abs(bonds - 1.33) < 0.05).mean() > 0.7


def test_same_seed_same_sample(prior):
    prior, _ = prior

    def draw():
        generator = torch.Generator().manual_seed(5)
        times = prior.process.times(6)
        x = prior.process.initial(2, generator)
        for t, t_next in itertools.pairwise(times):
            x = prior.process.step(prior.denoise, x, t, t_next, generator)
        return x

    assert torch.equal(draw(), draw())
