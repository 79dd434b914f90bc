"""One state in one map: what guides a sample toward it, and how all its atoms are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from densemble.atoms import Topology
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import Terms, build_restraints
from densemble.guidance.realign import MemberTerm, Realignment
from densemble.guidance.stage import Stage, Term
from densemble.io.models import Model
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.recipes.state import Finish, StateRecipe, Target
from densemble.sidechains.residues import is_buildable

ATOM_VOLUME = 17.0
"""Å^3 of protein for each heavy atom: 1.21 Å^3 for a Da (Harpaz et al. 1994), 14 Da an atom."""
NETWORK, ATTACHED, NETWORK_SD = 4.5, 2.6, 0.05
"""Å: what has no restraints of its own keeps its distances in the start; see ``as_in_start``."""
BLUR_STEP = 0.5  # Å; the target is blurred to multiples of this, so that few copies of it are made


def density_values(likelihood: StateLikelihood, target: Target) -> MemberTerm:
    """Log-likelihood of the map given each member alone; map and model blurred to match the noise."""
    return lambda atoms, sigma: likelihood(atoms, blur=_blur(target, sigma), solve_b=target.solve_b)


def density_term(likelihood: StateLikelihood, target: Target) -> Term:
    """The sum of that over members, which do not know of each other."""
    values = density_values(likelihood, target)
    return lambda atoms, sigma: values(atoms, sigma).sum()


def ensemble_term(likelihood: StateLikelihood, target: Target) -> Term:
    """Log-likelihood of the map given all members together, equally weighted (paper 1, Eq. 2)."""

    def term(atoms: Tensor, sigma: float) -> Tensor:
        weights = atoms.new_full((len(atoms),), 1 / len(atoms))
        return likelihood.together(atoms, weights, blur=_blur(target, sigma), solve_b=target.solve_b)

    return term


def realignment(likelihood: StateLikelihood, recipe: StateRecipe, *, together: bool) -> Realignment | None:
    """Moves members by the density's log-likelihood, if the recipe wants it.

    Args:
        likelihood: of the map.
        recipe: the method.
        together: of all members; each then stands for its share of it.
    """
    if recipe.realign is None:
        return None
    joint, alone = ensemble_term(likelihood, recipe.target), density_values(likelihood, recipe.target)

    def shares(atoms: Tensor, sigma: float) -> Tensor:
        return joint(atoms, sigma).expand(len(atoms)) / len(atoms)

    return Realignment(shares if together else alone, "density", **recipe.realign.model_dump())


def _blur(target: Target, sigma: float) -> float:
    return round(min(target.blur_per_sigma * sigma, target.blur_limit) / BLUR_STEP) * BLUR_STEP


def cloud_term(divergence: SinkhornDivergence) -> Term:
    """Minus the Sinkhorn divergence of each member's atoms to the point cloud of the map."""
    return lambda atoms, sigma: -divergence(atoms).sum()


def stages_of(
    recipe: StateRecipe, terms: dict[str, Term], resolution: float, levels: Sequence[float] | None = None
) -> list[Stage]:
    """The recipe's stages for a map of this resolution in Å, and a prior that sees these noise levels."""
    stages = []
    for stage in recipe.stages:
        high, low = recipe.interval(stage, resolution, levels)
        options = stage.model_dump(exclude={"term", "steps", "high", "low"})
        knots = recipe.knots(stage, levels)
        stages.append(
            Stage(name=stage.term, term=terms[stage.term], high=high, low=low, knots=knots, **options)
        )
    return stages


def refinable(topology: Topology) -> np.ndarray:
    """Indices of the atoms whose stereochemistry is known: protein residues of the usual amino acids."""
    known = [i for i, r in enumerate(topology.residues) if r.kind == "protein" and is_buildable(r.name)]
    return topology.atoms_of(known)


def movable(topology: Topology) -> np.ndarray:
    """Indices of all atoms but those of waters."""
    return topology.atoms_of([i for i, r in enumerate(topology.residues) if r.kind != "water"])


def as_in_start(start: Model, free: np.ndarray) -> Terms:
    """Distances that hold together what has no restraints of its own, as harmonic terms among the free atoms.

    Atoms of ligands, ions, nucleic acids and unusual residues keep their distances in the start: to each
    other within ``NETWORK`` Å, and to the protein within ``ATTACHED`` Å (covalent links, coordinated metals).
    """
    other = ~np.isin(free, refinable(start.topology))
    x = start.coords[free]
    pairs = cKDTree(x).query_pairs(NETWORK, output_type="ndarray").reshape(-1, 2)
    length = np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    count = other[pairs].sum(axis=1)
    kept = (count == 2) | ((count == 1) & (length < ATTACHED))
    return Terms(
        atoms=torch.from_numpy(pairs[kept].astype(np.int64)),
        mean=torch.from_numpy(length[kept]),
        sd=torch.full((int(kept.sum()),), NETWORK_SD, dtype=torch.float64),
    )


def joined(first: Terms, second: Terms) -> Terms:
    """Terms of two sources."""
    return Terms(*(torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Terms)))


def refined(
    start: Model, coords: Float[Tensor, "k n 3"], likelihood: StateLikelihood, finish: Finish
) -> Float[Tensor, "k n 3"]:
    """Members that together explain the map, moved to do so better, with sound stereochemistry.

    Which residues are bonded is taken from the start. Give one member alone where each is to explain the map.
    Waters stay, and those of the first member are avoided.
    """
    free = movable(start.topology)
    if finish.evaluations == 0 or not len(free):
        return coords
    restraints = build_restraints(start.topology, coords[0].double().numpy(), free, bonded_as=start.coords)
    whole = replace(restraints, bonds=joined(restraints.bonds, as_in_start(start, free)))
    objective = GeometryObjective(whole)
    index = torch.from_numpy(free)
    weights = coords.new_full((len(coords),), 1 / len(coords))
    gain = finish.data_per_atom * len(free) / likelihood.data

    def density(x: Tensor) -> Tensor:
        return gain * likelihood.together(coords.index_copy(1, index, x), weights)

    found = regularise(coords[:, index], objective, log_likelihood=density, evaluations=finish.evaluations)
    return coords.index_copy(1, index, found.coords)
