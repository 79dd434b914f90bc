"""The embedded prior for whole chains and complexes: what a starting model may turn into.

``WholeChainPrior`` puts the network of ``chain_network`` behind the contract of ``protocol``: atoms of the
model's own file order, in Å, in the frame of the map. The starting model is the reference; the prior says
how its domains may move and its parts deform, as far as ``Trust`` allows, with sound backbone chemistry.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.errors import InputError
from densemble.io.models import bonded_to_next
from densemble.priors.chain_graph import Trust, build_graph
from densemble.priors.chain_network import ChainNetwork, ChainNetworkConfig
from densemble.priors.edm import EDM
from densemble.priors.embedded import kinds_of
from densemble.priors.weights import read_network

CHAIN_WEIGHTS = Path(__file__).parents[1] / "data" / "embedded" / "chains.safetensors"
SIGMA_MAX = 150.0
"""Å, the largest noise level of training. Domains of some hundred atoms keep their place up to noise of many
times their motion, for a domain's place is known to sigma over the root of its atoms."""
_WIDTHS = 25.0  # first noise level over the expected motion of domains
_TOKENS = 8192  # residues x members in one call of the network: bounds memory


@cache
def load_chain_network(path: Path = CHAIN_WEIGHTS) -> ChainNetwork:
    """The network of whole chains with its weights, in single precision, ready for inference.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    return read_network(path, lambda sizes: ChainNetwork(ChainNetworkConfig(**sizes)))


class WholeChainPrior:
    """Diffusion model of the backbone of all protein residues of a model, around that model.

    Args:
        topology: all atoms of the model.
        coords: their coordinates, Å, shape=(n, 3): the reference, in its pose.
        trust: how far the truth may lie from it.
        network: the network; the one shipped if None.
        churn: see ``densemble.priors.edm.EDM``.

    Attributes:
        topology: N, CA, C, O of the residues modelled, in file order.
        atoms: their indices in the model's topology, shape=(N,).
        residues: indices of the residues modelled: protein residues with N, CA, C and O.
        process: EDM noise about the reference.

    Raises:
        InputError: no protein residue has all its backbone atoms.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        *,
        trust: Trust | None = None,
        network: ChainNetwork | None = None,
        churn: float = 0.3,
    ) -> None:
        trust = trust or Trust()
        self.network = load_chain_network() if network is None else network
        dtype = next(self.network.parameters()).dtype
        index = topology.atom_index
        self.residues = [
            r
            for r, residue in enumerate(topology.residues)
            if residue.kind == "protein" and all((r, name) in index for name in BACKBONE)
        ]
        if not self.residues:
            raise InputError("the model has no protein residue with N, CA, C and O; complete its backbone")
        rows = topology.backbone(self.residues)
        self.atoms = np.sort(rows.ravel())
        self.topology = topology.subset(self.atoms)
        self._rows = torch.from_numpy(np.searchsorted(self.atoms, rows).ravel())
        reference = coords[rows]
        bonded = bonded_to_next(topology, coords)
        follows = np.diff(self.residues, prepend=-2) == 1
        linked = follows & np.array([bool(bonded[r - 1]) for r in self.residues])
        chains = [topology.residues[r].id.chain for r in self.residues]
        self.graph = build_graph(
            reference.astype(np.float64),
            kinds_of(topology)[self.residues],
            linked,
            trust,
            chain=np.unique(chains, return_inverse=True)[1],
        ).to(dtype)
        self._origin = torch.from_numpy(reference.mean((0, 1))).to(dtype)
        self._encoded = self.network.encode(self.graph)
        self._dtype = dtype
        self.process = EDM(
            center=torch.from_numpy(coords[self.atoms]).float(),
            sigma_max=min(SIGMA_MAX, _WIDTHS * trust.domains),
            churn=churn,
        )

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t] at noise level ``t`` (its sigma in Å), differentiable in ``x_t``."""
        local = x_t.to(self._dtype)[:, self._rows].unflatten(1, (-1, 4)) - self._origin
        sigma = torch.full((len(x_t),), max(t, 1e-3), dtype=self._dtype, device=x_t.device)
        members = max(1, _TOKENS // len(self.graph))
        parts = [
            self.network(x, s, self.graph, self._encoded)[-1]
            for x, s in zip(local.split(members), sigma.split(members), strict=True)
        ]
        found = torch.cat(parts) + self._origin
        return (
            torch.zeros_like(found.flatten(1, 2)).index_copy(1, self._rows, found.flatten(1, 2)).to(x_t.dtype)
        )
