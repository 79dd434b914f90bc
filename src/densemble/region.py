"""A region's members under one way of guidance: sampled, regularised, selected and refined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Ensemble
from densemble.geometry.objective import GeometryObjective
from densemble.guidance.guided import Completion
from densemble.guidance.stage import Term
from densemble.priors.protocol import Prior
from densemble.problem import Guide, RegionProblem
from densemble.recipes import Recipe
from densemble.rounds import Finish, Score
from densemble.run import (
    Checkpoints,
    choose_members,
    density_term,
    guidance_terms,
    holds_start,
    member_score,
    mode_of,
    passes_of,
    pursue_members,
    refine,
    regularise_members,
    residue_support,
    sample_members,
    stages_of,
)
from densemble.selection.judge import Judge
from densemble.sidechains.completion import Packer, RotamerPacker, SideChainCompletion

CHI_STEPS = {"high", "resample_every", "gradient_steps", "step_size", "final_update"}
"""What of a recipe's side chains says when chi moves and how."""


@dataclass(frozen=True)
class Draw:
    """How members of a region are drawn.

    Attributes:
        prior: diffusion model of the region's backbone.
        recipe: the method.
        members: sampled together.
        keep: at most this many are kept.
        steps: of the reverse diffusion; the recipe's if None.
        seed: of all randomness.
        packer: draws side chains; None: from the rotamer library and the density.
        completion: of a prior of all atoms, which needs no side chains; None where it is of the backbone.
    """

    prior: Prior
    recipe: Recipe
    members: int
    keep: int
    steps: int | None
    seed: int
    packer: Packer | None = None
    completion: Completion | None = None


@dataclass(frozen=True, eq=False)
class GuideRun:
    """What one way of guidance gave.

    Attributes:
        members: all atoms of all members, regularised, Å.
        selected: indices of those kept.
        ensemble: those kept, refined, with their weights.
        trace: value of every objective at every step.
    """

    members: Float[Tensor, "k n 3"]
    selected: tuple[int, ...]
    ensemble: Ensemble
    trace: list[dict[str, float]]

    @property
    def final(self) -> Float[Tensor, "k n 3"]:
        """All members, those kept as refined."""
        return self.members.index_copy(0, torch.tensor(self.selected), self.ensemble.coords)


def side_chains(
    problem: RegionProblem, draw: Draw, guide: Guide, density: Term | None, members: int
) -> SideChainCompletion:
    """What completes the atoms of a backbone prior."""
    steps, beside = draw.recipe.sidechains, holds_start(guide, draw.recipe)
    density_at = None if density is None else problem.density_at(steps.density_gain, beside_start=beside)
    return SideChainCompletion(
        problem.side_chains(members),
        draw.prior.topology,
        **steps.model_dump(include=CHI_STEPS),
        seed=draw.seed,
        packer=draw.packer or RotamerPacker(density_at, steps.temperature),
        log_likelihood=density,
    )


