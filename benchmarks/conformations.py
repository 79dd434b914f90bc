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
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from densemble.atoms import BACKBONE, Ensemble
from densemble.cryoem import run_cryoem
from densemble.em.inputs import StateSettings
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.altlocs import build_structure
from densemble.io.maps import write_map
from densemble.io.models import Model, read_model
from densemble.io.results import write_structure
from densemble.io.state_results import StateResult
from densemble.likelihood.blur import gaussian_blur
from densemble.sidechains.packing import SideChains
from densemble.sidechains.residues import complete_topology

NOISE = 0.05


def common(first: Model, second: Model) -> tuple[Model, Model]:
    """The residues that both have, by their numbers, with whole backbones."""

    def whole(model: Model) -> set[int]:
        index = model.topology.atom_index
        return {
            r.id.number
            for i, r in enumerate(model.topology.residues)
            if all((i, name) in index for name in BACKBONE)
        }

    both = whole(first) & whole(second)
    return tuple(_only(m, both) for m in (first, second))  # type: ignore[return-value]


def _only(model: Model, numbers: set[int]) -> Model:
    structure = model.structure.clone()
    for chain in structure[0]:
        for r in reversed(range(len(chain))):
            if chain[r].seqid.num not in numbers:
                del chain[r]
    atoms = model.topology.atoms_of(
        [i for i, r in enumerate(model.topology.residues) if r.id.number in numbers]
    )
    return replace(
        model,
        structure=structure,
        topology=model.topology.subset(atoms),
        coords=model.coords[atoms],
        b_iso=model.b_iso[atoms],
        occupancy=model.occupancy[atoms],
    )


def with_side_chains(model: Model, path: Path, seed: int) -> Model:
    """The model with the side chains that it lacks, by rotamer frequency and contacts; written and read."""
    topology, source = complete_topology(model.topology)
    coords = np.full((len(topology), 3), np.nan)
    coords[source >= 0] = model.coords[source[source >= 0]]
    residues = list(range(len(topology.residues)))
    side_chains = SideChains(topology, coords, residues, members=1)
    backbone = torch.from_numpy(coords[topology.backbone(residues)]).float()[None]
    side_chains.pack(backbone, generator=torch.Generator().manual_seed(seed), temperature=0, sweeps=2)
    atoms = side_chains.complete(backbone)
    b_iso = torch.full(atoms.shape[:2], 30.0)
    ensemble = Ensemble(side_chains.topology, atoms, torch.ones(1), b_iso)
    write_structure(path, build_structure(model, ensemble, np.arange(len(model.topology))))
    return read_model(path)


def draw_map(model: Model, resolution: float, path: Path, seed: int) -> None:
    """Write the map of a model, with noise."""
    grid = Grid.around(model.coords, margin=12.0, spacing=1.0)
    forward = MolmapDensity(grid, model.topology.elements, resolution=resolution)
    clean = forward.members(torch.from_numpy(model.coords).float()[None])[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noise = gaussian_blur(noise, grid, forward.sigma)
    spread = clean[clean > 0.1 * clean.max()].std()
    write_map(path, DensityMap(grid, clean + NOISE * spread * noise / noise.std()))


def moved_at_random(model: Model, path: Path, seed: int) -> None:
    """Write a model turned and moved by up to 60 Å along each axis."""
    generator = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    coords = (model.coords - model.coords.mean(0)) @ turn.T + generator.uniform(-60, 60, 3)
    structure = model.structure.clone()
    atoms = (atom for chain in structure[0] for residue in chain for atom in residue)
    for atom, position in zip(atoms, coords, strict=True):
        atom.pos.fromlist(position.tolist())
    write_structure(path, structure)


def recipe_of(name: str, stages: list[str] | None, folder: Path) -> str:
    """A recipe of the package, with some of its stages only."""
    if stages is None:
        return name
    text = (resources.files("densemble.recipes.state") / f"{name}.toml").read_text(encoding="utf-8")
    head, *blocks = text.split("[[stages]]\n")
    blocks[-1], mark, tail = blocks[-1].partition("[finish]")
    kept = [block for block in blocks if block.split('"')[1] in stages]
    listed = "".join("[[stages]]\n" + block for block in kept) or "stages = []\n"
    whole = head + listed if kept else "stages = []\n" + head
    path = folder / "some-stages.toml"
    path.write_text(whole + "\n" + mark + tail, encoding="utf-8")
    return str(path)


def measure(folder: Path, args: argparse.Namespace, work: Path) -> StateResult:
    """One protein, from its two files to the result."""
    first, second = common(*(read_model(p) for p in sorted(folder.glob("*.pdb"))[:2]))
    start = with_side_chains(first, work / "first.cif", args.seed + 1)
    truth = with_side_chains(second, work / "second.cif", args.seed + 2)
    draw_map(truth, args.resolution, work / "map.ccp4", args.seed)
    moved_at_random(start, work / "start.cif", args.seed)
    settings = StateSettings(
        map=work / "map.ccp4",
        model=work / "start.cif",
        resolution=args.resolution,
        members=args.members,
        recipe=recipe_of(args.recipe, args.stages, work),
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
