"""What a run on a crystal is given: its settings, the files as read, the prior and the packer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from densemble.assembly import RECIPES, Method, RegionPrior
from densemble.atoms import Region
from densemble.io.models import Model, read_model, require_cell
from densemble.io.output import InputFile
from densemble.io.reflections import Reflections, check_same_crystal, read_reflections
from densemble.priors.protocol import Prior
from densemble.problem import Guide, Stretches
from densemble.recipes import Recipe, load_recipe
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

    @property
    def recipe_name(self) -> str:
        """The recipe asked for, or the one made for the prior."""
        return self.recipe or RECIPES[self.prior]

    def record(self) -> dict[str, JsonValue]:
        """Plain values, files by name, for ``result.json``."""
        names: dict[str, JsonValue] = {
            name: None if path is None else path.name
            for name, path in asdict(self).items()
            if name in ("model", "data", "weights_backbone", "weights_design")
        }
        names |= {"guides": list(self.guides), "recipe": self.recipe_name}
        return asdict(self) | names | {"labels": None if self.labels is None else list(self.labels)}


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files as read and found consistent, and the prior made of them.

    ``packer`` draws the side chains, None: rotamers; ``method`` is what both were made by, and ``files`` has
    the weights of its networks too.
    """

    model: Model
    reflections: Reflections
    stretches: Stretches
    recipe: Recipe
    method: Method
    prior: Prior
    packer: Packer | None
    files: list[InputFile]

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know."""
        return (*self.model.messages, *self.method.messages)


def load(settings: Settings) -> Inputs:
    """Read and check all input; nothing is written.

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
    method = Method.of(
        settings.prior,
        recipe,
        weights_backbone=settings.weights_backbone,
        weights_design=settings.weights_design,
    )
    return Inputs(
        model=model,
        reflections=reflections,
        stretches=stretches,
        recipe=recipe,
        method=method,
        prior=method.prior_of(stretches),
        packer=method.packer_of(stretches),
        files=[InputFile.of(settings.model), InputFile.of(settings.data), *method.files],
    )
