"""Experiments as data: which entries, which residues, which methods, and what was printed of them.

A suite is a TOML file. Its cases say where their files come from:

- ``fetch:7EC8/7ec8_final.mtz``: a file of an entry, as ``densemble fetch 7EC8`` names it;
- ``package:7rin/model.cif``: of the example in the package;
- ``data:xray/4hg7.mtz``: in a folder that is given when the suite is run.

Every case is run with each of its variants. Figures are those that a paper prints, by its own names of
methods; the ``prints`` of a variant says which of them is its own.
"""

from __future__ import annotations

from collections import Counter
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, model_validator

from densemble.recipes import Part, Positive, load

Whole = Annotated[int, Field(ge=1)]
Entry = Annotated[str, Field(pattern=r"^([0-9][A-Z0-9]{3}|EMD-[0-9]{4,5})$")]
FileName = Annotated[str, Field(pattern=r"^(fetch|package|data):[^\n:]+$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Measure = Literal["cosine", "rscc", "r_free", "rmsd", "ca_rmsd", "tm_score", "local_rmsd"]
Keep = Literal["all", "protein", "fab"]
Target = Literal["omit", "2fofc", "as-phased"]
Form = Literal["electron", "molmap"]
CDR_H3 = "CDR H3"
"""The third heavy loop of an antibody, as a case's ``local``; found by sequence."""
Occupancy = Annotated[float, Field(gt=0, le=1)]
Numbering = Literal["from-first", "author"]


class Figure(Part):
    """Printed figures of one case.

    Attributes:
        table: in which the paper prints them.
        measure: what they are; distances in Å.
        best_by: how the sample they are of was chosen, where several were made: by its distance from the
            answer, or by its fit to the map.
        values: by method, as printed; with the half width of the 95 % interval where there is one.
    """

    table: str
    measure: Measure
    best_by: Literal["rmsd", "map"] | None = None
    values: dict[str, float | tuple[float, float]]


class Site(Part):
    """Residues as a paper prints them.

    Attributes:
        chain: of the author.
        first: number of the first residue.
        last: number of the last.
        numbering: ``from-first``: the chain's first residue is 1; or the author's numbers.
        sequence: printed, in one-letter code.
    """

    chain: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
    first: int
    last: int
    numbering: Numbering
    sequence: Annotated[str, Field(pattern=r"^[A-Z]+$")] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Site:
        length = self.last - self.first + 1
        if length < 1:
            raise ValueError(f"residues {self.first}-{self.last} run backwards")
        if self.sequence is not None and len(self.sequence) != length:
            raise ValueError(
                f"{self.sequence} has {len(self.sequence)} residues, {self.first}-{self.last} {length}"
            )
        return self

    @property
    def region(self) -> str:
        """As ``densemble xray --region`` takes it, in the paper's numbers."""
        return f"{self.chain}:{'#' if self.numbering == 'from-first' else ''}{self.first}-{self.last}"


class Case(Part):
    """What crystals and maps have in common.

    Attributes:
        id: of the case in its suite.
        printed: what the paper calls it.
        table: the table or figure that it is of.
        variants: methods to run it with.
        figures: what the paper prints of it.
        note: what the paper leaves open, or how a misprint was read.
    """

    id: Name
    printed: str
    table: str
    variants: tuple[Name, ...]
    figures: tuple[Figure, ...] = ()
    note: str = ""


class Simulated(Part):
    """Amplitudes of a truth that is known: the start, but with the site in several states.

    They have errors as large as those of the start against real data, reflection by reflection. The truth
    judges the results and has no other part in them.

    Attributes:
        like: the real data, with their free set.
        occupancies: of the states.
        states: model whose altlocs are the states; where None, they are made by bending the start.
        apart: Å, RMSD of their backbones above which states that are made differ.
        resolution: Å, where the data end; where the real ones do if None.
        seed: of states and errors.
    """

    like: FileName
    occupancies: Annotated[tuple[Occupancy, ...], Field(min_length=1, max_length=26)]
    states: FileName | None = None
    apart: Positive = 1.0
    resolution: Positive | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Simulated:
        if abs(sum(self.occupancies) - 1) > 1e-6:
            raise ValueError(f"occupancies add up to {sum(self.occupancies):g}, not to 1")
        return self


class Crystal(Case):
    """A region of a crystal.

    Attributes:
        entry: in the PDB; None of data of one's own.
        model: refined model.
        data: amplitudes with a free set, and map coefficients where ``map`` is ``as-phased``; or how
            they are simulated.
        reference: model with the states, for evaluation only; of simulated data it is their truth.
        start_altloc: conformation to start from.
        site: the residues.
        map: the target, of variants that do not name their own.
        resolution: Å, as printed.
    """

    entry: Entry | None = None
    model: FileName
    data: FileName | Simulated
    reference: FileName | None = None
    start_altloc: str | None = None
    site: Site
    map: Target = "omit"
    resolution: Positive | None = None

    @model_validator(mode="after")
    def _known(self) -> Crystal:
        if isinstance(self.data, Simulated):
            if self.reference is not None:
                raise ValueError("simulated data have their truth as reference; leave reference out")
            if self.map == "as-phased":
                raise ValueError("simulated data have no phases; choose another map")
        return self


class Drawn(Part):
    """A map that is drawn from a model, as ``molmap`` does.

    Attributes:
        model: whose map.
        resolution: Å.
        voxel: Å.
        box: voxels along each side, padded to; as large as the molecule needs if None.
        keep: which part of the model; ``fab``: the heavy and the light chain of an antibody, by sequence.
        noise: in units of the standard deviation of the density.
    """

    model: FileName
    resolution: Positive
    voxel: Positive
    box: Whole | None = None
    keep: Keep = "protein"
    noise: Annotated[float, Field(ge=0)] = 0.0


class Map(Case):
    """A state in a cryo-EM map.

    Attributes:
        entry: of the map, or of the model that it is drawn from; None of data of one's own.
        map: the map as deposited, or how it is drawn.
        resolution: Å, of the map.
        zone: model around which the map is masked, as ChimeraX ``volume zone`` does.
        zone_radius: Å.
        padding: voxels added to each side after that.
        reference: model that the result is compared with; None if there is none.
        model: start, where the method needs one; if there is a sequence, its chains and numbers become those
            of the fold, as the reference's do.
        backbones: model and reference are backbones: they are reduced to the residues that both have, side
            chains are added, the start is turned and moved at random, and the map drawn from the reference.
        forward: how atoms look in the map, of variants that do not say it.
        sequence: model whose sequences are folded, where the method does; of the kind that ``map`` keeps.
        alignments: of each chain of these; from sequence alone if there are none.
        step_scale: of Boltz's sampler.
        local: over which residues the local RMSD is: ``CDR H3``, or a region in the fold's chains (A, B, ...)
            and numbers (from 1).
    """

    entry: Entry | None = None
    map: FileName | Drawn
    resolution: Positive
    zone: FileName | None = None
    zone_radius: Positive = 5.0
    padding: Annotated[int, Field(ge=0)] = 0
    reference: FileName | None = None
    model: FileName | None = None
    backbones: bool = False
    forward: Form = "electron"
    sequence: FileName | None = None
    alignments: tuple[FileName, ...] = ()
    step_scale: Positive | None = None
    local: str | None = None

    @model_validator(mode="after")
    def _startable(self) -> Map:
        if self.model is None and self.sequence is None:
            raise ValueError("give a model to start from, or a sequence to fold")
        if self.backbones and (
            self.model is None or self.reference is None or not isinstance(self.map, Drawn)
        ):
            raise ValueError("backbones need a model, a reference, and a map that is drawn")
        return self


class Variant(Part):
    """A method to run cases with.

    Attributes:
        id: of the variant in its suite.
        prints: the paper's name of it, in its figures.
        prior: the diffusion model.
        recipe: the method.
        guide: of a crystal: the members together, each alone, or not at all.
        map: of a crystal: the method's target; the case's if None.
        forward: of a map: how the method draws atoms; as the case says if None.
        stages: of a map: those of the recipe's stages that guide; all if None.
        members: samples of a run.
        keep: of an ensemble, at most so many.
        steps: of the reverse diffusion; the recipe's if None.
        seeds: one run each.
    """

    id: Name
    prints: str | None = None
    prior: Literal["embedded", "gaussian", "chroma", "elastic", "boltz1", "boltz2"]
    recipe: str
    guide: Literal["ensemble", "each", "none"] = "ensemble"
    map: Target | None = None
    forward: Form | None = None
    stages: tuple[Literal["cloud", "density"], ...] | None = None
    members: Whole
    keep: Annotated[int, Field(ge=1, le=26)] = 5
    steps: Whole | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)


class Suite(Part):
    """A set of experiments."""

    name: Name
    source: str
    variants: tuple[Variant, ...]
    crystals: tuple[Crystal, ...] = ()
    maps: tuple[Map, ...] = ()

    @property
    def cases(self) -> tuple[Crystal | Map, ...]:
        """Crystals, then maps."""
        return (*self.crystals, *self.maps)

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        for what, ids in (("cases", [c.id for c in self.cases]), ("variants", [v.id for v in self.variants])):
            if twice := [name for name, count in Counter(ids).items() if count > 1]:
                raise ValueError(f"several {what} are called {', '.join(twice)}")
        known = {variant.id for variant in self.variants}
        for case in self.cases:
            if unknown := [name for name in case.variants if name not in known]:
                raise ValueError(f"case {case.id}: no variant is called {', '.join(unknown)}")
        return self


def load_suite(name: str) -> Suite:
    """A suite of the package by name, or one of the user's own by path (ending in ``.toml``).

    Raises:
        InputError: there is no such suite, or the file does not follow the schema.
    """
    return load(name, Suite, resources.files(__name__), what="suite")


def suites() -> list[str]:
    """Names of the package's suites."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))
