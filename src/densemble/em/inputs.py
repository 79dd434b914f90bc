"""What a fit to a cryo-EM map starts from: settings, and files read and found consistent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue

from densemble.em.halfmaps import check_same_grid, resolution_of_half_maps
from densemble.errors import InputError, check_resolution
from densemble.forward.cryoem import FormKind
from densemble.grid import DensityMap
from densemble.io.maps import read_map
from densemble.io.models import Model, read_model
from densemble.io.output import InputFile, plain
from densemble.method import RECIPES, RegionPrior
from densemble.priors.fold import FoldSettings
from densemble.recipes.state import StateRecipe, load_state_recipe

STATE_RECIPES = {"boltz1": "cryoboltz-2025", "boltz2": "cryoboltz-2025"}
"""The recipe made for a prior, where it is not ``densemble``."""


@dataclass(frozen=True)
class StateSettings:
    """Everything that a run depends on, but for the files' contents.

    Attributes:
        map: the map, CCP4 or MRC.
        model: the start, mmCIF or PDB, in any pose; may be left out where ``fold`` has a sequence.
        resolution: Å; estimated from the half maps if None.
        half1: half map to fit, instead of ``map``.
        half2: half map that takes no part in the fit, to judge it by.
        level: contour level; chosen from the map if None (``densemble.em.preparation``).
        placed: the start stands in the map already; no docking.
        members: independent samples.
        prior: ``embedded`` (the packaged network) or ``elastic`` (normal modes of an elastic network); not
            used where a network folds.
        fold: of a network that folds from sequence, and is the prior.
        recipe: name of one of the package's, or a TOML file.
        forward: how atoms look in the sharp map: ``electron`` or ``molmap``.
        steps: of the reverse diffusion; the recipe's if None.
        ensemble: the members together explain the map (paper 1), instead of each alone.
        region: stretches of which the ensemble is, for example ``A:176-191``; of the whole model if None.
        region_members: sampled of a region.
        region_prior: of its backbone, as for crystals.
        region_recipe: how: one of the recipes for crystals, or a TOML file; the one made for the prior if
            None.
        weights_backbone: of Chroma's backbone network; fetched by Chroma with the user's key if None.
        weights_design: of Chroma's design network, likewise.
        states: whether a region's members are made into a final model of as many states as the map supports.
        cycles: of its refinement.
        keep: of an ensemble, at most so many.
        seed: of all randomness.
        fit_in_b: write each residue's map correlation into the B column, times 100.
    """

    map: Path
    model: Path | None = None
    resolution: float | None = None
    half1: Path | None = None
    half2: Path | None = None
    level: float | None = None
    placed: bool = False
    members: int = 4
    prior: Literal["embedded", "elastic"] = "embedded"
    fold: FoldSettings | None = None
    recipe: str = "densemble"
    forward: FormKind = "electron"
    steps: int | None = None
    ensemble: bool = False
    region: str | None = None
    region_members: int = 16
    region_prior: RegionPrior = "embedded"
    region_recipe: str | None = None
    weights_backbone: Path | None = None
    weights_design: Path | None = None
    states: bool = True
    cycles: int = 4
    keep: int = 5
    seed: int = 0
    fit_in_b: bool = False

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        sequence = None if self.fold is None else self.fold.sequence
        named = (self.model, sequence, self.map, self.half1, self.half2)
        return [f for f in named if f is not None]

    @property
    def start(self) -> str:
        """What is docked, in words."""
        return self.model.name if self.model is not None else "the fold"

    @property
    def target(self) -> Path:
        """The map that is fitted."""
        return self.half1 or self.map

    @property
    def whole_ensemble(self) -> bool:
        """Whether the samples of the whole model are to explain the map together."""
        return self.ensemble and self.region is None

    @property
    def region_recipe_name(self) -> str:
        """The recipe asked for, or the one made for the region's prior."""
        return self.region_recipe or RECIPES[self.region_prior]

    def record(self) -> dict[str, JsonValue]:
        """Plain values, files by name, for ``result.json``."""
        values = plain(self) | {"region_recipe": self.region_recipe_name}
        return values if self.fold is None else values | {"prior": self.fold.prior}


@dataclass(frozen=True, eq=False)
class StateInputs:
    """The files as read and found consistent.

    Attributes:
        model: the start as read; None where only a sequence is given.
        density: the map to fit.
        held_out: the half map to judge by.
        resolution: Å.
        resolution_source: where it comes from.
        recipe: the method.
        files: all inputs with their hashes.
        messages: what the user should know.
    """

    model: Model | None
    density: DensityMap
    held_out: DensityMap | None
    resolution: float
    resolution_source: str
    recipe: StateRecipe
    files: list[InputFile]
    messages: tuple[str, ...]


def load(settings: StateSettings) -> StateInputs:
    """Read and check all input; nothing is written.

    Raises:
        InputError: says which file or option is wrong and what to do.
    """
    if (settings.half1 is None) != (settings.half2 is None):
        raise InputError("--half1 and --half2 go together: one is fitted, the other judges")
    if settings.resolution is None and settings.half1 is None:
        raise InputError(f"{settings.map} does not say its resolution; give --resolution in Å, or half maps")
    if settings.resolution is not None:
        check_resolution(settings.resolution)
    if not settings.map.is_file():
        raise InputError(f"{settings.map} does not exist; give a CCP4 or MRC map")
    check_start(settings)
    recipe = load_state_recipe(settings.recipe)
    model = None if settings.model is None else read_model(settings.model)
    density = read_map(settings.target)
    held_out = None if settings.half2 is None else read_map(settings.half2)
    resolution, source = settings.resolution, "given"
    if held_out is not None:
        sources = (str(settings.half1), str(settings.half2))
        check_same_grid(density, held_out, sources=sources)
        if resolution is None:
            generator = torch.Generator().manual_seed(settings.seed)
            found = resolution_of_half_maps(density, held_out, generator=generator, sources=sources)
            resolution, source = found.resolution, "FSC 0.143 of both half maps, masked and corrected"
    if resolution is None or not np.isfinite(resolution):
        raise InputError("the half maps do not agree at any resolution; give --resolution in Å")
    files = [InputFile.of(path) for path in settings.files]
    messages = () if model is None else model.messages
    if settings.half1 is not None:
        messages += (
            f"{settings.half1.name} is fitted, and a level is one of it; {settings.map.name} is not used",
        )
    return StateInputs(model, density, held_out, resolution, source, recipe, files, messages)


def check_start(settings: StateSettings) -> None:
    """See that there is something to start from.

    Raises:
        InputError: says which option is missing.
    """
    fold = settings.fold
    if settings.model is None and fold is None:
        raise InputError(
            "give --model, the model to move; or --sequence with --prior boltz1 or boltz2, to fold it"
        )
    if settings.model is None and (fold is None or fold.sequence is None):
        raise InputError(
            "give --sequence (FASTA or Boltz YAML) or --model, of which the sequences are folded"
        )
    if settings.model is None and settings.placed:
        raise InputError("--placed is said of a --model, and there is none; a fold stands nowhere")
    if fold is not None:
        fold.check()
    if fold is not None and fold.from_noise is not None and settings.model is None:
        raise InputError("--from-noise starts from a --model, and there is none")
