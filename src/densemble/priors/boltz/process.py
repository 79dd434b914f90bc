"""The noise process of the Boltz models, with everything that only they need of a frame.

Boltz turns every sample to a random pose before each denoising, and lets it drift. Here a sample stays in
the frame of the map: the pose is applied to what the network is shown, and undone on what it returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from boltz.model.loss.diffusionv2 import weighted_rigid_align
from boltz.model.modules.utils import quaternion_to_matrix
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densemble.atoms import Topology
from densemble.metrics.chains import best_chain_assignment, interchangeable_chains
from densemble.priors.protocol import Denoiser
from densemble.priors.rigid import nearest_rotation


@dataclass(frozen=True)
class BoltzNoise:
    """Numbers of the sampler; Boltz-1 and Boltz-2 differ in most.

    Attributes:
        sigma_min: last noise level before zero, in units of ``sigma_data``.
        sigma_max: first noise level, in units of ``sigma_data``.
        sigma_data: Å.
        rho: bends the schedule (Karras et al. 2022, Eq. 5).
        gamma_0: noise is raised by this fraction before a step ...
        gamma_min: ... that ends above this level, Å.
        noise_scale: factor on the noise added when it is raised.
        step_scale: factor on each step; above 1 samples are less diverse (3.0 for antibodies in paper 2).
        align: superpose the noisy sample on its estimate before each step.
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float
    rho: float
    gamma_0: float
    gamma_min: float
    noise_scale: float
    step_scale: float
    align: bool

    @classmethod
    def of(cls, diffusion: Any) -> BoltzNoise:
        """Those of a model's ``structure_module``, of either version."""
        names = [name for name in cls.__dataclass_fields__ if name != "align"]
        return cls(**{n: float(getattr(diffusion, n)) for n in names}, align=diffusion.alignment_reverse_diff)


