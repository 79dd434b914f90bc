"""Guided segments on simulated density: ``python training/guided.py --chains FILE.npz --json OUT``.

Segments are drawn as ``evaluate.py`` draws them. The density of a segment's N, CA, C, O is calculated at a
resolution, noise as in a real target is added (``noise.py``), and the prior is guided to it as in the
package: the recipe's stages, one likelihood of all members, then regularisation with the density, then
matching pursuit and weights by non-negative least squares. With two states, the second is a fragment of
another chain closed onto the same anchors (``fragments.py``), at 0.4 beside the true one's 0.6.

What is easier than life: form factors and B of the model are those of the map, the noise level is known, and
the density of all other atoms has been taken away without error. What is harder: there are no side chains to
tell one end of the chain from the other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from corpus import Corpus, load
from densemble.geometry.objective import GeometryObjective
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Term
from densemble.likelihood.density import DensityLikelihood
from densemble.metrics.coordinates import rmsd
from densemble.priors.embedded import WEIGHTS, EmbeddedPrior, load_network
from densemble.priors.protocol import Prior
from densemble.priors.segment_network import SegmentNetwork
from densemble.recipes import Recipe, load_recipe
from densemble.run import BLUR_STEP, regularise_members, stages_of
from densemble.sampler import sample
from densemble.selection.pursuit import matching_pursuit
from evaluate import draw
from fragments import APART, Fragments, second_state
from hidden import Hidden
from intervals import of_fraction, of_quantile
from noise import LEVEL
from simulated import B_ISO, Simulated, Where, simulate

OCCUPANCIES = (0.6, 0.4)
FOUND = 0.7
"""Å, backbone RMSD in place within which a state counts as found."""
CHAINS = 4000
"""Chains whose fragments may serve as second states."""


@dataclass(frozen=True)
class Settings:
    """How a map is explained, whatever the method of guidance.

    Attributes:
        members: sampled together.
        steps: reverse steps.
        keep: at most this many members get a weight.
        seed: of the sampling.
        recipe: stages, blur, geometry.
        terms: objectives beside the density that the recipe's stages name.
    """

    members: int = 16
    steps: int = 50
    keep: int = 5
    seed: int = 0
    recipe: Recipe = field(default_factory=lambda: load_recipe("densemble"))
    terms: dict[str, Term] = field(default_factory=dict)


Guide = Callable[[Prior, DensityLikelihood, Settings], Tensor]
"""A method of guidance: members, Å, shape=(K, N, 3)."""


def density_term(likelihood: DensityLikelihood, recipe: Recipe) -> Term:
    """The likelihood of all members at equal weights, the map blurred with the noise as in the package."""

    def term(atoms: Tensor, sigma: float) -> Tensor:
        blur = min(recipe.density.blur_per_sigma * sigma, recipe.density.blur_limit)
        weights = atoms.new_full((len(atoms),), 1 / len(atoms))
        return likelihood(atoms, weights, blur=round(blur / BLUR_STEP) * BLUR_STEP)

    return term


def guide(prior: Prior, likelihood: DensityLikelihood, settings: Settings) -> Tensor:
    """The package's guidance: every stage of the recipe whose objective is at hand."""
    terms = settings.terms | {"density": density_term(likelihood, settings.recipe)}
    guided = GuidedPrior(prior, stages_of(settings.recipe, terms))
    generator = torch.Generator().manual_seed(settings.seed)
    return sample(guided, steps=settings.steps, members=settings.members, generator=generator)


@dataclass(frozen=True, eq=False)
class Case:
    """One segment, its true conformations, and where they may be."""

    hidden: Hidden
    states: list[np.ndarray]
    where: Where
    prior: EmbeddedPrior

    @classmethod
    def of(cls, corpus: Corpus, chain: int, start: int, length: int, network: SegmentNetwork) -> Case:
        """With its one true state."""
        hidden = Hidden.of(corpus, chain, start, length)
        truth = corpus.chain(chain)[0][start : start + length].astype(np.float64)
        prior = EmbeddedPrior(hidden.topology, hidden.coords, [hidden.residues], network=network)
        return cls(hidden, [truth], Where.of(hidden), prior)


