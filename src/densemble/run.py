"""One guided sampling run on a prepared problem: stages, checkpoints, selection, refinement."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, JsonValue
from torch import Tensor
from torch.nn import functional

from densemble.atoms import Ensemble
from densemble.errors import InputError
from densemble.geometry.objective import TERMS, GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import Restraints
from densemble.guidance.guided import Completion, GuidedPrior
from densemble.guidance.realign import Realignment
from densemble.guidance.stage import Stage, Term
from densemble.io.output import InputFile
from densemble.likelihood.bfactor import fit_b
from densemble.likelihood.density import DensityLikelihood
from densemble.priors.protocol import Prior
from densemble.problem import Guide, RegionProblem
from densemble.recipes import Finish, Recipe
from densemble.rounds import Pass, Population, RoundsState, Score, Support, sample_rounds
from densemble.sampler import SamplerState, load_checkpoint, save_checkpoint
from densemble.selection.judge import Judge, fit_shares
from densemble.selection.pursuit import fit_weights, matching_pursuit

BLUR_STEP = 0.1  # Å; the target is blurred to multiples of this, so that few copies of it are made


def mode_of(guide: Guide) -> Literal["ensemble", "each"]:
    """The likelihood that goes with a way of guidance."""
    return "each" if guide == "each" else "ensemble"


def holds_start(guide: Guide, recipe: Recipe) -> bool:
    """Whether the start is itself a member, and the others are sought beside it."""
    return guide == "ensemble" and recipe.density.ensemble == "beside_start"


def density_term(problem: RegionProblem, guide: Guide, b_iso: Tensor, recipe: Recipe) -> Term:
    """Log-likelihood of the target, which is blurred to match the noise."""
    settings = recipe.density
    beside = problem.beside_start(b_iso)
    likelihood = problem.likelihood(mode_of(guide), b_iso)

    def term(atoms: Tensor, sigma: float) -> Tensor:
        blur = min(settings.blur_per_sigma * sigma, settings.blur_limit)
        blur = round(blur / BLUR_STEP) * BLUR_STEP
        if holds_start(guide, recipe):
            return beside(atoms, blur=blur).sum()
        weights = atoms.new_full((len(atoms),), 1 / len(atoms))
        return likelihood(atoms, weights, blur=blur)

    return term


def member_score(problem: RegionProblem, guide: Guide, geometry: GeometryObjective, recipe: Recipe) -> Score:
    """By which members are compared between rounds: fit to the target plus stereochemistry, nats."""
    beside = problem.beside_start(problem.b_start)
    each = problem.likelihood("each", problem.b_start)

    def score(atoms: Tensor) -> Tensor:
        if holds_start(guide, recipe):
            fit = beside(atoms)
        else:
            fit = -each.fit(atoms, atoms.new_ones(len(atoms))).residual / (2 * problem.sigma**2)
        return fit + geometry.per_member(atoms)

    return score


def residue_support(problem: RegionProblem, guide: Guide, recipe: Recipe) -> Support:
    """Mean over a residue's backbone of the target, or of what the start does not explain of it."""
    at = problem.density_at(1.0, beside_start=holds_start(guide, recipe))
    stretches = problem.stretches
    backbone = torch.as_tensor(stretches.backbone_atoms)
    of = np.unique(stretches.topology.residue_index[stretches.backbone_atoms], return_inverse=True)[1]
    mean = functional.one_hot(torch.as_tensor(of)).float()
    mean = mean / mean.sum(0)

    def support(atoms: Tensor) -> Tensor:
        return at(atoms[:, backbone]) @ mean

    return support


def passes_of(guide: Guide, steps: int | None, recipe: Recipe) -> list[Pass]:
    """The first pass or those from the start, and the recipe's rounds where members can be compared.

    Args:
        guide: without guidance there is one pass, from pure noise.
        steps: of each of the first passes; None: the recipe's.
        recipe: the numbers.
    """
    rounds, starts = recipe.rounds, recipe.starts
    first = [Pass(steps or recipe.noise.steps)]
    if rounds is None or guide == "none":
        return first
    if starts is not None:
        first = [Pass(steps or starts.steps, sigma, from_start=True) for sigma in starts.noise]
    again = Pass(
        rounds.steps,
        rounds.sigma,
        rounds.share,
        rounds.window,
        temperature=rounds.temperature,
        alike=rounds.alike,
    )
    return [*first, *[again] * rounds.count]


