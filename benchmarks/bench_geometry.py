"""How long geometry and side chains take, and how well regularisation mends noise: the 7RIN loop, K = 16.

Then the cost of geometry against the number of free atoms, one member: copies of a model side by side.

python benchmarks/bench_geometry.py [--model MODEL] [--copies 1 5]
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch

from densemble.atoms import Region, Residue, ResidueId, Topology
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import build_restraints
from densemble.geometry.validation import validate
from densemble.io.models import Model, read_model
from densemble.sidechains.packing import SideChains

MEMBERS = 16
PACKAGED = str(resources.files("densemble") / "data/7rin/deposited.cif")


def median_ms(task: Callable[[], object], repeats: int = 20) -> float:
    """Median wall time in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def side_by_side(model: Model, copies: int) -> tuple[Topology, np.ndarray]:
    """The protein of a model several times along x, 3 Å apart, as chains of their own."""
    topology = model.topology
    kept = np.flatnonzero([topology.residues[r].kind == "protein" for r in topology.residue_index])
    one, coords = topology.subset(kept), model.coords[kept]
    shift = np.array([np.ptp(coords[:, 0]) + 3.0, 0.0, 0.0])
    many = Topology(
        names=one.names * copies,
        elements=one.elements * copies,
        residue_index=np.concatenate([one.residue_index + c * len(one.residues) for c in range(copies)]),
        residues=tuple(
            Residue(ResidueId(f"{r.id.chain}{c}", r.id.number, r.id.icode), r.name, r.kind)
            for c in range(copies)
            for r in one.residues
        ),
    )
    return many, np.concatenate([coords + c * shift for c in range(copies)])


def cost_against_atoms(path: str, copies: list[int]) -> None:
    """Build, evaluate and regularise whole models, all atoms free, one member."""
    model = read_model(path)
    part = np.arange(150)
    cases = [(model.topology.subset(part), model.coords[part]), *(side_by_side(model, c) for c in copies)]
    print("  atoms  build s  evaluation ms  100 evaluations s  bond RMSZ       angle RMSZ      peak MiB")
    for topology, coords in cases:
        begin = time.perf_counter()
        restraints = build_restraints(topology, coords, np.arange(len(topology)))
        built = time.perf_counter() - begin
        objective = GeometryObjective(restraints)
        x = torch.tensor(coords, dtype=torch.float32)[None].requires_grad_()
        evaluation = median_ms(lambda objective=objective, x=x: objective(x).backward(), 10)
        begin = time.perf_counter()
        result = regularise(x.detach(), objective, evaluations=100)
        taken = time.perf_counter() - begin
        before, after = validate(restraints, x.detach()), validate(restraints, result.coords)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(topology):7d}  {built:7.2f}  {evaluation:13.1f}  {taken:17.1f}  "
            f"{before.bond_rmsz.item():.2f} -> {after.bond_rmsz.item():.2f}    "
            f"{before.angle_rmsz.item():.2f} -> {after.angle_rmsz.item():.2f}    {peak:8.0f}",
            flush=True,
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=PACKAGED, help="the whole model; by default the packaged 7RIN")
    parser.add_argument("--copies", type=int, nargs="*", default=[1, 5], help="of it, side by side")
    parser.add_argument("--only-atoms", action="store_true", help="only the cost against atoms")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not arguments.only_atoms:
        loop()
    cost_against_atoms(arguments.model, arguments.copies)


def loop() -> None:
    """The loop of 7RIN."""
    model = read_model(PACKAGED, altloc="B")
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
    other = (deposited + 0.1 * torch.randn(MEMBERS, *deposited.shape) + 1.0).requires_grad_()
    twice = median_ms(lambda: (objective(x).backward(), objective(other).backward()))
    print(f"the same with every list of neighbours made anew: {twice / 2:.1f} ms")
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
