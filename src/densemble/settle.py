"""Conformations of a part of a region, settled in its density: as what models of states are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from densemble.geometry.regularise import regularise
from densemble.likelihood.density import DensityLikelihood
from densemble.problem import RegionProblem
from densemble.selection.number import Normal

_B_STEPS = 8


@dataclass(frozen=True)
class Settling:
    """How models are settled, each number of states alike.

    Attributes:
        rounds: of coordinates, then B factors, then weights.
        evaluations: of the objective in a round, for coordinates.
        density_weight: of the map's log-likelihood against stereochemistry.
        b_sd: Å^2, how far the B factor of a residue is expected to be from the start's.
    """

    rounds: int = 2
    evaluations: int = 25
    density_weight: float = 3.0
    b_sd: float = 10.0


@dataclass(frozen=True, eq=False)
class Place:
    """Where a part stands: in its region, whose other atoms are held.

    Attributes:
        problem: the density of the region.
        geometry: log probability of all atoms of the region, shape=(k, N, 3).
        atoms: of the part, shape=(n,).
        around: Å, all atoms of the region; those of the part are not looked at, shape=(a, 3).
        others: density of what else is in the region.
    """

    problem: RegionProblem
    geometry: Callable[[Tensor], Tensor]
    atoms: Int[np.ndarray, " n"]
    around: Float[Tensor, "a 3"]
    others: Float[Tensor, "nx ny nz"]

    @property
    def b_start(self) -> Float[Tensor, " n"]:
        """Å^2, B factors of the part's atoms in the start."""
        return self.problem.b_start[self.atoms]

    def likelihood(self, b_iso: Float[Tensor, " n"]) -> DensityLikelihood:
        """Of the map, given the part's conformations beside what is held."""
        return self.problem.likelihood_of(self.atoms, b_iso, self.others)

    def normal(self, coords: Float[Tensor, "k n 3"], b_iso: Float[Tensor, " n"]) -> Normal:
        """Normal equations of the weights of conformations on the voxels of the mask."""
        problem, inside = self.problem, self.problem.mask > 0.5
        with torch.no_grad():
            density = problem.forward.of_atoms(self.atoms).members(coords, b_iso)[:, inside]
        target = (problem.target.values - self.others)[inside]
        return Normal.of(density.numpy(), target.numpy(), offset=problem.fit_scale)

    def stereochemistry(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, ""]:
        """Log probability of the region with each of the conformations in place."""
        whole = self.around.expand(len(coords), -1, -1)
        return self.geometry(whole.index_copy(1, torch.as_tensor(self.atoms), coords))

    def settled(
        self, coords: Float[Tensor, "k n 3"], weights: Float[np.ndarray, " k"], how: Settling
    ) -> tuple[Float[Tensor, "k n 3"], Float[np.ndarray, " k"], Float[Tensor, " n"]]:
        """Conformations refined together, with weights and B factors.

        B factors are the start's plus one addition a residue, the same in all states, so that one state may
        become wider where another would otherwise be called for.

        Args:
            coords: Å, of the part's atoms.
            weights: to start from, summing to one.
            how: the same for models that are to be compared.

        Returns:
            Å; weights that sum to one; Å^2.
        """
        b_iso = self.fitted_b(coords, weights, how)
        for _ in range(how.rounds):
            w = torch.as_tensor(weights, dtype=coords.dtype)
            likelihood = self.likelihood(b_iso)

            def density(x: Tensor, likelihood: DensityLikelihood = likelihood, w: Tensor = w) -> Tensor:
                return how.density_weight * likelihood(x, w)

            coords = regularise(
                coords, self.stereochemistry, log_likelihood=density, evaluations=how.evaluations
            ).coords
            b_iso = self.fitted_b(coords, weights, how)
            found = self.normal(coords, b_iso).weights(range(len(coords)))[0]
            weights = found / found.sum() if found.sum() > 0 else weights
        return coords, weights, b_iso

    def fitted_b(
        self, coords: Float[Tensor, "k n 3"], weights: Float[np.ndarray, " k"], how: Settling
    ) -> Float[Tensor, " n"]:
        """Å^2, the start's B factors plus what each residue has more or less, under a normal prior."""
        problem, base = self.problem, self.b_start
        residue = np.unique(problem.stretches.topology.residue_index[self.atoms], return_inverse=True)[1]
        likelihood, w = self.likelihood(base), torch.as_tensor(weights, dtype=coords.dtype)
        index = torch.as_tensor(residue)

        def shifted(delta: Tensor) -> Tensor:
            return (base + how.b_sd * delta[index]).clamp(min=problem.forward.b_min)

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            delta = torch.tensor(values, dtype=coords.dtype, requires_grad=True)
            with torch.enable_grad():
                fit = replace(likelihood, b_iso=shifted(delta))(coords, w)
                left = delta.square().sum() / 2 - fit
                left.backward()
            assert delta.grad is not None
            return float(left.detach()), delta.grad.double().numpy()

        start = np.zeros(residue.max() + 1)
        best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _B_STEPS}).x
        return shifted(torch.tensor(best, dtype=coords.dtype)).detach()