def finisher(
    problem: RegionProblem,
    geometry: GeometryObjective,
    draw: Draw,
    guide: Guide,
    density: Term | None,
    score: Score | None,
    members: int,
) -> Finish:
    """What members go through at the end of a pass.

    They are brought to good stereochemistry in the density. Only then are their backbones good enough for
    fine choices of side chains; where members are compared these are tried, and kept where they score higher.
    """
    recipe, steps = draw.recipe, draw.recipe.sidechains

    def regularised(atoms: Tensor) -> Tensor:
        return regularise_members(atoms, geometry, density, recipe.finish)

    if score is None or steps.fine_gain is None:
        return regularised
    # half the way will do for a backbone to choose side chains on
    rough = recipe.finish.model_copy(update={"regularise_steps": recipe.finish.regularise_steps // 2})
    chains, stretches = problem.side_chains(members), problem.stretches
    density_at = problem.density_at(steps.fine_gain, beside_start=holds_start(guide, recipe))
    rows = torch.as_tensor(stretches.topology.backbone([r for part in stretches.moving for r in part]))

    def finished(atoms: Tensor) -> Tensor:
        first = regularise_members(atoms, geometry, density, rough)
        chains.adopt(first)
        generator = torch.Generator().manual_seed(draw.seed)  # the same each time: nothing to resume
        chains.pack(first[:, rows], generator=generator, density_at=density_at, temperature=0.0, fine=True)
        second = regularised(chains.complete(first[:, rows]))
        with torch.no_grad():
            better = score(second) > score(first)
        return torch.where(better[:, None, None], second, first)

    return finished


def sampled(
    problem: RegionProblem,
    draw: Draw,
    guide: Guide,
    density: Term | None,
    *,
    checkpoints: Checkpoints,
    on_step: Callable[[int], None],
) -> tuple[Float[Tensor, "k n 3"], list[dict[str, float]]]:
    """All members, regularised, the start first where it is one of them; and the trace."""
    recipe, restraints = draw.recipe, problem.restraints()
    with_start = holds_start(guide, recipe) and draw.members > 1
    members = draw.members - 1 if with_start else draw.members
    passes = passes_of(guide, draw.steps, recipe)
    several = len(passes) > 1
    soft, geometry = GeometryObjective(restraints, cap=recipe.geometry_cap), GeometryObjective(restraints)
    score = member_score(problem, guide, soft, recipe) if several else None
    completion = draw.completion or side_chains(problem, draw, guide, density, members)
    atoms, trace = sample_members(
        draw.prior,
        stages_of(recipe, guidance_terms(restraints, density, recipe)),
        completion,
        guide=guide,
        passes=passes,
        backbone=problem.stretches.backbone_atoms,
        finish=finisher(problem, geometry, draw, guide, density, score, members),
        score=score,
        start=problem.stretches.start,
        support=residue_support(problem, guide, recipe) if several else None,
        members=members,
        seed=draw.seed,
        checkpoints=checkpoints,
        on_step=on_step,
    )
    return torch.cat([problem.stretches.start[None], atoms]) if with_start else atoms, trace


def sample_guide(
    problem: RegionProblem,
    draw: Draw,
    guide: Guide,
    *,
    checkpoints: Checkpoints,
    on_step: Callable[[int], None],
) -> None:
    """Sample and regularise under one way of guidance, unless that is done; into the checkpoints."""
    if guide not in checkpoints.finished:
        density = None if guide == "none" else density_term(problem, guide, problem.b_start, draw.recipe)
        atoms, trace = sampled(problem, draw, guide, density, checkpoints=checkpoints, on_step=on_step)
        checkpoints.finish(guide, {"atoms": atoms, "trace": trace})


def run_guide(
    problem: RegionProblem,
    draw: Draw,
    guide: Guide,
    *,
    checkpoints: Checkpoints,
    on_step: Callable[[int], None],
) -> GuideRun:
    """Sample, regularise, select and refine under one way of guidance."""
    sample_guide(problem, draw, guide, checkpoints=checkpoints, on_step=on_step)
    return select_guide(problem, draw, guide, checkpoints.finished[guide])


def select_guide(
    problem: RegionProblem, draw: Draw, guide: Guide, done: Mapping[str, Any], *, judge: Judge | None = None
) -> GuideRun:
    """Select and refine what ``sample_guide`` has sampled; for the judge see ``run.choose_members``."""
    recipe, atoms = draw.recipe, done["atoms"]
    geometry = GeometryObjective(problem.restraints())

    def settle(ensemble: Ensemble) -> Ensemble:
        if guide == "none":
            return ensemble
        return refine(problem, ensemble, geometry, recipe.finish, mode_of(guide))

    if recipe.selection == "pursuit":
        selected, ensemble = pursue_members(problem, atoms, keep=draw.keep)
    else:
        selected, ensemble = choose_members(problem, atoms, keep=draw.keep, settle=settle, judge=judge)
    return GuideRun(atoms, selected, ensemble, done["trace"])
