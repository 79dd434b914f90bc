"""How a model fits a cryo-EM map, by Q-score and RSCC, also shifted on purpose; and what the figures cost.

python benchmarks/map_and_model.py MAP MODEL --resolution 3.2
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from densemble.forward.molmap import MolmapDensity
from densemble.io.maps import read_map
from densemble.io.models import read_model
from densemble.metrics.maps import model_fit
from densemble.metrics.qscore import expected_q, q_scores

RADIUS = 2.0  # Å, of the voxels that RSCC counts


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("map")
    parser.add_argument("model")
    parser.add_argument("--resolution", type=float, required=True, help="Å")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    density, model = read_map(arguments.map), read_model(arguments.model)
    topology = model.topology
    protein = np.array([r.kind == "protein" for r in topology.residues])[topology.residue_index]
    backbone = protein & np.isin(topology.names, ("N", "CA", "C", "O"))
    molmap = MolmapDensity(density.grid, topology.elements, resolution=arguments.resolution)
    print(f"{len(topology)} atoms, map of {'x'.join(map(str, density.grid.shape))} voxels")
    print(f"trend at {arguments.resolution} Å: Q {expected_q(arguments.resolution):.3f}")
    print(f"shift, Å  Q protein  backbone  side chains  s    RSCC within {RADIUS} Å  median residue  s")
    for shift in (0.0, 0.5, 1.0, 2.0):
        coords = model.coords + np.array([shift, 0.0, 0.0])
        begin = time.perf_counter()
        q = q_scores(density, topology, coords)
        q_time = time.perf_counter() - begin
        calculated = molmap(torch.tensor(coords, dtype=torch.float32)[None], torch.ones(1))
        begin = time.perf_counter()
        fit = model_fit(density.values, calculated, density.grid, topology, coords, radius=RADIUS)
        print(
            f"{shift:8.1f}  {np.nanmean(q.atoms[protein]):9.3f}  {np.nanmean(q.atoms[backbone]):8.3f}  "
            f"{np.nanmean(q.atoms[protein & ~backbone]):11.3f}  {q_time:.2f}  {fit.overall:16.3f}  "
            f"{np.nanmedian(fit.residues):14.3f}  {time.perf_counter() - begin:.2f}"
        )


if __name__ == "__main__":
    main()
