"""Priors and packers, made for the stretches of a problem by the numbers of a recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.errors import InputError
from densemble.priors.chroma.prior import ChromaPrior
from densemble.priors.edm import EDM
from densemble.priors.embedded import EmbeddedPrior
from densemble.priors.gaussian import GaussianPrior, anchored_chain
from densemble.priors.held import Substructure
from densemble.problem import Stretches
from densemble.recipes import ChainNoise, Noise, Recipe
from densemble.sidechains.chroma import ChromaPacker


def gaussian_prior(stretches: Stretches, recipe: Recipe) -> GaussianPrior:
    """Smooth displacements of the start, held at the anchors.

    Raises:
        InputError: the recipe has no numbers for it.
    """
    if recipe.gaussian is None:
        raise InputError(f"recipe {recipe.name}: has no [gaussian]; give it one, or choose another --prior")
    atoms = stretches.backbone_atoms
    topology = stretches.topology.subset(atoms)
    start = stretches.start[torch.as_tensor(atoms)]
    rank = {r: i for i, r in enumerate(sorted(r for stretch in stretches.moving for r in stretch))}
    return anchored_chain(
        topology,
        start,
        [[rank[r] for r in stretch] for stretch in stretches.moving],
        anchored=[(a.before is not None, a.after is not None) for a in stretches.anchors],
        amplitude=recipe.gaussian.amplitude,
        smoothness=recipe.gaussian.smoothness,
        jitter=recipe.gaussian.jitter,
        process=noise_about(start, recipe),
    )


def embedded_prior(stretches: Stretches, recipe: Recipe) -> EmbeddedPrior:
    """The packaged network; its noise begins about the start."""
    model = stretches.model
    start = stretches.start[torch.as_tensor(stretches.backbone_atoms)]
    prior = EmbeddedPrior(model.topology, model.coords, stretches.residues)
    return prior.with_process(noise_about(start, recipe))


def noise_about(start: Float[Tensor, "n 3"], recipe: Recipe) -> EDM:
    """The recipe's noise, centred on the start.

    Raises:
        InputError: it is Chroma's.
    """
    if not isinstance(recipe.noise, Noise):
        raise InputError(f"recipe {recipe.name}: its noise is Chroma's; add --prior chroma or choose another")
    return EDM(center=start, **recipe.noise.model_dump(exclude={"steps"}))


def chroma_prior(stretches: Stretches, recipe: Recipe, network: Any) -> Substructure:  # noqa: ANN401
    """The released backbone network, all of the protein but the stretches held where the model has it.

    Args:
        stretches: the free part of the model.
        recipe: with the noise of Chroma.
        network: see ``densemble.priors.chroma.networks.load_backbone``.

    Raises:
        InputError: the recipe has other noise, or nothing is left to hold.
    """
    noise = recipe.noise
    if not isinstance(noise, ChainNoise):
        raise InputError(
            f"recipe {recipe.name}: its noise is not Chroma's; take --recipe chroma-2024, or give the recipe "
            "a [noise] with inverse_temperature, langevin_factor and langevin_isothermal"
        )
    topology, coords = stretches.model.topology, stretches.model.coords
    prior = ChromaPrior(topology, coords, network, **noise.model_dump(exclude={"steps"}))
    moving = topology.backbone([r for stretch in stretches.residues for r in stretch])
    free = np.isin(prior.atoms, moving)
    if free.all():
        raise InputError(
            f"region {stretches.region}: it is all that the model has of protein, and Chroma's samples would "
            "have no place in the map; leave out some of the chain"
        )
    known = torch.as_tensor(coords[prior.atoms], dtype=torch.float32)
    return Substructure(prior, known, torch.as_tensor(free))


def chroma_packer(stretches: Stretches, recipe: Recipe, network: Any) -> ChromaPacker:  # noqa: ANN401
    """The released design network on the side chains of the stretches and their windows.

    Args:
        stretches: the free part of the model.
        recipe: with the temperature of the draw.
        network: see ``densemble.priors.chroma.networks.load_design``.
    """
    model = stretches.model
    return ChromaPacker(model.topology, model.coords, network, temperature=recipe.sidechains.temperature)
