"""Atoms in known places: the condition that any prior can be sampled under.

The denoiser of a prior does not know the places x_h of the held atoms. Where the noise of atoms is
correlated, what its estimate misses there says something of the others:

``E[x0_f | x_t, x_h] = x0_hat_f + K (x_h - x0_hat_h)``, with K the regression of the noise (``correlated``).

That is exact wherever the covariance of x0 given x_t is proportional to that of the noise: for a Gaussian
prior with the covariance of its noise, and for any smooth prior as the noise vanishes. With independent
noise K is zero, and the estimate is replaced where it is known and nowhere else. For Chroma's process it is
what the SubstructureConditioner of the released package does to its gradients (Ingraham et al. 2023,
supplementary section M), without that class's shifts of the centre of mass.

Both conditions ask of a prior only the ``gain`` of its noise (and ``given``, the noise that is left).
``Held`` is what the rounds of any prior of a region do to the residues outside a window; ``Substructure``
makes a prior of a region out of one of a whole model, such as Chroma. The packaged network is one of a
region by itself: it is told of its surroundings.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.priors.protocol import ConditionalNoise, NoiseProcess, Prior


class Held:
    """A prior with some atoms in known places, which may differ between members.

    An atom whose estimate is its known place x at every level keeps the noise that it began with, and with
    it the network is shown what it was trained on (Lugmayr et al. 2022, RePaint, without its resampling).

    Args:
        prior: what the other atoms are sampled from; guided or not.
        known: Å, shape=(K, N, 3).
        held: which atoms are, shape=(K, N).
    """

    def __init__(self, prior: Prior, known: Float[Tensor, "k n 3"], held: Bool[Tensor, "k n"]) -> None:
        self.prior = prior
        self.topology = prior.topology
        self.process = prior.process
        self._known = known
        self._held = held
        self._gains = known.new_zeros(len(held), held.shape[1], held.shape[1])
        for gain, one in zip(self._gains, held, strict=True):
            gain[torch.outer(~one, one)] = self.process.gain(one).to(known).flatten()

    def denoise(self, x_t: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """E[x0 | x_t], the known place for atoms that are held."""
        x0 = self.prior.denoise(x_t, t)
        x0 = x0 + self._gains.to(x0) @ (self._known - x0)
        return torch.where(self._held[..., None], self._known, x0)


class Substructure:
    """A prior of some atoms, all others being in known places, the same for all members.

    Only the free atoms have noise, that which the known places leave them. The network sees the held atoms
    where they are, at every noise level, as Chroma's SubstructureConditioner shows them.

    Args:
        prior: of all N atoms.
        known: Å, their places; those of the free atoms are not looked at. shape=(N, 3).
        free: which atoms are sampled, shape=(N,).

    Attributes:
        topology: the free atoms.
        process: their noise.

    Raises:
        ValueError: no atom is free, or none is held; the noise is of all atoms together, as Boltz's.
    """

    def __init__(self, prior: Prior, known: Float[Tensor, "n 3"], free: Bool[Tensor, " n"]) -> None:
        if not bool(free.any()) or bool(free.all()):
            raise ValueError("Substructure: needs atoms that are free and atoms that are held")
        process = prior.process
        if not isinstance(process, ConditionalNoise):
            raise ValueError(f"Substructure: {type(process).__name__} has no noise of some atoms alone")
        self.prior = prior
        self.topology = prior.topology.subset(free.nonzero()[:, 0].numpy())
        self.process: NoiseProcess
        self.process, self._gain = process.given(known, ~free)
        self._known = known
        self._free = free

    def whole(self, x: Float[Tensor, "k f 3"]) -> Float[Tensor, "k n 3"]:
        """All atoms: the free ones where given, the others in their known places."""
        known = self._known.to(x).expand(len(x), -1, -1)
        return known.index_copy(1, self._free.nonzero()[:, 0], x)

    def denoise(self, x_t: Float[Tensor, "k f 3"], t: float) -> Float[Tensor, "k f 3"]:
        """E[x0 | x_t] of the free atoms, differentiable in ``x_t``."""
        x0 = self.prior.denoise(self.whole(x_t), t)
        held = ~self._free
        return x0[:, self._free] + self._gain.to(x0) @ (self._known.to(x0) - x0)[:, held]
