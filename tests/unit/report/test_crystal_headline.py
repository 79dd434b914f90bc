"""The first lines of a crystal's report: every kind of answer, in words and figures."""

import pytest
from small_report import bare_result

from densemble.io.model_results import (
    Evidence,
    FinalModel,
    Interval,
    Part,
    Refined,
    Refinement,
    State,
    States,
    Validation,
)
from densemble.io.results import Metrics, Result, RFactor, RFactors
from densemble.report.crystal_headline import clash_warning, headline, held_out, last_step
from densemble.report.sections import signed

FITS = {"start": 0.8, "ensemble": 0.9}


def part(region: str, occupancies: list[float], evidence: list[Evidence] | None = None) -> Part:
    several = len(occupancies) > 1
    states = [
        State(
            label="ABC"[i] if several else "",
            occupancy=o,
            interval=Interval(low=max(o - 0.1 / (i + 1), 0), high=min(o + 0.1 / (i + 1), 1))
            if several
            else None,
            members=[i],
        )
        for i, o in enumerate(occupancies)
    ]
    return Part(region=region, states=states, evidence=evidence or [])


def refined_alike(r_free: float, **known) -> Refinement:
    """Of one state, R-free 0.185, and of a model of states of this R-free; and what else is known."""
    return Refinement(
        cycles=5,
        start=Refined(r_free=(0.2, 0.185), rscc=(0.8, 0.81)),
        model=Refined(r_free=(0.19, r_free), rscc=(0.9, 0.91)),
        **known,
    )


def result(
    parts: list[Part] | None,
    *,
    free: tuple[float, float] | None = (0.2, 0.19),
    refined=None,
    clashes: tuple[float, float] | None = None,
) -> Result:
    states = States(rule="by the free reflections", coordinate_error=0.2, parts=parts)
    validation = {
        name: Validation(atoms=100, clashscore=value)
        for name, value in zip(("start", "model"), clashes or (), strict=False)
    }
    model = FinalModel(states=states, refinement=refined, validation=validation)
    factors = None
    if free is not None:
        start, ensemble = (RFactor(r_work=0.18, r_free=value) for value in free)
        factors = RFactors(start=start, ensemble=ensemble)
    return bare_result(
        region="A:1-20",
        metrics=Metrics(
            voxels="", rscc={"start": 0.8, "ensemble": 0.9}, cosine={"start": 0.8, "ensemble": 0.9}
        ),
        r_factors=factors,
        model=model,
    )


def test_two_states_and_one():
    found = headline(result([part("A:1-8", [0.6, 0.4]), part("A:12-20", [1.0])]))
    assert found.answer[:2] == (
        "The data support two states of A:1-8.",
        "One state of A:12-20 is enough to explain the data.",
    )
    number, sure, _ = found.tiles
    assert number.value == "2 + 1"
    assert "A:1-8, A:12-20" in number.note
    assert sure.value == "not tested"
    assert sure.note == "occupancy of A, if it exists: 0.60, 95 % interval 0.50–0.70", "the widest"


def test_one_state_everywhere_is_said_once():
    """Parts are where sampled conformations differ: that there are several does not make several states."""
    found = headline(result([part("A:1-8", [1.0]), part("A:12-20", [1.0])]))
    assert found.answer[0] == "One state of A:1-20 is enough to explain the data."
    assert not any("A:12-20" in line for line in found.answer)
    number, _, _ = found.tiles
    assert number.value == "1"
    assert number.note.startswith("in A:1-8, A:12-20; ")


