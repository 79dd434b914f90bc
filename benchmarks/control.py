"""A stretch in one state: does the ensemble stay tight? ``python benchmarks/control.py MODEL DATA REGION``.

Figures in the README: 4HG7 without its ligand, A:60-67 and A:70-77.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from densemble.atoms import Ensemble, Region
from densemble.io.models import read_model
from densemble.metrics.coordinates import rmsf_per_residue
from densemble.pipeline import Settings, run_xray
from densemble.problem import Stretches


def main() -> None:
    """Run with the default recipe; print the fluctuation of the kept members and the R factors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("region")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run_xray(Settings(args.model, args.data, args.region, seed=args.seed), Path(folder))
        kept = [member for member in result.members if member.selected]
        stretches = [
            Stretches.of(
                read_model(Path(folder) / "members" / f"member_{m.id:02d}.cif"),
                Region.parse(args.region),
                window=0,
            )
            for m in kept
        ]
    ensemble = Ensemble(
        stretches[0].topology,
        torch.stack([s.start for s in stretches]),
        torch.tensor([m.weight for m in kept]),
        torch.stack([s.b_start for s in stretches]),
    )
    fluctuation = rmsf_per_residue(ensemble)
    print(f"{args.region}: {len(kept)} kept, weights {[round(m.weight, 2) for m in kept]}")
    print(f"CA RMSF mean {fluctuation.mean():.2f} Å, largest {fluctuation.max():.2f} Å")
    if result.r_factors is not None:
        print(f"R-free {result.r_factors.start.r_free:.4f} -> {result.r_factors.ensemble.r_free:.4f}")


if __name__ == "__main__":
    main()