def guidance_terms(restraints: Restraints, density: Term | None, recipe: Recipe) -> dict[str, Term]:
    """What a recipe's stages may name: the density (if it guides), stereochemistry, its contacts alone."""
    soft = GeometryObjective(restraints, cap=recipe.geometry_cap)
    others = dict.fromkeys(set(TERMS) - {"contacts"}, 0.0)
    contacts = GeometryObjective(restraints, cap=recipe.geometry_cap, weights=others)
    terms: dict[str, Term] = {
        "geometry": lambda x, sigma: soft(x),
        "contacts": lambda x, sigma: contacts(x),
    }
    return terms if density is None else terms | {"density": density}


def stages_of(recipe: Recipe, terms: dict[str, Term]) -> list[Stage]:
    """The recipe's stages for those terms that take part."""
    return [
        Stage(name=stage.term, term=terms[stage.term], **stage.model_dump(exclude={"term"}))
        for stage in recipe.stages
        if stage.term in terms
    ]


def run_key(settings: Mapping[str, JsonValue], files: Sequence[InputFile], recipe: BaseModel) -> str:
    """Identifies a run: a checkpoint is only good for the same inputs, settings and recipe."""
    what = [settings, [f.model_dump() for f in files], recipe.model_dump()]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Checkpoints:
    """The state of a run on disk: finished guides and the one under way.

    Attributes:
        path: the file.
        key: identifies inputs and settings; a checkpoint with another key is not resumed.
        every: steps between two writings.
        finished: by guide, coordinates of all members.
        current: of the guide under way, empty if none.
    """

    path: Path
    key: str
    every: int = 10
    finished: dict[str, Any] = field(default_factory=dict)
    current: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Write the file as a whole or not at all."""
        save_checkpoint(self.path, {"key": self.key, "finished": self.finished, "current": self.current})

    def finish(self, guide: str, outcome: dict[str, Any]) -> None:
        """Record that a guide is done."""
        self.finished[guide], self.current = outcome, {}
        self.save()

    def load(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            InputError: it is of other inputs or settings, or not a checkpoint.
        """
        if not self.path.is_file():
            return
        try:
            saved = load_checkpoint(self.path)
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise InputError(f"{self.path}: not a checkpoint; start anew with --force ({error})") from error
        if saved["key"] != self.key:
            raise InputError(
                f"{self.path}: belongs to a run with other inputs or settings; repeat those to --resume, "
                "or start anew with --force"
            )
        self.finished, self.current = dict(saved["finished"]), dict(saved["current"])  # type: ignore[call-overload]


