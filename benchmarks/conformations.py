"""Eight proteins in two conformations: from the first, in any pose, to a map of the second.

``python benchmarks/conformations.py FOLDER --resolution 4 --json OUT`` with one folder a protein, holding the
backbones of its two conformations. Side chains are added to both (rotamers, contacts). The map is that of
the second as ``molmap`` draws it, on 1 Å voxels, with noise blurred as the map is, of 5 % of the standard
deviation of its density above a tenth of the maximum. The start is the first, turned and moved at random. The
second judges the result and is used for nothing else.

``--stages`` is the ablation of paper 2, Table 1: some of the recipe's stages, or none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from densemble.cryoem import run_cryoem
from densemble.em.inputs import StateSettings
from densemble.experiments.drawing import draw_map
from densemble.experiments.pairs import common, moved_at_random, with_side_chains
from densemble.experiments.preparation import recipe_with
from densemble.io.models import read_model
from densemble.io.state_results import StateResult

NOISE = 0.05


def measure(folder: Path, args: argparse.Namespace, work: Path) -> StateResult:
    """One protein, from its two files to the result."""
    first, second = common(*(read_model(p) for p in sorted(folder.glob("*.pdb"))[:2]))
    start = with_side_chains(first, work / "first.cif", args.seed + 1)
    truth = with_side_chains(second, work / "second.cif", args.seed + 2)
    draw_map(truth, work / "map.ccp4", resolution=args.resolution, noise=NOISE, seed=args.seed)
    moved_at_random(start, work / "start.cif", args.seed)
    settings = StateSettings(
        map=work / "map.ccp4",
        model=work / "start.cif",
        resolution=args.resolution,
        members=args.members,
        recipe=recipe_with(args.recipe, args.stages, work),
        forward="molmap",  # as the map was made
        seed=args.seed,
    )
    return run_cryoem(settings, work / "run", reference=work / "second.cif", force=True)


def row_of(result: StateResult, seconds: float) -> dict[str, float | list[float]]:
    """The figures of one protein."""
    best, start = result.best, result.start_reference
    distances = [m.reference.ca_rmsd for m in result.members if m.reference is not None]
    if start is None or best.reference is None or result.reference_fit is None:
        raise ValueError("row_of: the result was not compared with a reference")
    return {
        "start": start.ca_rmsd,
        "selected": best.reference.ca_rmsd,
        "best": min(distances),
        "all": distances,
        "tm_score": best.reference.tm_score,
        "fit_start": result.start.correlation,
        "fit": best.fit.correlation,
        "fit_truth": result.reference_fit.correlation,
        "q_score": best.fit.q_score,
        "bond_rmsz": best.geometry.bond_rmsz,
        "angle_rmsz": best.geometry.angle_rmsz,
        "outliers": best.geometry.outliers,
        "twisted": best.geometry.twisted,
        "seconds": seconds,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--resolution", type=float, default=4.0)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--recipe", default="densemble")
    parser.add_argument("--stages", nargs="*", help="only these of the recipe's; none without names")
    parser.add_argument("--only", nargs="*", help="some of the proteins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: dict[str, dict] = {}
    print(
        "protein    start  selected   best     TM  fit (start, truth)    Z: bonds, angles  outliers  seconds"
    )
    for folder in sorted(p for p in args.folder.iterdir() if p.is_dir()):
        if args.only and folder.name not in args.only:
            continue
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            result = measure(folder, args, Path(work))
        row = rows[folder.name] = row_of(result, time.perf_counter() - begin)
        print(
            f"{folder.name:9}{row['start']:7.2f}{row['selected']:10.2f}{row['best']:7.2f}"
            f"{row['tm_score']:7.3f}  {row['fit']:.3f} ({row['fit_start']:.3f}, {row['fit_truth']:.3f})"
            f"{row['bond_rmsz']:10.2f}{row['angle_rmsz']:10.2f}{row['outliers']:10}{row['seconds']:9.0f}",
            flush=True,
        )
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"pairs": rows, "settings": settings}, indent=1) + "\n")
    selected = [row["selected"] for row in rows.values()]
    print(f"median {statistics.median(selected):.2f} Å, largest {max(selected):.2f} Å")


if __name__ == "__main__":
    main()
