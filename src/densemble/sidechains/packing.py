"""Side chains of an ensemble while its backbone changes: the Gibbs scheme of density-guided sampling.

Maddipatla et al., "Generative modeling of protein ensembles guided by crystallographic electron
densities", Algorithm A1, lines 8-15: every T steps the chi angles are drawn anew for the present
backbones, in the steps between they climb the likelihood of the ensemble by S gradient steps, and always
they are constants to the gradient with respect to the backbone. Here the draw is from the rotamer
library, each rotamer weighed by its frequency, the density under its atoms and its contacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import BACKBONE, Topology
from densemble.geometry.restraints import LINK_DISTANCE, build_restraints
from densemble.sidechains.build import SideChainBuilder
from densemble.sidechains.candidates import Candidates, DensityAt
from densemble.sidechains.residues import is_buildable
from densemble.sidechains.rotamers import fine_rotamers, rotamers


def window_of(topology: Topology, coords: np.ndarray, residues: Sequence[int], width: int) -> list[int]:
    """Residues at most ``width`` places along the chain from the given ones, these left out, increasing.

    Gaps and residues whose side chain cannot be built, or whose backbone is not complete, end the window.
    """
    found: set[int] = set()
    for start in residues:
        for step in (-1, 1):
            last = start
            for i in range(start + step, start + step * (width + 1), step):
                if not 0 <= i < len(topology.residues) or not _joined(topology, coords, last, i):
                    break
                found.add(i)
                last = i
    return sorted(found - set(residues))


def _joined(topology: Topology, coords: np.ndarray, i: int, j: int) -> bool:
    residue = topology.residues[j]
    c, n = topology.atom_index.get((min(i, j), "C")), topology.atom_index.get((max(i, j), "N"))
    if residue.kind != "protein" or not is_buildable(residue.name) or c is None or n is None:
        return False
    if any((j, name) not in topology.atom_index for name in BACKBONE):
        return False
    distance = float(np.linalg.norm(coords[c] - coords[n]))
    return topology.residues[i].id.chain == residue.id.chain and not distance > LINK_DISTANCE


class SideChains:
    """Chi angles of K members, and how they become atoms.

    Attributes:
        topology: atoms of the region, and of its window if there is one, in file order.
        residues: their residues, as indices into the whole model's.
        chi: radians, shape=(K, R, 4).
    """

    topology: Topology
    residues: list[int]
    chi: Float[Tensor, "k r 4"]

    def __init__(
        self,
        topology: Topology,
        coords: np.ndarray,
        residues: Sequence[int],
        *,
        members: int,
        window: int = 0,
        absent: Sequence[int] | np.ndarray = (),
        copies: np.ndarray | None = None,
        copy_elements: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start from the chi angles of the model, or the commonest rotamer where it lacks atoms.

        Args:
            topology: the whole model.
            coords: Å, shape=(n, 3).
            residues: those of the region, whose backbone will be given each time.
            members: K.
            window: W, residues on either side whose backbone stays but whose side chains move too.
            absent: atoms that are not there (``build_restraints``).
            copies: Å, symmetry copies, shape=(c, 3).
            copy_elements: their elements.
            dtype: of the coordinates that will come.
            device: of the coordinates that will come.

        Raises:
            InputError: a residue of the region cannot be built.
        """
        self.residues = sorted([*residues, *window_of(topology, coords, residues, window)])
        atoms = topology.atoms_of(self.residues)
        self.topology = topology.subset(atoms)
        self._builder = SideChainBuilder(self.topology, dtype=dtype, device=device)
        self._given = torch.as_tensor(np.isin(self.residues, residues), device=device)
        start = torch.tensor(coords[atoms], dtype=dtype, device=device)[None]
        self._backbone = self._builder.backbone_of(start)
        self.chi = self._initial(start).repeat(members, 1, 1)
        restraints = build_restraints(
            topology, coords, atoms, absent=absent, copies=copies, copy_elements=copy_elements
        )
        n, limit = len(atoms), restraints.contact_limit
        limit = torch.cat([limit[:, :n] + limit[:, :n].T, limit[:, n:]], dim=1)
        self._limit, self._fixed = limit.to(device, dtype), restraints.fixed.to(device, dtype)
        self._candidates = Candidates(self._builder, self._limit, self._fixed)

    @cached_property
    def _fine(self) -> Candidates:
        return Candidates(self._builder, self._limit, self._fixed, library=fine_rotamers)

    def _initial(self, start: Tensor) -> Tensor:
        chi = self._builder.chi_from_coords(start)
        for r, residue in enumerate(self.topology.residues):
            if bool(chi[0, r].isnan().any()):
                library = rotamers(residue.name)
                chi[0, r] = library.chi[int(library.log_probability.argmax())].to(chi)
        return chi

    def whole_backbone(self, backbone: Float[Tensor, "k g 4 3"]) -> Float[Tensor, "k r 4 3"]:
        """N, CA, C and O of all residues: the region's as given, the window's as in the model."""
        whole = self._backbone.repeat(len(backbone), 1, 1, 1)
        return whole.index_copy(1, self._given.nonzero()[:, 0], backbone)

    def adopt(self, atoms: Float[Tensor, "k n 3"]) -> None:
        """Take over the chi angles of K complete members, Å, shape=(K, N, 3)."""
        self.chi = self._builder.chi_from_coords(atoms.detach())

    def complete(self, backbone: Float[Tensor, "k g 4 3"]) -> Float[Tensor, "k n 3"]:
        """All atoms on the backbones of the region; differentiable in them, chi held constant.

        Args:
            backbone: Å, N, CA, C, O of the region's residues (without the window's), shape=(K, G, 4, 3).
        """
        return self._builder.build(self.whole_backbone(backbone), self.chi.detach())

    @torch.no_grad()
    def pack(
        self,
        backbone: Float[Tensor, "k g 4 3"],
        *,
        generator: torch.Generator,
        density_at: DensityAt | None = None,
        temperature: float = 1.0,
        sweeps: int = 2,
        fine: bool = False,
    ) -> None:
        """Draw new chi angles from the rotamer library for each member on its own.

        The score of a rotamer, in nats, is its log frequency, plus the electrons of its atoms times
        ``density_at`` them, less its contacts with everything that does not move and with the side
        chains chosen so far. The residues are visited in random order ``sweeps`` times, each one drawn
        from ``exp(score / temperature)`` given the others (Gibbs sampling), or the best one taken if
        the temperature is 0 (iterated conditional modes, Besag 1986).

        Args:
            backbone: Å, as for ``complete``.
            generator: source of randomness, on the CPU.
            density_at: gain per electron at points in Å; none: frequency and contacts alone.
            temperature: of the draw.
            sweeps: visits of every residue.
            fine: choose among ``fine_rotamers``: five times the work.
        """
        whole = self.whole_backbone(backbone)
        table = self._fine if fine else self._candidates
        points = table.build(self._builder, whole)
        now = self._builder.build(whole, self.chi)
        scores = table.static_score(points, now, density_at)
        for _ in range(sweeps):
            for r in torch.randperm(len(table.residues), generator=generator).tolist():
                score = scores[:, table.of[r]] - table.contacts(points, now, r)
                choice = _draw(score, temperature, generator)
                now = table.put(points, now, r, choice)
                self.chi[:, table.residues[r]] = table.chi[r][choice]

    def refine(
        self,
        backbone: Float[Tensor, "k g 4 3"],
        log_likelihood: Callable[[Tensor], Tensor],
        *,
        steps: int,
        step_size: float,
    ) -> list[float]:
        """Climb the log likelihood of the whole ensemble in chi, the backbones held.

        Proline's ring is left alone, since its chi angles cannot turn freely.

        Args:
            backbone: Å, as for ``complete``.
            log_likelihood: of all atoms, shape=(K, N, 3), to a scalar.
            steps: S.
            step_size: radians^2; the step is ``step_size`` times the gradient.

        Returns:
            The log likelihood before each step.
        """
        whole = self.whole_backbone(backbone.detach())
        turns = self._builder.chi_mask.copy()
        turns[[residue.name == "PRO" for residue in self.topology.residues]] = False
        mask = torch.as_tensor(turns, device=self.chi.device)
        trace = []
        for _ in range(steps):
            with torch.enable_grad():
                chi = self.chi.detach().clone().requires_grad_(True)
                value = log_likelihood(self._builder.build(whole, chi))
                (gradient,) = torch.autograd.grad(value, chi)
            self.chi = self.chi + step_size * torch.where(mask, gradient, 0.0)
            trace.append(float(value.detach()))
        return trace

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"chi": self.chi.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            ValueError: it belongs to other members or residues.
        """
        if state["chi"].shape != self.chi.shape:
            raise ValueError(f"SideChains: chi {tuple(state['chi'].shape)} for {tuple(self.chi.shape)}")
        self.chi = state["chi"].to(self.chi).clone()


def _draw(score: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return score.argmax(dim=1)
    probability = torch.softmax(score.double().cpu() / temperature, dim=1)
    return torch.multinomial(probability, 1, generator=generator)[:, 0].to(score.device)