def sample_members(
    prior: Prior,
    stages: list[Stage],
    completion: Completion,
    *,
    guide: str,
    passes: Sequence[Pass],
    backbone: np.ndarray,
    finish: Callable[[Tensor], Tensor],
    score: Score | None,
    members: int,
    seed: int,
    checkpoints: Checkpoints,
    on_step: Callable[[int], None],
    start: Tensor | None = None,
    support: Support | None = None,
    realign: Realignment | None = None,
) -> tuple[Float[Tensor, "k n 3"], list[dict[str, float]]]:
    """Sample members under guidance, going on from a checkpoint where there is one.

    Args:
        prior: of the backbone.
        stages: of guidance.
        completion: from the backbone to all atoms.
        guide: the name under which the checkpoint is kept.
        passes: see ``densemble.rounds.sample_rounds``.
        backbone: indices of the prior's atoms among all atoms.
        finish: applied to the members of every pass.
        score: by which members of several passes are compared.
        members: K.
        seed: of all randomness.
        checkpoints: where the state is kept.
        on_step: told the number of steps done in all passes.
        start: Å, all atoms, of passes from it.
        support: by which the windows of rounds are chosen.
        realign: moves members as a whole while they are sampled.

    Returns:
        All atoms of the members, Å, and the trace of every objective.

    Raises:
        InputError: the recipe's guidance is so strong that sampling diverges.
    """
    guided = GuidedPrior(prior, stages, completion, realign=realign)
    generator = torch.Generator().manual_seed(seed)
    state = None
    if checkpoints.current.get("guide") == guide:
        saved = checkpoints.current
        sampler = SamplerState(saved["step"], saved["x"], saved["generator"])
        parents, pool = (
            None if kept is None else Population(**kept) for kept in (saved["parents"], saved["pool"])
        )
        state = RoundsState(saved["pass"], sampler, parents, saved["held"], pool)
        completion.load_state_dict(saved["completion"])
        guided.trace = list(saved["trace"])
        on_step(_done(passes, state))

    def after(new: RoundsState) -> None:
        if new.sampler.step % checkpoints.every == 0 and new.sampler.step < passes[new.index].steps:
            checkpoints.current = {
                "guide": guide,
                "pass": new.index,
                **vars(new.sampler),
                "held": new.held,
                "parents": None if new.parents is None else dict(vars(new.parents)),
                "pool": None if new.pool is None else dict(vars(new.pool)),
                "completion": completion.state_dict(),
                "trace": guided.trace,
            }
            checkpoints.save()
        on_step(_done(passes, new))

    try:
        population = sample_rounds(
            guided,
            passes,
            backbone=torch.as_tensor(backbone),
            members=members,
            generator=generator,
            finish=finish,
            score=score,
            start=start,
            support=support,
            state=state,
            on_step=after,
        )
    except FloatingPointError as error:
        raise InputError(f"guide {guide}: {error}; lower the weights of the recipe's stages") from error
    return population.atoms, guided.trace


def _done(passes: Sequence[Pass], state: RoundsState) -> int:
    return sum(this.steps for this in passes[: state.index]) + state.sampler.step


def regularise_members(
    atoms: Float[Tensor, "k n 3"], geometry: GeometryObjective, density: Term | None, finish: Finish
) -> Float[Tensor, "k n 3"]:
    """Bring members to good stereochemistry while they go on explaining the map, if they are to."""
    likelihood = None if density is None else partial(_weighted, density, finish.density_weight)
    return regularise(
        atoms,
        geometry,
        log_likelihood=likelihood,
        curvature=geometry.curvature,
        evaluations=finish.regularise_steps,
    ).coords


def _weighted(density: Term, weight: float, x: Tensor) -> Tensor:
    return weight * density(x, 0.0)


def rank_members(
    problem: RegionProblem, atoms: Float[Tensor, "k n 3"], *, keep: int
) -> tuple[tuple[int, ...], Float[Tensor, " n"]]:
    """Members in the order in which matching pursuit adds them (Algorithm A2), and their B factors.

    Raises:
        InputError: no member correlates with the target.
    """
    start = problem.b_start
    uniform = atoms.new_full((len(atoms),), 1 / len(atoms))
    b_iso = fit_b(problem.likelihood("ensemble", start), atoms, uniform, base=start)
    try:
        selection = matching_pursuit(*problem.voxel_values(atoms, b_iso), keep=keep)
    except ValueError as error:
        raise InputError(_no_member(problem, error)) from error
    return selection.members, b_iso


