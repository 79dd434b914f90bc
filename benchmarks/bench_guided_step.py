"""What guidance costs: a pass over the demo's loop under the density and without, and where the time goes.

``python benchmarks/bench_guided_step.py``: the network alone, then the two ways, in turns in one process on
one thread; processor time counts, the least of the repeats. All begin with pure noise and take the same steps
with as many members, all of them sampled.

Unguided that is what the demo does. Its guided sampling goes from the start instead, in passes and rounds
(``densemble.run.passes_of``) with more steps altogether, part of the loop held in each, and members are
finished and compared after every one: how many steps is printed, what comes between them is not measured.
"""

from __future__ import annotations

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
from densemble.region import Draw, side_chains
from densemble.run import density_term, guidance_terms, passes_of, stages_of
from densemble.sampler import sample
from measuring import CLOCKS, REPEATS, begin, clock, parser_of, seconds, write

WAYS: dict[str, Guide | None] = {"network alone": None, "unguided": "none", "guided": "ensemble"}


class Stopwatch:
    """Seconds by name, of everything it is put around."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same callable, timed."""

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            now = CLOCKS[clock()]
            start = now()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += now() - start

        return timed


def guided_prior(
    problem: CrystalProblem, inputs: Inputs, recipe: Recipe, guide: Guide, members: int, watch: Stopwatch
) -> GuidedPrior:
    """The demo's guided prior with a watch around its parts."""
    density = None if guide == "none" else density_term(problem, guide, problem.b_start, recipe)
    draw = Draw(inputs.prior, recipe, members, keep=members, steps=None, seed=1, packer=inputs.packer)
    completion = side_chains(problem, draw, guide, density, members)
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


def one_pass(prior: Any, members: int, steps: int) -> float:  # noqa: ANN401
    """Seconds of one pass from pure noise."""
    generator = torch.Generator().manual_seed(1)
    return seconds(lambda: sample(prior, steps=steps, members=members, generator=generator))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--members", type=int, default=16, help="sampled in every way")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args(arguments)
    result = begin("guided step", args.threads)
    settings = Settings(model=example("model.cif"), data=example("data.mtz"), region=REGION)
    inputs = load(settings)
    recipe, problem = inputs.recipe, problem_of(settings, inputs)
    least: dict[str, tuple[float, dict[str, float]]] = {}
    for _ in range(args.repeats):
        for name, guide in WAYS.items():
            watch = Stopwatch()
            watched_network(inputs, watch)
            prior: Any = inputs.prior
            if guide is not None:
                prior = guided_prior(problem, inputs, recipe, guide, args.members, watch)
            taken = one_pass(prior, args.members, args.steps)
            if name not in least or taken < least[name][0]:
                least[name] = taken, dict(watch.seconds)
    box = problem.target.grid.shape
    print(f"{args.members} members in every way, {args.steps} steps from pure noise, box {box}")
    rows: dict[str, dict[str, float]] = {}
    for name, (taken, parts) in least.items():
        pieces = {**dict(sorted(parts.items())), "rest, gradients for the most": taken - sum(parts.values())}
        rows[name] = {piece: 1e3 * t / args.steps for piece, t in pieces.items()}
        shown = "   ".join(f"{piece} {ms:.1f}" for piece, ms in rows[name].items())
        step = 1e3 * taken / args.steps
        rows[name] |= {"together": step, "a member": step / args.members}
        print(f"{name:14s} ms a step {step:6.1f}, {step / args.members:.2f} a member:   {shown}")
    guided, unguided, alone = (rows[name]["a member"] for name in ("guided", "unguided", "network alone"))
    ratios = {"ratio_guided_unguided": guided / unguided, "ratio_guided_network": guided / alone}
    print(f"a step and member: guided over unguided {ratios['ratio_guided_unguided']:.2f}", end="")
    print(f", over the network alone {ratios['ratio_guided_network']:.2f}")
    demo = {name: [p.steps for p in passes_of(guide, None, recipe)] for name, guide in WAYS.items() if guide}
    print("steps of the demo's passes: " + "; ".join(f"{name} {steps}" for name, steps in demo.items()))
    result |= {"members": args.members, "steps": args.steps, "box": list(box), "ms_a_step": rows}
    write(result | ratios | {"steps_of_the_demo": demo}, args.json)


if __name__ == "__main__":
    main()
