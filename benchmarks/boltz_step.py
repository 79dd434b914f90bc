"""Time and memory of a guided step of Boltz at full size, with random weights.

``python benchmarks/boltz_step.py [--kind boltz2] [--residues 300 800 1600] [--members 5] [--json FILE]``

The diffusion module has the released models' sizes, the trunk's place is taken by random numbers, and the
last weights are scaled so that atoms stay where they are shown (``inside``: the share of them in the box of
the map). Four whole steps of the sampler from the same coordinates (pose, noise, estimate, superposition):
without autograd, with autograd alone (the gradient of a linear function of the estimate), guided through
the network by a simulated map, and by a cloud of as many points as paper 2 takes. Ratios are of one run,
side by side, and it is said whether they are within what is asked for. ``together`` is the number of
members in one call, as memory allows. Needs boltz; runs on the GPU if there is one, density and cloud too.
``--small`` takes the tests' reduced network, to see that the script works: its ratios say nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
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
from densemble.priors.boltz.prior import BoltzPrior
from densemble.priors.boltz.trunk import Trunk, conditioning
from densemble.priors.boltz.weights import BoltzFiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from boltz_dictionary import write_cache
from boltz_networks import compact_model

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
RESOLUTION, SPACING = 4.0, 1.2
STEPS, FIRST = 200, 5.0
"""Of the reverse diffusion; the step that is measured is the first from at most so much noise, Å."""
MOST = {"unguided": 2.5, "autograd": 1.15}
"""A guided step is to take at most so many times what each of these takes."""


def input_of(kind: Any, residues: int, folder: Path) -> BoltzInput:  # noqa: ANN401
    """A random sequence of so many residues."""
    letters = np.random.default_rng(1).choice(list("ACDEFGHIKLMNPQRSTVWY"), residues)
    fasta = folder / f"{residues}.fasta"
    fasta.write_text(f">A|protein|empty\n{''.join(letters)}\n")
    name = "mols" if kind == "boltz2" else "ccd.pkl"
    return read_input(fasta, BoltzFiles(kind, folder / "none.ckpt", write_cache(folder) / name))


def prior_of(network: Any, given: BoltzInput, device: torch.device, *, centre: torch.Tensor) -> BoltzPrior:  # noqa: ANN401
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
    module = network.structure_module
    return BoltzPrior(module, given.topology, known, centre=centre.to(device), together=1)


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


def inside(prior: BoltzPrior, x: torch.Tensor, t: float, grid: Grid) -> float:
    """Share of the estimated atoms in the box of the map: only these cost the density anything."""
    with torch.no_grad():
        x0 = prior.denoise(x, t)
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


def measured(network: Any, given: BoltzInput, members: int, device: torch.device) -> dict[str, Any]:  # noqa: ANN401
    """Seconds and memory of the four kinds of step, their ratios, and whether these are small enough."""
    n = given.atoms
    place = 2.6 * n ** (1 / 3) * torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    prior = prior_of(network, given, device, centre=place.mean(0))
    process = prior.process
    times = process.times(STEPS)
    i = next(i for i, t in enumerate(times) if t <= FIRST)
    t, after, level = times[i], times[i + 1], process.levels_of(times)[i]
    x = place + t * torch.randn(members, n, 3, generator=torch.Generator().manual_seed(2))
    place, x = place.to(device), x.to(device)
    weights = torch.randn(n, 3, generator=torch.Generator().manual_seed(3)).to(device)
    likelihood = likelihood_of(prior, place)
    points = place[:: max(1, n // cloud_size(n, SPACING))].cpu().double()
    divergence = SinkhornDivergence(PointCloud(points, torch.ones(len(points)).double()))
    density = Stage("density", lambda atoms, sigma: likelihood(atoms).sum(), weight=0.5, mode="ratio")
    cloud = Stage("cloud", lambda atoms, sigma: -divergence(atoms).sum(), weight=0.5, mode="ratio")

    def with_autograd(x: torch.Tensor, t: float) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            x0 = prior.denoise(leaf, t)
            torch.autograd.grad((x0 * weights).sum(), leaf)
        return x0.detach()

    denoisers: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
        "unguided": prior.denoise,
        "autograd": with_autograd,
        "density": GuidedPrior(prior, [density]).denoise,
        "cloud": GuidedPrior(prior, [cloud]).denoise,
    }
    row: dict[str, Any] = {"residues": len(given.topology.residues), "atoms": n, "points": len(points)}
    row |= {"members": members, "level": level, "inside": inside(prior, x, level, likelihood.target.grid)}
    prior.measure(level)
    fits = min(members, prior.together)
    for name, denoise in denoisers.items():

        def step(denoise: Callable[[torch.Tensor, float], torch.Tensor] = denoise) -> None:
            with torch.no_grad():
                process.step(denoise, x, t, after, torch.Generator().manual_seed(4))

        prior.together = fits
        row[f"{name}_s"], row[f"{name}_gib"] = timed(step, device, repeats=3)
        row[f"{name}_together"] = min(members, prior.together)  # halved where memory ran out
    for guided in ("density", "cloud"):
        for other, most in MOST.items():
            ratio = row[f"{guided}_s"] / row[f"{other}_s"]
            row[f"{guided}_over_{other}"], row[f"{guided}_over_{other}_passed"] = ratio, ratio <= most
    return row


def verdicts(row: dict[str, Any]) -> list[str]:
    """Whether guided steps are as fast as is asked for, in words."""
    return [
        f"  {guided}: {row[f'{guided}_over_{other}']:.2f} times {other}, "
        f"{'within' if row[f'{guided}_over_{other}_passed'] else 'NOT within'} {most}"
        for guided in ("density", "cloud")
        for other, most in MOST.items()
    ]


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
    network = compact_model(args.kind, **({} if args.small else FULL)).to(device)
    versions = {package: version(package) for package in ("densemble", "boltz", "torch")}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for residues in args.residues:
            given = input_of(args.kind, residues, Path(folder))
            row = measured(network, given, args.members, device)
            found.append(row)
            print(f"{args.kind} on {name}: ", end="")
            print(", ".join(f"{key} {value:.3g}" for key, value in row.items() if "passed" not in key))
            print("\n".join([] if args.small else verdicts(row)), flush=True)
    if args.json is not None:
        result = {"device": name, "kind": args.kind, "small": args.small, "versions": versions, "rows": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
