"""Results in words."""

from pathlib import Path

import pytest

from densemble.io.results import Member, Metrics, Result, RFactor, RFactors
from densemble.report import summary, table


def result(*, free_of_ensemble: float | None = 0.19) -> Result:
    factors = None
    if free_of_ensemble is not None:
        factors = RFactors(
            start=RFactor(r_work=0.18, r_free=0.2),
            ensemble=RFactor(r_work=0.17, r_free=free_of_ensemble),
        )
    return Result(
        inputs=[],
        settings={},
        seed=0,
        versions={},
        device="cpu",
        timings={},
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
