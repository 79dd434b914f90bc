"""What the segment network owes to what: ``python training/ablations.py [--only NAME ...] [--segments N]``.

Equal runs from scratch (``ablations.toml``), alike but for what their names say. Each is measured on the same
segments, drawn as ``evaluate.py`` draws them, and told no more than in training. A run that was stopped goes
on from its last checkpoint. The figures of each lie in its folder, and all that exist are printed as one
table, so that two commands with different ``--only`` may share the work, one on each core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from corpus import Corpus, load
from evaluate import Sampling, draw, measure
from segment_task import SegmentTask
from train import ROOT, Trainer, TrainingConfig, run, validate

BASELINE = "everything"
VARIANTS: dict[str, dict[str, object]] = {
    BASELINE: {},
    "without sequence": {"sequence": False},
    "without context": {"context": False},
    "half the data": {"fraction": 0.5},
}
"""Settings that differ from the configuration file's, by the run's name."""
SETS = (("all", 8), ("all", 12), ("loop", 8), ("loop", 12))


def variant(base: TrainingConfig, name: str) -> TrainingConfig:
    """The configuration of one run, in a folder of its own."""
    changes = VARIANTS[name]
    task = {k: v for k, v in changes.items() if k != "fraction"}
    return replace(
        base,
        out=f"{base.out}/{name.replace(' ', '-')}",
        task=replace(base.task, **task),
        fraction=changes.get("fraction", base.fraction),
    )


@torch.no_grad()
def figures(trainer: Trainer, corpus: Corpus, *, segments: int, sampling: Sampling, seed: int) -> dict:
    """What the averaged weights of a run are worth on the validation chains.

    Args:
        trainer: the run, of a segment network.
        corpus: validation chains are used if it marks any.
        segments: of each of ``SETS``.
        sampling: how members are drawn.
        seed: of segments and noise.
    """
    task = trainer.config.task
    if not isinstance(task, SegmentTask):
        raise TypeError("ablations are of the segment network")
    network = task.make().eval()
    network.load_state_dict(trainer.average)
    rows = {}
    for kind, length in SETS:
        places = draw(corpus, length, segments, loop=kind == "loop", seed=seed)
        accuracy, chemistry, _ = measure(network, corpus, places, length, sampling, seed, task.told)
        rows[f"{kind} {length}"] = accuracy | chemistry
    return {
        "steps": trainer.step,
        "examples": trainer.examples,
        "seconds": trainer.seconds,
        "chains": len(trainer.chains),
        "segments": segments,
        "seed": seed,
        "validation": validate(trainer, task.validation(corpus, trainer.config.seed)),
        "sets": rows,
    }


def text(found: dict[str, dict]) -> str:
    """One line a run: validation error of the last stage, then single / best of 16 in Å by set."""
    lines = ["run                steps  chains   error" + "".join(f"{k} {n}".rjust(14) for k, n in SETS)]
    for name, result in found.items():
        error = result["validation"][max(k for k in result["validation"] if k.startswith("stage"))]
        cells = [
            f"{row['single_median']:.2f} / {row['best16_median']:.2f}".rjust(14)
            for row in result["sets"].values()
        ]
        lines.append(f"{name:<18}{result['steps']:>6}{result['chains']:>8}{error:8.3f}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("ablations.toml"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--segments", type=int, default=30, help="of each set")
    parser.add_argument("--seed", type=int, default=0, help="of what is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = TrainingConfig.read(args.config)
    corpus = load((ROOT / base.corpus).resolve())
    for name in args.only:
        config = variant(base, name)
        trainer = run(config, ROOT / config.out)
        result = figures(trainer, corpus, segments=args.segments, sampling=Sampling(), seed=args.seed)
        (ROOT / config.out / "figures.json").write_text(json.dumps(result, indent=1) + "\n")
    paths = {name: ROOT / variant(base, name).out / "figures.json" for name in VARIANTS}
    print(text({name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}))


if __name__ == "__main__":
    main()
