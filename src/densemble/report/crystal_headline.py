"""The headline of a report on a crystal: how many states, how sure, did held-out agreement improve."""

from __future__ import annotations

from dataclasses import dataclass

from densemble.io.model_results import Interval, Part, State
from densemble.io.results import Result
from densemble.report.sections import Headline, Tile, counted, signed


@dataclass(frozen=True)
class HeldOut:
    """R-free before and after, of which two models, and the standard error of the difference if known."""

    before: float
    after: float
    of: str
    error: float | None = None

    @property
    def better(self) -> bool:
        """Whether it fell."""
        return self.after < self.before

    @property
    def clear(self) -> bool:
        """Whether the difference is more than twice its standard error, as far as that is known."""
        return self.error is None or abs(self.after - self.before) > 2 * self.error


def held_out(result: Result) -> HeldOut | None:
    """R-free of the model of states against the start refined alike; of ensemble and start without these."""
    refined = None if result.model is None else result.model.refinement
    if refined is not None and refined.start.r_free is not None and refined.model.r_free is not None:
        of = "one state and the model of states, refined alike"
        return HeldOut(refined.start.r_free[1], refined.model.r_free[1], of, refined.r_free_error)
    if result.r_factors is None:
        return None
    return HeldOut(result.r_factors.start.r_free, result.r_factors.ensemble.r_free, "start and ensemble")


def headline(result: Result) -> Headline:
    """The first lines of the page, without jargon, and three figures."""
    held = held_out(result)
    several = result.model is None or any(len(p.states) > 1 for p in result.model.states.parts)
    if held is None:
        verdict = "No data were held out of the fit, so this run cannot say whether to believe it."
    elif not several:
        verdict = "By the rule of this run no further state is needed."
    elif held.better and not held.clear:
        verdict = (
            "The result agrees better than the start with data that the fit never saw, but by no more than "
            "chance would bring: they do not tell."
        )
    elif held.better:
        verdict = "The result agrees better than the start with data that the fit never saw."
    else:
        verdict = (
            "The result agrees no better than the start with data that the fit never saw: do not prefer it."
        )
    return Headline(
        title=f"Conformations of {result.region}",
        kind="X-ray crystal",
        answer=(*_supported(result), verdict, *_had_a_say(result, held)),
        tiles=(_number(result), _certainty(result), _agreement(held)),
    )


def chosen_with_held_out(result: Result) -> bool:
    """Whether data held out of the fit had a say in the number of states."""
    return any(e.held_out is not None for part in _parts(result) for e in part.evidence)


def _had_a_say(result: Result, held: HeldOut | None) -> list[str]:
    """What is to be known of data that are called held out."""
    if held is None or not chosen_with_held_out(result):
        return []
    return ["Nothing was fitted to these data, but they had a say in the number of states."]


def _parts(result: Result) -> list[Part]:
    return [] if result.model is None else result.model.states.parts


def _supported(result: Result) -> list[str]:
    """How many states, in a sentence or two."""
    if result.model is None:
        kept = sum(m.selected for m in result.members)
        verb = "explains" if kept == 1 else "together explain"
        why = result.model_failure
        return [
            f"{counted(kept, 'conformation').capitalize()} of {result.region} {verb} the map.",
            "How many states the data support was not tested in this run."
            if why is None
            else f"How many states the data support could not be told: {why}.",
        ]
    if not _parts(result):
        return [
            f"No two of the sampled conformations of {result.region} differ by more than "
            f"{result.model.states.coordinate_error:.2f} Å: one state. More were not tested."
        ]
    return [
        f"One state of {part.region} is enough to explain the data."
        if len(part.states) == 1
        else f"The data support {counted(len(part.states), 'state')} of {part.region}."
        for part in _parts(result)
    ]


def _number(result: Result) -> Tile:
    question = "How many states?"
    if result.model is None:
        kept = sum(m.selected for m in result.members)
        return Tile(question, str(kept), f"conformations kept of {len(result.members)}; number not tested")
    if not _parts(result):
        return Tile(question, "1", "no other was sampled")
    numbers = [len(part.states) for part in _parts(result)]
    chosen = "chosen on the data that were fitted"
    if chosen_with_held_out(result):
        chosen += ", with a veto of data held out"
    if len(numbers) > 1:
        chosen = f"in {', '.join(part.region for part in _parts(result))}; {chosen}"
    return Tile(question, " + ".join(map(str, numbers)), chosen)


def _certainty(result: Result) -> Tile:
    question = "How sure?"
    if result.model is None:
        weights = sorted((m.weight for m in result.members if m.selected), reverse=True)
        listed = ", ".join(f"{w:.2f}" for w in weights)
        return Tile(question, "not tested", f"weights {listed}; no intervals were estimated")
    known = [(state, state.interval) for part in _parts(result) for state in part.states if state.interval]
    if known:
        state, interval = max(known, key=_width)
        note = f"95 % interval of the occupancy of state {state.label} ({state.occupancy:.2f})"
        if len(known) > 1:
            note += ", the widest of the states’"
        return Tile(question, f"{interval.low:.2f}–{interval.high:.2f}", note)
    for part in _parts(result):
        if (step := last_step(part)) is not None:
            gain, error, number = step
            where = "data held out" if chosen_with_held_out(result) else "the data fitted"
            note = f"what state number {number} adds in {part.region} on {where}, standard error {error:.3g}"
            return Tile(question, signed(gain, 3), note)
    return Tile(question, "–", "no interval was estimated")


def _width(known: tuple[State, Interval]) -> float:
    return known[1].high - known[1].low


def last_step(part: Part) -> tuple[float, float, int] | None:
    """What the first number of states that was not taken, or else the last taken, adds; its error; which.

    None where no step has an error.
    """
    taken = next((e.states for e in part.evidence if e.chosen), len(part.states))
    by_number = {e.states: e for e in part.evidence}
    for number in (taken + 1, taken):
        above, below = by_number.get(number), by_number.get(number - 1)
        if above is None or below is None or above.error is None:
            continue
        if above.held_out is not None and below.held_out is not None:
            return above.held_out - below.held_out, above.error, number
        return above.fit - below.fit, above.error, number
    return None


def _agreement(held: HeldOut | None) -> Tile:
    question = "Better on held-out data?"
    if held is None:
        return Tile(question, "unknown", "no data were held out of the fit")
    gain = held.after - held.before
    note = f"R-free {signed(gain, 4)}: {held.before:.4f} to {held.after:.4f}, {held.of}; lower is better"
    if held.error is not None:
        note += f"; standard error of the difference {held.error:.4f}"
    if held.better and not held.clear:
        return Tile(question, "not clearly", note)
    return Tile(question, "yes" if held.better else "no", note, "good" if held.better else "bad")
