"""States of a result against those of a reference: exact where the result is made of the reference."""

import shutil

import numpy as np
import pytest
from small_crystal import OCCUPANCY, one_state, truth, write_crystal

from densemble.atoms import BACKBONE, Region
from densemble.experiments.judging import judge_states
from densemble.io.model_results import Evidence, FinalModel, Part, Refined, Refinement, State, States
from densemble.io.models import alternates, read_model

REGION = "A:179-186"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("small"))


def states(*parts: tuple[str, dict[str, float]], error: float = 0.5) -> FinalModel:
    found = States(
        rule="",
        coordinate_error=error,
        parts=[
            Part(
                region=region,
                evidence=[],
                states=[State(label=n, occupancy=w, members=[]) for n, w in own.items()],
            )
            for region, own in parts
        ],
    )
    return FinalModel(states=found)


def distance(path, first: str = "A", second: str = "B", region: str = REGION) -> float:
    topology = read_model(path).topology
    residues = [r for s in Region.parse(region).resolve(topology) for r in s]
    own = topology.subset(topology.atoms_of(residues))
    own = own.subset(np.flatnonzero(np.isin(own.names, BACKBONE)))
    found = alternates(path, own)
    return float(np.sqrt(((found[first].coords - found[second].coords) ** 2).sum(1).mean()))


def test_a_model_that_is_the_truth(small, tmp_path):
    shutil.copy(small.reference, tmp_path / "model.cif")
    judged = judge_states(tmp_path, REGION, states((REGION, OCCUPANCY)), small.reference)
    assert judged.found == 2
    assert judged.rmsd == {"A": 0, "B": 0}
    assert judged.occupancy_error == pytest.approx(0, abs=1e-6)


def test_a_state_that_was_not_found(small, tmp_path):
    one_state(truth()).make_mmcif_document().write_file(str(tmp_path / "model.cif"))
    for found in (states((REGION, {"": 1.0})), states()):  # as a part of one state, and as none
        judged = judge_states(tmp_path, REGION, found, small.reference)
        assert judged.found == 1
        assert judged.rmsd["B"] == 0
        assert judged.rmsd["A"] == pytest.approx(distance(small.reference), rel=1e-6)
        assert judged.rmsd["A"] > 1
        assert judged.occupancy_error == pytest.approx(OCCUPANCY["A"], abs=1e-3)


def test_occupancies_count_where_states_differ(small, tmp_path):
    """The mean over residues; parts where the reference has hardly two states have no say."""
    shutil.copy(small.reference, tmp_path / "model.cif")
    right = states(("A:179-182", OCCUPANCY), ("A:183-186", OCCUPANCY))
    assert judge_states(tmp_path, REGION, right, small.reference).occupancy_error == pytest.approx(
        0, abs=1e-6
    )
    off = states(("A:179-182", {"A": 0.5, "B": 0.5}), ("A:183-186", OCCUPANCY))
    judged = judge_states(tmp_path, REGION, off, small.reference)
    assert judged.occupancy_error == pytest.approx((0.5 - OCCUPANCY["A"]) / 2, abs=1e-6)
    near, far = sorted(distance(small.reference, region=r) for r in ("A:179-182", "A:183-186"))
    both = {
        "A:179-182": {"A": 0.5, "B": 0.5},
        "A:183-186": {"A": 0.2, "B": 0.8},
    }
    wide = max(both, key=lambda region: distance(small.reference, region=region))
    judged = judge_states(tmp_path, REGION, states(*both.items(), error=(near + far) / 2), small.reference)
    assert judged.occupancy_error == pytest.approx(abs(both[wide]["A"] - OCCUPANCY["A"]), abs=1e-6)


def test_a_reference_of_one_state_has_no_occupancy_to_be_wrong_about(small, tmp_path):
    shutil.copy(small.reference, tmp_path / "model.cif")
    judged = judge_states(tmp_path, REGION, states((REGION, OCCUPANCY)), small.model)
    assert judged.found == 2
    assert judged.rmsd == {"": 0}
    assert judged.occupancy_error is None


def test_a_reference_without_the_region_says_nothing(small, tmp_path):
    shutil.copy(small.reference, tmp_path / "model.cif")
    part = read_model(small.model)
    kept = part.only([r for r, residue in enumerate(part.topology.residues) if residue.id.number != 181])
    kept.structure.make_mmcif_document().write_file(str(tmp_path / "reference.cif"))
    assert judge_states(tmp_path, REGION, states(), tmp_path / "reference.cif") is None


def test_states_that_are_not_advised_are_judged_in_the_file_that_has_them(small, tmp_path):
    """``model.cif`` then has one state."""
    one_state(truth()).make_mmcif_document().write_file(str(tmp_path / "model.cif"))
    shutil.copy(small.reference, tmp_path / "alternative.cif")
    made = states((REGION, OCCUPANCY))
    same = Refined(r_work=(0.2, 0.2), r_free=(0.25, 0.25), rscc=(0.8, 0.8))
    refinement = Refinement(cycles=1, start=same, model=same, free_gain=1.0, free_gain_error=2.0)
    made = made.model_copy(update={"refinement": refinement})
    made.states.parts[0].evidence.append(Evidence(states=2, fit=9.0, held_out=-1.0, error=2.0, chosen=True))
    assert not made.advised
    judged = judge_states(tmp_path, REGION, made, small.reference)
    assert judged.found == 2
    assert judged.rmsd == {"A": 0, "B": 0}
