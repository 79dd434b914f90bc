"""The headline of a report on a crystal: how many states, how sure, did held-out agreement improve."""

from __future__ import annotations

from densemble.io.model_results import (
    ALTERNATIVE_FILE,
    MODEL_FILE,
    FinalModel,
    HeldOut,
    Interval,
    Part,
    State,
)
from densemble.io.results import Result
from densemble.report.sections import Headline, Tile, counted, signed

MORE_CLASHES = 20.0
"""Clashes per 1000 atoms more than the start's, from which the headline says so."""

ORDINALS = {2: "second", 3: "third", 4: "fourth"}


def held_out(result: Result) -> HeldOut | None:
    """R-free of the model of states against the start refined alike; of ensemble and start without these."""
    if result.model is not None and result.model.held_out is not None:
        return result.model.held_out
    if result.r_factors is None:
        return None
    return HeldOut(result.r_factors.start.r_free, result.r_factors.ensemble.r_free, "start and ensemble")


def headline(result: Result) -> Headline:
    """The first lines of the page, without jargon, and three figures."""
    held = held_out(result)
    several = result.model is None or bool(result.model.several)
    if held is None:
        verdict = "No data were held out of the fit, so this run cannot say whether to believe it."
    elif not several:
        verdict = "By the rule of this run no further state is needed."
    elif held.better and not held.clear:
        decided = result.model is not None and result.model.advised
        verdict = (
            "The result agrees better than the start with data that the fit never saw, but by no more than "
            f"chance would bring: {'the data that were fitted decide' if decided else 'they do not tell'}."
        )
    elif held.better:
        verdict = "The result agrees better than the start with data that the fit never saw."
    else:
        verdict = (
            "The result agrees no better than the start with data that the fit never saw: do not prefer it."
        )
    clashes = [] if result.model is None else clash_warning(result.model)
    return Headline(
        title=f"Conformations of {result.region}",
        kind="X-ray crystal",
        answer=(*_supported(result, held), verdict, *_had_a_say(result, held), *clashes),
        tiles=(_number(result, held), _certainty(result), agreement_of(held, several=several)),
    )


def chosen_with_held_out(result: Result) -> bool:
    """Whether data held out of the fit had a say in the number of states."""
    return result.model is not None and result.model.states.by_held_out


def _had_a_say(result: Result, held: HeldOut | None) -> list[str]:
    """What is to be known of data that are called held out."""
    if held is None or not chosen_with_held_out(result):
        return []
    return ["Nothing was fitted to the free reflections, but they had a say in the number of states."]


def clash_warning(model: FinalModel) -> list[str]:
    """Where the model has clearly more clashes than the start: that, and the held residues in the way."""
    found = model.validation
    before, after = (None if name not in found else found[name].clashscore for name in ("start", "model"))
    if before is None or after is None or after - before <= MORE_CLASHES:
        return []
    return [
        f"The model has clearly more clashes than the start (clash score {after:.1f}, start {before:.1f}): "
        "look at them before the model is used.",
        *_clashes_with_held(model.clashes_with_held),
    ]


def _clashes_with_held(names: list[str]) -> list[str]:
    """What new clashes with residues that are held may mean."""
    if not names:
        return []
    they, have, them = ("these are", "have", "them") if len(names) > 1 else ("it is", "has", "it")
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return [
        f"Clashes with {listed} are new: {they} held as in the start and perhaps {have} another conformation "
        f"too; see whether the region should include {them}."
    ]


def _supported(result: Result, held: HeldOut | None) -> list[str]:
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
    return verdicts_of(result.model, result.region, held)


def verdicts_of(model: FinalModel, region: str, held: HeldOut | None) -> list[str]:
    """How many states each part of a region has; where all have one, that is said once of the region."""
    parts = model.states.parts
    if not parts:
        return [
            f"No two of the sampled conformations of {region} differ by more than "
            f"{model.states.coordinate_error:.2f} Å: one state. More were not tested."
        ]
    if len(parts) > 1 and not model.several:
        return [f"One state of {region} is enough to explain the data."]
    return [*(verdict_of(part, held) for part in parts), *file_notes(model)]


def file_notes(model: FinalModel) -> list[str]:
    """Which file has which model, where the one that is advised is not the one of states."""
    if model.advised:
        return []
    return [f"So {MODEL_FILE} has one state; the model of states is {ALTERNATIVE_FILE}."]


def verdict_of(part: Part, held: HeldOut | None) -> str:
    """How many states of a part, and whether data held out speak for them.

    The rule counts on the data that were fitted. To free reflections it gives a veto only: what is taken need
    not be what they ask for. A half map must be better explained, but that may be chance.
    """
    number = len(part.states)
    if number == 1:
        return f"One state of {part.region} is enough to explain the data."
    states = counted(number, "state")
    if held is None:
        return f"The data that were fitted support {states} of {part.region}."
    if part.supported_by(held):
        if held.clear:
            return f"The data support {states} of {part.region}."
        return (
            f"The data that were fitted strongly support {states} of {part.region}; data held out agree, but "
            "are too few to tell by themselves."
        )
    clearly = "clearly " if held.better else ""
    more = "the second" if number == 2 else "more than one"
    return (
        f"{states.capitalize()} of {part.region} fit the map better; data held out do not {clearly}support "
        f"{more}: keep to one state unless other evidence speaks for it."
    )


