"""Samples of a state: the prior around the start, its guidance, batches that can be resumed, the ranking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.em.folding import PLACED_AT, Fold, fold_steps
from densemble.em.inputs import StateInputs, StateSettings
from densemble.em.problem import StateProblem
from densemble.em.state import (
    cloud_term,
    density_term,
    ensemble_term,
    realignment,
    refined,
    stages_of,
)
from densemble.forward.cryoem import FormKind
from densemble.guidance.guided import AllAtom, Completion
from densemble.guidance.stage import Stage, Term
from densemble.likelihood.cloud import cloud_of_map
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.priors.chain_graph import Trust
from densemble.priors.edm import EDM
from densemble.priors.elastic import ElasticPrior
from densemble.priors.protocol import Prior
from densemble.priors.whole_chain import WholeChainPrior
from densemble.progress import Progress
from densemble.recipes.state import StateRecipe
from densemble.rounds import Pass
from densemble.run import Checkpoints, sample_members
from densemble.sidechains.carried import CarriedAtoms

CPU = torch.device("cpu")
ELASTIC_WIDTHS = 25.0
"""First noise level of the elastic prior, over the expected motion; as for the embedded one."""
VOXELS_TOGETHER = 2**25
"""Voxels times members whose densities are held at once; some 20 bytes each."""
TOGETHER = 2048
"""Residues times members that are denoised in one call: bounds memory."""
FOLDED_TOGETHER = 8192
"""The same for a network that folds, which bounds its memory by itself: this is for the densities."""


def terms_of(
    settings: StateSettings, problem: StateProblem, recipe: StateRecipe, *, device: torch.device = CPU
) -> dict[str, Term]:
    """The objectives that the recipe's stages name, for atoms on a device."""
    wanted = {stage.term for stage in recipe.stages}
    terms: dict[str, Term] = {}
    if "density" in wanted:
        make = ensemble_term if settings.whole_ensemble else density_term
        terms["density"] = make(problem.likelihood.to(device), recipe.target)
    if "cloud" in wanted:
        prepared = problem.prepared
        cloud = cloud_of_map(problem.likelihood.target, prepared.inside, atoms=len(problem.model.topology))
        terms["cloud"] = cloud_term(SinkhornDivergence(cloud.equal()))
    return terms


@dataclass(frozen=True, eq=False)
class Guided:
    """A prior around the start, and what guides it.

    Attributes:
        prior: the diffusion model.
        completion: from its atoms to all.
        atoms: indices of its atoms among all.
        stages: of guidance.
        steps: of the reverse diffusion.
        together: residues times members that are sampled in one batch. Part of a run's identity, since the
            random numbers of a batch belong to it as a whole.
        rate: the network's confidence in samples just drawn, if it has an opinion.
        device: where samples are drawn.
        messages: what the user should know.
    """

    prior: Prior
    completion: Completion
    atoms: np.ndarray
    stages: list[Stage]
    steps: int
    together: int = TOGETHER
    rate: Callable[[Tensor], dict[str, Tensor]] | None = None
    device: torch.device = CPU
    messages: tuple[str, ...] = ()


def guided(
    settings: StateSettings, inputs: StateInputs, problem: StateProblem, *, fold: Fold | None = None
) -> Guided:
    """Make everything ready to sample.

    Raises:
        InputError: the prior cannot model the start, or the map gives too few points for a cloud.
    """
    recipe = inputs.recipe
    device = CPU if fold is None else fold.boltz.device
    terms = terms_of(settings, problem, recipe, device=device)
    if fold is not None:
        return _guided_fold(settings, inputs, problem, fold, terms)
    stages = stages_of(recipe, terms, inputs.resolution)
    topology, coords, trust = problem.model.topology, problem.model.coords, recipe.trust
    churn = recipe.sampling.churn
    if settings.prior == "elastic":
        center, highest = torch.from_numpy(coords).float(), ELASTIC_WIDTHS * trust.domains
        process, steps = levels(recipe, EDM(center=center, sigma_max=highest, churn=churn))
        elastic = ElasticPrior(
            topology, coords, amplitude=trust.domains, residual=trust.local, process=process
        )
        return Guided(elastic, AllAtom(), np.arange(len(topology)), stages, steps)
    prior = WholeChainPrior(topology, coords, trust=Trust(**trust.model_dump()), churn=churn)
    prior.process, steps = levels(recipe, prior.process)
    backbone = topology.backbone(prior.residues)
    completion = CarriedAtoms(topology, coords, backbone, prior.atoms)
    return Guided(prior, completion, prior.atoms, stages, steps)


