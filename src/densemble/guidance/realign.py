"""Moving whole samples to where the measurement wants them, while they are sampled.

The gradient of a likelihood moves atoms, each by what it sees; a sample that stands askew as a whole is put
right sooner by a rotation and a translation. The seam is that of ``GuidedPrior``: the estimate is placed
anew, objectives see it there, and the sample follows after the step, so that a prior needs to know nothing
of it. It is exact for a prior that turns and moves with its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.align.rotations import rotation_matrices
from densemble.priors.protocol import Denoiser, NoiseProcess

SMALL = 0.001
"""Å and nats; a search ends with a step that changes less."""
MemberTerm = Callable[[Float[Tensor, "k n 3"], float], Float[Tensor, " k"]]
"""All atoms of all members in Å and the noise level in Å -> what each adds to the log-likelihood, nats."""


@dataclass(frozen=True, eq=False)
class Moves:
    """One rigid motion ``x -> rotation x + translation`` for each member.

    Attributes:
        rotation: shape=(k, 3, 3).
        translation: Å, shape=(k, 3).
    """

    rotation: Float[Tensor, "k 3 3"]
    translation: Float[Tensor, "k 3"]

    @classmethod
    def about(
        cls, centre: Float[Tensor, "k 3"], radius: Float[Tensor, " k"], twist: Float[Tensor, "k 6"]
    ) -> Moves:
        """Turns about a centre, and shifts; differentiable in the twist.

        Args:
            centre: Å.
            radius: Å, of gyration.
            twist: a rotation vector times the radius, and a shift, both in Å, so that a step of any direction
                moves the atoms about as far.
        """
        rotation = rotation_matrices(twist[:, :3] / radius[:, None])
        return cls(rotation, centre + twist[:, 3:] - (rotation @ centre[..., None])[..., 0])

    def apply(self, coords: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
        """Å, moved; differentiable."""
        return coords @ self.rotation.mT + self.translation[:, None]

    def only(self, members: Bool[Tensor, " k"]) -> Moves:
        """The motions of some members; the others stay."""
        still = torch.eye(3).to(self.rotation)
        return Moves(
            torch.where(members[:, None, None], self.rotation, still),
            torch.where(members[:, None], self.translation, 0.0),
        )


@dataclass(frozen=True, eq=False)
class Realignment:
    """When and by what samples are moved as a whole.

    Attributes:
        term: the log-likelihood of each member.
        stage: name of the guidance stage that it goes with: at the first step of it, and at every
            ``every``-th one, motions are sought.
        every: steps.
        gain: nats by which the log-likelihood of a member must rise for it to be moved.
        evaluations: of the term with its gradient, at most, in one search.
    """

    term: MemberTerm
    stage: str
    every: int
    gain: float
    evaluations: int = 20

    def __call__(self, atoms: Float[Tensor, "k n 3"], sigma: float) -> Moves | None:
        """The motions that make the atoms as they are likeliest; None if no member gains enough.

        By L-BFGS from where they stand, all members in one search.
        """
        atoms = atoms.detach()
        centre = atoms.mean(1)
        radius = (atoms - centre[:, None]).square().sum(-1).mean(1).sqrt().clamp_min(1.0)
        twist = atoms.new_zeros(len(atoms), 6).requires_grad_()
        first = best = atoms.new_zeros(len(atoms))
        found = twist.detach().clone()
        optimizer = torch.optim.LBFGS(
            [twist],
            max_iter=self.evaluations,
            max_eval=self.evaluations,
            tolerance_change=SMALL,
            line_search_fn="strong_wolfe",
        )
        count = 0

        def closure() -> Tensor:
            nonlocal first, best, found, count
            optimizer.zero_grad()
            values = self.term(Moves.about(centre, radius, twist).apply(atoms), sigma)
            (-values.sum()).backward()
            with torch.no_grad():
                if count == 0:
                    first = best = values.detach()
                better = values > best
                best = torch.where(better, values, best)
                found = torch.where(better[:, None], twist, found)
            count += 1
            return -values.sum().detach()

        with torch.enable_grad():
            optimizer.step(closure)
        gained = best - first > self.gain
        if not bool(gained.any()):
            return None
        return Moves.about(centre, radius, found).only(gained)


class FollowingProcess:
    """The noise of a prior, whose samples make up for the motions of their estimates after each step.

    With x_t = x0 + sigma z, moving x_t and x0 before a step is the same as moving what comes out of it, for
    isotropic noise.
    """

    def __init__(self, process: NoiseProcess) -> None:
        self.process = process
        self.moves: Moves | None = None

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """As those of the prior's own."""
        return self.process.times(steps, first)

    def sigma(self, t: float) -> float:
        """As that of the prior's own."""
        return self.process.sigma(t)

    def level(self, sigma: float) -> float:
        """As that of the prior's own."""
        return self.process.level(sigma)

    def initial(self, members: int, generator: torch.Generator) -> Float[Tensor, "k n 3"]:
        """As that of the prior's own."""
        return self.process.initial(members, generator)

    def diffuse(
        self, x0: Float[Tensor, "k n 3"], t: float, generator: torch.Generator
    ) -> Float[Tensor, "k n 3"]:
        """As that of the prior's own."""
        return self.process.diffuse(x0, t, generator)

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """The prior's step, and the motions that were found in it."""
        self.moves = None
        x = self.process.step(denoise, x, t, t_next, generator)
        return x if self.moves is None else self.moves.apply(x)

    def precondition(self, gradient: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """As that of the prior's own."""
        return self.process.precondition(gradient, t)

    def gain(self, held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
        """As that of the prior's own."""
        return self.process.gain(held)