def _number(result: Result, held: HeldOut | None) -> Tile:
    question = "How many states?"
    if result.model is None:
        kept = sum(m.selected for m in result.members)
        return Tile(question, str(kept), f"conformations kept of {len(result.members)}; number not tested")
    return number_of(result.model, held)


def number_of(model: FinalModel, held: HeldOut | None) -> Tile:
    """The number of states that is advised, part by part, and the one that was taken where it is another."""
    question, parts = "How many states?", model.states.parts
    if not parts:
        return Tile(question, "1", "no other was sampled")
    note = "chosen on the data that were fitted"
    if model.states.by_held_out:
        half_map = held is not None and held.higher
        note += (
            "; each further state had to explain the other half map better as well"
            if half_map
            else ", with a veto of the free reflections"
        )
    taken = [len(part.states) for part in parts]
    advised = [len(part.states) if held is None or part.supported_by(held) else 1 for part in parts]
    if advised != taken:
        note = f"advised; {_sum_of(taken)} in {MODEL_FILE if model.advised else ALTERNATIVE_FILE}, {note}"
    if len(parts) > 1:
        note = f"in {', '.join(part.region for part in parts)}; {note}"
    return Tile(question, _sum_of(advised), note)


def _sum_of(states: list[int]) -> str:
    return "1" if max(states) == 1 else " + ".join(map(str, states))


def _certainty(result: Result) -> Tile:
    question = "How sure?"
    if result.model is None:
        weights = sorted((m.weight for m in result.members if m.selected), reverse=True)
        listed = ", ".join(f"{w:.2f}" for w in weights)
        return Tile(question, "not tested", f"weights {listed}; no intervals were estimated")
    return certainty_of(result.model)


def certainty_of(model: FinalModel) -> Tile:
    """What the data say of the last state, and the widest interval."""
    question, parts = "How sure?", model.states.parts
    value, notes = "not tested", []
    steps = [(part, step) for part in parts if (step := last_step(part)) is not None]
    if steps:
        part, (gain, error, number) = min(steps, key=lambda found: abs(found[1][0]) / max(found[1][1], 1e-12))
        state = f"the {ORDINALS[number]} state" if number in ORDINALS else f"state number {number}"
        value = "not distinguishable"
        if abs(gain) > 2 * error:
            value = f"data {'for' if gain > 0 else 'against'} {state}"
        where = "held-out data" if model.states.by_held_out else "fitted data"
        notes.append(f"{where}: {signed(gain, 1)} ± {error:.1f} log units for {state} of {part.region}")
    known = [(state, state.interval) for part in parts for state in part.states if state.interval]
    if known:
        widest, interval = max(known, key=_width)
        notes.append(
            f"occupancy of {widest.label}, if it exists: {widest.occupancy:.2f}, 95 % interval "
            f"{interval.low:.2f}–{interval.high:.2f}"
        )
    return Tile(question, value, "; ".join(notes) or "no error and no interval were estimated")


def _width(known: tuple[State, Interval]) -> float:
    return known[1].high - known[1].low


def last_step(part: Part) -> tuple[float, float, int] | None:
    """What the last state that was taken, or where one was taken the first that was not, adds; error; which.

    None where no step has an error.
    """
    taken = part.taken
    by_number = {e.states: e for e in part.evidence}
    for number in (taken, taken + 1):
        above, below = by_number.get(number), by_number.get(number - 1)
        if above is None or below is None or above.error is None:
            continue
        if above.held_out is not None and below.held_out is not None:
            return above.held_out - below.held_out, above.error, number
        return above.fit - below.fit, above.error, number
    return None


def gain_in_words(gain: float, error: float) -> str:
    """What free reflections say of the second of two models, in nats."""
    return f"log-likelihood of the free reflections {signed(gain, 1)} ± {error:.1f} log units"


def agreement_of(held: HeldOut | None, *, several: bool = True) -> Tile:
    """Whether data held out agree better; where one state was chosen there is no second model to prefer."""
    question, note = "Better on held-out data?", "nothing was held out of the fit"
    if held is not None:
        name, digits, better = ("RSCC in half map 2", 3, "higher") if held.higher else ("R-free", 4, "lower")
        note = (
            f"{name} {signed(held.after - held.before, digits)}: {held.before:.{digits}f} to "
            f"{held.after:.{digits}f}, {held.of}; {better} is better"
        )
        if held.error is not None:
            note += f"; standard error of the difference {held.error:.{digits}f}"
        if held.gain is not None and held.gain_error is not None:
            note += f"; {gain_in_words(held.gain, held.gain_error)}"
    if not several:
        return Tile(question, "unchanged: one state", note)
    if held is None:
        return Tile(question, "unknown", note)
    if held.better and not held.clear:
        return Tile(question, "not clearly", note)
    return Tile(question, "yes" if held.better else "no", note, "good" if held.better else "bad")
