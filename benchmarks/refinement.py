"""Joint refinement of states against amplitudes: two states and one, in the same way, and R-free of both.

``python benchmarks/refinement.py --data ../shared/data/xray``. For 7RIN, A:176-191, the two deposited states
stand in for sampled ones: moved by 0.2 Å at random, occupancies 0.5 and 0.5, B factors of the start; and the
start (altloc B) alone. The control is the start twice, ``APART`` from itself: what a second state that is not
there gains by its parameters. For 4HG7, A:60-67, which has one state, the model as deposited without its
ligand. All are refined with the same number of cycles; R factors, RSCC, geometry, occupancies, clash score of
the region in the model as written, waters that made room, times, and what the free reflections say of two
states and of the control are stated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from densemble.atoms import Ensemble
from densemble.crystal.scaling import r_factors_of, r_free_error
from densemble.crystal.sigmaa import free_gain
from densemble.demo import REGION, example
from densemble.evaluation import start_ensemble
from densemble.geometry.validation import validate
from densemble.inputs import Settings, load, problem_of
from densemble.io.model_results import Refined
from densemble.io.models import alternates
from densemble.io.reflections import Reflections
from densemble.metrics.validation import validate_structure
from densemble.problem import RegionProblem
from densemble.refinement.built import BuiltModel
from densemble.refinement.conformers import Sites, flat, site_restraints
from densemble.refinement.refine import CYCLES, compare, refine

SHIFT = 0.2
"""Å, root mean square length of the random displacements."""
APART = 0.6
"""Å, the same of the control."""
COORDINATE_ERROR = 0.2
"""Å, below which conformations count as the same."""


def row_of(name: str, problem: RegionProblem, built: BuiltModel, record: Refined) -> str:
    """One model before and after."""
    assert record.r_work is not None
    assert record.r_free is not None
    sites = Sites.of(problem.stretches.topology, built.parts)
    coords = flat([part.coords for part in built.parts])[None]
    (report,) = validate(site_restraints(problem.restraints(), sites), coords).rows()
    clashscore = validate_structure(built.structure, region=problem.stretches.region).totals.clashscore
    waters, several = built.displaced, [part for part in built.parts if len(part) > 1]
    states = "; ".join(
        f"{' '.join(f'{w:.3f}' for w in part.weights.tolist())} in {len(part.topology.residues)} residues"
        for part in several
    )
    return (
        f"{name}: R-work {record.r_work[0]:.4f} -> {record.r_work[1]:.4f}, "
        f"R-free {record.r_free[0]:.4f} -> {record.r_free[1]:.4f}, "
        f"RSCC {record.rscc[0]:.3f} -> {record.rscc[1]:.3f}, "
        f"RMSZ of bonds {report['bond_rmsz']:.2f}, of angles {report['angle_rmsz']:.2f}, "
        f"outliers {report['outliers']:.0f}, clashes {report['clashes']:.0f}, clash score {clashscore:.1f}, "
        f"waters gone {len(waters.removed)}, in some states {len(waters.partial)}, states {states or 'one'}"
    )


def gain_of(first: BuiltModel, second: BuiltModel, reflections: Reflections) -> str:
    """What they say of the second model, with standard errors."""
    assert first.amplitudes is not None
    assert second.amplitudes is not None
    models = first.amplitudes, second.amplitudes
    before, after = (r_factors_of(model, reflections).r_free for model in models)
    gain = free_gain(*models, reflections)
    nats = (
        "too few for a log-likelihood" if gain is None else f"log-likelihood {gain[0]:+.1f} ± {gain[1]:.1f}"
    )
    return f"R-free {after - before:+.4f} ± {r_free_error(*models, reflections):.4f}, {nats}"


def two_states(settings: Settings, cycles: int, seeds: int) -> None:
    """7RIN: the deposited states as if they had been sampled, and the start."""
    inputs = load(settings)
    problem = problem_of(settings, inputs)
    topology = problem.stretches.topology
    deposited = alternates(example("deposited.cif"), topology)
    states = torch.tensor(np.stack([deposited[x].coords for x in "AB"]), dtype=torch.float32)
    b_iso = problem.b_start.expand(2, -1)
    for seed in range(seeds):
        noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed))
        model = Ensemble(topology, states + SHIFT / 3**0.5 * noise, torch.full((2,), 0.5), b_iso)
        begun = time.perf_counter()
        start, parts, record = compare(
            problem,
            [start_ensemble(problem)],
            [model],
            coordinate_error=COORDINATE_ERROR,
            reflections=inputs.reflections,
            cycles=cycles,
        )
        spent = time.perf_counter() - begun
        twice = start_ensemble(problem).coords + APART / 3**0.5 * noise
        control, fit = refine(
            problem,
            [Ensemble(topology, twice, torch.full((2,), 0.5), b_iso)],
            coordinate_error=COORDINATE_ERROR,
            reflections=inputs.reflections,
            cycles=cycles,
        )
        print(f"7RIN {settings.region}, seed {seed}, {cycles} cycles of both in {spent:.0f} s")
        print(f"  {row_of('start, altloc B', problem, start, record.start)}")
        print(f"  {row_of('two states', problem, parts, record.model)}")
        print(f"  {row_of('control, altloc B twice', problem, control, fit)}")
        for name, built in (("two states", parts), ("control", control)):
            print(
                f"  free reflections for {name} over the start: {gain_of(start, built, inputs.reflections)}"
            )


def one_state(settings: Settings, cycles: int) -> None:
    """4HG7: the start is all there is."""
    inputs = load(settings)
    problem = problem_of(settings, inputs)
    begun = time.perf_counter()
    parts, record = refine(
        problem,
        [start_ensemble(problem)],
        coordinate_error=COORDINATE_ERROR,
        reflections=inputs.reflections,
        cycles=cycles,
    )
    print(f"4HG7 {settings.region}, {cycles} cycles in {time.perf_counter() - begun:.0f} s")
    print(f"  {row_of('start', problem, parts, record)}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with 4hg7.mtz and 4hg7_no_ligand.pdb")
    parser.add_argument("--region", default=REGION, help="of 7RIN; all of it moves as one part")
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    example_files = {"model": example("model.cif"), "data": example("data.mtz"), "region": args.region}
    two_states(Settings(**example_files, prior="gaussian"), args.cycles, args.seeds)
    if args.data is not None:
        files = {"model": args.data / "4hg7_no_ligand.pdb", "data": args.data / "4hg7.mtz"}
        one_state(Settings(**files, region="A:60-67", prior="gaussian"), args.cycles)


if __name__ == "__main__":
    main()
