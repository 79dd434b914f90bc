"""Boltz's own potentials (chirality, planarity, overlaps, contacts), as its sampler applies them."""

from __future__ import annotations

from typing import Any

import torch
from boltz.main import BoltzSteeringParams
from boltz.model.potentials.potentials import get_potentials
from jaxtyping import Float
from torch import Tensor


class Steering:
    """Gradient descent of Boltz's potentials on an estimate of x0.

    As ``AtomDiffusion.sample`` does it with ``physical_guidance_update`` and ``contact_guidance_update``;
    its resampling of particles (``fk_steering``) is not used: members are samples of their own.

    Args:
        feats: the model's features.
        boltz2: whether they are those of Boltz-2; only it has potentials for contacts and templates.
        physical: stereochemistry and overlaps; contacts that the input demands are always kept.
    """

    def __init__(self, feats: dict[str, Any], *, boltz2: bool, physical: bool) -> None:
        settings = BoltzSteeringParams(physical_guidance_update=physical)
        self._potentials = get_potentials(vars(settings), boltz2=boltz2)
        self._feats, self._descents = feats, settings.num_gd_steps

    @torch.no_grad()
    def __call__(self, x0: Float[Tensor, "k m 3"], remaining: float) -> Float[Tensor, "k m 3"]:
        """The update to x0, in Å.

        Args:
            x0: of all atoms, padding included.
            remaining: share of the steps that are left, by which Boltz changes the weights.
        """
        update = torch.zeros_like(x0)
        for descent in range(self._descents):
            gradient = torch.zeros_like(x0)
            for potential in self._potentials:
                parameters = potential.compute_parameters(remaining)
                weight = parameters["guidance_weight"]
                if weight > 0 and descent % parameters["guidance_interval"] == 0:
                    gradient += weight * potential.compute_gradient(x0 + update, self._feats, parameters)
            update -= gradient
        return update
