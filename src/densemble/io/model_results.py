"""What ``result.json`` says of the final model: its states, its refinement and its validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from densemble.io.output import Record

MODEL_FILE = "model.cif"
"""The final model: altlocs only where states differ, refined."""
ALTERNATIVE_FILE = "alternative.cif"
"""What the final model was compared with: one state, or a model of states that is not advised."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Interval(Record):
    """A 95 % interval."""

    low: Fraction
    high: Fraction


@dataclass(frozen=True)
class HeldOut:
    """Agreement of two models with data held out, before and after.

    Attributes:
        before, after: R-free; or where ``higher`` is better, correlation with a half map.
        of: which two models.
        error: standard error of the difference, if known.
        higher: see above.
        gain: log-likelihood of the free reflections after, less that before, if known; nats.
        gain_error: its standard error.
    """

    before: float
    after: float
    of: str
    error: float | None = None
    higher: bool = False
    gain: float | None = None
    gain_error: float | None = None

    @property
    def better(self) -> bool:
        """Whether the data held out agree better."""
        return self.after > self.before if self.higher else self.after < self.before

    @property
    def clear(self) -> bool:
        """Whether the gain in log-likelihood is more than twice its standard error.

        Where it is not known, whether the difference is, as far as its error is known.
        """
        if self.gain is not None and self.gain_error is not None:
            return self.gain > 2 * self.gain_error
        return self.error is None or abs(self.after - self.before) > 2 * self.error

    @property
    def agrees(self) -> bool:
        """Whether the log-likelihood of the free reflections is known and higher, clearly or not."""
        return self.gain is not None and self.gain > 0


class State(Record):
    """One state of a part.

    Attributes:
        label: its altloc; empty where there is one state only.
        occupancy: the states of a part sum to one.
        interval: of the occupancy; None for a single state.
        members: numbers of the sampled members that are in this state; 0 is the start.
        rmsd: Å, backbone RMSD to reference states by name: evaluation only.
    """

    label: str
    occupancy: Fraction
    interval: Interval | None = None
    members: list[int]
    rmsd: dict[str, float] | None = None


class Evidence(Record):
    """How well the best model of so many states does.

    Attributes:
        states: how many.
        fit: on the data that were fitted, in the rule's unit, larger is better.
        held_out: the same on data held out, if there are any.
        error: standard error of the last step in what decides (``held_out``, else ``fit``).
        asked: by how much ``fit`` must be above that of one state for it to be worth the parameters added,
            by Akaike's criterion; None if unknown.
        chosen: whether this number was taken.
    """

    states: Annotated[int, Field(ge=1)]
    fit: float
    held_out: float | None = None
    error: float | None = None
    asked: float | None = None
    chosen: bool = False


class Part(Record):
    """Residues that move together, and their states, the most occupied first."""

    region: str
    states: list[State]
    evidence: list[Evidence]

    @model_validator(mode="after")
    def _whole(self) -> Part:
        if not self.states or abs(sum(s.occupancy for s in self.states) - 1) > 1e-6:
            raise ValueError("the occupancies of a part's states must sum to one")
        return self

    @property
    def taken(self) -> int:
        """How many states were taken; refinement may since have brought some of them together."""
        return next((e.states for e in self.evidence if e.chosen), len(self.states))

    @property
    def _compared(self) -> tuple[Evidence | None, Evidence | None]:
        by_number = {e.states: e for e in self.evidence}
        return by_number.get(1), by_number.get(self.taken)

    @property
    def held_out_gain(self) -> float | None:
        """Log-likelihood of data held out under the states taken, less that under one; None if unknown."""
        one, several = self._compared
        if one is None or several is None or one.held_out is None or several.held_out is None:
            return None
        return several.held_out - one.held_out

    @property
    def strong(self) -> bool:
        """Whether the states taken explain the fitted data better than one by more than twice what is asked.

        Akaike's criterion asks a nat for every parameter that is added.
        """
        one, several = self._compared
        if one is None or several is None or several.asked is None:
            return False
        return several.fit - one.fit > 2 * several.asked

    def supported_by(self, held: HeldOut) -> bool:
        """Whether this part's states are to be preferred to one.

        Data held out must be better explained, by the whole model and by this part. Where they do not tell
        clearly, for a thousand free reflections seldom do, a strong gain on the fitted data decides.
        """
        gain = self.held_out_gain
        if not held.better or (gain is not None and gain <= 0):
            return False
        return held.clear or (held.agrees and self.strong)


