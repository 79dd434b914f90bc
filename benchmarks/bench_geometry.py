"""How long geometry and side chains take, and how well regularisation mends noise: the 7RIN loop, K = 16.

python benchmarks/bench_geometry.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch

from densemble.atoms import Region
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import build_restraints
from densemble.geometry.validation import validate
from densemble.io.models import read_model
from densemble.sidechains.packing import SideChains

MEMBERS = 16


def median_ms(task: Callable[[], object], repeats: int = 20) -> float:
    """Median wall time in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = read_model(str(resources.files("densemble") / "data/7rin/deposited.cif"), altloc="B")
    topology = model.topology
    residues = Region.parse("A:176-191").resolve(topology)[0]
    water = [i for i, r in enumerate(topology.residue_index) if topology.residues[r].kind == "water"]
    free = topology.atoms_of(residues)
    restraints = build_restraints(topology, model.coords, free, absent=water)
    deposited = torch.tensor(model.coords[free], dtype=torch.float32)
    print(
        platform.processor() or platform.machine(),
        "one thread,",
        MEMBERS,
        "members,",
        len(free),
        "free atoms,",
    )
    print(len(restraints.fixed), "fixed atoms")

    objective = GeometryObjective(restraints, cap=4.0)
    x = (deposited + 0.1 * torch.randn(MEMBERS, *deposited.shape)).requires_grad_()
    print(f"objective, forward and backward: {median_ms(lambda: objective(x).backward()):.1f} ms")
    for noise in (0.1, 0.3, 0.6):
        start = deposited + noise * torch.randn(MEMBERS, *deposited.shape)
        begin = time.perf_counter()
        result = regularise(start, GeometryObjective(restraints))
        report = validate(restraints, result.coords)
        moved = float((result.coords - deposited).square().sum(-1).mean().sqrt())
        print(
            f"regularise from {noise} Å noise per axis: {result.evaluations} evaluations, "
            f"{time.perf_counter() - begin:.1f} s, bond RMSZ {report.bond_rmsz.max():.2f}, "
            f"angle RMSZ {report.angle_rmsz.max():.2f}, RMSD to deposited {moved:.2f} Å, "
            f"Ramachandran outliers {int(report.outliers.sum())}, wrong hands {int(report.wrong_hand.sum())}"
        )

    chains = SideChains(topology, model.coords, residues, members=MEMBERS, absent=water)
    backbone = torch.tensor(model.coords[topology.backbone(residues)], dtype=torch.float32).repeat(
        MEMBERS, 1, 1, 1
    )
    backbone.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    completion = median_ms(lambda: chains.complete(backbone).sum().backward())
    print(f"complete, forward and backward: {completion:.1f} ms")
    print(f"pack: {median_ms(lambda: chains.pack(backbone, generator=generator)):.0f} ms")


if __name__ == "__main__":
    main()
