"""Cost of the whole-chain prior against the number of residues: is it linear?

Residues are random points at the density of a protein; the network's cost does not depend on where they are.
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from densemble.priors.chain_graph import Trust, build_graph
from densemble.priors.whole_chain import load_chain_network

SIZES = (250, 500, 1000, 2000, 4000)
VOLUME = 134.0
"""Å^3 of a residue (Harpaz, Gerstein & Chothia 1994, Structure 2, 641)."""


def ball(residues: int) -> np.ndarray:
    """N, CA, C, O of random residues in a ball, Å."""
    rng = np.random.default_rng(0)
    radius = (residues * VOLUME * 3 / (4 * np.pi)) ** (1 / 3)
    points = rng.normal(size=(residues, 3))
    points *= (radius * rng.random(residues) ** (1 / 3) / np.linalg.norm(points, axis=1))[:, None]
    return points[:, None] + rng.normal(size=(residues, 4, 3))


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of a few runs."""
    spent = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return min(spent)


def main() -> None:
    """Print seconds, and seconds a residue over those of the smallest size."""
    torch.set_num_threads(1)
    network = load_chain_network()
    print(f"{platform.processor() or platform.machine()}, one thread, one member")
    print("residues  graph s  denoise s  with gradient s  denoise a residue, ratio  peak MiB")
    base, sigma = None, torch.ones(1)
    for n in SIZES:
        atoms, kinds, linked = ball(n), np.zeros(n, dtype=np.int64), np.arange(n) > 0
        build = seconds(lambda a=atoms, k=kinds, b=linked: build_graph(a, k, b, Trust()), 1)
        graph = build_graph(atoms, kinds, linked, Trust())
        encoded = network.encode(graph)
        x = (graph.reference + torch.randn(n, 4, 3))[None]
        with torch.no_grad():
            plain = seconds(lambda x=x, g=graph, e=encoded: network(x, sigma, g, e))
        leaf = x.clone().requires_grad_()
        both = seconds(lambda x=leaf, g=graph, e=encoded: network(x, sigma, g, e)[-1].sum().backward())
        base = base or plain / n
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{n:8}{build:9.2f}{plain:11.2f}{both:17.2f}{plain / n / base:26.2f}{peak:10}")


if __name__ == "__main__":
    main()
