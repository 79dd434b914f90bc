"""What guidance costs: the demo's first pass under the density and without, and where a step's time goes.

``python benchmarks/bench_guided_step.py``: the network alone, then the demo's two ways, 30 steps each, in
turns in one process on one thread; CPU time counts, the least of the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch

from densemble.demo import REGION, example
from densemble.guidance.guided import GuidedPrior
from densemble.inputs import Inputs, Settings, load, problem_of
from densemble.problem import CrystalProblem, Guide
from densemble.recipes import Recipe
from densemble.run import density_term, guidance_terms, holds_start, stages_of
from densemble.sampler import sample
from densemble.sidechains.completion import RotamerPacker, SideChainCompletion


class Stopwatch:
    """CPU seconds by name, of everything it is put around."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same callable, timed."""

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            begin = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - begin

        return timed


def guided_prior(
    problem: CrystalProblem, inputs: Inputs, recipe: Recipe, guide: Guide, members: int, watch: Stopwatch
) -> GuidedPrior:
    """The demo's guided prior with a watch around its parts."""
    density = None if guide == "none" else density_term(problem, guide, problem.b_start, recipe)
    density_at = None if density is None else problem.density_at(recipe.sidechains.density_gain)
    completion = SideChainCompletion(
        problem.side_chains(members),
        inputs.prior.topology,
        **recipe.sidechains.model_dump(include={"high", "resample_every", "gradient_steps", "step_size"}),
        seed=1,
        packer=RotamerPacker(density_at, recipe.sidechains.temperature),
        log_likelihood=density,
    )
    terms = guidance_terms(problem.restraints(), density, recipe)
    timed = {name: watch.around(f"{name}, value", term) for name, term in terms.items()}
    guided = GuidedPrior(inputs.prior, stages_of(recipe, timed), completion)
    cast(Any, completion).update = watch.around("side chains drawn", completion.update)
    cast(Any, guided)._shift = watch.around("shift", guided._shift)
    return guided


def watched_network(inputs: Inputs, watch: Stopwatch) -> None:
    """Put the watch around the network."""
    prior = cast(Any, inputs.prior)
    prior.denoise = watch.around("network", type(prior).denoise.__get__(prior))


def one_pass(inputs: Inputs, guided: Any, members: int, steps: int) -> float:  # noqa: ANN401
    """CPU seconds of one pass."""
    begin = time.process_time()
    sample(guided, steps=steps, members=members, generator=torch.Generator().manual_seed(1))
    return time.process_time() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(model=example("model.cif"), data=example("data.mtz"), region=REGION)
    inputs = load(settings)
    recipe, problem = inputs.recipe, problem_of(settings, inputs)
    least: dict[str, tuple[float, dict[str, float]]] = {}
    for _ in range(args.repeats):
        for guide in (None, "none", "ensemble"):
            watch = Stopwatch()
            members = args.members - (guide == "ensemble" and holds_start("ensemble", recipe))
            watched_network(inputs, watch)
            prior: Any = inputs.prior
            if guide is not None:
                prior = guided_prior(problem, inputs, recipe, cast(Guide, guide), members, watch)
            seconds = one_pass(inputs, prior, members, args.steps)
            name = {None: "network alone", "none": "unguided", "ensemble": "guided"}[guide]
            if name not in least or seconds < least[name][0]:
                least[name] = seconds, dict(watch.seconds)
    print(f"{args.members} members, {args.steps} steps, box {problem.target.grid.shape}")
    for name, (seconds, parts) in least.items():
        pieces = {
            **dict(sorted(parts.items())),
            "rest, gradients for the most": seconds - sum(parts.values()),
        }
        shown = "   ".join(f"{piece} {1e3 * t / args.steps:.1f}" for piece, t in pieces.items())
        print(f"{name:14s} CPU ms a step {1e3 * seconds / args.steps:6.1f}:   {shown}")
    guided, unguided, alone = (least[name][0] for name in ("guided", "unguided", "network alone"))
    print(f"guided over unguided: {guided / unguided:.2f}; over the network alone: {guided / alone:.2f}")


if __name__ == "__main__":
    main()
