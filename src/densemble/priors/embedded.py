"""The prior that densemble brings along: a small diffusion model of backbone segments, with its weights.

``EmbeddedPrior`` puts the network of ``segment_network`` behind the contract of ``protocol``: atoms
of the model's own file order, in Å, in the frame of the map. The network sees each stretch in a
frame fixed to the residues that anchor it, so the result turns and moves with the model exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.errors import InputError
from densemble.io.models import bonded_to_next
from densemble.io.naming import one_letter
from densemble.priors.edm import EDM
from densemble.priors.segment_geometry import OTHER_CHAIN, describe, stack, types_of
from densemble.priors.segment_network import Encoded, NetworkConfig, SegmentNetwork
from densemble.priors.weights import read_network

Described = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
"""A stretch as ``segment_geometry.describe`` gives it: conditioning, axes (columns) and origin."""
WEIGHTS = Path(__file__).parents[1] / "data" / "embedded" / "segments.safetensors"
LONGEST = 24
"""Residues of the longest stretch that the network was trained on."""
WIDTHS = 4.0
"""Largest noise level of training, in the largest expected standard deviations of a stretch."""
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


def first_level(widest: float, churn: float) -> float:
    """Å, of pure noise for a stretch of that width: churn raises it to the largest level of training."""
    return WIDTHS * widest / (1 + churn)


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
        self._stretches = [list(stretch) for stretch in stretches]
        free = {r for stretch in stretches for r in stretch}
        if len(free) != sum(len(stretch) for stretch in stretches):
            raise InputError("the stretches of the region overlap; give each residue once")
        self._model = _Model(topology, coords)
        described = [self._model.describe(stretch, free, coords) for stretch in stretches]
        self.atoms = np.sort(topology.backbone(sorted(free)).ravel())
        self.topology = topology.subset(self.atoms)
        self._parts = [
            _Encoded([one], self._rows(stretch)[None], self.network)
            for one, stretch in zip(described, stretches, strict=True)
        ]
        center = torch.zeros(len(self.atoms), 3)
        for part in self._parts:
            center[part.rows[0]] = part.mean[0].float()
        highest = first_level(max(part.widest for part in self._parts), churn)
        self.process = EDM(center=center, sigma_max=highest, sigma_min=SIGMA_MIN, churn=churn)

    def _rows(self, stretch: Sequence[int]) -> np.ndarray:
        """Where some residues' backbone is among the atoms of the prior, shape=(4 L,)."""
        return np.searchsorted(self.atoms, self._model.topology.backbone(stretch)).ravel()

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
            rows = part.rows[0]
            result = result.index_copy(1, rows, part.denoise(x[None, :, rows], t, self.network)[0])
        return result.to(x_t.dtype)

    def anew(self, known: Float[Tensor, "k n 3"], held: Bool[Tensor, "k n"]) -> Anew:
        """Sample some residues of each member anew, the others being a part of what the network is told.

        A stretch that is shorter for it is easier: the network sees the held residues where they are, at
        every noise level, and not as noise that it is to take away.

        Args:
            known: Å, the members.
            held: which atoms stay as they are; those of a residue all or none, and not all of a member.
        """
        residue = torch.as_tensor(self._model.topology.residue_index[self.atoms])
        groups: dict[int, list[tuple[int, list[int], Described]]] = defaultdict(list)
        for k in range(len(known)):
            free = set(residue[~held[k]].tolist())
            coords = self._model.coords.copy()
            coords[self.atoms] = known[k].double().numpy()
            for run in _runs(self._stretches, free):
                groups[len(run)].append((k, run, self._model.describe(run, free, coords)))
        parts = []
        for group in groups.values():
            rows = np.stack([self._rows(run) for _, run, _ in group])
            encoded = _Encoded([described for *_, described in group], rows, self.network)
            parts.append((torch.tensor([k for k, *_ in group]), encoded))
        return Anew(self, parts, known)


