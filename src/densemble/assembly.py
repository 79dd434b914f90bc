"""Priors and packers, made for the stretches of a problem by the numbers of a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.errors import InputError
from densemble.guidance.guided import AllAtom
from densemble.priors.chroma.prior import ChromaPrior
from densemble.priors.edm import EDM
from densemble.priors.embedded import EmbeddedPrior
from densemble.priors.gaussian import GaussianPrior, anchored_chain
from densemble.priors.held import Substructure
from densemble.problem import Stretches
from densemble.recipes import ChainNoise, Noise, Recipe
from densemble.sidechains.chroma import ChromaPacker

if TYPE_CHECKING:
    from densemble.priors.boltz.model import BoltzModel
    from densemble.priors.boltz.substructure import BoltzSubstructure

TAKE_CHROMA = "take the prior chroma (--prior; of a region in a cryo-EM map --region-prior)"
ENOUGH_HELD = 100
"""Atoms in known places that a network must at least be shown beside a region: a dozen residues."""


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
        InputError: see ``edm_noise``.
    """
    return EDM(center=start, **edm_noise(recipe).model_dump(exclude={"steps"}))


def edm_noise(recipe: Recipe) -> Noise:
    """The numbers of the noise of all priors but Chroma.

    Raises:
        InputError: the recipe has those of Chroma.
    """
    if not isinstance(recipe.noise, Noise):
        raise InputError(f"recipe {recipe.name}: its noise is Chroma's; {TAKE_CHROMA}, or another recipe")
    return recipe.noise


def chain_noise(recipe: Recipe) -> ChainNoise:
    """The numbers of Chroma's noise.

    Raises:
        InputError: the recipe has others.
    """
    if not isinstance(recipe.noise, ChainNoise):
        raise InputError(
            f"recipe {recipe.name}: its noise is not Chroma's; take the recipe chroma-2024, or give this one "
            "a [noise] with inverse_temperature, langevin_factor and langevin_isothermal"
        )
    return recipe.noise


def chroma_prior(stretches: Stretches, recipe: Recipe, network: Any) -> Substructure:  # noqa: ANN401
    """The released backbone network, all of the protein but the stretches held where the model has it.

    Args:
        stretches: the free part of the model.
        recipe: with the noise of Chroma.
        network: see ``densemble.priors.chroma.networks.load_backbone``.

    Raises:
        InputError: the recipe has other noise, or rounds from more noise than this has; or nothing is left
            to hold.
    """
    noise = chain_noise(recipe)
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
    region = Substructure(prior, known, torch.as_tensor(free))
    if recipe.rounds is not None:
        try:
            region.process.level(recipe.rounds.sigma)
        except ValueError as error:
            raise InputError(f"recipe {recipe.name}: rounds.sigma: {error}") from error
    return region


def boltz_prior(
    stretches: Stretches, recipe: Recipe, boltz: BoltzModel, *, seed: int
) -> tuple[BoltzSubstructure, AllAtom]:
    """A Boltz network on all atoms of the region, everything else that it models held; and what picks those.

    What the sequences have and the model lacks is sampled along, and compared with nothing.

    Args:
        stretches: the free part of the model, without windows: the network has side chains of its own.
        recipe: with the noise, about the start.
        boltz: the network, its input matched with the model.
        seed: of the noise of what is held.

    Raises:
        InputError: the recipe cannot be used with it; the network does not model an atom of the region, or
            too little of what it models has a place.
    """
    from densemble.priors.boltz.substructure import BoltzSubstructure

    if stretches.window or recipe.rounds is not None:
        raise InputError(
            f"recipe {recipe.name}: a prior of all atoms has side chains of its own and no rounds; take "
            "--recipe boltz, or set window = 0 under [sidechains] and leave [rounds] out"
        )
    region = torch.as_tensor(_of_input(stretches, boltz))
    assert boltz.match is not None
    places = torch.full((len(boltz.topology), 3), float("nan"))
    places[boltz.match.atoms] = torch.as_tensor(
        stretches.model.coords[boltz.match.model_atoms], dtype=torch.float32
    )
    free = places.isnan().any(dim=1)
    free[region] = True
    held = int((~free).sum())
    if held < ENOUGH_HELD:
        raise InputError(
            f"region {stretches.region}: only {held} other atoms of the model are of the sequences that are "
            "folded, too few to hold the rest by; leave out some of the chain, or see --sequence"
        )
    places[region] = stretches.start
    start = _filled(places)[free]
    process = noise_about(start, recipe)
    if boltz.settings.from_noise is not None:
        process = replace(process, sigma_max=boltz.settings.from_noise)
    prior = BoltzSubstructure(boltz.prior(), places, free, process, seed=seed)
    rank = torch.cumsum(free.long(), 0) - 1
    return prior, AllAtom(atoms=rank[region])


def _of_input(stretches: Stretches, boltz: BoltzModel) -> np.ndarray:
    """The free atoms of the stretches among those of the network's input.

    Raises:
        InputError: one is not among them.
    """
    topology = stretches.topology
    found = boltz.topology.places_of(topology)
    if (found < 0).any():
        missing = int(np.argmin(found))
        residue, name = topology.residues[topology.residue_index[missing]], topology.names[missing]
        raise InputError(
            f"region {stretches.region}: the network has no atom {name} of {residue.id} "
            f"({residue.name}); leave the residue out, or see whether --sequence is that of the model"
        )
    return found


def _filled(places: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Atoms without a place between those before and after them."""
    values = places.numpy()
    known = np.isfinite(values).all(axis=1)
    index = np.arange(len(values))
    columns = [np.interp(index, index[known], column[known]) for column in values.T]
    return torch.as_tensor(np.stack(columns, axis=1), dtype=torch.float32)


def chroma_packer(stretches: Stretches, recipe: Recipe, network: Any) -> ChromaPacker:  # noqa: ANN401
    """The released design network on the side chains of the stretches and their windows.

    Args:
        stretches: the free part of the model.
        recipe: with the temperature of the draw.
        network: see ``densemble.priors.chroma.networks.load_design``.
    """
    model = stretches.model
    return ChromaPacker(model.topology, model.coords, network, temperature=recipe.sidechains.temperature)