@dataclass(frozen=True, eq=False)
class Pose:
    """How the network sees the samples: ``(x - centre) R + shift``, one pose for each member.

    Attributes:
        centre: Å, shape=(K, 1, 3).
        rotation: R, for row vectors, shape=(K, 3, 3).
        shift: Å, shape=(K, 1, 3).
    """

    centre: Float[Tensor, "k 1 3"]
    rotation: Float[Tensor, "k 3 3"]
    shift: Float[Tensor, "k 1 3"]

    @classmethod
    def centred(cls, x: Float[Tensor, "k n 3"]) -> Pose:
        """The centre of the atoms at the origin, not turned."""
        centre = x.detach().mean(1, keepdim=True)
        return cls(centre, torch.eye(3).to(x).expand(len(x), 3, 3), torch.zeros_like(centre))

    def seen(self, x: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
        """From the map's frame to the network's."""
        return (x - self.centre) @ self.rotation + self.shift

    def back(self, x: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
        """From the network's frame to the map's."""
        return (x - self.shift) @ self.rotation.mT + self.centre

    def moved(self, rotation: Float[Tensor, "k 3 3"], shift: Float[Tensor, "k 1 3"]) -> Pose:
        """The pose that shows ``x rotation + shift`` as this one shows x."""
        return Pose(self.centre @ rotation + shift, rotation.mT @ self.rotation, self.shift)


Motion = tuple[Float[Tensor, "k 3 3"], Float[Tensor, "k 1 3"]]
"""A rotation Q and a shift b for each member: x goes to x Q + b."""


def superposing(x: Float[Tensor, "k a 3"], places: Float[Tensor, "k a 3"]) -> Motion:
    """The motions that bring x nearest to its places, by least squares."""
    own, goal = x.double(), places.double()
    middle, centre = own.mean(1, keepdim=True), goal.mean(1, keepdim=True)
    rotation = nearest_rotation((own - middle).mT @ (goal - centre))
    return rotation.to(x), (centre - middle @ rotation).to(x)


@dataclass(frozen=True, eq=False)
class Anchor:
    """Where samples stand in the map (paper 2, appendix A.3).

    Chains of one sequence are exchanged where a sample has them in another arrangement.

    Attributes:
        level: the sample is placed at the start of the step from this noise level, Å.
        topology: of the samples.
        coords: Å, all their atoms in a model docked into the map, shape=(N, 3).
        atoms: indices of those to superpose, shape=(a,).
    """

    level: float
    topology: Topology
    coords: Float[Tensor, "n 3"]
    atoms: Int[Tensor, " a"]

    def motion(self, x0: Float[Tensor, "k n 3"]) -> Motion:
        """What brings each member's atoms nearest to where they belong."""
        return superposing(x0[:, self.atoms], self._places(x0)[:, self.atoms].to(x0))

    def _places(self, x0: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
        """The docked coordinates with equal chains in the arrangement of each member."""
        places = self.coords[None].expand(len(x0), -1, -1)
        if all(len(alike) == 1 for alike in interchangeable_chains(self.topology)):
            return places
        docked = self.coords.double().cpu().numpy()
        found = []
        for x in x0.double().cpu().numpy():
            arranged = best_chain_assignment(self.topology, docked, x).coords
            found.append(torch.from_numpy(np.where(np.isfinite(arranged), arranged, docked)))
        return torch.stack(found).to(places)


@runtime_checkable
class Memory(Protocol):
    """What is kept of the steps done."""

    def begin(self) -> None:
        """New samples begin."""
        ...

    def advance(self, t: float) -> None:
        """The estimate at level ``t`` is there."""
        ...


class BoltzProcess:
    """EDM with churn as ``AtomDiffusion.sample`` does it, in the frame of the map.

    Random numbers are drawn in Boltz's order: the rotation, the shift, the noise. Boltz centres padding
    together with the atoms; here it has no coordinates.

    Args:
        noise: numbers of the sampler.
        atoms: N.
        centre: where the first noise is centred, Å, shape=(3,), or each atom's place in a model to start
            from, shape=(N, 3).
        first: the first noise level, Å; that of pure noise if None.
        estimate: the network's x0_hat, unguided, to place the sample by.
        anchor: where to place it. Until then, and without an anchor unless a model is given to start from,
            samples are kept at ``centre``: their place means nothing.

    Attributes:
        pose: of the step under way, if one is.
        left: share of the steps that are left, by which Boltz weighs its potentials; 0 where they do not
            act: in the last step, and where nobody has said what is left.
        memory: told when samples begin and of every step, if the prior keeps one.
    """

    def __init__(
        self,
        noise: BoltzNoise,
        *,
        atoms: int,
        centre: Float[Tensor, "*n 3"],
        estimate: Denoiser,
        first: float | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        self.noise, self.atoms, self.centre, self.anchor = noise, atoms, centre, anchor
        self.pose: Pose | None = None
        self.left = 0.0
        self.memory: Memory | None = None
        self._first = noise.sigma_max * noise.sigma_data if first is None else first
        self._estimate = estimate
        self._steps = 2

    def times(self, steps: int, first: float | None = None) -> list[float]:
        """``steps + 1`` levels in Å, in float32 as Boltz has them.

        Args:
            steps: at least two.
            first: the highest level; the process's own if None.
        """
        if steps < 2:
            raise ValueError(f"BoltzProcess: at least two steps, got {steps}")
        n = self.noise
        high = ((self._first if first is None else first) / n.sigma_data) ** (1 / n.rho)
        low = n.sigma_min ** (1 / n.rho)
        ramp = torch.arange(steps, dtype=torch.float32) / (steps - 1)
        self._steps = steps  # by which Boltz counts its steering time
        return [*((high + ramp * (low - high)) ** n.rho * n.sigma_data).tolist(), 0.0]

    def levels(self, steps: int) -> list[float]:
        """Å, the noise that the network sees at each of so many steps from pure noise: raised."""
        return self.levels_of(self.times(steps, self.noise.sigma_max * self.noise.sigma_data))

    def levels_of(self, times: list[float]) -> list[float]:
        """Å, the noise that the network sees at the step from each of these levels but the last."""
        return [self._raised(t, t_next) for t, t_next in pairwise(times)]

    def steps_below(self, steps: int) -> int:
        """How many of so many steps from pure noise begin at or below the process's own first level."""
        whole = self.times(steps, self.noise.sigma_max * self.noise.sigma_data)[:-1]
        return max(2, sum(t <= self._first * (1 + 1e-6) for t in whole))

    def _raised(self, t: float, t_next: float) -> float:
        """The level of a step with the noise added to it; gamma is a float32 in Boltz."""
        gamma = float(torch.tensor(self.noise.gamma_0, dtype=torch.float32))
        return t * (1 + gamma) if t_next > self.noise.gamma_min else t

    def share_left(self, t: float) -> float:
        """How much of the way from pure noise is left at level ``t``, by Boltz's schedule: 1 to 0."""
        n = self.noise
        high, low = n.sigma_max ** (1 / n.rho), n.sigma_min ** (1 / n.rho)
        return min(max(((t / n.sigma_data) ** (1 / n.rho) - low) / (high - low), 0.0), 1.0)

    def _remaining(self, t: float) -> float:
        """Share of the steps from pure noise that are left at level ``t``: Boltz's steering time."""
        done = (1 - self.share_left(t)) * (self._steps - 1)
        return 1 - round(done, 3) / self._steps

    def sigma(self, t: float) -> float:
        """The noise level is its own label."""
        return t

    def level(self, sigma: float) -> float:
        """The noise level is its own label."""
        return sigma

    def precondition(self, gradient: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """sigma^2 gradient: the shift of x0_hat that a score causes."""
        return t**2 * gradient

    def gain(self, held: Bool[Tensor, " n"]) -> Float[Tensor, "f h"]:
        """Zero: the noise of held atoms foretells nothing."""
        return self.centre.new_zeros(int((~held).sum()), int(held.sum()))

    def initial(self, members: int, generator: torch.Generator) -> Float[Tensor, "k n 3"]:
        """Noise of the first level about ``centre``."""
        if self.memory is not None:
            self.memory.begin()
        return self.centre + self._first * self._normal((members, self.atoms, 3), generator)

    def diffuse(
        self, x0: Float[Tensor, "k n 3"], t: float, generator: torch.Generator
    ) -> Float[Tensor, "k n 3"]:
        """x0 with the noise of level ``t``."""
        return x0 + t * self._normal(tuple(x0.shape), generator)

    def step(
        self,
        denoise: Denoiser,
        x: Float[Tensor, "k n 3"],
        t: float,
        t_next: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "k n 3"]:
        """One reverse step: augment, raise the noise, denoise, align, move. Where ``centre`` is."""
        n, x = self.noise, x.to(self.centre.device)
        if self.centre.ndim == 1 and (self.anchor is None or t > self.anchor.level):
            x = x - x.mean(1, keepdim=True) + self.centre
        raised = self._raised(t, t_next)
        rotation = self._rotations(len(x), generator)
        shift = self._normal((len(x), 1, 3), generator)
        spread = n.noise_scale * (raised**2 - t**2) ** 0.5
        pose = Pose(x.mean(1, keepdim=True), rotation, shift)
        x = x + spread * self._normal(tuple(x.shape), generator) @ rotation.mT
        try:
            self.pose, self.left = pose, self._remaining(t) if t_next > 0 else 0.0
            if self.anchor is not None and t == self.anchor.level:
                with torch.no_grad():
                    motion = self.anchor.motion(self._estimate(x, raised))
                x, self.pose = x @ motion[0] + motion[1], pose.moved(*motion)
            x0 = denoise(x, raised)
        finally:
            self.pose, self.left = None, 0.0
        if self.memory is not None:
            self.memory.advance(raised)
        if n.align:
            x = _aligned(x, x0)
        return x + n.step_scale * (t_next - raised) * (x - x0) / raised

    def _rotations(self, members: int, generator: torch.Generator) -> Float[Tensor, "k 3 3"]:
        """Uniform rotations, from four normal numbers each."""
        return quaternion_to_matrix(self._normal((members, 4), generator))

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal numbers, drawn where the generator is; a GPU fetches them when it comes to them."""
        drawn = torch.randn(shape, generator=generator, device=generator.device)
        if self.centre.is_cuda and not drawn.is_cuda:
            drawn = drawn.pin_memory()
        return drawn.to(self.centre, non_blocking=True)


def _aligned(x: Float[Tensor, "k n 3"], x0: Float[Tensor, "k n 3"]) -> Float[Tensor, "k n 3"]:
    """The sample superposed on its estimate.

    An estimate that is not finite, of which the sampler says that it diverged, is not to end in an error of
    the superposition; which of them it is is decided on the device, so that nobody waits for the answer.
    """
    finite = torch.isfinite(x0).all()
    tame = x / x.abs().amax().clamp_min(1.0)
    every = torch.ones_like(x[..., 0])
    return weighted_rigid_align(torch.where(finite, x, tame), torch.where(finite, x0, tame), every, every)
