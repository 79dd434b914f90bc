"""One state in one map: what guides a sample toward it, and how all its atoms are finished."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import build_restraints
from densemble.guidance.stage import Stage, Term
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.recipes.state import Finish, StateRecipe, Target
from densemble.sidechains.residues import is_buildable

ATOM_VOLUME = 17.0
"""Å^3 of protein for each heavy atom: 1.21 Å^3 for a Da (Harpaz et al. 1994), 14 Da an atom."""
BLUR_STEP = 0.5  # Å; the target is blurred to multiples of this, so that few copies of it are made


def density_term(likelihood: StateLikelihood, target: Target) -> Term:
    """Log-likelihood of the map given each member alone; map and model blurred to match the noise."""

    def term(atoms: Tensor, sigma: float) -> Tensor:
        blur = min(target.blur_per_sigma * sigma, target.blur_limit)
        return likelihood(atoms, blur=round(blur / BLUR_STEP) * BLUR_STEP).sum()

    return term


def cloud_term(divergence: SinkhornDivergence) -> Term:
    """Minus the Sinkhorn divergence of each member's atoms to the point cloud of the map."""
    return lambda atoms, sigma: -divergence(atoms).sum()


def stages_of(recipe: StateRecipe, terms: dict[str, Term], resolution: float) -> list[Stage]:
    """The recipe's stages for a map of this resolution in Å."""
    stages = []
    for stage in recipe.stages:
        high, low = recipe.interval(stage, resolution)
        options = stage.model_dump(exclude={"term", "steps", "high", "low"})
        stages.append(Stage(name=stage.term, term=terms[stage.term], high=high, low=low, **options))
    return stages


def refinable(topology: Topology) -> np.ndarray:
    """Indices of the atoms whose stereochemistry is known: protein residues of the usual amino acids."""
    known = [i for i, r in enumerate(topology.residues) if r.kind == "protein" and is_buildable(r.name)]
    return topology.atoms_of(known)


def refined(
    topology: Topology, coords: Float[Tensor, "n 3"], likelihood: StateLikelihood, finish: Finish
) -> Float[Tensor, "n 3"]:
    """One member, all its protein atoms moved to explain the map with sound stereochemistry.

    What else there is (ligands, waters, nucleic acids, unusual residues) stays and is avoided.
    """
    free = refinable(topology)
    if finish.evaluations == 0 or not len(free):
        return coords
    objective = GeometryObjective(build_restraints(topology, coords.double().numpy(), free))
    index = torch.from_numpy(free)
    weight = finish.data_per_atom * len(free) / likelihood.data

    def density(x: Tensor) -> Tensor:
        return weight * likelihood(coords[None].index_copy(1, index, x)).sum()

    found = regularise(
        coords[None, index], objective, log_likelihood=density, evaluations=finish.evaluations
    ).coords
    return coords.index_copy(0, index, found[0])
