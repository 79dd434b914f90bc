"""Tables of a crystal's report."""

from densemble.io.model_results import Evidence, Part, State
from densemble.report.crystal_page import _evidence


def table(*evidence):
    return _evidence(
        Part(region="A:1-9", states=[State(label="", occupancy=1.0, members=[0])], evidence=list(evidence))
    )


def test_torsions_are_shown_where_they_count():
    one = Evidence(states=1, fit=0.0, held_out=0.0, chosen=True)
    plain = table(one, Evidence(states=2, fit=49.2, held_out=1.3, error=2.0))
    assert plain.header == ("states", "fitted data", "held-out data", "error")
    strained = table(one, Evidence(states=2, fit=49.2, strain=12.5, held_out=1.3, error=2.0))
    assert strained.header == ("states", "fitted data", "torsions", "held-out data", "error")
    assert [len(row) for row in strained.rows] == [5, 5]
    assert strained.rows[1][2] == "-12.50"
    assert "count against the fit" in strained.caption
    assert "count against the fit" not in plain.caption