class Anew:
    """The packaged network on residues of each member of its own; made by ``EmbeddedPrior.anew``.

    Attributes:
        topology: as the prior's.
        process: as the prior's, but that pure noise is as wide as the longest of these stretches needs.
        start: Å, where pure noise is centred, held atoms in their places, shape=(K, N, 3).
    """

    def __init__(
        self,
        prior: EmbeddedPrior,
        parts: Sequence[tuple[Int[Tensor, " b"], _Encoded]],
        known: Float[Tensor, "k n 3"],
    ) -> None:
        self.topology, self._network = prior.topology, prior.network
        self._parts, self._known = parts, known
        self.start = known.clone()
        for member, part in parts:
            self.start[member[:, None], part.rows] = part.mean.to(known)
        highest = first_level(max(part.widest for _, part in parts), prior.process.churn)
        self.process = replace(prior.process, sigma_max=min(highest, prior.process.sigma_max))

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t, what is held], the known place for atoms that are held."""
        x = x_t.to(next(self._network.parameters()).dtype)
        result = self._known.to(x)
        for member, part in self._parts:
            where = (member[:, None], part.rows)
            result = result.index_put(where, part.denoise(x[where][:, None], t, self._network)[:, 0])
        return result.to(x_t.dtype)


def _runs(stretches: Sequence[Sequence[int]], free: set[int]) -> list[list[int]]:
    """Residues that are free, cut where one between them is held or a stretch ends."""
    runs: list[list[int]] = []
    for stretch in stretches:
        inside = False
        for r in stretch:
            if r in free and inside:
                runs[-1].append(r)
            elif r in free:
                runs.append([r])
            inside = r in free
    return runs


class _Encoded:
    """B stretches of one length: what the network is told about each, encoded once, and its frame."""

    def __init__(self, described: Sequence[Described], rows: np.ndarray, network: SegmentNetwork) -> None:
        dtype = next(network.parameters()).dtype
        self.segment = stack([item for item, _, _ in described]).to(dtype)
        self.rotation = torch.from_numpy(np.stack([r for _, r, _ in described])).to(dtype)
        self.origin = torch.from_numpy(np.stack([o for _, _, o in described])).to(dtype)[:, None]
        self.rows = torch.from_numpy(rows)
        self.mean = self.segment.mean.flatten(1, 2) @ self.rotation.mT + self.origin
        self.widest = float(self.segment.width.max())
        with torch.no_grad():
            self.encoded: Encoded = network.encode(self.segment)

    def denoise(
        self, x: Float[Tensor, "b c m 3"], t: float, network: SegmentNetwork
    ) -> Float[Tensor, "b c m 3"]:
        """Estimates of C noisy copies of each stretch."""
        turn, origin = self.rotation[:, None], self.origin[:, None]
        local = ((x - origin) @ turn).unflatten(2, (-1, 4))
        sigma = torch.full(x.shape[:2], max(t, 1e-3), dtype=x.dtype, device=x.device)
        estimate = network(local, sigma, self.segment, self.encoded)[-1]
        return estimate.flatten(2, 3) @ turn.mT + origin


class _Model:
    """The protein residues of a model, as the network knows residues."""

    def __init__(self, topology: Topology, coords: Float[np.ndarray, "n 3"]) -> None:
        self.topology, self.coords = topology, coords
        index = topology.atom_index
        self.complete = {
            r
            for r, residue in enumerate(topology.residues)
            if residue.kind == "protein" and all((r, name) in index for name in BACKBONE)
        }
        self.bonded = bonded_to_next(topology, coords)
        self.types = kinds_of(topology)

    def describe(self, stretch: Sequence[int], free: set[int], coords: Float[np.ndarray, "n 3"]) -> Described:
        """Conditioning of one stretch by the residues that are not free, and its frame.

        Args:
            stretch: residues in the order of the chain.
            free: those of all stretches.
            coords: Å, of the whole model.
        """
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
        fixed = sorted(self.complete - free)
        places = np.array(self._places(first, last), dtype=np.int64)[fixed]
        if not np.isin(places, (-1, len(stretch))).any():
            raise InputError(
                f"region {name}: no fixed residue with a complete backbone is bonded to either end; "
                "choose a region next to modelled chain"
            )
        positions = coords[self.topology.backbone(fixed)]
        return describe(positions, self.types[fixed], places, self.types[list(stretch)])

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
