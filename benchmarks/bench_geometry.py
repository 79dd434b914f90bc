"""How long geometry and side chains take, and how well regularisation mends noise: the 7RIN loop, K = 16.

Then the cost of geometry against the number of free atoms, one member: copies of a model side by side.

python benchmarks/bench_geometry.py [--model MODEL] [--copies 1 5]; one thread, processor time.
"""

from __future__ import annotations

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
from measuring import begin, parser_of, peak_bytes, seconds, timed, write

MEMBERS = 16
PACKAGED = str(resources.files("densemble") / "data/7rin/deposited.cif")


def median_ms(task: Callable[[], object], repeats: int = 20) -> float:
    """Median time in ms."""
    return 1e3 * float(np.median([seconds(task) for _ in range(repeats)]))


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


def cost_against_atoms(path: str, copies: list[int]) -> list[dict[str, float]]:
    """Build, evaluate and regularise whole models, all atoms free, one member."""
    model = read_model(path)
    part = np.arange(150)
    cases = [(model.topology.subset(part), model.coords[part]), *(side_by_side(model, c) for c in copies)]
    print("  atoms  build s  evaluation ms  100 evaluations s  bond RMSZ       angle RMSZ      peak MiB")
    rows = []
    for topology, coords in cases:
        built, restraints = timed(lambda t=topology, x=coords: build_restraints(t, x, np.arange(len(t))))
        objective = GeometryObjective(restraints)
        x = torch.tensor(coords, dtype=torch.float32)[None].requires_grad_()
        evaluation = median_ms(lambda objective=objective, x=x: objective(x).backward(), 10)
        taken, result = timed(lambda o=objective, x=x: regularise(x.detach(), o, evaluations=100))
        before, after = validate(restraints, x.detach()), validate(restraints, result.coords)
        peak = peak_bytes()
        print(
            f"{len(topology):7d}  {built:7.2f}  {evaluation:13.1f}  {taken:17.1f}  "
            f"{before.bond_rmsz.item():.2f} -> {after.bond_rmsz.item():.2f}    "
            f"{before.angle_rmsz.item():.2f} -> {after.angle_rmsz.item():.2f}    {peak >> 20:8d}",
            flush=True,
        )
        row = {"atoms": len(topology), "seconds_built": built, "evaluation_ms": evaluation}
        rows.append(row | {"seconds_100_evaluations": taken, "peak_memory_bytes": peak})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default=PACKAGED, help="the whole model; by default the packaged 7RIN")
    parser.add_argument("--copies", type=int, nargs="*", default=[1, 5], help="of it, side by side")
    parser.add_argument("--only-atoms", action="store_true", help="only the cost against atoms")
    args = parser.parse_args(arguments)
    result = begin("geometry", args.threads)
    torch.manual_seed(0)
    if not args.only_atoms:
        result["loop"] = loop()
    result["atoms"] = cost_against_atoms(args.model, args.copies)
    write(result, args.json)


def loop() -> dict[str, float]:
    """The loop of 7RIN."""
    model = read_model(PACKAGED, altloc="B")
    topology = model.topology
    residues = Region.parse("A:176-191").resolve(topology)[0]
    water = [i for i, r in enumerate(topology.residue_index) if topology.residues[r].kind == "water"]
    free = topology.atoms_of(residues)
    restraints = build_restraints(topology, model.coords, free, absent=water)
    deposited = torch.tensor(model.coords[free], dtype=torch.float32)
    print(f"{MEMBERS} members, {len(free)} free atoms, {len(restraints.fixed)} fixed atoms")
    found: dict[str, float] = {"members": MEMBERS, "free_atoms": len(free)}

    objective = GeometryObjective(restraints, cap=4.0)
    x = (deposited + 0.1 * torch.randn(MEMBERS, *deposited.shape)).requires_grad_()
    found["objective_ms"] = median_ms(lambda: objective(x).backward())
    print(f"objective, forward and backward: {found['objective_ms']:.1f} ms")
    other = (deposited + 0.1 * torch.randn(MEMBERS, *deposited.shape) + 1.0).requires_grad_()
    twice = median_ms(lambda: (objective(x).backward(), objective(other).backward()))
    found["objective_new_lists_ms"] = twice / 2
    print(f"the same with every list of neighbours made anew: {twice / 2:.1f} ms")
    for noise in (0.1, 0.3, 0.6):
        start = deposited + noise * torch.randn(MEMBERS, *deposited.shape)
        taken, result = timed(lambda s=start: regularise(s, GeometryObjective(restraints)))
        found[f"seconds_regularised_from_{noise}"] = taken
        report = validate(restraints, result.coords)
        moved = float((result.coords - deposited).square().sum(-1).mean().sqrt())
        print(
            f"regularise from {noise} Å noise per axis: {result.evaluations} evaluations, "
            f"{taken:.1f} s, bond RMSZ {report.bond_rmsz.max():.2f}, "
            f"angle RMSZ {report.angle_rmsz.max():.2f}, RMSD to deposited {moved:.2f} Å, "
            f"Ramachandran outliers {int(report.outliers.sum())}, wrong hands {int(report.wrong_hand.sum())}"
        )

    chains = SideChains(topology, model.coords, residues, members=MEMBERS, absent=water)
    backbone = torch.tensor(model.coords[topology.backbone(residues)], dtype=torch.float32).repeat(
        MEMBERS, 1, 1, 1
    )
    backbone.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    found["complete_ms"] = median_ms(lambda: chains.complete(backbone).sum().backward())
    print(f"complete, forward and backward: {found['complete_ms']:.1f} ms")
    found["pack_ms"] = median_ms(lambda: chains.pack(backbone, generator=generator))
    print(f"pack: {found['pack_ms']:.0f} ms")
    return found


if __name__ == "__main__":
    main()
