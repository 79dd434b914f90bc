"""The prior that densemble brings along: a small diffusion model of backbone segments, with its weights.

``EmbeddedPrior`` puts the network of ``segment_network`` behind the contract of ``protocol``: atoms
of the model's own file order, in Å, in the frame of the map. The network sees each stretch in a
frame fixed to the residues that anchor it, so the result turns and moves with the model exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.errors import InputError
from densemble.io.models import bonded_to_next
from densemble.io.naming import one_letter
from densemble.priors.edm import EDM
from densemble.priors.segment_geometry import OTHER_CHAIN, Segment, describe, stack, types_of
from densemble.priors.segment_network import Encoded, NetworkConfig, SegmentNetwork
from densemble.priors.weights import read_network

WEIGHTS = Path(__file__).parents[1] / "data" / "embedded" / "segments.safetensors"
LONGEST = 24
"""Residues of the longest stretch that the network was trained on."""
WIDTHS = 2.0
"""First noise level, in the largest expected standard deviations of a stretch. ``CHURN`` raises it to 4, the
most noise that the network was trained on."""
SIGMA_MIN = 0.05
"""Å, the last noise level: with less noise the network changes nothing, and steps are better spent above."""
CHURN = 1.0
"""How far noise is raised before each step: much of it lets later steps mend what earlier ones decided."""


@cache
def load_network(path: Path = WEIGHTS) -> SegmentNetwork:
    """The network of segments with its weights, in single precision, ready for inference.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    return read_network(path, lambda sizes: SegmentNetwork(NetworkConfig(**sizes)))