def _guided_fold(
    settings: StateSettings, inputs: StateInputs, problem: StateProblem, fold: Fold, terms: dict[str, Term]
) -> Guided:
    """A network that folds, guided by its own noise levels and placed before the map guides it."""
    prior = fold.prior(problem.model)
    whole = fold_steps(inputs.recipe)
    seen = prior.process.levels(whole)  # stages are counted from pure noise, wherever samples begin
    stages = stages_of(inputs.recipe, terms, inputs.resolution, seen)
    steps = settings.steps or prior.process.steps_below(whole)
    levels = prior.process.levels_of(prior.process.times(steps))
    guided_at = [i for i, level in enumerate(levels) if any(stage.active(level) for stage in stages)]
    shaped = next((i for i, level in enumerate(levels) if level <= PLACED_AT), len(levels) - 1)
    placed = max(shaped, guided_at[0]) if guided_at else shaped
    fold.place(prior, problem.model, level=prior.process.times(steps)[placed])
    begun = [s for s in (stage.below(levels[placed]) for stage in stages) if s is not None]
    return Guided(
        prior=prior,
        completion=AllAtom(prior.tokens),
        atoms=np.arange(len(prior.topology)),
        stages=begun,
        steps=steps,
        together=FOLDED_TOGETHER,
        rate=partial(fold.rated, prior),
        device=fold.boltz.device,
        messages=tuple(_idle(stage, steps) for stage in stages if not any(map(stage.active, levels))),
    )


def _idle(stage: Stage, steps: int) -> str:
    """What to know of a stage in which no step lies."""
    return (
        f"the {stage.name} does not guide: its stage is from {stage.high:.3g} to {stage.low:.3g} Å of noise, "
        f"and none of the {steps} steps begins there"
    )


def levels(recipe: StateRecipe, process: EDM) -> tuple[EDM, int]:
    """The noise levels of a run and how many: the prior's own, or those of the recipe's schedule."""
    if recipe.schedule is None:
        return process, recipe.sampling.steps
    return recipe.schedule.below(process)


def batches(members: int, residues: int, voxels: int, together: int = TOGETHER) -> list[range]:
    """Members that are sampled together, counted from 1: as many as memory allows."""
    size = max(1, min(together // residues, VOXELS_TOGETHER // voxels))
    return [range(first, min(first + size, members + 1)) for first in range(1, members + 1, size)]


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn.

    Attributes:
        members: Å, all atoms, shape=(K, N, 3).
        trace: every objective at every step.
        confidence: the network's, by name, one row for each member; empty if it has none.
    """

    members: Float[Tensor, "k n 3"]
    trace: list[dict[str, float]]
    confidence: dict[str, Tensor]

    def confidence_of(self, i: int) -> dict[str, float] | None:
        """What there is of one member as a whole."""
        whole = {name: round(float(v[i]), 4) for name, v in self.confidence.items() if v.ndim == 1}
        return whole or None


def sampled(
    settings: StateSettings,
    inputs: StateInputs,
    problem: StateProblem,
    sampling: Guided,
    *,
    checkpoints: Checkpoints,
    tell: Progress,
) -> Samples:
    """All members, refined; each batch is kept when it is done."""
    recipe, voxels = inputs.recipe, problem.likelihood.mask.numel()
    steps = settings.steps or sampling.steps
    together = batches(settings.members, len(problem.model.topology.residues), voxels, sampling.together)
    if settings.whole_ensemble:
        together = [range(1, settings.members + 1)]

    realign = realignment(problem.likelihood.to(sampling.device), recipe, together=settings.whole_ensemble)

    def finish(members: Tensor) -> Tensor:
        members = members.cpu()
        likelihood = fitted_to_best(problem.likelihood, members, settings.forward)
        groups = [members] if settings.whole_ensemble else list(members[:, None])
        return torch.cat([refined(problem.model, x, likelihood, recipe.finish) for x in groups])

    with tell.steps("samples", steps * len(together)) as on_step:
        for index, batch in enumerate(together):
            name = f"members {batch[0]}-{batch[-1]}"
            if name in checkpoints.finished:
                continue
            members, trace = sample_members(
                sampling.prior,
                sampling.stages,
                sampling.completion,
                guide=name,
                passes=[Pass(steps)],
                backbone=sampling.atoms,
                finish=finish,
                score=None,
                members=len(batch),
                seed=settings.seed * 10_000 + batch[0],
                checkpoints=checkpoints,
                on_step=partial(_after, on_step, steps * index),
                realign=realign,
            )
            opinion = None if sampling.rate is None else sampling.rate(members)
            checkpoints.finish(name, {"atoms": members, "trace": trace, "confidence": opinion})
    done = [checkpoints.finished[f"members {b[0]}-{b[-1]}"] for b in together]
    rows = [row | {"batch": i + 1} for i, d in enumerate(done) for row in d["trace"]]
    return Samples(torch.cat([d["atoms"] for d in done]), rows, _joined([d["confidence"] for d in done]))


def _joined(parts: list[dict[str, Tensor] | None]) -> dict[str, Tensor]:
    """Confidences of all batches."""
    known = [part for part in parts if part is not None]
    return {name: torch.cat([part[name] for part in known]) for name in (known[0] if known else ())}


def _after(on_step: Callable[[int], None], before: int, done: int) -> None:
    on_step(before + done)


def order_of(likelihood: StateLikelihood, members: Float[Tensor, "k n 3"]) -> list[int]:
    """Members by falling correlation with the map that was fitted."""
    with torch.no_grad():
        found = torch.cat([likelihood.correlation(x[None]) for x in members])
    return found.argsort(descending=True, stable=True).tolist()


def fitted_to_best(
    likelihood: StateLikelihood, members: Float[Tensor, "k n 3"], kind: FormKind
) -> StateLikelihood:
    """The likelihood with atoms of the form that suits the member that fits the map best."""
    return likelihood.fitted(members[order_of(likelihood, members)[0]], kind)