def test_one_state_is_a_normal_answer():
    steps = [Evidence(states=1, fit=0.0, held_out=0.0, chosen=True)]
    steps.append(Evidence(states=2, fit=49.2, held_out=-5.3, error=6.2))
    found = headline(result([part("A:1-20", [1.0], steps)], free=(0.2, 0.201)))
    assert found.answer == (
        "One state of A:1-20 is enough to explain the data.",
        "By the rule of this run no further state is needed.",
        "Nothing was fitted to the free reflections, but they had a say in the number of states.",
    )
    number, sure, agreement = found.tiles
    assert number.value == "1"
    assert number.note == "chosen on the data that were fitted, with a veto of the free reflections"
    assert sure.value == "not distinguishable"
    assert sure.note == "held-out data: −5.3 ± 6.2 log units for the second state of A:1-20"
    assert (agreement.value, agreement.tone) == ("unchanged: one state", "plain")


@pytest.mark.parametrize(
    ("gain", "value"),
    [(36.0, "data for the second state"), (-36.0, "data against the second state")],
)
def test_how_sure_is_in_log_units_of_the_state_that_was_taken(gain, value):
    steps = [Evidence(states=1, fit=0.0, held_out=0.0)]
    steps.append(Evidence(states=2, fit=90.0, held_out=gain, error=8.4, chosen=True))
    steps.append(Evidence(states=3, fit=91.0, held_out=gain - 1, error=2.0))
    sure = headline(result([part("A:1-20", [0.6, 0.4], steps)])).tiles[1]
    assert sure.value == value
    assert sure.note.startswith("held-out data: " + f"{gain:+.1f} ± 8.4 log units".replace("-", "−"))
    assert "occupancy of A, if it exists" in sure.note


@pytest.mark.parametrize(
    ("after", "gain", "support"),
    [
        (0.1810, 9.0, "The data support two states of A:1-20."),
        (0.1848, 9.0, "data held out do not clearly support the second: keep to one state"),
        (0.1852, 9.0, "data held out do not support the second: keep to one state"),
        (0.1810, -0.5, "data held out do not clearly support the second: keep to one state"),
    ],
)
def test_support_is_that_of_the_data_held_out(after, gain, support):
    refined = refined_alike(after, r_free_error=0.001)
    steps = [Evidence(states=1, fit=0.0, held_out=0.0)]
    steps.append(Evidence(states=2, fit=90.0, held_out=gain, error=5.0, chosen=True))
    found = result([part("A:1-20", [0.6, 0.4], steps)], refined=refined)
    (first, *more), (number, *_) = headline(found).answer, headline(found).tiles
    assert found.model.advised == ("keep to one state" not in support)
    note = "So model.cif has one state; the model of states is alternative.cif."
    assert (note in more) == (not found.model.advised)
    assert number.value == ("2" if found.model.advised else "1")
    assert number.note.startswith("advised; 2 in alternative.cif, chosen on") == (not found.model.advised)
    assert support in first
    assert first.startswith("The data support") or first.startswith("Two states of A:1-20 fit the map better")


@pytest.mark.parametrize(("after", "said"), [(28.0, False), (28.1, True)])
def test_clearly_more_clashes_than_the_start_are_said(after, said):
    answer = headline(result([part("A:1-20", [0.6, 0.4])], clashes=(8.0, after))).answer
    assert ("clash score 28.1, start 8.0" in " ".join(answer)) == said
    assert any("clash" in sentence for sentence in answer) == said


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (
            ["A:112 ARG"],
            "Clashes with A:112 ARG are new: it is held as in the start and perhaps has another conformation "
            "too; see whether the region should include it.",
        ),
        (
            ["A:112 ARG", "A:221 ARG", "B:5 LIG"],
            "Clashes with A:112 ARG, A:221 ARG and B:5 LIG are new: these are held as in the start and "
            "perhaps have another conformation too; see whether the region should include them.",
        ),
    ],
)
def test_held_residues_that_clash_are_named_where_clashes_are_said(names, said):
    for after in (28.0, 28.1):
        found = result([part("A:1-20", [0.6, 0.4])], clashes=(8.0, after)).model
        warning = clash_warning(found.model_copy(update={"clashes_with_held": names}))
        assert warning[1:] == ([said] if after > 28.0 and names else [])


