"""Some atoms of a Boltz network's, all others in known places, in the frame of a model."""

from __future__ import annotations

import torch
from boltz.model.modules.utils import quaternion_to_matrix
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.priors.boltz.prior import BoltzPrior
from densemble.priors.boltz.process import Pose, superposing
from densemble.priors.protocol import NoiseProcess


class BoltzSubstructure:
    """The denoiser of all atoms as a prior of those that are free.

    The noise of atoms is independent, so that the free ones have a process of their own, whatever is known of
    the others. At every level the network is shown the held atoms in their places with noise of that level:
    what it was trained on (Lugmayr et al. 2022, RePaint, without its resampling). The noise of an atom is the
    same at all levels, as that of one whose estimate is its known place. What the network makes of the whole
    is brought to the held atoms by least squares, for its estimates stand where they like. Contacts that the
    input demands act on the estimates of the whole, with the weights that Boltz has at this level of noise.

    Args:
        prior: of all N atoms.
        known: Å, places of the held atoms; those of the free ones are not looked at. shape=(N, 3).
        free: which atoms are sampled, shape=(N,).
        process: their noise.
        seed: of the noise of held atoms and of the poses in which the network is shown the whole.

    Attributes:
        topology: the free atoms.
        process: their noise.

    Raises:
        ValueError: no atom is free, or fewer than three are held.
    """

    def __init__(
        self,
        prior: BoltzPrior,
        known: Float[Tensor, "n 3"],
        free: Bool[Tensor, " n"],
        process: NoiseProcess,
        *,
        seed: int,
    ) -> None:
        if not bool(free.any()) or int((~free).sum()) < 3:
            raise ValueError("BoltzSubstructure: needs atoms that are free and three or more that are held")
        self.topology = prior.topology.subset(free.nonzero()[:, 0].numpy())
        self.process = process
        self._prior, self._seed = prior, seed
        self._free = free.nonzero()[:, 0].to(prior.device)
        self._held = (~free).nonzero()[:, 0].to(prior.device)
        self._known = torch.where(free[:, None], 0.0, known.float()).to(prior.device)
        self._noise = self._known.new_zeros(0, *known.shape)

    def denoise(self, x_t: Float[Tensor, "k f 3"], t: float) -> Float[Tensor, "k f 3"]:
        """E[x0 | x_t] of the free atoms, differentiable in ``x_t``."""
        if len(self._noise) != len(x_t):
            self._noise = self._normal((len(x_t), *self._known.shape), self._seed)
        whole = (self._known + t * self._noise).index_copy(1, self._free, x_t.to(self._known))
        x0 = self._estimate(whole, t)
        places = self._known[self._held].expand(len(x0), -1, -1)
        rotation, shift = superposing(x0.detach()[:, self._held], places)
        return (x0[:, self._free] @ rotation + shift).to(x_t)

    def _estimate(self, whole: Float[Tensor, "k n 3"], t: float) -> Float[Tensor, "k n 3"]:
        """The network's, in a pose that is random but the same whenever this level is asked for."""
        seed = hash((self._seed, float(t)))
        rotation = quaternion_to_matrix(self._normal((len(whole), 4), seed))
        shift = self._normal((len(whole), 1, 3), seed + 1)
        process = self._prior.process
        try:
            process.pose = Pose(whole.detach().mean(1, keepdim=True), rotation, shift)
            process.left = process.share_left(t)
            return self._prior.denoise(whole, t)
        finally:
            process.pose, process.left = None, 0.0

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63))
        return drawn.to(self._known)