def solve(case: Case, simulated: Simulated, settings: Settings, method: Guide) -> dict[str, object]:
    """Guide, regularise, select; RMSD of members to each state."""
    start, start_cpu = time.perf_counter(), time.process_time()
    soft = GeometryObjective(case.hidden.restraints, cap=settings.recipe.geometry_cap)
    given = Settings(**vars(settings) | {"terms": {"geometry": lambda x, sigma: soft(x)}})
    drawn = method(case.prior, simulated.likelihood, given)
    term = density_term(simulated.likelihood, settings.recipe)
    hard = GeometryObjective(case.hidden.restraints)
    members = regularise_members(drawn, hard, term, settings.recipe.finish)
    kept, weights = select(case.where, simulated.likelihood, members, settings.keep)
    flat = [state.reshape(-1, 3) for state in case.states]
    return {
        "rmsd": [rmsd(members.double().numpy(), state).tolist() for state in flat],
        "drawn": [rmsd(drawn.double().numpy(), state).tolist() for state in flat],
        "kept": list(kept),
        "weights": weights.tolist(),
        "covered": simulated.covered,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
    }


@torch.no_grad()
def select(
    where: Where, likelihood: DensityLikelihood, members: Tensor, keep: int
) -> tuple[tuple[int, ...], np.ndarray]:
    """The members that explain the map, and their weights; none if none correlates with it."""
    densities = likelihood.density.members(members, likelihood.b_iso)[:, where.inside].double().numpy()
    target = likelihood.target.values[where.inside].double().numpy()
    try:
        found = matching_pursuit(densities, target, keep=keep)
    except ValueError:
        return (), np.zeros(0)
    return found.members, found.weights


def summary(rows: list[dict], states: int) -> dict[str, object]:
    """Medians and 90th percentiles over segments; with two states, how often both were found.

    ``best`` is the nearest of all members, ``weighted`` the mean of the RMSD of those kept by their weights,
    both to the true state (the nearer state, member by member, where there are two). ``found`` asks for a
    member kept within 0.7 Å of each state, ``found_any`` for any member.
    """
    if not rows:
        return {"segments": 0}
    all_of = [np.array(row["rmsd"]) for row in rows]
    best = [r.min() for r in all_of]
    weighted = [float(r.min(0)[row["kept"]] @ row["weights"]) for r, row in zip(all_of, rows, strict=True)]
    before = [np.array(row["drawn"]).min() for row in rows]
    result: dict[str, object] = {"segments": len(rows)}
    for name in ("seconds", "cpu_seconds"):
        result[f"{name}_per_case"] = float(np.mean([row[name] for row in rows]))
    for name, values in (("best", best), ("weighted", weighted), ("best_before_regularisation", before)):
        result[f"{name}_median"], result[f"{name}_p90"] = np.quantile(values, [0.5, 0.9]).tolist()
        result[f"{name}_median_interval"] = of_quantile(np.array(values))
    if states == 2:
        kept = np.array(
            [r[:, row["kept"]].min(1, initial=np.inf) for r, row in zip(all_of, rows, strict=True)]
        )
        near = kept < FOUND
        every = np.array([(r.min(1) < FOUND).all() for r in all_of])
        for name, hits in (
            ("found", near.all(1)),
            ("found_any", every),
            ("major_found", near[:, 0]),
            ("minor_found", near[:, 1]),
        ):
            result[name], result[f"{name}_interval"] = float(hits.mean()), of_fraction(hits.sum(), len(hits))
    return result