class EmbeddedPrior:
    """Diffusion model of the backbone of one or several stretches, the rest of the model being fixed.

    Several stretches are denoised independently: each knows of the others only that they are not
    part of its fixed surroundings.

    Args:
        topology: all atoms of the model.
        coords: their coordinates, Å, shape=(n, 3). Those of the stretches are used to see where the
            chain goes on and for nothing else.
        stretches: residue indices of each stretch in chain order, 1-24 residues.
        network: the network; the one shipped if None.
        churn: see ``densemble.priors.edm.EDM``.

    Attributes:
        topology: N, CA, C, O of the stretches, in file order.
        atoms: their indices in the model's topology, shape=(N,).
        process: EDM noise; sigma_max grows with the longest stretch.

    Raises:
        InputError: a stretch is too long, lacks backbone atoms or has no anchor.
    """

    def __init__(
        self,
        topology: Topology,
        coords: Float[np.ndarray, "n 3"],
        stretches: Sequence[Sequence[int]],
        *,
        network: SegmentNetwork | None = None,
        churn: float = CHURN,
    ) -> None:
        self.network = load_network() if network is None else network
        self._dtype = next(self.network.parameters()).dtype
        surroundings = _Surroundings(topology, coords, stretches)
        described = [surroundings.describe(stretch) for stretch in stretches]
        rows = [topology.backbone(stretch) for stretch in stretches]
        self.atoms = np.sort(np.concatenate([row.ravel() for row in rows]))
        self.topology = topology.subset(self.atoms)
        self._parts = [
            _Part(*given, np.searchsorted(self.atoms, row), self.network)
            for given, row in zip(described, rows, strict=True)
        ]
        center = torch.zeros(len(self.atoms), 3)
        for part in self._parts:
            center[part.rows] = part.mean.reshape(-1, 3).float()
        widest = max(float(part.segment.width.max()) for part in self._parts)
        self.process = EDM(center=center, sigma_max=WIDTHS * widest, sigma_min=SIGMA_MIN, churn=churn)

    def with_process(self, process: EDM) -> EmbeddedPrior:
        """The same network under another schedule of noise."""
        other = copy(self)
        other.process = process
        return other

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t] at noise level ``t`` (its sigma in Å), differentiable in ``x_t``."""
        x = x_t.to(self._dtype)
        result = torch.zeros_like(x)
        for part in self._parts:
            result = result.index_copy(1, part.rows, part.denoise(x[:, part.rows], t, self.network))
        return result.to(x_t.dtype)


class _Part:
    """One stretch: what the network is told about it, encoded once, and its frame."""

    def __init__(
        self,
        segment: Segment,
        rotation: np.ndarray,
        origin: np.ndarray,
        rows: np.ndarray,
        network: SegmentNetwork,
    ) -> None:
        dtype = next(network.parameters()).dtype
        self.segment = segment.to(dtype)
        self.rotation = torch.from_numpy(rotation).to(dtype)
        self.origin = torch.from_numpy(origin).to(dtype)
        self.rows = torch.from_numpy(rows.ravel())
        self.mean = self.segment.mean[0] @ self.rotation.T + self.origin
        with torch.no_grad():
            self.encoded: Encoded = network.encode(self.segment)

    def denoise(self, x: Float[Tensor, "k m 3"], t: float, network: SegmentNetwork) -> Float[Tensor, "k m 3"]:
        local = ((x - self.origin) @ self.rotation).unflatten(1, (-1, 4))
        sigma = torch.full((1, len(x)), max(t, 1e-3), dtype=x.dtype, device=x.device)
        estimate = network(local[None], sigma, self.segment, self.encoded)[-1][0]
        return estimate.flatten(1, 2) @ self.rotation.T + self.origin


class _Surroundings:
    """The fixed protein residues of a model, as the network knows residues."""

    def __init__(
        self, topology: Topology, coords: Float[np.ndarray, "n 3"], stretches: Sequence[Sequence[int]]
    ) -> None:
        self.topology = topology
        self.free = {r for stretch in stretches for r in stretch}
        if len(self.free) != sum(len(stretch) for stretch in stretches):
            raise InputError("the stretches of the region overlap; give each residue once")
        index = topology.atom_index
        complete = [
            r
            for r, residue in enumerate(topology.residues)
            if residue.kind == "protein" and all((r, name) in index for name in BACKBONE)
        ]
        self.complete = set(complete)
        self.fixed = [r for r in complete if r not in self.free]
        self.positions = coords[topology.backbone(self.fixed)] if self.fixed else np.zeros((0, 4, 3))
        self.bonded = bonded_to_next(topology, coords)
        self.types = kinds_of(topology)

    def describe(self, stretch: Sequence[int]) -> tuple[Segment, np.ndarray, np.ndarray]:
        """Conditioning of one stretch, and the axes (columns) and origin of its frame."""
        first, last = stretch[0], stretch[-1]
        name = f"{self.topology.residues[first].id}-{self.topology.residues[last].id}"
        if len(stretch) > LONGEST:
            raise InputError(
                f"region {name}: {len(stretch)} residues, but the embedded prior moves at most {LONGEST} "
                "in one stretch; choose a shorter one or another prior"
            )
        missing = [r for r in stretch if r not in self.complete]
        if missing:
            raise InputError(
                f"region {name}: residue {self.topology.residues[missing[0]].id} lacks one of N, CA, C, O; "
                "complete the model's backbone or choose another region"
            )
        places = self._places(first, last)
        fixed = np.array([places[r] for r in self.fixed], dtype=np.int64)
        if not np.isin(fixed, (-1, len(stretch))).any():
            raise InputError(
                f"region {name}: no fixed residue with a complete backbone is bonded to either end; "
                "choose a region next to modelled chain"
            )
        item, rotation, origin = describe(
            self.positions, self.types[self.fixed], fixed, self.types[list(stretch)]
        )
        return stack([item]), rotation, origin

    def _places(self, first: int, last: int) -> list[int]:
        """Place of every residue along the stretch's chain, its first residue at 0.

        Residues that are not bonded count as at least two apart, as their numbers say or more, so
        that none but a bonded one is taken for an anchor.
        """
        residues = self.topology.residues
        places = [OTHER_CHAIN] * len(residues)
        for r in range(first, last + 1):
            places[r] = r - first
        for r in range(first - 1, -1, -1):
            if not self._same_chain(r, first):
                break
            places[r] = places[r + 1] - self._step(r)
        for r in range(last + 1, len(residues)):
            if not self._same_chain(r, first):
                break
            places[r] = places[r - 1] + self._step(r - 1)
        return places

    def _same_chain(self, a: int, b: int) -> bool:
        one, other = self.topology.residues[a], self.topology.residues[b]
        return one.kind == "protein" and one.id.chain == other.id.chain

    def _step(self, r: int) -> int:
        if self.bonded[r]:
            return 1
        residues = self.topology.residues
        return max(2, residues[r + 1].id.number - residues[r].id.number)


def kinds_of(topology: Topology) -> np.ndarray:
    """Amino acid of each residue, index into ``ALPHABET``: of the parent for modified ones (MSE is M)."""
    return types_of("".join(one_letter(r.name) or "X" for r in topology.residues))