def test_members_that_agree_leave_nothing_to_count():
    """It is not said that one state explains the data: others were not tried."""
    found = headline(result([]))
    assert found.answer[0] == (
        "No two of the sampled conformations of A:1-20 differ by more than 0.20 Å: one state. "
        "More were not tested."
    )
    assert (found.tiles[0].value, found.tiles[0].note) == ("1", "no other was sampled")


def test_number_chosen_on_fitted_data_is_not_called_held_out():
    steps = [Evidence(states=1, fit=0.8), Evidence(states=2, fit=0.9, error=0.01, chosen=True)]
    number, *_ = headline(result([part("A:1-20", [0.6, 0.4], steps)])).tiles
    assert number.note == "chosen on the data that were fitted"


def test_refined_alike_is_what_is_compared():
    refined = refined_alike(0.186)
    found = result([part("A:1-20", [0.6, 0.4])], refined=refined)
    held = held_out(found)
    assert (held.before, held.after, held.better) == (0.185, 0.186, False)
    assert headline(found).tiles[2].value == "no"
    assert "do not prefer it" in headline(found).answer[-1]


@pytest.mark.parametrize(
    ("after", "error", "tile", "words"),
    [
        (0.1848, 0.0010, "not clearly", "they do not tell"),
        (0.1810, 0.0010, "yes", "agrees better than the start"),
        (0.1848, None, "yes", "agrees better than the start"),
        (0.1852, 0.0010, "no", "do not prefer it"),
    ],
)
def test_a_fall_of_r_free_within_its_error_is_no_better_model(after, error, tile, words):
    refined = refined_alike(after, r_free_error=error)
    found = headline(result([part("A:1-20", [0.6, 0.4])], refined=refined))
    assert found.tiles[2].value == tile
    assert words in found.answer[-1]


@pytest.mark.parametrize(
    ("after", "gain", "r_free_error", "tile", "advised"),
    [
        (0.1826, 26.2, 0.0013, "yes", True),
        (0.1826, 26.2, 0.1, "yes", True),  # of R-free's error nothing is asked
        (0.1826, 17.9, 0.0013, "yes", True),
        (0.1826, 17.7, 0.0001, "not clearly", False),
        (0.1826, -26.2, 0.0001, "not clearly", False),
        (0.1852, 26.2, 0.0001, "no", False),  # R-free must fall as well
    ],
)
def test_the_log_likelihood_of_the_free_reflections_tells_whether_it_is_clear(
    after, gain, r_free_error, tile, advised
):
    refined = refined_alike(after, r_free_error=r_free_error, free_gain=gain, free_gain_error=8.9)
    whole = result([part("A:1-20", [0.6, 0.4])], refined=refined)
    found = headline(whole).tiles[2]
    assert (found.value, whole.model.advised) == (tile, advised)
    said = f"log-likelihood of the free reflections {signed(gain, 1)} ± 8.9 log units"
    assert found.note.endswith(f"standard error of the difference {r_free_error:.4f}; {said}")


@pytest.mark.parametrize(
    ("after", "free_gain", "part_gain", "asked", "advised"),
    [
        (0.1848, 5.0, 3.0, 44.9, True),
        (0.1848, 5.0, 3.0, 45.0, False),  # the fitted gain of 90 must be more than twice that
        (0.1848, 5.0, 3.0, None, False),  # records of earlier versions
        (0.1848, -0.1, 3.0, 30.0, False),  # the free reflections must agree
        (0.1852, 5.0, 3.0, 30.0, False),  # R-free as well
        (0.1848, 5.0, -0.1, 30.0, False),  # and where the number was chosen
    ],
)
def test_where_free_reflections_agree_and_are_too_few_a_strong_gain_on_the_fitted_ones_decides(
    after, free_gain, part_gain, asked, advised
):
    refined = refined_alike(after, r_free_error=0.001, free_gain=free_gain, free_gain_error=8.9)
    steps = [
        Evidence(states=1, fit=0.0, held_out=0.0, asked=0.0),
        Evidence(states=2, fit=90.0, held_out=part_gain, error=5.0, asked=asked, chosen=True),
    ]
    found = result([part("A:1-20", [0.6, 0.4], steps)], refined=refined)
    assert found.model.advised == advised
    said = headline(found)
    assert said.answer[0].startswith(
        "The data that were fitted strongly support two states of A:1-20; data held out agree"
        if advised
        else "Two states of A:1-20 fit the map better"
    )
    if after < 0.185:
        assert ("the data that were fitted decide" in said.answer[1]) == advised
        assert ("they do not tell" in " ".join(said.answer)) != advised
    assert said.tiles[0].value == ("2" if advised else "1")


