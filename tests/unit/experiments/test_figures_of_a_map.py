"""What a run on a map says to a table: of the sample that fits best, and of the nearest to the reference."""

import numpy as np
from small_state_result import GEOMETRY, MAP

from densemble.experiments.execution import _of_map
from densemble.io.state_results import (
    Distance,
    Fit,
    Placement,
    StateMember,
    StateResult,
)


def member(model: int, fit: float, away: float | None) -> StateMember:
    reference = None
    if away is not None:
        reference = Distance(
            ca_rmsd=away,
            ca_rmsd_in_place=away + 0.5,
            all_atom_rmsd=away + 0.2,
            tm_score=1 - away / 10,
            local_rmsd=away + 2,
            local_ca_rmsd=away + 1,
        )
    found = Fit(correlation=fit, rscc=fit + 0.1, q_score=0.5, fsc_05=4.2)
    return StateMember(model=model, sample=model, fit=found, geometry=GEOMETRY, reference=reference)


def result(*members: StateMember) -> StateResult:
    return StateResult(
        inputs=[],
        settings={},
        seed=0,
        versions={},
        device="cpu",
        timings={},
        messages=[],
        map=MAP,
        placement=Placement(docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0]),
        start=Fit(correlation=0.3, rscc=0.3, q_score=0.1, fsc_05=8.0),
        members=list(members),
    )


def test_best_by_map_and_best_by_rmsd_are_told_apart():
    """The second model fits less well and is nearer."""
    found = _of_map(result(member(1, 0.7, 1.5), member(2, 0.6, 0.5), member(3, 0.5, 2.5)))
    values = {(f.best_by, f.measure): round(f.value, 6) for f in found}
    assert values == {
        ("map", "rscc"): 0.8,
        ("map", "rmsd"): 1.7,
        ("map", "ca_rmsd"): 1.5,
        ("map", "tm_score"): 0.85,
        ("map", "local_rmsd"): 2.5,
        ("rmsd", "rscc"): 0.7,
        ("rmsd", "rmsd"): 0.7,
        ("rmsd", "ca_rmsd"): 0.5,
        ("rmsd", "tm_score"): 0.95,
        ("rmsd", "local_rmsd"): 1.5,
    }


def test_without_a_reference_there_is_the_fit_alone():
    found = _of_map(result(member(1, 0.7, None), member(2, 0.6, None)))
    assert [(f.best_by, f.measure, round(f.value, 6)) for f in found] == [("map", "rscc", 0.8)]
