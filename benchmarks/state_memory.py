"""Peak memory of cryo-EM guidance: a 256^3 map with 4,000 residues, simulated, and one guided step.

``python benchmarks/state_memory.py MODEL`` puts copies of a model side by side in the box.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from densemble.atoms import Residue, Topology
from densemble.em.preparation import prepare
from densemble.em.problem import MASK_REACH
from densemble.em.state import ATOM_VOLUME, density_term, stages_of
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.guidance.guided import GuidedPrior
from densemble.io.models import read_model
from densemble.likelihood.state import StateLikelihood
from densemble.priors.whole_chain import WholeChainPrior
from densemble.recipes.state import load_state_recipe
from densemble.sidechains.carried import CarriedAtoms

RESOLUTION, SPACING, VOXELS = 3.2, 1.05, 256


def copies(model_path: Path, residues: int) -> tuple[Topology, np.ndarray]:
    """Copies of the protein of a model on a cubic lattice, at least so many residues."""
    model = read_model(model_path)
    protein = [i for i, r in enumerate(model.topology.residues) if r.kind == "protein"]
    atoms = model.topology.atoms_of(protein)
    one, coords = model.topology.subset(atoms), model.coords[atoms] - model.coords[atoms].mean(0)
    count = -(-residues // len(protein))
    side = -(-round(count ** (1 / 3) * 1000) // 1000)
    places = np.array([(i, j, k) for i in range(side) for j in range(side) for k in range(side)])[:count]
    places = (places + 0.5) * VOXELS * SPACING / side
    chains = sorted({r.id.chain for r in one.residues})
    named: list[Residue] = []
    for k in range(count):
        named += [replace(r, id=replace(r.id, chain=f"{chains.index(r.id.chain)}x{k}")) for r in one.residues]
    index = np.concatenate([one.residue_index + k * len(one.residues) for k in range(count)])
    topology = Topology(one.names * count, one.elements * count, index, tuple(named))
    return topology, np.concatenate([coords + place for place in places])


def peak() -> float:
    """GiB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--residues", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    topology, coords = copies(args.model, args.residues)
    grid = Grid((0.0, 0.0, 0.0), (SPACING,) * 3, (VOXELS,) * 3)
    print(f"{len(topology.residues)} residues, {len(topology)} atoms, {VOXELS}^3 voxels; {peak():.2f} GiB")
    begin = time.perf_counter()

    def said(what: str) -> None:
        print(f"{what:28}{time.perf_counter() - begin:8.1f} s  peak {peak():.2f} GiB", flush=True)

    x = torch.from_numpy(coords).float()[None]
    values = MolmapDensity(grid, topology.elements, resolution=RESOLUTION).members(x)[0]
    said("map simulated")
    prepared = prepare(DensityMap(grid, values), resolution=RESOLUTION, source="the map", dilation=MASK_REACH)
    said("map prepared")
    likelihood = StateLikelihood(
        prepared.density,
        prepared.mask,
        topology.elements,
        resolution=RESOLUTION,
        volume=ATOM_VOLUME * len(topology),
    )
    prior = WholeChainPrior(topology, coords)
    completion = CarriedAtoms(topology, coords, topology.backbone(prior.residues), prior.atoms)
    said("prior made")
    recipe = load_state_recipe("densemble")
    stages = stages_of(recipe, {"density": density_term(likelihood, recipe.target)}, RESOLUTION)
    guided = GuidedPrior(prior, stages, completion)
    generator = torch.Generator().manual_seed(0)
    for sigma in (30.0, 4.0, 0.5):
        noisy = prior.process.diffuse(x[:, torch.from_numpy(prior.atoms)], sigma, generator)
        moved = guided.denoise(noisy, sigma)
        assert bool(torch.isfinite(moved).all())
        said(f"guided step at {sigma:g} Å")


if __name__ == "__main__":
    main()