def measure(
    network: SegmentNetwork,
    corpus: Corpus,
    *,
    sets: list[tuple[str, int]],
    resolutions: list[float],
    segments: int,
    states: list[int],
    settings: Settings,
    seed: int,
    method: Guide = guide,
    earlier: dict | None = None,
    on_case: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Every cell of the table, case by case.

    Cases go segment by segment through all cells, so that a run that was stopped has the same segments in all
    of them (but for the last).

    Args:
        network: the prior.
        corpus: validation chains are used if it marks any; second states come from all chains.
        sets: kind and length of the segments.
        resolutions: Å.
        segments: of each set.
        states: 1, 2 or both.
        settings: of the method.
        seed: of segments and noise.
        method: of guidance.
        earlier: what a run that was stopped had found, with the same settings: those cases are taken over.
        on_case: given the result so far after each case.

    Raises:
        ValueError: the earlier run had other settings.
    """
    rows: dict[tuple[str, int, float, int], list[dict]] = {
        (kind, length, d, n): [] for kind, length in sets for d in resolutions for n in states
    }
    if earlier is not None:
        now = result_of(rows, {}, settings, seed)
        if [earlier["settings"], earlier["seed"]] != [now["settings"], now["seed"]]:
            raise ValueError(f"the earlier run had other settings: {earlier['settings']}, {earlier['seed']}")
        for cell in earlier["cells"]:
            kind, length = cell["set"].split()
            rows.setdefault((kind, int(length), cell["resolution"], cell["states"]), []).extend(cell["cases"])
    without = {f"{kind} {length}": 0 for kind, length in sets}
    lengths = {length for _, length in sets if 2 in states}
    fragments = {n: Fragments(corpus, n, chains=CHAINS, seed=seed) for n in lengths}
    places = {s: draw(corpus, s[1], segments, loop=s[0] == "loop", seed=seed) for s in sets}
    for index in range(segments):
        for kind, length in sets:
            chain, start = places[kind, length][index]
            case = Case.of(corpus, chain, start, length, network)
            if 2 in states:
                other = second_state(case.hidden, case.states[0], fragments[length], chain=chain)
                without[f"{kind} {length}"] += other is None
            for d, n in ((d, n) for d in resolutions for n in states):
                if n == 2 and other is None:
                    continue
                truth = case.states if n == 1 else [*case.states, other]
                found = rows[kind, length, d, n]
                if any((row["chain"], row["start"]) == (chain, start) for row in found):
                    continue
                full = Case(case.hidden, truth, case.where, case.prior)
                generator = torch.Generator().manual_seed(seed * 100_003 + index)
                occupancies = [1.0] if n == 1 else list(OCCUPANCIES)
                simulated = simulate(case.where, truth, occupancies, d, generator=generator)
                row = solve(full, simulated, settings, method) | {"chain": chain, "start": start}
                found.append(row)
                on_case(result_of(rows, without, settings, seed))
    return result_of(rows, without, settings, seed)


def result_of(rows: dict, without: dict[str, int], settings: Settings, seed: int) -> dict:
    """What is written."""
    cells = [
        {"set": f"{kind} {length}", "resolution": d, "states": n, **summary(found, n), "cases": found}
        for (kind, length, d, n), found in rows.items()
    ]
    shown = {k: v for k, v in vars(settings).items() if k not in ("recipe", "terms")}
    shown |= {"recipe": settings.recipe.name, "noise": LEVEL, "b_iso": B_ISO, "apart": list(APART)}
    return {
        "cells": cells,
        "without_second_state": without,
        "settings": shown,
        "seed": seed,
        "threads": torch.get_num_threads(),
    }


def text(result: dict) -> str:
    """The table for people."""
    lines = ["set       d/Å states    N   best med / 90 %   weighted med / 90 %   both found"]
    for cell in result["cells"]:
        head = f"{cell['set']:<8}{cell['resolution']:5.1f}{cell['states']:7}{cell['segments']:5}"
        if cell["segments"]:
            found = f"{cell['found']:10.2f}" if "found" in cell else ""
            head += (
                f"{cell['best_median']:11.2f} /{cell['best_p90']:5.2f}"
                f"{cell['weighted_median']:14.2f} /{cell['weighted_p90']:5.2f}{found}"
            )
        lines.append(head)
    return "\n".join(lines)


def write(path: Path, result: dict) -> None:
    """As a whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=Path, required=True, help="a file of the corpus format")
    parser.add_argument("--segments", type=int, default=20, help="segments of each set")
    parser.add_argument(
        "--sets", nargs="+", default=["loop 8", "loop 12"], help='for example "loop 8" "all 4"'
    )
    parser.add_argument("--resolutions", nargs="+", type=float, default=[1.5, 2.0, 2.5])
    parser.add_argument("--states", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures, case by case")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on with the cases that --json has already")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = measure(
        load_network(args.weights),
        load(args.chains),
        sets=[(kind, int(length)) for kind, length in (s.split() for s in args.sets)],
        resolutions=args.resolutions,
        segments=args.segments,
        states=args.states,
        settings=Settings(members=args.members, steps=args.steps, seed=args.seed),
        seed=args.seed,
        earlier=json.loads(args.json.read_text()) if args.resume and args.json.is_file() else None,
        on_case=partial(write, args.json),
    )
    print(text(result))


if __name__ == "__main__":
    main()
