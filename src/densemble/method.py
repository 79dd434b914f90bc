"""What the members of a region are drawn by: a prior, by its name, and the networks that this needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import JsonValue

from densemble.assembly import (
    TAKE_CHROMA,
    boltz_prior,
    chain_noise,
    chroma_packer,
    chroma_prior,
    edm_noise,
    embedded_prior,
    gaussian_prior,
)
from densemble.errors import InputError
from densemble.guidance.guided import AllAtom
from densemble.io.models import Model
from densemble.io.output import InputFile
from densemble.priors.chroma.networks import Loaded, load_backbone, load_design, package_version
from densemble.priors.fold import FoldSettings
from densemble.priors.protocol import Prior
from densemble.problem import Stretches
from densemble.progress import Progress
from densemble.recipes import Recipe
from densemble.sidechains.completion import Packer

if TYPE_CHECKING:
    from densemble.priors.boltz.model import BoltzModel
    from densemble.priors.boltz.substructure import BoltzSubstructure

RegionPrior = Literal["embedded", "gaussian", "chroma"]
"""Priors of a region's backbone: the packaged network, smooth deformations in closed form, Chroma."""
RECIPES: dict[RegionPrior, str] = {"embedded": "embedded", "gaussian": "densemble", "chroma": "chroma-2024"}
"""The recipe made for each."""
FOLD_RECIPE = "boltz"
"""That for networks that fold."""


@dataclass(frozen=True, eq=False)
class Method:
    """What the members of a region are drawn by, be its map a crystal's or cryo-EM's.

    Prior and packer are chosen apart from each other: the prior by its name, the packer by the recipe.

    Attributes:
        prior: of the backbone.
        recipe: the numbers.
        backbone: Chroma's network, where it is the prior.
        design: Chroma's packer, where the recipe says so; None: side chains by rotamers.
    """

    prior: RegionPrior
    recipe: Recipe
    backbone: Loaded | None
    design: Loaded | None

    @classmethod
    def of(
        cls,
        prior: RegionPrior,
        recipe: Recipe,
        *,
        weights_backbone: Path | None = None,
        weights_design: Path | None = None,
    ) -> Method:
        """Load the networks that are needed, and no others.

        Args:
            prior: of the backbone.
            recipe: the numbers.
            weights_backbone: of Chroma's backbone network; fetched by Chroma with the user's key if None.
            weights_design: of Chroma's design network, likewise.

        Raises:
            InputError: the recipe is not made for the prior; weights that nothing uses; see also
                ``densemble.priors.chroma.networks.load_network``.
        """
        (chain_noise if prior == "chroma" else edm_noise)(recipe)
        check_weights(prior, recipe, weights_backbone, weights_design)
        return cls(
            prior=prior,
            recipe=recipe,
            backbone=load_backbone(weights_backbone) if prior == "chroma" else None,
            design=load_design(weights_design) if recipe.sidechains.packer == "chroma" else None,
        )

    def prior_of(self, stretches: Stretches) -> Prior:
        """The diffusion model of the stretches' backbone, everything else held.

        Raises:
            InputError: the recipe is not made for it, or it cannot move these stretches.
        """
        if self.backbone is not None:
            return chroma_prior(stretches, self.recipe, self.backbone.network)
        return (gaussian_prior if self.prior == "gaussian" else embedded_prior)(stretches, self.recipe)

    def packer_of(self, stretches: Stretches) -> Packer | None:
        """What draws the side chains; None: the rotamer library."""
        return None if self.design is None else chroma_packer(stretches, self.recipe, self.design.network)

    @property
    def networks(self) -> list[Loaded]:
        """Those whose weights are not part of this package."""
        return [loaded for loaded in (self.backbone, self.design) if loaded is not None]

    @property
    def files(self) -> list[InputFile]:
        """Their weights, given or fetched."""
        return [loaded.file for loaded in self.networks]

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know of them."""
        return tuple(message for loaded in self.networks for message in loaded.messages)

    @property
    def versions(self) -> dict[str, str]:
        """Of packages that only some methods depend on."""
        return package_version() if self.networks else {}

    @property
    def device(self) -> torch.device | None:
        """Where these networks are."""
        return self.networks[0].device if self.networks else None

    @property
    def described(self) -> dict[str, JsonValue]:
        """Nothing: the settings say all of it."""
        return {}


@dataclass(frozen=True, eq=False)
class FoldMethod:
    """What the members of a region of a crystal are drawn by where a network that folds has all its atoms.

    Says the same of itself as ``Method``.

    Attributes:
        recipe: the numbers.
        boltz: the network, its trunk run on the sequences.
    """

    recipe: Recipe
    boltz: BoltzModel

    @classmethod
    def of(cls, fold: FoldSettings, recipe: Recipe, model: Model, *, progress: Progress) -> FoldMethod:
        """Load the network and run its trunk.

        Args:
            fold: which network, and its input.
            recipe: the numbers.
            model: the start.
            progress: told of downloads and of the trunk.

        Raises:
            InputError: the network's input or weights are missing or wrong, or do not go with the model.
        """
        from densemble.priors.boltz.model import open_boltz

        fold.check()
        return cls(recipe, open_boltz(fold, model, progress=progress))

    def drawn(self, stretches: Stretches, *, seed: int) -> tuple[BoltzSubstructure, AllAtom]:
        """See ``boltz_prior``."""
        return boltz_prior(stretches, self.recipe, self.boltz, seed=seed)

    @property
    def files(self) -> list[InputFile]:
        """The sequences, where the model does not give them, and the weights."""
        sequence = self.boltz.settings.sequence
        return [*([] if sequence is None else [InputFile.of(sequence)]), self.boltz.weights]

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.boltz.messages

    @property
    def versions(self) -> dict[str, str]:
        """Of the network's package."""
        return self.boltz.versions

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.boltz.device

    @property
    def described(self) -> dict[str, JsonValue]:
        """What the settings do not say of its input."""
        return {"fold_input": self.boltz.given.key}


def check_weights(prior: str, recipe: Recipe, backbone: Path | None, design: Path | None) -> None:
    """See that Chroma's weights are given only where they are used.

    Raises:
        InputError: something else is used.
    """
    if backbone is not None and prior != "chroma":
        raise InputError(f"--weights-backbone: of no use to the prior {prior}; {TAKE_CHROMA}")
    if design is not None and recipe.sidechains.packer != "chroma":
        raise InputError(
            f"--weights-design: of no use to the recipe {recipe.name}, which packs side chains by "
            'rotamers; take the recipe chroma-2024, or set packer = "chroma" under [sidechains]'
        )
