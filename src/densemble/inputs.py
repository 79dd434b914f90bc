"""What a run on a crystal is given: its settings, the files as read, the prior and the packer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from densemble.atoms import Region
from densemble.crystal.omit import StretchMap, as_phased_map, omit_map, two_fofc_map
from densemble.guidance.guided import Completion
from densemble.io.models import Model, read_model, require_cell
from densemble.io.output import InputFile, plain
from densemble.io.reflections import Reflections, check_same_crystal, read_coefficients, read_reflections
from densemble.method import FOLD_RECIPE, RECIPES, FoldMethod, Method, RegionPrior, check_weights
from densemble.priors.fold import FoldSettings
from densemble.priors.protocol import Prior
from densemble.problem import CrystalProblem, Guide, Stretches
from densemble.progress import Progress
from densemble.recipes import Recipe, load_recipe
from densemble.region import Draw
from densemble.sidechains.completion import Packer

MapKind = Literal["omit", "2fofc", "as-phased"]


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, but for the files' contents.

    Attributes:
        model: the start, mmCIF or PDB.
        data: amplitudes with a free set (MTZ or SF-mmCIF).
        region: for example ``A:176-191``.
        start_altloc: conformation to start from, where the model has several.
        members: sampled together.
        keep: at most this many are kept.
        states: whether the members are made into a final model of as many states as the data support.
        cycles: of its refinement.
        guides: what to run: ``ensemble``, ``each`` (i.i.d.) or ``none``; the last one is the result.
        map: the target.
        seed: of all randomness.
        steps: of the reverse diffusion; the recipe's if None.
        prior: ``embedded`` (the packaged network), ``gaussian`` (in closed form) or ``chroma``.
        recipe: name of one of the package's, or a TOML file; the one made for the prior if None.
        labels: columns of the amplitudes and their uncertainties, where the data have several.
        free_label: column of the free flags, where the data have several that differ.
        weights_backbone: of Chroma's backbone network; fetched by Chroma with the user's key if None.
        weights_design: of Chroma's design network, likewise.
        fold: of a network that folds, and is the prior in place of ``prior``: all of the model that it knows
            is held, but the region.
    """

    model: Path
    data: Path
    region: str
    start_altloc: str | None = None
    members: int = 16
    keep: int = 5
    states: bool = True
    cycles: int = 4
    guides: tuple[Guide, ...] = ("ensemble",)
    map: MapKind = "omit"
    seed: int = 0
    steps: int | None = None
    prior: RegionPrior = "embedded"
    recipe: str | None = None
    labels: tuple[str, str] | None = None
    free_label: str | None = None
    weights_backbone: Path | None = None
    weights_design: Path | None = None
    fold: FoldSettings | None = None

    @property
    def recipe_name(self) -> str:
        """The recipe asked for, or the one made for the prior."""
        return self.recipe or (RECIPES[self.prior] if self.fold is None else FOLD_RECIPE)

    def record(self) -> dict[str, JsonValue]:
        """Plain values, files by name, for ``result.json``."""
        values = plain(self) | {"recipe": self.recipe_name}
        return values if self.fold is None else values | {"prior": self.fold.prior}


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files as read and found consistent, and the prior made of them.

    ``packer`` draws the side chains, None: rotamers; ``completion`` is of a prior of all atoms; ``method`` is
    what all of them were made by, and ``files`` has the weights of its networks too.
    """

    model: Model
    reflections: Reflections
    stretches: Stretches
    recipe: Recipe
    method: Method | FoldMethod
    prior: Prior
    packer: Packer | None
    files: list[InputFile]
    completion: Completion | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know."""
        return (*self.model.messages, *self.method.messages)


def load(settings: Settings, *, progress: Progress | None = None) -> Inputs:
    """Read and check all input; nothing is written.

    Args:
        settings: of the run.
        progress: told of downloads and of what takes long.

    Raises:
        InputError: says which file or option is wrong and what to do.
    """
    recipe = load_recipe(settings.recipe_name)
    region = Region.parse(settings.region)
    model = read_model(settings.model, altloc=settings.start_altloc)
    require_cell(model)
    reflections = read_reflections(settings.data, labels=settings.labels, free_label=settings.free_label)
    check_same_crystal(model.structure, reflections, name=str(settings.model))
    stretches = Stretches.of(model, region, window=recipe.sidechains.window)
    method: Method | FoldMethod
    packer, completion = None, None
    if settings.fold is None:
        method = Method.of(
            settings.prior,
            recipe,
            weights_backbone=settings.weights_backbone,
            weights_design=settings.weights_design,
        )
        prior, packer = method.prior_of(stretches), method.packer_of(stretches)
    else:
        check_weights(settings.fold.prior, recipe, settings.weights_backbone, settings.weights_design)
        method = FoldMethod.of(settings.fold, recipe, model, progress=progress or Progress())
        prior, completion = method.drawn(stretches, seed=settings.seed)
    return Inputs(
        model=model,
        reflections=reflections,
        stretches=stretches,
        recipe=recipe,
        method=method,
        prior=prior,
        packer=packer,
        completion=completion,
        files=[InputFile.of(settings.model), InputFile.of(settings.data), *method.files],
    )


def target_map(settings: Settings, inputs: Inputs) -> StretchMap:
    """The map of the crystal and of all that is not the region.

    Raises:
        InputError: the file has no map coefficients where ``as-phased`` asks for them.
    """
    model, reflections = inputs.model, inputs.reflections
    residues = [model.topology.residues[r].id for r in inputs.stretches.free]
    if settings.map == "omit":
        return omit_map(model.structure, residues, reflections)
    if settings.map == "2fofc":
        return two_fofc_map(model.structure, residues, reflections)
    coefficients = read_coefficients(settings.data)
    return as_phased_map(coefficients, model.structure, residues, reflections)


def problem_of(settings: Settings, inputs: Inputs) -> CrystalProblem:
    """The target density of the region, and the model of it."""
    return CrystalProblem.of(inputs.stretches, target_map(settings, inputs), inputs.recipe.density)


def draw_of(settings: Settings, inputs: Inputs) -> Draw:
    """How members are drawn."""
    return Draw(
        prior=inputs.prior,
        packer=inputs.packer,
        completion=inputs.completion,
        recipe=inputs.recipe,
        members=settings.members,
        keep=settings.keep,
        steps=settings.steps,
        seed=settings.seed,
    )
