"""A run with a reduced Boltz network as the command line makes it ready, half way down to the structures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from boltz_networks import compact_model, example_input, save_checkpoint

from densemble.em.folding import fold_of, opened, unguided
from densemble.em.inputs import StateSettings, load
from densemble.em.problem import GIVEN, problem_of
from densemble.em.sampling import guided
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.priors.fold import FoldSettings
from densemble.progress import Progress
from densemble.sampler import SamplerState

MEMBERS, RESOLUTION, SPACING = 2, 4.0, 1.5
STEPS, BEGIN = 200, 121


@dataclass(frozen=True)
class Prepared:
    """A network with its trunk done, a fold in the middle of a map, and the map of another fold on disk."""

    settings: StateSettings
    boltz: Any
    fold: dict


@dataclass(frozen=True)
class Run:
    """What is sampled, by what it is guided, and the state of the members at step ``BEGIN``."""

    boltz: Any
    problem: Any
    sampling: Any
    state: SamplerState


def prepared(kind, cache, folder, *, more=""):
    """Args: the dictionary as ``write_cache`` lays it out, a folder for everything else, and more chains."""
    folder = Path(folder)
    weights = save_checkpoint(compact_model(kind), folder / "w.ckpt")
    fold = FoldSettings(prior=kind, sequence=example_input(folder, more=more), weights=weights, recycling=0)
    settings = StateSettings(
        map=folder / "map.ccp4", resolution=RESOLUTION, fold=fold, recipe="cryoboltz-2025", members=MEMBERS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOLTZ_CACHE", str(cache))
        patch.setattr("densemble.priors.boltz.model.OWN_CACHE", str(folder / "own"))
        boltz = opened(settings, None, tell=Progress())
    truth, start = (unguided(boltz, steps=30, seed=seed, tell=Progress()) for seed in (1, 2))
    centre = torch.tensor([40.0, -20.0, 60.0]).double()
    for x in (truth, start):
        x["coords"] += centre - x["coords"].mean(0)
    grid = Grid.around(truth["coords"].numpy(), margin=12.0, spacing=SPACING)
    forward = MolmapDensity(grid, boltz.topology.elements, resolution=RESOLUTION)
    values = forward(truth["coords"].float()[None], torch.ones(1))
    values += 0.02 * values.max() * torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    write_map(settings.map, DensityMap(grid, values))
    return Prepared(settings, boltz, start)


def run_of(ready, *, dtype=torch.float32):
    """Stages, terms and prior of the recipe for what is prepared."""
    settings, boltz = ready.settings, ready.boltz
    inputs, whole = load(settings), fold_of(settings, boltz, ready.fold)
    inputs = replace(inputs, density=DensityMap(inputs.density.grid, inputs.density.values.to(dtype)))
    problem = problem_of(settings, inputs, Progress(), fold=whole, standing=GIVEN)
    sampling = guided(settings, inputs, problem, fold=whole)
    generator = torch.Generator().manual_seed(17)
    level = sampling.prior.process.times(STEPS)[BEGIN]
    x = 8 * torch.randn(MEMBERS, len(boltz.topology), 3, generator=generator)
    x = x + torch.from_numpy(problem.model.coords).mean(0)
    x = x + level * torch.randn(x.shape, generator=generator)
    return Run(boltz, problem, sampling, SamplerState(BEGIN, x.to(dtype), generator.get_state()))
