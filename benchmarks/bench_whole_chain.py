"""Cost of the whole-chain prior against the number of residues: is it linear?

Residues are random points at the density of a protein; the network's cost does not depend on where they are.
``python benchmarks/bench_whole_chain.py``; one thread, processor time, the least of three runs.
"""

from __future__ import annotations

import numpy as np
import torch

from densemble.priors.chain_graph import Trust, build_graph
from densemble.priors.whole_chain import load_chain_network
from measuring import begin, least, parser_of, peak_bytes, write

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


def main(arguments: list[str] | None = None) -> None:
    """Print seconds, and seconds a residue over those of the smallest size."""
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="residues")
    args = parser.parse_args(arguments)
    result = begin("whole chain", args.threads)
    network = load_chain_network()
    print("one member")
    print("residues  graph s  denoise s  with gradient s  denoise a residue, ratio  peak MiB")
    base, sigma, rows = None, torch.ones(1), []
    for n in args.sizes:
        atoms, kinds, linked = ball(n), np.zeros(n, dtype=np.int64), np.arange(n) > 0
        build = least(lambda a=atoms, k=kinds, b=linked: build_graph(a, k, b, Trust()))
        graph = build_graph(atoms, kinds, linked, Trust())
        encoded = network.encode(graph)
        x = (graph.reference + torch.randn(n, 4, 3))[None]
        with torch.no_grad():
            plain = least(lambda x=x, g=graph, e=encoded: network(x, sigma, g, e))
        leaf = x.clone().requires_grad_()
        both = least(lambda x=leaf, g=graph, e=encoded: network(x, sigma, g, e)[-1].sum().backward())
        base, peak = base or plain / n, peak_bytes()
        print(
            f"{n:8}{build:9.2f}{plain:11.2f}{both:17.2f}{plain / n / base:26.2f}{peak >> 20:10}", flush=True
        )
        row = {"residues": n, "seconds_graph": build, "seconds": plain, "seconds_with_gradient": both}
        rows.append(row | {"ratio_a_residue": plain / n / base, "peak_memory_bytes": peak})
    write(result | {"sizes": rows}, args.json)


if __name__ == "__main__":
    main()
