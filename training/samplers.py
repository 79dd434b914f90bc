"""Compare samplers: ``python training/samplers.py --chains FILE.npz [--segments N] --json OUT``.

The same segments, drawn as ``evaluate.py`` draws them, are sampled with each of ``SAMPLERS``, unguided, from
the same seed. Every row differs from the sampler shipped in one setting, or in Heun's rule and the number of
steps that costs as much. ``--processes`` compares EDM with the variance-preserving process instead, at equal
numbers of calls. The file is written after each row, so that a run that was stopped has its figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from corpus import Corpus, load
from densemble.priors.embedded import WEIGHTS, load_network
from densemble.priors.segment_network import SegmentNetwork
from evaluate import Sampling, draw, measure

SHIPPED = Sampling()
EULER = replace(SHIPPED, churn=0.0)
POSTERIOR = replace(EULER, posterior=True)
PROCESSES = {
    f"{name}, {steps} steps": replace(sampling, steps=steps)
    for name, sampling in {
        "EDM, churn 1": SHIPPED,
        "EDM, ODE": EULER,
        "VP, ODE": replace(EULER, vp_unit=1.0),
        "VP, SDE": replace(POSTERIOR, vp_unit=1.0),
    }.items()
    for steps in (15, 30, 50)
} | {
    "EDM, posterior, 50 steps": POSTERIOR,
    "VP, ODE, quarter unit, 50 steps": replace(EULER, vp_unit=0.25),
    "VP, SDE, quarter unit, 50 steps": replace(POSTERIOR, vp_unit=0.25),
}
"""EDM and the variance-preserving process (``reverse.Reverse``): the levels of each, and the steps."""
SAMPLERS = {
    "shipped": SHIPPED,
    "15 steps": replace(SHIPPED, steps=15),
    "25 steps": replace(SHIPPED, steps=25),
    "100 steps": replace(SHIPPED, steps=100),
    "churn 0": replace(SHIPPED, churn=0.0),
    "churn 0.3": replace(SHIPPED, churn=0.3),
    "churn 0.6": replace(SHIPPED, churn=0.6),
    "churn 2": replace(SHIPPED, churn=2.0),
    "Heun, 25 steps": replace(SHIPPED, steps=25, heun=True),
    "Heun, 25 steps, churn 0": replace(SHIPPED, steps=25, heun=True, churn=0.0),
    "sigma_min 0.01": replace(SHIPPED, sigma_min=0.01),
    "rho 5": replace(SHIPPED, rho=5.0),
    "rho 10": replace(SHIPPED, rho=10.0),
}
"""By name. All begin with the most noise of training, churn included."""


def calls(sampling: Sampling) -> int:
    """Evaluations of the network for one set of members."""
    return 2 * sampling.steps - 1 if sampling.heun else sampling.steps


@torch.no_grad()
def compare(
    network: SegmentNetwork,
    corpus: Corpus,
    samplers: dict[str, Sampling],
    *,
    sets: list[tuple[str, int]],
    segments: int,
    seed: int,
    on_row: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Accuracy, chemistry and seconds of each sampler on each set of segments.

    Args:
        network: the prior.
        corpus: validation chains are used if it marks any.
        samplers: by name.
        sets: kind and length of the segments.
        segments: of each set.
        seed: of segments and noise.
        on_row: given the result so far after each row.
    """
    result: dict = {"segments": segments, "seed": seed, "threads": torch.get_num_threads(), "rows": []}
    for kind, length in sets:
        places = draw(corpus, length, segments, loop=kind == "loop", seed=seed)
        for name, sampling in samplers.items():
            figures, chemistry, _ = measure(network, corpus, places, length, sampling, seed)
            kept = {k: v for k, v in figures.items() if k.startswith(("single", "best", "seconds", "rank"))}
            row = {"set": f"{kind} {length}", "sampler": name, "calls": calls(sampling)}
            result["rows"].append(row | {"sampling": sampling.record} | kept | chemistry)
            on_row(result)
    return result


def text(row: dict) -> str:
    """One line for people."""
    best = row[f"best{row['sampling']['members']}_median"]
    return (
        f"{row['set']:<8} {row['sampler']:<32}{row['calls']:>5}{row['single_median']:7.2f}{best:7.2f}"
        f"{100 * row['peptide_bonds_within']:8.1f}{row['n_ca_c_sd']:6.2f}"
        f"{100 * row['ramachandran_outliers']:7.1f}{row['seconds_per_segment']:8.2f}"
    )


def main() -> None:
    """Command line."""
    known = SAMPLERS | PROCESSES
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=Path, required=True, help="a file of the corpus format")
    parser.add_argument("--segments", type=int, default=30, help="segments of each set")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--only", nargs="+", choices=list(known), default=list(SAMPLERS))
    parser.add_argument(
        "--processes",
        dest="only",
        action="store_const",
        const=list(PROCESSES),
        help="compare EDM with the variance-preserving process",
    )
    parser.add_argument("--sets", nargs="+", default=["loop 8", "all 12"], help="kind and length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)

    def write(result: dict) -> None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        print(text(result["rows"][-1]), flush=True)

    print("set      sampler                         calls single   best   C-N %  NCAC  rama %  s/segm")
    compare(
        load_network(args.weights),
        load(args.chains),
        {name: known[name] for name in args.only},
        sets=[(kind, int(length)) for kind, length in (s.split() for s in args.sets)],
        segments=args.segments,
        seed=args.seed,
        on_row=write,
    )


if __name__ == "__main__":
    main()
