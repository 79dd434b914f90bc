"""Results in words."""

from pathlib import Path

import pytest
from small_report import bare_result

from densemble.io.model_results import FinalModel, Part, Refined, Refinement, State, States, Validation
from densemble.io.results import Member, Metrics, Result, RFactor, RFactors
from densemble.report import summary, table
from densemble.report.words import model_lines


def result(*, free_of_ensemble: float | None = 0.19) -> Result:
    factors = None
    if free_of_ensemble is not None:
        factors = RFactors(
            start=RFactor(r_work=0.18, r_free=0.2),
            ensemble=RFactor(r_work=0.17, r_free=free_of_ensemble),
        )
    return bare_result(
        region="A:176-191",
        metrics=Metrics(
            voxels="within 2 Å of something",
            rscc={"start": 0.79, "ensemble": 0.8612},
            cosine={"start": 0.81, "ensemble": 0.88},
        ),
        r_factors=factors,
        members=[
            Member(id=1, selected=True, weight=0.6049, rscc=0.8),
            Member(id=2, selected=False, weight=0.0, rscc=0.4),
            Member(id=3, selected=True, weight=0.3951, rscc=0.7),
        ],
    )


def test_table_lines_up():
    lines = table(["name", "x"], [["a", "1.25"], ["longer", "10"]])
    assert lines == ["name       x", "------  ----", "a       1.25", "longer    10"]


def test_table_refuses_ragged_rows():
    with pytest.raises((ValueError, IndexError)):
        table(["name", "x"], [["a"]])


def test_summary_has_the_numbers_and_the_places():
    text = summary(result(), Path("somewhere"))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["A:176-191", "RSCC", "cosine", "R-work", "R-free"]
    assert rows[2] == ["start", "0.790", "0.810", "0.1800", "0.2000"]
    assert rows[3] == ["ensemble", "0.861", "0.880", "0.1700", "0.1900"]
    assert "Map fit: within 2 Å of something." in text
    assert "1 (0.60), 3 (0.40)." in text
    assert "2 (" not in text
    assert "somewhere/" in text


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (0.19, "is better than the start (R-free falls by 0.0100)"),
        (0.21, "is not better than the start (R-free rises by 0.0100)"),
        (0.20, "is not better than the start"),
    ],
)
def test_verdict_is_that_of_the_free_reflections(free, words):
    assert words in summary(result(free_of_ensemble=free), Path("out"))


def test_no_verdict_without_reflections():
    text = summary(result(free_of_ensemble=None), Path("out"))
    assert "R-free" not in text
    assert "better" not in text


def test_final_model_begins_with_a_verdict_and_says_what_it_costs():
    states = [State(label="AB"[i], occupancy=o, members=[i]) for i, o in enumerate((0.6, 0.4))]
    model = FinalModel(
        states=States(
            rule="", coordinate_error=0.4, parts=[Part(region="A:1-8", states=states, evidence=[])]
        ),
        refinement=Refinement(
            cycles=4,
            start=Refined(r_work=(0.2, 0.17), r_free=(0.21, 0.19), rscc=(0.8, 0.9)),
            model=Refined(r_work=(0.2, 0.165), r_free=(0.21, 0.1895), rscc=(0.8, 0.9)),
            r_free_error=0.001,
        ),
        validation={
            "start": Validation(atoms=9, clashscore=8.0, rotamer_outliers=0.0),
            "model": Validation(atoms=9, clashscore=31.25, rotamer_outliers=0.125),
        },
    )
    held = model_lines(model.model_copy(update={"clashes_with_held": ["A:21 ARG", "A:30 LYS"]}), "A:1-8")
    assert any(line.startswith("Clashes with A:21 ARG and A:30 LYS are new: these are held") for line in held)
    assert not any(line.startswith("Clashes with") for line in model_lines(model, "A:1-8"))
    known = {"free_gain": -1.26, "free_gain_error": 2.5}
    refinement = model.refinement.model_copy(update=known)
    (line,) = (
        line
        for line in model_lines(model.model_copy(update={"refinement": refinement}), "A:1-8")
        if line.startswith("Refined alike")
    )
    assert line.endswith(
        "of the model of states (standard error of the difference of R-free 0.0010; log-likelihood of the "
        "free reflections −1.3 ± 2.5 log units)."
    )
    lines = model_lines(model, "A:1-8")
    assert "So model.cif has one state; the model of states is alternative.cif." in lines
    assert any(line.startswith("The model has clearly more clashes than the start") for line in lines)
    assert lines[0].startswith("Two states of A:1-8 fit the map better; data held out do not clearly support")
    assert (
        "Refined alike, 4 cycles: R-work 0.1700, R-free 0.1900 of one state, R-work 0.1650, R-free 0.1895 of "
        "the model of states (standard error of the difference of R-free 0.0010)." in lines
    )
    assert (
        "Validation of the region, one state -> model of states: clash score 8.0 -> 31.2, "
        "rotamer outliers 0.0% -> 12.5%." in lines
    )
