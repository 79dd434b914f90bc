"""Unguided, i.i.d.-guided and ensemble-guided on the packaged example, over several seeds.

The analogue of paper 1's Table A2 and Figure A3: ``python benchmarks/compare_guides.py --seeds 5``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from densemble.demo import SUBJECTS, core_rmsd, run_demo
from densemble.io.finished import read_run
from densemble.io.models import read_model
from densemble.progress import Progress
from densemble.report import table


def main() -> None:
    """Run the demo for every seed and print mean and spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prior", default="embedded")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {subject: [] for subject in SUBJECTS}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            run_demo(out, progress=Progress(), seed=seed, prior=args.prior)
            result = read_run(out)
            for subject in SUBJECTS:
                r_free = getattr(result.r_factors, subject).r_free
                found[subject].append((result.metrics.rscc[subject], result.metrics.cosine[subject], r_free))
            to = [core_rmsd(read_model(path)) for path in sorted((out / "members").glob("*.cif"))]
            nearest = ", ".join(f"{min(t[state] for t in to):.2f} Å to {state}" for state in "AB")
            values = "  ".join(f"{s} {v[-1][0]:.3f}/{v[-1][1]:.3f}/{v[-1][2]:.4f}" for s, v in found.items())
            print(f"seed {seed}: {values}; nearest member {nearest}; {result.timings}", flush=True)
    rows = []
    for subject, name in SUBJECTS.items():
        columns = list(zip(*found[subject], strict=True))
        cells = [f"{mean(c):.4f} ± {stdev(c) if len(c) > 1 else 0:.4f}" for c in columns]
        rows.append([name, *cells])
    print("\n".join(table(["mean ± s.d.", "RSCC", "cosine", "R-free"], rows)))


if __name__ == "__main__":
    main()
