"""From members to states: on a small crystal whose two states and occupancies are known."""

import numpy as np
import pytest
import small_crystal
import torch

from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.inputs import load
from densemble.io.models import alternates
from densemble.metrics.coordinates import nearest_naming, rmsd
from densemble.pipeline import problem_of
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.settle import Settling
from densemble.states import Counting, find_states, same_within

QUICK = Counting(settling=Settling(rounds=1, evaluations=8))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    crystal = small_crystal.write_crystal(tmp_path_factory.mktemp("states"))
    inputs = load(crystal.settings())
    problem = problem_of(crystal.settings(), inputs)
    stretches = inputs.stretches
    residues = [inputs.model.topology.residues[r].id for r in stretches.free]
    judge = AmplitudeJudge.of(inputs.model.structure, residues, stretches.topology, inputs.reflections)
    known = alternates(crystal.reference, stretches.topology)
    return problem, judge, {name: torch.as_tensor(known[name].coords).float() for name in "AB"}


def copies(problem, x, count, seed):
    """Conformations that are off by about 0.2 Å."""
    generator = torch.Generator().manual_seed(seed)
    moved = x + 0.12 * torch.randn(count, *x.shape, generator=generator)
    return regularise(moved, GeometryObjective(problem.restraints()), evaluations=15).coords


def test_two_states_and_their_occupancies(case):
    problem, judge, known = case
    start = problem.stretches.start
    members = torch.cat([start[None], copies(problem, known["B"], 2, 0), copies(problem, known["A"], 2, 1)])
    states, parts = find_states(problem, members, judge, same=same_within(2.0), counting=QUICK)
    two = max(states.parts, key=lambda part: len(part.states))
    assert [s.label for s in two.states] == ["A", "B"]
    assert [s.occupancy for s in two.states] == pytest.approx([0.61, 0.39], abs=0.06)
    assert set(two.states[0].members) <= {0, 1, 2}
    assert set(two.states[1].members) <= {3, 4}
    assert all(s.interval.low <= s.occupancy <= s.interval.high for s in two.states)
    assert [e.states for e in two.evidence if e.chosen] == [2]
    assert two.evidence[1].held_out > 1.645 * two.evidence[1].error
    # the parts are all atoms, each once
    topology = problem.stretches.topology
    names = sorted((r.id, n) for p in parts for r, n in atoms(p.topology))
    assert names == sorted((r.id, n) for r, n in atoms(topology))
    assert [len(p) for p in parts[: len(states.parts)]] == [len(p.states) for p in states.parts]
    for part in parts:
        assert float(part.weights.sum()) == pytest.approx(1)
    found = parts[[len(p.states) for p in states.parts].index(2)]
    own = np.flatnonzero([(r.id, n) in set(named(found.topology)) for r, n in atoms(topology)])
    for state, name in zip(found.coords, "BA", strict=True):
        # equivalent atoms are named as is nearest to the start, not as in the truth
        alike = nearest_naming(found.topology, state.double().numpy(), known[name][own].double().numpy())
        assert rmsd(alike, known[name][own].double().numpy()) < 0.5


def test_where_all_members_agree_there_is_nothing_to_choose(case):
    problem, judge, _ = case
    members = problem.stretches.start + 0.02 * torch.randn(
        4, *problem.stretches.start.shape, generator=torch.Generator().manual_seed(0)
    )
    states, parts = find_states(problem, members, judge, same=0.5, counting=QUICK)
    assert states.parts == []
    assert [len(p) for p in parts] == [1]
    assert len(parts[0].topology) == len(problem.stretches.topology)


def test_a_state_that_is_not_there_is_not_believed(case):
    """Beside both true states, the loop moved aside as a whole."""
    problem, judge, known = case
    bent = known["B"] + torch.tensor([0.0, 2.5, 0.0])
    members = torch.stack([problem.stretches.start, known["A"], bent])
    states, _ = find_states(problem, members, judge, same=same_within(2.0), counting=QUICK)
    assert all(2 not in s.members for part in states.parts for s in part.states)


def atoms(topology):
    return [(topology.residues[r], n) for r, n in zip(topology.residue_index, topology.names, strict=True)]


def named(topology):
    return [(r.id, n) for r, n in atoms(topology)]


def test_what_counts_as_the_same():
    assert same_within(2.0) == 0.5
    assert same_within(2.0, error=0.3) == pytest.approx(0.849, abs=1e-3)
