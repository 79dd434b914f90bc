"""What a run on a crystal is given: its settings, the files as read, the prior and the packer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from densemble.assembly import boltz_prior, chroma_packer, chroma_prior, embedded_prior, gaussian_prior
from densemble.atoms import Region
from densemble.errors import InputError
from densemble.guidance.guided import Completion
from densemble.io.models import Model, read_model, require_cell
from densemble.io.output import InputFile
from densemble.io.reflections import Reflections, check_same_crystal, read_reflections
from densemble.priors.boltz.package import require_boltz
from densemble.priors.chroma.networks import load_backbone, load_design, package_version
from densemble.priors.fold import FoldSettings
from densemble.priors.protocol import Prior
from densemble.problem import Guide, Stretches
from densemble.progress import Progress
from densemble.recipes import Recipe, load_recipe
from densemble.sidechains.completion import Packer

RECIPES = {"embedded": "embedded", "gaussian": "densemble", "chroma": "chroma-2024"}
"""The recipe made for each prior."""
FOLD_RECIPE = "boltz"
"""That for networks that fold."""
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
    guides: tuple[Guide, ...] = ("ensemble",)
    map: MapKind = "omit"
    seed: int = 0
    steps: int | None = None
    prior: Literal["embedded", "gaussian", "chroma"] = "embedded"
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
        names: dict[str, JsonValue] = {
            name: None if path is None else path.name
            for name, path in asdict(self).items()
            if name in ("model", "data", "weights_backbone", "weights_design")
        }
        names |= {"guides": list(self.guides), "recipe": self.recipe_name}
        names |= {"labels": None if self.labels is None else list(self.labels)}
        if self.fold is not None:
            names |= {"prior": self.fold.prior, "fold": self.fold.record()}
        return asdict(self) | names


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files as read and found consistent, and the prior made of them.

    ``packer`` draws the side chains, None: rotamers; ``completion`` is of a prior of all atoms; ``versions``
    are of packages that only some runs depend on, ``key`` is of what a network was given.
    """

    model: Model
    reflections: Reflections
    stretches: Stretches
    recipe: Recipe
    prior: Prior
    packer: Packer | None
    files: list[InputFile]
    versions: dict[str, str]
    completion: Completion | None = None
    key: str | None = None
    messages: tuple[str, ...] = ()


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
    packs = recipe.sidechains.packer == "chroma"
    _check_weights(settings, packs=packs)
    if settings.fold is not None:
        return _with_fold(settings, settings.fold, model, reflections, stretches, recipe, progress)
    weights = [path for path in (settings.weights_backbone, settings.weights_design) if path is not None]
    return Inputs(
        model=model,
        reflections=reflections,
        stretches=stretches,
        recipe=recipe,
        prior=_make_prior(settings, stretches, recipe),
        packer=chroma_packer(stretches, recipe, load_design(settings.weights_design)) if packs else None,
        files=[InputFile.of(path) for path in (settings.model, settings.data, *weights)],
        versions=package_version() if packs or settings.prior == "chroma" else {},
    )


def _with_fold(
    settings: Settings,
    fold: FoldSettings,
    model: Model,
    reflections: Reflections,
    stretches: Stretches,
    recipe: Recipe,
    progress: Progress | None,
) -> Inputs:
    """Inputs of a run whose prior is a network that folds.

    Raises:
        InputError: the network's input or weights are missing or wrong, or do not go with the model.
    """
    require_boltz()
    from densemble.priors.boltz.model import open_boltz

    if fold.sequence is not None and not fold.sequence.is_file():
        raise InputError(f"sequence file {fold.sequence} does not exist; give FASTA or a Boltz YAML")
    boltz = open_boltz(fold, model, progress=progress or Progress())
    prior, completion = boltz_prior(stretches, recipe, boltz, seed=settings.seed)
    named = [path for path in (settings.model, settings.data, fold.sequence) if path is not None]
    return Inputs(
        model=model,
        reflections=reflections,
        stretches=stretches,
        recipe=recipe,
        prior=prior,
        packer=None,
        files=[*(InputFile.of(path) for path in named), boltz.weights],
        versions={"boltz": version("boltz")},
        completion=completion,
        key=boltz.given.key,
        messages=boltz.messages,
    )


def _make_prior(settings: Settings, stretches: Stretches, recipe: Recipe) -> Prior:
    """The diffusion model of the region's backbone."""
    if settings.prior == "chroma":
        return chroma_prior(stretches, recipe, load_backbone(settings.weights_backbone))
    return (gaussian_prior if settings.prior == "gaussian" else embedded_prior)(stretches, recipe)


def _check_weights(settings: Settings, *, packs: bool) -> None:
    if settings.weights_backbone is not None and settings.prior != "chroma":
        raise InputError(f"--weights-backbone: of no use to the prior {settings.prior}; add --prior chroma")
    if settings.weights_design is not None and not packs:
        raise InputError(
            f"--weights-design: of no use to the recipe {settings.recipe_name}, which packs side chains by "
            'rotamers; take --recipe chroma-2024 or set packer = "chroma" under [sidechains]'
        )
