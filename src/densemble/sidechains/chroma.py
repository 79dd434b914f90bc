"""Side chains by Chroma's own packer: the autoregressive decoder of its design network.

Paper 1, section A.1: chi angles are sampled for the target and its window, one residue after the other,
with everything outside, backbone and chi angles, as the file has it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.priors.chroma.layout import ChainLayout
from densemble.priors.chroma.networks import device_of, seeded
from densemble.sidechains.packing import SideChains
from densemble.sidechains.residues import placements

_ATOMS = 14
_NAMES = {"MSE": {"SE": "SD"}}
"""Atoms of modified residues, by their name in the parent."""


class ChromaPacker:
    """Draws chi angles of the free side chains of each member.

    Residues outside that lack side-chain atoms are packed along, since the network must see some angle; what
    it gives for them is not kept.

    Args:
        topology: all atoms of the model.
        coords: Å, shape=(n, 3): the context.
        network: see ``densemble.priors.chroma.networks.load_design``.
        temperature: of the draw; Chroma's default is 0.001.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        network: Any,  # noqa: ANN401
        *,
        temperature: float = 0.001,
    ) -> None:
        from chroma.constants import AA20_3, AA_GEOMETRY

        self.network = network
        self.temperature = temperature
        self.layout = ChainLayout.of(topology, coords)
        kinds = [AA20_3[i] for i in self.layout.sequence[0].tolist()]
        self._atoms = torch.zeros(1, len(kinds), _ATOMS, 3)
        self._lacking = torch.ones(1, len(kinds))
        for place, r in zip(self.layout.places.tolist(), self.layout.residues, strict=True):
            names = [*BACKBONE, *AA_GEOMETRY[kinds[place]]["atoms"]]
            own = {self._parent_name(topology, a): coords[a] for a in topology.atoms_of([r]).tolist()}
            for i, name in enumerate(names):
                if name in own:
                    self._atoms[0, place, i] = torch.as_tensor(own[name])
            self._lacking[0, place] = float(any(name not in own for name in names))
        self._shift = torch.stack([chi_shift(kind) for kind in kinds])

    @torch.no_grad()
    def __call__(
        self, side_chains: SideChains, backbone: Float[Tensor, "k g 4 3"], generator: torch.Generator
    ) -> None:
        """Draw the chi angles of all residues of ``side_chains``, the region's backbone being as given."""
        members = len(backbone)
        places = self.layout.places_of(side_chains.residues)
        atoms = self._atoms.repeat(members, 1, 1, 1)
        atoms[:, places, :4] = side_chains.whole_backbone(backbone).to(atoms)
        sampled = self._lacking.index_fill(1, places, 1.0)
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded(seed, device_of(self.network)), _quiet():
            # one member at a time: with more, the released decoder mixes them where it keeps given angles
            chi = torch.cat([self._decoded(one, sampled)[:, places] for one in atoms.split(1)])
        side_chains.chi = (chi + self._shift[places]).to(side_chains.chi)

    def _decoded(self, atoms: Tensor, sampled: Tensor) -> Tensor:
        """The steps of ``GraphDesign.pack``, but that only some residues are sampled, after all others."""
        network, device = self.network, device_of(self.network)
        atoms, sampled = atoms.to(device), sampled.to(device)
        chains, sequence = self.layout.chains.to(device), self.layout.sequence.to(device)
        # the encoder was trained on backbones with nothing in the other places
        alone = torch.zeros_like(atoms)
        alone[:, :, :4] = atoms[:, :, :4]
        node_h, edge_h, edge_idx, mask_i, mask_ij = network.encode(alone, chains)
        order = network.traversal(alone, chains, priority=sampled)
        node_h = node_h + mask_i[..., None] * network.embed_S(sequence)
        node_h, edge_h = network.encoder_S_gnn(node_h, edge_h, edge_idx, mask_i, mask_ij)
        graph = (node_h, edge_h, edge_idx, mask_i, mask_ij)
        _, chi, _, _, _ = network.decoder_chi.decode(
            atoms,
            chains,
            sequence,
            *graph,
            order,
            temperature_chi=self.temperature,
            mask_sample=sampled,
            resample_chi=False,
        )
        return chi.to(self._atoms)

    @staticmethod
    def _parent_name(topology: Topology, atom: int) -> str:
        return _NAMES.get(topology.residue_names[atom], {}).get(topology.names[atom], topology.names[atom])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for each call, and no warning of how the package calls torch's checkpoint."""
    from chroma.layers import graph

    bar = graph.tqdm
    graph.tqdm = lambda steps, **_: steps
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.utils.checkpoint: the use_reentrant")
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            yield
    finally:
        graph.tqdm = bar


def chi_shift(kind: str) -> Float[Tensor, " 4"]:
    """What to add to Chroma's chi angles of a residue, radians, to have ours.

    They differ where Chroma measures to another branch: chi2 of tryptophan to CD2.
    """
    from chroma.constants import AA_GEOMETRY

    shift = torch.zeros(4)
    geometry = AA_GEOMETRY[kind]
    ours = {(p.atom, p.chi): p.offset for p in placements(kind)}
    for i, row in enumerate(geometry["chi_indices"]):
        shift[i] = -ours[geometry["atoms"][row], i + 1]
    return shift