def test_a_half_map_that_does_not_tell_is_not_outvoted():
    """It has as many data as the one that was fitted."""
    refined = Refinement(
        cycles=5,
        start=Refined(rscc=(0.8, 0.81)),
        model=Refined(rscc=(0.9, 0.91)),
        held_out_rscc=(0.80, 0.81),
        held_out_error=0.01,
    )
    steps = [
        Evidence(states=1, fit=0.0, held_out=0.0, asked=0.0),
        Evidence(states=2, fit=90.0, held_out=9.0, error=5.0, asked=20.0, chosen=True),
    ]
    states = States(rule="", coordinate_error=0.2, parts=[part("A:1-20", [0.6, 0.4], steps)])
    assert not FinalModel(states=states, refinement=refined).advised


def test_nothing_held_out_gives_no_verdict():
    found = headline(result([part("A:1-20", [0.6, 0.4])], free=None))
    assert found.tiles[2].value == "unknown"
    assert not any("agrees" in sentence for sentence in found.answer)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ([(1, 0.5, None, None, True), (2, 0.6, None, 0.02, False)], (0.1, 0.02, 2)),
        ([(1, 0.5, 0.4, None, False), (2, 0.6, 0.45, 0.02, True)], (0.05, 0.02, 2)),
        ([(1, 0.5, 0.4, None, True)], None),
        ([], None),
    ],
)
def test_last_step_is_in_what_decides(evidence, expected):
    steps = [Evidence(states=n, fit=f, held_out=h, error=e, chosen=c) for n, f, h, e, c in evidence]
    found = last_step(part("A:1-20", [1.0], steps))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("parts", "error", "advised", "number", "file"),
    [
        ([("A:1-9", [0.6, 0.4], 9.0), ("A:11", [0.5, 0.5], 1.0)], 0.001, True, "2 + 2", None),
        # one of them is enough
        ([("A:1-9", [0.6, 0.4], 9.0), ("A:11", [0.5, 0.5], -1.0)], 0.001, True, "2 + 1", "model.cif"),
        ([("A:1-9", [0.6, 0.4], -9.0), ("A:11", [0.5, 0.5], -1.0)], 0.001, False, "1", "alternative.cif"),
        ([("A:1-9", [0.6, 0.4], 9.0), ("A:11", [0.5, 0.5], 1.0)], 0.01, False, "1", "alternative.cif"),
        ([("A:1-9", [1.0], -9.0)], 0.01, True, "1", None),  # there is nothing else
    ],
)
def test_a_model_is_advised_if_any_part_s_states_are(parts, error, advised, number, file):
    def steps(gain):
        return [
            Evidence(states=1, fit=0.0, held_out=0.0),
            Evidence(states=2, fit=90.0, held_out=gain, error=5.0, chosen=True),
        ]

    refined = refined_alike(0.181, r_free_error=error)
    found = [part(name, occupancies, steps(gain)) for name, occupancies, gain in parts]
    whole = result(found, refined=refined)
    assert whole.model.advised == advised
    tile = headline(whole).tiles[0]
    assert tile.value == number
    assert tile.note.partition(", chosen")[0].endswith(f"advised; 2 + 2 in {file}") == (file is not None)
    assert result(found).model.advised  # without data held out there is nothing to doubt it by