def choose_members(
    problem: RegionProblem,
    atoms: Float[Tensor, "k n 3"],
    *,
    keep: int,
    settle: Callable[[Ensemble], Ensemble],
    judge: Judge | None = None,
) -> tuple[tuple[int, ...], Ensemble]:
    """As few members as the data support, refined, with weights.

    One member more is kept if with it the ensemble is the more likely by more than the parameters that it
    adds, its torsion angles and its weight (Akaike 1974, IEEE Trans. Autom. Control 19, 716-723). The single
    one is taken as it was sampled, with the B factors of the start, or refined, whichever is likelier. Data
    held out have no part in it.

    Args:
        problem: the target.
        atoms: Å, all members.
        keep: at most this many.
        settle: refines an ensemble (or leaves it as it is).
        judge: the data, which weights are then fitted to; the target if None.

    Returns:
        Indices of the members kept, and their ensemble.
    """
    order, b_iso = rank_members(problem, atoms, keep=keep)
    best, best_value = None, -math.inf
    for count in range(1, len(order) + 1):
        coords = atoms[list(order[:count])]
        weights = torch.as_tensor(fit_weights(*problem.voxel_values(coords, b_iso)), dtype=coords.dtype)
        sampled = Ensemble(problem.stretches.topology, coords, weights, b_iso.expand(count, -1))
        each = [settle(sampled)]
        if count == 1:
            each.append(replace(sampled, b_iso=problem.b_start[None]))
        trial, value = max((_likelihood_of(problem, e, judge) for e in each), key=lambda found: found[1])
        if best is not None and value - best_value <= problem.stretches.torsions + 1:
            break
        best, best_value = trial, value
    assert best is not None  # the order has at least one member
    return order[: len(best)], best


def _likelihood_of(problem: RegionProblem, ensemble: Ensemble, judge: Judge | None) -> tuple[Ensemble, float]:
    """How likely the judge's data are given an ensemble, with weights fitted to them; or the target."""
    if judge is None:
        with torch.no_grad():
            likelihood = problem.likelihood("ensemble", ensemble.b_iso)
            return ensemble, float(likelihood(ensemble.coords, ensemble.weights))
    x, w, b = (t.double().numpy() for t in (ensemble.coords, ensemble.weights, ensemble.b_iso))
    signals = judge.signals(np.arange(x.shape[1]), x, b)
    shares = fit_shares(judge, signals, w / w.sum(), np.zeros(len(w), dtype=np.int64))
    weights = torch.as_tensor(shares, dtype=ensemble.weights.dtype)
    return replace(ensemble, weights=weights), judge.fitted(signals, shares)


def pursue_members(
    problem: RegionProblem, atoms: Float[Tensor, "k n 3"], *, keep: int
) -> tuple[tuple[int, ...], Ensemble]:
    """Members as paper 1 keeps them: Algorithm A2 on plain means, as they were sampled.

    Raises:
        InputError: no member correlates with the target.
    """
    b_iso = problem.b_start
    try:
        found = matching_pursuit(*problem.voxel_values(atoms, b_iso), keep=keep, equal=True)
    except ValueError as error:
        raise InputError(_no_member(problem, error)) from error
    coords = atoms[list(found.members)]
    weights = torch.as_tensor(found.weights, dtype=coords.dtype)
    ensemble = Ensemble(problem.stretches.topology, coords, weights, b_iso.expand(len(coords), -1))
    return found.members, ensemble


def _no_member(problem: RegionProblem, error: ValueError) -> str:
    return f"region {problem.stretches.region}: {error}; see whether model and data fit each other there"


def refine(
    problem: RegionProblem,
    ensemble: Ensemble,
    geometry: GeometryObjective,
    finish: Finish,
    mode: Literal["ensemble", "each"],
) -> Ensemble:
    """Coordinates, then B and weights, of the members kept, against the target; twice.

    Coordinates follow the likelihood that guided the sampling: jointly, or each member alone. A
    member whose weight falls to zero is kept with weight zero, so that indices stay.
    """
    coords, weights, b_iso = ensemble.coords, ensemble.weights, ensemble.b_iso[0]
    for _ in range(2):
        likelihood = problem.likelihood(mode, b_iso)

        def density(x: Tensor, likelihood: DensityLikelihood = likelihood, w: Tensor = weights) -> Tensor:
            return finish.density_weight * likelihood(x, w)

        coords = regularise(coords, geometry, log_likelihood=density, evaluations=finish.refine_steps).coords
        b_iso = fit_b(problem.likelihood("ensemble", b_iso), coords, weights, base=problem.b_start)
        weights = torch.as_tensor(fit_weights(*problem.voxel_values(coords, b_iso)), dtype=coords.dtype)
    return Ensemble(ensemble.topology, coords, weights, b_iso.expand(len(coords), -1))
