"""Methods as data: the stages, weights and step counts of a run, read from TOML."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from densemble.errors import InputError

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable

    import tomllib
else:
    from importlib.abc import Traversable

    import tomli as tomllib

Kind = TypeVar("Kind", bound=BaseModel)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A table of a recipe: nothing unknown in it, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Noise(Part):
    """The reverse process; see ``densemble.priors.edm.EDM``. Sigmas in Å."""

    steps: Annotated[int, Field(ge=1)]
    sigma_max: Positive
    sigma_min: Positive
    rho: Positive
    churn: NonNegative
    churn_min: NonNegative

    @model_validator(mode="after")
    def _decreasing(self) -> Noise:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        return self


class ChainNoise(Part):
    """The reverse process of Chroma; see ``densemble.priors.variance_preserving.VariancePreserving``."""

    steps: Annotated[int, Field(ge=1)]
    inverse_temperature: Positive
    langevin_factor: NonNegative
    langevin_isothermal: bool


def _kind_of_noise(value: Any) -> str:  # noqa: ANN401
    """Chroma's by its ``inverse_temperature``, of a table as read or of a part."""
    names = value if isinstance(value, dict) else vars(value) if isinstance(value, Part) else ()
    return "chain" if "inverse_temperature" in names else "edm"


AnyNoise = Annotated[
    Annotated[Noise, Tag("edm")] | Annotated[ChainNoise, Tag("chain")], Discriminator(_kind_of_noise)
]


class GaussianChain(Part):
    """See ``densemble.priors.gaussian.anchored_chain``."""

    amplitude: Positive
    smoothness: Positive
    jitter: Positive


class StageRecipe(Part):
    """One guidance stage; see ``densemble.guidance.stage.Stage``."""

    term: Literal["density", "geometry", "contacts"]
    high: Positive
    low: NonNegative = 0.0
    weight: NonNegative
    weight_end: NonNegative | None = None
    mode: Literal["score", "ratio"]
    clip: Positive | None = None
    through_network: bool = True

    @model_validator(mode="after")
    def _interval(self) -> StageRecipe:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.weight_end is not None and self.low == 0:
            raise ValueError("weight_end needs low above zero, for the weight changes with log sigma")
        return self


class Density(Part):
    """The target while sampling: blurred by ``blur_per_sigma`` times the noise, at most ``blur_limit`` Å.

    ``ensemble`` says what guide ensemble compares it with: all members ``joint``, or each member
    ``beside_start``, the start being a member itself (``densemble.likelihood.beside``). ``sigma`` is the
    noise of a voxel, e/Å^3; without, what the start leaves unexplained, counting independent data instead of
    voxels. ``fit_scale`` solves scale and offset of the model against the target; otherwise both are
    absolute. ``b_iso`` says whether atoms have their B factors in the start, or all the mean of the protein.
    """

    margin: Positive
    spacing: Positive
    reach: Positive
    blur_per_sigma: NonNegative
    blur_limit: NonNegative
    ensemble: Literal["joint", "beside_start"] = "joint"
    sigma: Positive | None = None
    fit_scale: bool = True
    b_iso: Literal["start", "mean"] = "start"


class SideChainSteps(Part):
    """Algorithm A1 of paper 1: T, S and the step size on chi, active below ``high`` Å of noise.

    ``window`` residues on either side have free side chains too; ``density_gain`` is what an electron
    in a density of 1 e/Å^3 adds to a rotamer's score, in nats. ``final_update`` brings side chains up to date
    once more when sampling is done, which Algorithm A1 does not. ``packer`` says what draws chi, at which
    ``temperature``: our rotamer library, or Chroma's design network, which knows of no density.
    With ``fine_gain``, members that are compared are finished a second time with side chains from
    ``fine_rotamers`` and this for ``density_gain``, and go on as they score higher.
    """

    high: Positive
    resample_every: Annotated[int, Field(ge=1)]
    gradient_steps: Count
    step_size: Positive
    window: Count
    density_gain: NonNegative
    final_update: bool = True
    packer: Literal["rotamers", "chroma"] = "rotamers"
    temperature: Positive = 1.0
    fine_gain: NonNegative | None = None


class Starts(Part):
    """The first passes: one from the start under each ``noise`` Å; see ``densemble.rounds.Pass``.

    Where rounds are. Without, there is one first pass, from pure noise.
    """

    noise: Annotated[tuple[Positive, ...], Field(min_length=1)]
    steps: Annotated[int, Field(ge=1)]


class Rounds(Part):
    """Further passes from the better members, noised to ``sigma`` Å; see ``densemble.rounds.Pass``."""

    count: Count
    sigma: Positive
    steps: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(gt=0, le=1)]
    window: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    temperature: Annotated[float, Field(ge=1)] = 1.0
    alike: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Rounds:
        if self.window is not None and self.window[0] > self.window[1]:
            raise ValueError(f"window {list(self.window)}: the least length must not be above the largest")
        return self


class Finish(Part):
    """Regularisation of all members, then refinement of the selected ones: optimiser steps."""

    regularise_steps: Count
    refine_steps: Count
    density_weight: NonNegative


class Recipe(Part):
    """A complete method.

    ``geometry_cap`` bounds the geometry's gradient while sampling, in s.d. ``selection`` says when members
    are added: while the refined ensemble explains the map by more than the parameters that it adds
    (``likelihood``), or while its plain mean correlates better, without refinement (``pursuit``, paper 1).
    """

    name: str
    source: str
    noise: AnyNoise
    gaussian: GaussianChain | None = None
    density: Density
    sidechains: SideChainSteps
    geometry_cap: Positive
    stages: tuple[StageRecipe, ...]
    starts: Starts | None = None
    rounds: Rounds | None = None
    selection: Literal["likelihood", "pursuit"] = "likelihood"
    finish: Finish

    @model_validator(mode="after")
    def _comparable(self) -> Recipe:
        if self.rounds is not None and self.density.ensemble == "joint":
            raise ValueError('rounds compare members, which needs density.ensemble = "beside_start"')
        if self.starts is not None and self.rounds is None:
            raise ValueError("starts need rounds, which may be 0 in number")
        return self


def load_recipe(name: str) -> Recipe:
    """A recipe of the package by name, or one of the user's own by path (ending in ``.toml``).

    Raises:
        InputError: there is no such recipe, or the file does not follow the schema.
    """
    return load(name, Recipe, resources.files(__name__))


def load(name: str, schema: type[Kind], folder: Traversable, *, what: str = "recipe") -> Kind:
    """A recipe of any kind, or other data: of the package's folder by name, or by path (ending in ``.toml``).

    Raises:
        InputError: there is no such recipe, or the file does not follow the schema.
    """
    if name.endswith(".toml"):
        source = Path(name)
        if not source.is_file():
            raise InputError(f"{what} {name}: no such file")
        text = source.read_text(encoding="utf-8")
    else:
        known = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
        if name not in known:
            raise InputError(f"{what} {name}: not known; choose {', '.join(known)} or give a .toml file")
        text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return schema.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{what} {name}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("edm", "chain")) or "the file"
        raise InputError(f"{what} {name}: {where}: {first['msg']}") from error
