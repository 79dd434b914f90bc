"""Time and memory of a guided step of Boltz at full size, with random weights.

``python benchmarks/boltz_step.py [--kind boltz2] [--residues 300 800 1600] [--members 5] [--json FILE]``

The diffusion module has the released models' sizes, the trunk's place is taken by random numbers. Four
estimates from the same coordinates: without autograd, with autograd alone (the gradient of a linear function
of the estimate), guided through the network by a simulated map, and by a cloud of as many points as paper 2
takes. Ratios are of one run, side by side. Needs boltz; runs on the GPU if there is one, density and cloud
too. Random weights spread atoms: ``inside`` is the share of them in the box of the map.
``--small`` takes the tests' reduced network, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densemble.em.state import ATOM_VOLUME
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.likelihood.cloud import PointCloud, cloud_size
from densemble.likelihood.state import StateLikelihood
from densemble.likelihood.transport import SinkhornDivergence
from densemble.priors.boltz.inputs import BoltzInput, read_input
from densemble.priors.boltz.memory import members_that_fit
from densemble.priors.boltz.prior import BoltzPrior
from densemble.priors.boltz.trunk import Trunk, conditioning
from densemble.priors.boltz.weights import BoltzFiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from boltz_dictionary import write_cache
from boltz_networks import reduced_model

FULL = {
    "token_s": 384,
    "token_z": 128,
    "atom_s": 128,
    "atom_z": 16,
    "score_model_args": {
        "sigma_data": 16,
        "dim_fourier": 256,
        "atom_encoder_depth": 3,
        "atom_encoder_heads": 4,
        "token_transformer_depth": 24,
        "token_transformer_heads": 16,
        "atom_decoder_depth": 3,
        "atom_decoder_heads": 4,
        "conditioning_transition_layers": 2,
    },
}
LEVEL, RESOLUTION, SPACING = 5.0, 4.0, 1.2


def input_of(kind: Any, residues: int, folder: Path) -> BoltzInput:  # noqa: ANN401
    """A random sequence of so many residues."""
    letters = np.random.default_rng(1).choice(list("ACDEFGHIKLMNPQRSTVWY"), residues)
    fasta = folder / f"{residues}.fasta"
    fasta.write_text(f">A|protein|empty\n{''.join(letters)}\n")
    name = "mols" if kind == "boltz2" else "ccd.pkl"
    return read_input(fasta, BoltzFiles(kind, folder / "none.ckpt", write_cache(folder) / name))


def prior_of(network: Any, given: BoltzInput, device: torch.device) -> BoltzPrior:  # noqa: ANN401
    """The diffusion module on random representations of the tokens."""
    tokens = given.feats["token_pad_mask"].shape[1]
    s, z = network.hparams["token_s"], network.hparams["token_z"]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator).to(device)

    width = network.s_init.in_features
    trunk = Trunk(
        kind=given.kind,
        s_inputs=random(tokens, width),
        s=random(tokens, s),
        z=random(tokens, tokens, z),
        relative_position_encoding=random(tokens, tokens, z),
        pdistogram=torch.zeros(1, tokens, tokens, 1, 1),
    )
    given = given.to(device)
    with torch.no_grad():
        known = conditioning(network, trunk, given.feats)
    centre = torch.zeros(3, device=device)
    return BoltzPrior(network.structure_module, given.topology, known, centre=centre, together=1)


def likelihood_of(prior: BoltzPrior, x: torch.Tensor) -> StateLikelihood:
    """A simulated map of the atoms at one place."""
    low, high = x.amin(0) - 10, x.amax(0) + 10
    shape = tuple(int(n) for n in ((high - low) / SPACING).ceil())
    grid = Grid(tuple(low.tolist()), (SPACING,) * 3, shape)  # type: ignore[arg-type]
    elements = prior.topology.elements
    density = MolmapDensity(grid, elements, resolution=RESOLUTION)(x[None].cpu(), torch.ones(1))
    likelihood = StateLikelihood(
        DensityMap(grid, density),
        torch.ones(shape),
        elements,
        resolution=RESOLUTION,
        volume=ATOM_VOLUME * len(elements),
        occupancy=torch.ones(len(elements)),
    )
    return likelihood.to(x.device)


def inside(prior: BoltzPrior, x: torch.Tensor, grid: Grid) -> float:
    """Share of the estimated atoms in the box of the map: only these cost the density anything."""
    with torch.no_grad():
        x0 = prior.denoise(x, LEVEL)
    low = x0.new_tensor(grid.origin)
    high = low + x0.new_tensor(grid.spacing) * (x0.new_tensor(grid.shape) - 1)
    return float(((x0 > low) & (x0 < high)).all(-1).float().mean())


def timed(call: Callable[[], object], device: torch.device, *, repeats: int) -> tuple[float, float]:
    """Median seconds, and the peak of memory in GiB (on a CPU: of the process so far)."""
    call()
    seconds = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        return float(np.median(seconds)), torch.cuda.max_memory_allocated(device) / 2**30
    return float(np.median(seconds)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(network: Any, given: BoltzInput, members: int, device: torch.device) -> dict[str, float]:  # noqa: ANN401
    """Seconds and memory of the four kinds of step, and their ratios."""
    prior = prior_of(network, given, device)
    n = given.atoms
    place = 2.6 * n ** (1 / 3) * torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    x = place + LEVEL * torch.randn(members, n, 3, generator=torch.Generator().manual_seed(2))
    place, x = place.to(device), x.to(device)
    fits = members_that_fit(lambda y: prior.in_chunks(y, LEVEL), x[:1], device=prior.device)
    prior.together = min(members, fits)
    weights = torch.randn(n, 3, generator=torch.Generator().manual_seed(3)).to(device)
    likelihood = likelihood_of(prior, place)
    points = place[:: max(1, n // cloud_size(n, SPACING))].cpu().double()
    divergence = SinkhornDivergence(PointCloud(points, torch.ones(len(points)).double()))
    density = Stage("density", lambda atoms, sigma: likelihood(atoms).sum(), weight=0.5, mode="ratio")
    cloud = Stage("cloud", lambda atoms, sigma: -divergence(atoms).sum(), weight=0.5, mode="ratio")
    by_density, by_cloud = GuidedPrior(prior, [density]), GuidedPrior(prior, [cloud])

    def unguided() -> None:
        with torch.no_grad():
            prior.denoise(x, LEVEL)

    def autograd() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad((prior.denoise(leaf, LEVEL) * weights).sum(), leaf)

    row: dict[str, float] = {"residues": len(given.topology.residues), "atoms": n, "points": len(points)}
    row["inside"] = inside(prior, x, likelihood.target.grid)
    steps: dict[str, Callable[[], object]] = {
        "unguided": unguided,
        "autograd": autograd,
        "density": lambda: by_density.denoise(x, LEVEL),
        "cloud": lambda: by_cloud.denoise(x, LEVEL),
    }
    for name, call in steps.items():
        row[f"{name}_s"], row[f"{name}_gib"] = timed(call, device, repeats=3)
    for name in ("density", "cloud"):
        row[f"{name}_over_unguided"] = row[f"{name}_s"] / row["unguided_s"]
        row[f"{name}_over_autograd"] = row[f"{name}_s"] / row["autograd_s"]
    return row | {"together": prior.together}  # as it was in the end: halved where memory ran out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=["boltz1", "boltz2"], default="boltz2")
    parser.add_argument("--residues", type=int, nargs="+", default=[300, 800, 1600])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    network = reduced_model(args.kind, **({} if args.small else FULL)).to(device)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for residues in args.residues:
            given = input_of(args.kind, residues, Path(folder))
            row = measured(network, given, args.members, device)
            found.append(row)
            print(f"{args.kind} on {name}, {args.members} members: ", end="")
            print(", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"device": name, "kind": args.kind, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
