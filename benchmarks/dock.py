"""Does docking find the pose: ``OMP_NUM_THREADS=1 python benchmarks/dock.py CRYOEM PAIRS [--poses 20]``.

CRYOEM holds ``emd_3488.mrc``, ``5ni1.cif`` and ``5ni1_deformed.pdb``; PAIRS a folder a protein with two
backbones, one conformation each. Models start turned and shifted at random (up to 60 Å along each axis). The
maps of the pairs are those of the second backbone as ``molmap`` draws it, 4 Å, voxels of 1 Å, without
noise; docked are the second backbone itself (same) and the first (other).

The error is the Cα RMSD from the truth: for the same conformation its own coordinates, else the least-squares
superposition on them, whichever permutation of the chains of one sequence is nearest. The pose of a model in
another conformation is a matter of definition: no density says which superposition is meant.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from densemble.align.chains import chain_groups
from densemble.docking import dock_model
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map
from densemble.io.models import Model, read_model
from densemble.metrics.coordinates import rmsd, superpose

SHIFT = 60.0
PAIRS = ("P69441", "P67701", "P23847")
FOUND = 1.0


def molmap(model: Model, resolution: float) -> DensityMap:
    """Density of all atoms, voxels of 1 Å."""
    grid = Grid.around(model.coords, margin=12.0, spacing=1.0)
    forward = MolmapDensity(grid, model.topology.elements, resolution=resolution)
    x = torch.from_numpy(model.coords).float()
    return DensityMap(grid, forward(x[None], torch.ones(1)))


def alpha(model: Model) -> dict[tuple[str, int], int]:
    """Index of each Cα by chain and number."""
    residues, index = model.topology.residues, model.topology.atom_index
    return {
        (r.id.chain, r.id.number): index[i, "CA"]
        for i, r in enumerate(residues)
        if r.kind == "protein" and (i, "CA") in index
    }


def truths(model: Model, target: Model) -> tuple[np.ndarray, list[np.ndarray]]:
    """Indices of the Cα judged, and where they belong: a place for each permutation of like chains."""
    own, other = alpha(model), alpha(target)
    if len({c for c, _ in own}) == len({c for c, _ in other}) == 1:  # whatever the chain is called
        (chain,), (theirs,) = {c for c, _ in own}, {c for c, _ in other}
        other = {(chain, number): i for (_, number), i in other.items() if theirs}
    kinds = [
        sorted({model.topology.residues[model.topology.residue_index[g[0]]].id.chain for g in group})
        for group in chain_groups(model.topology)
    ]
    places, atoms = [], None
    for orders in itertools.product(*(itertools.permutations(kind) for kind in kinds)):
        to = dict(zip(itertools.chain(*kinds), itertools.chain(*orders), strict=True))
        shared = [k for k in own if all((c, k[1]) in other for c in to if _like(kinds, c, k[0]))]
        atoms = np.array([own[k] for k in shared])
        goal = target.coords[[other[to[c], n] for c, n in shared]]
        places.append(superpose(model.coords[atoms], goal))
    return atoms, places


def _like(kinds: list[list[str]], first: str, second: str) -> bool:
    return any(first in kind and second in kind for kind in kinds)


def cases(cryoem: Path, pairs: Path) -> Iterator[tuple[str, Model, Model, DensityMap, float]]:
    """Name, model to dock, model that tells the truth, map, resolution."""
    experimental = read_map(cryoem / "emd_3488.mrc")
    deposited = read_model(cryoem / "5ni1.cif")
    yield "5NI1", deposited, deposited, experimental, 3.2
    yield "5NI1 deformed", read_model(cryoem / "5ni1_deformed.pdb"), deposited, experimental, 3.2
    for name in PAIRS:
        first, second = (read_model(p) for p in sorted((pairs / name).glob("*.pdb")))
        density = molmap(second, 4.0)
        yield f"{name} same", second, second, density, 4.0
        yield f"{name} other", first, second, density, 4.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cryoem", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--poses", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="beginnings of the names of cases")
    args = parser.parse_args()
    print(f"{'':16}residues  found  RMSD median  worst  basis (clear)     CPU s  wall s")
    for name, model, target, density, resolution in cases(args.cryoem, args.pairs):
        if args.only and not name.startswith(tuple(args.only)):
            continue
        atoms, places = truths(model, target)
        errors, cpu, wall, said = [], [], [], []
        for seed in range(args.poses):
            turn = Rotation.random(random_state=seed).as_matrix()
            shift = np.random.default_rng(seed).uniform(-SHIFT, SHIFT, 3)
            start = replace(model, coords=(model.coords - model.coords.mean(0)) @ turn.T + shift)
            begin = time.process_time(), time.perf_counter()
            found = dock_model(start, density, resolution=resolution)
            cpu.append(time.process_time() - begin[0])
            wall.append(time.perf_counter() - begin[1])
            placed = found.poses[0].apply(start.coords[atoms])
            errors.append(min(float(rmsd(placed, place)) for place in places))
            said.append(f"{found.basis} ({'clear' if found.clear else 'unclear'})")
        share = np.mean(np.array(errors) < FOUND)
        print(
            f"{name:16}{len(alpha(model)):8}{share:7.0%}{np.median(errors):13.2f}{max(errors):7.2f}"
            f"  {max(set(said), key=said.count):16}{max(cpu):7.1f}{max(wall):8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
