"""The packaged example: the WPD loop of PTP1B from one of its two states (PDB entry 7RIN)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from densemble.atoms import Region
from densemble.io.models import Model, alternates, read_model
from densemble.io.results import Result
from densemble.metrics.coordinates import rmsd
from densemble.pipeline import Settings, run_xray
from densemble.progress import Progress
from densemble.report import table

REGION = "A:176-191"
CORE = "A:178-188"
"""Where the two states differ most: over its backbone the recovered states are compared."""
SUBJECTS = {
    "start": "start: altloc B alone",
    "none": "unguided",
    "each": "guided, each member alone",
    "ensemble": "guided, whole ensemble",
}


def example(name: str) -> Path:
    """A file of the packaged example: ``model.cif``, ``data.mtz`` or ``deposited.cif``."""
    return Path(str(resources.files("densemble") / "data" / "7rin" / name))


def run_demo(
    out: Path, *, progress: Progress, force: bool = False, resume: bool = False, **settings: Any
) -> str:
    """Run the example with every way of guidance, and say how it went.

    The deposited model, which has both states, is used for evaluation only.

    Args:
        out: output folder.
        progress: told of every part and step.
        force: replace an earlier result.
        resume: go on with an interrupted run.
        settings: as for ``Settings``.

    Returns:
        A short table, and the states recovered.
    """
    chosen = Settings(
        model=example("model.cif"),
        data=example("data.mtz"),
        region=REGION,
        guides=("none", "each", "ensemble"),
        **settings,
    )
    result = run_xray(
        chosen, out, reference=example("deposited.cif"), force=force, resume=resume, progress=progress
    )
    return "\n".join([*comparison(result), "", *recovered(result, out), "", f"written to {out}/"])


def comparison(result: Result) -> list[str]:
    """Start and ensembles side by side."""
    rows = []
    for subject, name in SUBJECTS.items():
        factor = getattr(result.r_factors, subject)
        rows.append(
            [
                name,
                f"{result.metrics.rscc[subject]:.3f}",  # type: ignore[index]
                f"{result.metrics.cosine[subject]:.3f}",  # type: ignore[index]
                f"{factor.r_work:.4f}",
                f"{factor.r_free:.4f}",
            ]
        )
    lines = table(["7RIN " + result.region, "RSCC", "cosine", "R-work", "R-free"], rows)
    return [*lines, f"Map fit: {result.metrics.voxels}."]


def recovered(result: Result, out: Path) -> list[str]:
    """Backbone RMSD of every member kept to the two deposited states, over the core of the loop."""
    rows = []
    for member in result.members:
        if member.selected:
            to = core_rmsd(read_model(out / "members" / f"member_{member.id:02d}.cif"))
            rows.append([f"member {member.id}", f"{member.weight:.2f}", *(f"{to[s]:.2f}" for s in "AB")])
    lines = table([f"kept, over {CORE}", "weight", "to A (0.39), Å", "to B (0.61), Å"], rows)
    return [*lines, "Distances to the deposited states are evaluation: nothing of altloc A was used."]


def core_rmsd(model: Model) -> dict[str, float]:
    """Backbone RMSD in place of a member to each deposited state, Å."""
    inside = [r for stretch in Region.parse(CORE).resolve(model.topology) for r in stretch]
    atoms = np.sort(model.topology.backbone(inside).ravel())
    states = alternates(example("deposited.cif"), model.topology.subset(atoms))
    return {name: float(rmsd(model.coords[atoms], states[name].coords)) for name in "AB"}
