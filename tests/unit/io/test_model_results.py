"""Records of the final model: those of earlier versions, and what a part's support is made of."""

import json

import pytest

from densemble.io.model_results import FinalModel, HeldOut, Refined, Refinement, States

REFINEMENT = Refinement(
    cycles=4,
    start=Refined(r_work=(0.2, 0.19), r_free=(0.21, 0.2), rscc=(0.8, 0.85)),
    model=Refined(r_work=(0.19, 0.18), r_free=(0.2, 0.19), rscc=(0.9, 0.95)),
    r_free_error=0.004,
    free_gain=26.2,
    free_gain_error=8.9,
)
MODEL = FinalModel(states=States(rule="", coordinate_error=0.2, parts=[]), refinement=REFINEMENT)


def test_records_have_the_gain_and_give_it_back():
    again = FinalModel.model_validate_json(MODEL.model_dump_json())
    assert again == MODEL
    held = again.held_out
    assert (held.gain, held.gain_error, held.error) == (26.2, 8.9, 0.004)


def test_records_of_runs_before_there_was_a_gain_are_read_and_judged_by_r_free():
    old = MODEL.model_dump(mode="json")
    for name in ("free_gain", "free_gain_error"):
        del old["refinement"][name]
    found = FinalModel.model_validate_json(json.dumps(old))
    assert found.refinement.free_gain is None
    assert found.held_out == HeldOut(0.2, 0.19, found.held_out.of, 0.004)
    assert found.held_out.clear


def test_records_of_runs_before_clashes_were_named_are_read():
    named = MODEL.model_copy(update={"clashes_with_held": ["A:112 ARG"]})
    assert FinalModel.model_validate_json(named.model_dump_json()) == named
    old = named.model_dump(mode="json")
    del old["clashes_with_held"]
    assert FinalModel.model_validate_json(json.dumps(old)) == MODEL


@pytest.mark.parametrize(
    ("gain", "gain_error", "error", "clear"),
    [
        (2.1, 1.0, 9.0, True),
        (2.0, 1.0, 0.0, False),
        (-2.1, 1.0, 0.0, False),  # for the other model
        (0.0, 0.0, 0.0, False),  # the same model
        (None, None, 0.004, True),
        (None, None, 0.006, False),
        (None, None, None, True),
    ],
)
def test_clear_is_by_the_gain_where_it_is_known(gain, gain_error, error, clear):
    held = HeldOut(0.2, 0.19, "two models", error, gain=gain, gain_error=gain_error)
    assert held.clear == clear
    assert held.better