class States(Record):
    """How many states the data support, part by part.

    Attributes:
        rule: in words, how the number was chosen and on what data.
        coordinate_error: Å, up to which conformations count as the same: a threshold by the resolution
            (``states.same_within``), not an estimate of the error of coordinates.
        parts: those of the region in chain order; residues of no part have one state.
    """

    rule: str
    coordinate_error: float
    parts: list[Part]

    @property
    def by_held_out(self) -> bool:
        """Whether data held out of the fit had a say in the number of states."""
        return any(e.held_out is not None for part in self.parts for e in part.evidence)


class Refined(Record):
    """R factors of one model before and after refinement; RSCC over the region."""

    r_work: tuple[float, float] | None = None
    r_free: tuple[float, float] | None = None
    rscc: tuple[float, float]


class Refinement(Record):
    """The one-state start and the model of states, refined alike.

    Attributes:
        cycles: of each.
        start, model: before and after.
        r_free_error: standard error of the difference between the R-free of both after refinement.
        free_gain: log-likelihood of the free reflections under the model, less that under the start, both
            after refinement; nats (``crystal.sigmaa.free_gain``).
        free_gain_error: its standard error.
        held_out_rscc: of both after refinement, start first, in a half map that took no part, over the same
            voxels.
        held_out_error: standard error of their difference.
    """

    cycles: int
    start: Refined
    model: Refined
    r_free_error: float | None = None
    free_gain: float | None = None
    free_gain_error: float | None = None
    held_out_rscc: tuple[float, float] | None = None
    held_out_error: float | None = None


class Validation(Record):
    """Figures of one model; None where they do not apply. Definitions: ``metrics.validation``.

    Attributes:
        atoms: atoms judged (all conformers).
        clashscore: clashes per 1000 atoms.
        ramachandran_favoured: fraction of residues.
        ramachandran_outliers: fraction of residues.
        rotamer_outliers: fraction of side chains that have rotamers.
        bond_rmsz: root mean square of bond lengths' deviations in standard deviations.
        angle_rmsz: the same of angles.
        chirality_outliers: centres of the wrong hand.
    """

    atoms: int
    clashscore: float | None = None
    ramachandran_favoured: Fraction | None = None
    ramachandran_outliers: Fraction | None = None
    rotamer_outliers: Fraction | None = None
    bond_rmsz: float | None = None
    angle_rmsz: float | None = None
    chirality_outliers: int | None = None


class FinalModel(Record):
    """The final model of a region: states, refinement, and validation of ``start`` and ``model``.

    Attributes:
        states: of its parts.
        refinement: of the one-state start and of the model.
        validation: of both.
        waters_displaced: waters of the start that no state leaves room for; the model is without them.
        waters_partial: waters that stand in some states only, with the altlocs of these.
        clashes_with_held: residues outside of the region, with no free atom, that clash with it in the model
            and not in the start, as ``A:112 ARG``; those with most clashes first, five at most.
    """

    states: States
    refinement: Refinement | None = None
    validation: dict[str, Validation] = Field(default_factory=dict)
    waters_displaced: list[str] = Field(default_factory=list)
    waters_partial: list[str] = Field(default_factory=list)
    clashes_with_held: list[str] = Field(default_factory=list)

    @property
    def held_out(self) -> HeldOut | None:
        """R-free of one state and of the model of states, or how they agree with a half map held out."""
        refined, of = self.refinement, "one state and the model of states, refined alike"
        if refined is None:
            return None
        if refined.held_out_rscc is not None:
            return HeldOut(*refined.held_out_rscc, of, refined.held_out_error, higher=True)
        if refined.start.r_free is None or refined.model.r_free is None:
            return None
        return HeldOut(
            refined.start.r_free[1],
            refined.model.r_free[1],
            of,
            refined.r_free_error,
            gain=refined.free_gain,
            gain_error=refined.free_gain_error,
        )

    @property
    def several(self) -> list[Part]:
        """Parts of more than one state."""
        return [part for part in self.states.parts if len(part.states) > 1]

    @property
    def advised(self) -> bool:
        """Whether this model is to be preferred to one state.

        Not where data were held out and no part's states are supported. With none held out, or with one
        state, there is nothing else to go by.
        """
        held = self.held_out
        return held is None or not self.several or any(part.supported_by(held) for part in self.several)

    @property
    def states_file(self) -> str:
        """Of the model of states, whether or not it is advised."""
        return MODEL_FILE if self.advised else ALTERNATIVE_FILE
