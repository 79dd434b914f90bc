"""Recipes for one state in a cryo-EM map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from densemble.priors.edm import EDM
from densemble.recipes import Count, NonNegative, Part, Positive, load

_NO_NOISE = 1e-9  # Å; the last level is zero, which has no logarithm


class Schedule(Part):
    """Noise levels by which a recipe counts the steps of its stages; see ``densemble.priors.edm.EDM``.

    They are those of the sampler for which the recipe was published, in Å. A prior takes those that are not
    above its own first level.
    """

    steps: Annotated[int, Field(ge=1)]
    sigma_max: Positive
    sigma_min: Positive
    rho: Positive
    churn: NonNegative
    churn_min: NonNegative

    def level(self, step: int) -> float:
        """Å, the noise that the denoiser sees at a step, counted from 0."""
        sigma = self._process().times(self.steps)[step]
        return sigma * (1 + self.churn) if sigma > self.churn_min else sigma

    def below(self, process: EDM) -> tuple[EDM, int]:
        """A prior's process on the levels of the schedule that it knows, and how many they are."""
        levels = self._process().times(self.steps)[:-1]
        first = next(i for i, level in enumerate(levels) if level <= process.sigma_max)
        own = replace(
            process,
            sigma_max=levels[first],
            sigma_min=self.sigma_min,
            rho=self.rho,
            churn=self.churn,
            churn_min=self.churn_min,
        )
        return own, self.steps - first

    def _process(self) -> EDM:
        return EDM(center=torch.zeros(1, 3), sigma_max=self.sigma_max, sigma_min=self.sigma_min, rho=self.rho)


class Sampling(Part):
    """The reverse process where there is no schedule: steps, and churn (``densemble.priors.edm.EDM``)."""

    steps: Annotated[int, Field(ge=1)]
    churn: NonNegative


class Trusted(Part):
    """How far the start is to be trusted; see ``densemble.priors.chain_graph.Trust``. Å."""

    domains: Annotated[float, Field(ge=0.3, le=15.0)]
    local: Annotated[float, Field(ge=0.1, le=3.0)]


class Target(Part):
    """The target while sampling: blurred by ``blur_per_sigma`` times the noise, at most ``blur_limit`` Å.

    ``solve_b`` draws each member with the one B factor that suits it best, at every step.
    """

    blur_per_sigma: NonNegative
    blur_limit: NonNegative
    solve_b: bool = False


class Realign(Part):
    """Samples are moved as a whole where that makes the map likelier by ``gain`` nats.

    At the first step of the stage with the density, and at every ``every``-th one; see
    ``densemble.guidance.realign``.
    """

    every: Annotated[int, Field(ge=1)]
    gain: NonNegative


class StateStage(Part):
    """One guidance stage; see ``densemble.guidance.stage.Stage``.

    Its interval is given by noise levels over the resolution of the map (``high`` and ``low``), or by the
    first step and the one after the last of the recipe's ``schedule`` (``steps``).
    """

    term: Literal["cloud", "density"]
    high: Positive | None = None
    low: NonNegative = 0.0
    steps: tuple[Count, Count] | None = None
    weight: NonNegative
    weight_end: NonNegative | None = None
    mode: Literal["score", "ratio"]
    limit: Positive | None = None
    through_network: bool = True

    @model_validator(mode="after")
    def _interval(self) -> StateStage:
        if (self.steps is None) == (self.high is None):
            raise ValueError("give either high (and low) or steps")
        if self.steps is not None and self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps {list(self.steps)}: the first must come before the last")
        if self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.weight_end is not None and self.steps is None and self.low == 0:
            raise ValueError("weight_end needs low above zero, for the weight changes with log sigma")
        return self


class Finish(Part):
    """Refinement of all atoms of each member: optimiser steps, and how much the density counts.

    The log-likelihood of the map is scaled to as many data as ``data_per_atom`` says, whatever its
    resolution: a sharp map has so many that it would pull bonds apart where a side chain is in another place.
    """

    evaluations: Count
    data_per_atom: NonNegative


class StateRecipe(Part):
    """A complete method for ``densemble cryoem``."""

    name: str
    source: str
    sampling: Sampling
    trust: Trusted
    target: Target
    schedule: Schedule | None = None
    realign: Realign | None = None
    stages: tuple[StateStage, ...]
    finish: Finish

    @model_validator(mode="after")
    def _counted(self) -> StateRecipe:
        for stage in self.stages:
            if stage.steps is not None and self.schedule is None:
                raise ValueError("stages given by steps need a schedule")
            if stage.steps is not None and self.schedule is not None and stage.steps[1] > self.schedule.steps:
                raise ValueError(f"steps {list(stage.steps)} go beyond the schedule's {self.schedule.steps}")
        return self

    def interval(
        self, stage: StateStage, resolution: float, levels: Sequence[float] | None = None
    ) -> tuple[float, float]:
        """Å, the highest noise level of a stage and the one at which it is over.

        Args:
            stage: one of the recipe's.
            resolution: Å, of the map.
            levels: see ``levels_of``.
        """
        if stage.steps is None:
            return resolution * (stage.high or 0.0), resolution * stage.low
        found = self.levels_of(stage, levels)
        # a hair above, so that the first step's own level is within, and the last one's is not
        return found[0] * (1 + 1e-6), found[-1] * (1 + 1e-6)

    def knots(self, stage: StateStage, levels: Sequence[float] | None = None) -> tuple[float, ...] | None:
        """Å, noise levels by which a weight changes step by step; None where it does not count steps.

        Args:
            stage: one of the recipe's.
            levels: see ``levels_of``.
        """
        if stage.steps is None or stage.weight_end is None:
            return None
        return tuple(max(level, _NO_NOISE) for level in self.levels_of(stage, levels))

    def levels_of(self, stage: StateStage, levels: Sequence[float] | None = None) -> list[float]:
        """Å, what the denoiser sees at each step of a stage that counts steps, and at the one after it.

        Args:
            stage: one of the recipe's.
            levels: Å, what a prior with a schedule of its own sees at as many steps as the recipe's; the
                recipe's own if None.

        Raises:
            ValueError: there are more of them or fewer.
        """
        assert stage.steps is not None
        assert self.schedule is not None
        first, last = stage.steps
        if levels is None:
            return [self.schedule.level(step) for step in range(first, last + 1)]
        if len(levels) != self.schedule.steps:
            raise ValueError(f"recipe {self.name}: {self.schedule.steps} steps, and {len(levels)} levels")
        return [*levels, 0.0][first : last + 1]


def load_state_recipe(name: str) -> StateRecipe:
    """A recipe of the package by name, or one of the user's own by path (ending in ``.toml``).

    Raises:
        InputError: there is no such recipe, or the file does not follow the schema.
    """
    return load(name, StateRecipe, resources.files(__name__))
