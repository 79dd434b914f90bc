"""The packaged example: the WPD loop of PTP1B from one of its two states (PDB entry 7RIN)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from densemble.atoms import Region
from densemble.io.models import Model, alternates, read_model
from densemble.io.results import MEMBERS_FOLDER, Result, member_file
from densemble.metrics.coordinates import rmsd
from densemble.metrics.populations import assign_states, populations
from densemble.pipeline import Settings, run_xray
from densemble.progress import Progress
from densemble.report.words import model_lines, table
from densemble.side_process import one_thread

REGION = "A:176-191"
CORE = "A:178-188"
"""Where the two states differ most: over its backbone the recovered states are compared."""
DEPOSITED = {"A": 0.39, "B": 0.61}
"""Occupancies of the two states as deposited."""
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

    The deposited model, which has both states, is used for evaluation only. Each process takes one thread, so
    that figures do not depend on the number of cores.

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
    with one_thread():
        result = run_xray(
            chosen,
            out,
            reference=example("deposited.cif"),
            force=force,
            resume=resume,
            side_by_side=True,
            progress=progress,
        )
    model = [] if result.model is None else [*model_lines(result.model, result.region), ""]
    return "\n".join([*comparison(result), "", *recovered(result, out), "", *model, f"written to {out}/"])


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
    kept = [member for member in result.members if member.selected]
    rows, cores = [], []
    for member in kept:
        core, states = _core(read_model(out / MEMBERS_FOLDER / member_file(member.id)))
        cores.append(core)
        to = [f"{float(rmsd(core, states[name])):.2f}" for name in DEPOSITED]
        rows.append([f"member {member.id}", f"{member.weight:.2f}", *to])
    header = [f"to {name} ({occupancy:.2f}), Å" for name, occupancy in DEPOSITED.items()]
    nearest = assign_states(np.stack(cores), states)
    share = populations(np.array([member.weight for member in kept]), nearest, list(DEPOSITED))
    return [
        *table([f"kept, over {CORE}", "weight", *header], rows),
        "Weight of the members nearer to "
        + ", to ".join(f"{name}: {share[name]:.2f}, deposited {DEPOSITED[name]:.2f}" for name in DEPOSITED)
        + ".",
        "Distances to the deposited states are evaluation: nothing of altloc A was used.",
    ]


def core_rmsd(model: Model) -> dict[str, float]:
    """Backbone RMSD in place of a member to each deposited state, Å."""
    core, states = _core(model)
    return {name: float(rmsd(core, states[name])) for name in DEPOSITED}


def _core(model: Model) -> tuple[Float[np.ndarray, "n 3"], dict[str, np.ndarray]]:
    """Backbone of the core of the loop, and the same atoms in the deposited states, Å."""
    atoms = np.sort(model.topology.backbone(Region.parse(CORE).residues(model.topology)).ravel())
    states = alternates(example("deposited.cif"), model.topology.subset(atoms))
    return model.coords[atoms], {name: states[name].coords for name in DEPOSITED}
