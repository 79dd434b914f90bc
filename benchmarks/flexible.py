"""A loop in two states in a simulated cryo-EM map: the packaged example, from one of them.

``python benchmarks/flexible.py --resolution 2.5 --seeds 3``. The map is that of the packaged start (7RIN,
altloc B) with the residues of the loop in both deposited states, as electrons show them, on 1 Å voxels, with
noise blurred as the map is, of 5 % of the standard deviation of its density above a tenth of the maximum.
``--weight 0`` is the control of one state. ``--bent`` moves the start by a smooth field, and the fit has to
find the place of all atoms; without, the start is right outside the loop.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from densemble.atoms import Region
from densemble.cryoem import run_cryoem
from densemble.demo import DEPOSITED, REGION, example
from densemble.docking import shown
from densemble.em.inputs import StateSettings
from densemble.forward.cryoem import AtomForm
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import alternates, read_model
from densemble.io.state_results import StateResult, write_models
from densemble.likelihood.blur import gaussian_blur

NOISE = 0.05
WAVE = 60.0


def draw_map(resolution: float, weight: float, path: Path, seed: int) -> None:
    """Write the map of both states, the first with this weight."""
    start = read_model(example("model.cif"))
    first = start.coords.copy()
    (stretch,) = Region.parse(REGION).resolve(start.topology)
    loop = start.topology.atoms_of(stretch)
    first[loop] = alternates(example("deposited.cif"), start.topology)["A"].coords[loop]
    if not np.isfinite(first).all():
        raise ValueError("draw_map: the first state lacks atoms of the loop")
    occupancy = shown(start)
    grid = Grid.around(start.coords[occupancy > 0], margin=12.0, spacing=1.0)
    form = AtomForm.of("electron", resolution).density(
        grid, start.topology.elements, occupancy=torch.from_numpy(occupancy).float()
    )
    clean = form(
        torch.from_numpy(np.stack([first, start.coords])).float(), torch.tensor([weight, 1 - weight])
    )
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noise = gaussian_blur(noise, grid, resolution / (math.pi * math.sqrt(2)))
    spread = clean[clean > 0.1 * clean.max()].std()
    write_map(path, DensityMap(grid, clean + NOISE * spread * noise / noise.std()))


def bent(coords: np.ndarray, amplitude: float, seed: int) -> np.ndarray:
    """Moved by three waves of ``WAVE`` Å in random directions, by ``amplitude`` Å in root mean square."""
    generator = np.random.default_rng(seed)
    along, moves = generator.normal(size=(2, 3, 3))
    along *= 2 * np.pi / WAVE / np.linalg.norm(along, axis=1, keepdims=True)
    field = np.sin(coords @ along.T + generator.uniform(0, 2 * np.pi, 3)) @ moves
    return coords + amplitude * field / np.sqrt((field**2).sum(axis=1).mean())


def row_of(result: StateResult) -> str:
    """Members kept with their weights and distances, and the nearest of all."""
    assert result.region is not None
    cells = [
        f"{m.weight:.2f} ({', '.join(f'{k} {v:.2f}' for k, v in (m.rmsd or {}).items())})"
        for m in result.region.members
        if m.selected
    ]
    nearest = {k: min((m.rmsd or {})[k] for m in result.region.members) for k in DEPOSITED}
    fit, model = result.region.metrics.rscc, result.region.model
    states = [] if model is None else [s for part in model.states.parts for s in part.states]
    said = "; ".join(
        f"{s.occupancy:.2f} ({', '.join(f'{k} {v:.2f}' for k, v in (s.rmsd or {}).items())})" for s in states
    )
    return (
        f"RSCC {fit['start']:.3f} -> {fit['ensemble']:.3f}; kept: {'; '.join(cells)}; nearest of all: "
        f"{', '.join(f'{k} {v:.2f}' for k, v in nearest.items())}; states: {said}; "
        f"{result.timings['region']:.0f} s"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--resolution", type=float, default=2.5)
    parser.add_argument("--weight", type=float, default=DEPOSITED["A"], help="of the first state")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--members", type=int, default=1, help="of the fit to the whole map")
    parser.add_argument("--bent", type=float, default=0.0, help="Å, by which the start is moved smoothly")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            draw_map(args.resolution, args.weight, folder / "map.ccp4", seed)
            start = read_model(example("model.cif"))
            write_models(folder / "start.cif", start, [bent(start.coords, args.bent, seed)])
            settings = StateSettings(
                map=folder / "map.ccp4",
                model=folder / "start.cif",
                resolution=args.resolution,
                placed=True,
                members=args.members,
                ensemble=True,
                region=REGION,
                seed=seed,
            )
            result = run_cryoem(settings, folder / "out", reference=example("deposited.cif"))
            fits = f"fit of start {result.start.correlation:.3f}, best {result.best.fit.correlation:.3f}"
            print(f"seed {seed}: {fits}; {row_of(result)}", flush=True)


if __name__ == "__main__":
    main()
