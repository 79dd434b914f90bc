"""From members to states: on a small crystal whose two states and occupancies are known."""

from dataclasses import replace

import numpy as np
import pytest
import small_crystal
import torch

from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.grid import DensityMap
from densemble.inputs import load, problem_of
from densemble.io.models import alternates
from densemble.metrics.coordinates import nearest_naming, rmsd
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.selection.parts import spans_of
from densemble.selection.voxels import MapJudge
from densemble.settle import Settling
from densemble.states import Counting, find_states, same_within

QUICK = Counting(settling=Settling(rounds=1, evaluations=8))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    crystal = small_crystal.write_crystal(tmp_path_factory.mktemp("states"))
    inputs = load(crystal.settings())
    problem = problem_of(crystal.settings(), inputs)
    stretches = inputs.stretches
    judge = AmplitudeJudge.of(problem.models, stretches.topology, inputs.reflections)
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


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("bridged", [True, False])
def test_two_ends_that_combine_freely_are_two_parts(case, halves, bridged):
    """Each has its own occupancies, also where no member shows the one without the other.

    With a member that is elsewhere throughout, all is one part at first: of two states, then of two pieces.
    """
    problem, ends, members, target, other = free_ends(case[0])
    inside = problem.mask > 0.5
    judge = MapJudge(problem.forward, target, other if halves else None, inside, sigma=0.1, edge=2.0)
    as_sampled = Counting(settling=Settling(rounds=0))
    problem = replace(problem, target=target, sigma=0.1)
    states, parts = find_states(
        problem, members if bridged else members[:2], judge, same=0.5, counting=as_sampled
    )
    ids = [[problem.stretches.topology.residues[r].id for r in end] for end in ends]
    assert [p.region for p in states.parts] == [spans_of(names) for names in ids]
    assert [[s.occupancy for s in p.states] for p in states.parts] == [
        pytest.approx([0.6, 0.4], abs=0.02),
        pytest.approx([0.7, 0.3], abs=0.02),
    ]
    assert [[s.members for s in p.states] for p in states.parts] == [[[0], [1]], [[0], [1]]]
    assert [len(p) for p in parts] == [2, 2, 1]
    assert ("half map" in states.rule) == halves


def free_ends(problem):
    """Of eight residues the second and third, and the sixth and seventh, in two states each."""
    topology, x = problem.stretches.topology, problem.stretches.start
    ends = [[1, 2], [5, 6]]
    shared = topology.atoms_of([0, 3, 4, 7])
    density = problem.forward.of_atoms(shared)(x[shared][None], torch.ones(1), problem.b_start[shared])
    both = x.clone()
    for end, weights, by in zip(ends, ([0.6, 0.4], [0.7, 0.3]), ([0, 0, 1.5], [1.2, 1.2, 0]), strict=True):
        own = topology.atoms_of(end)
        both[own] += torch.tensor(by)
        states, b_iso = torch.stack([x[own], both[own]]), problem.b_start[own]
        density = density + problem.forward.of_atoms(own)(states, torch.tensor(weights), b_iso)
    elsewhere = x + torch.tensor([0.0, -3.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    noisy = [
        DensityMap(problem.target.grid, density + 0.1 * torch.randn(density.shape, generator=generator))
        for _ in range(2)
    ]
    return problem, ends, torch.stack([x, both, elsewhere]), *noisy


def atoms(topology):
    return [(topology.residues[r], n) for r, n in zip(topology.residue_index, topology.names, strict=True)]


def named(topology):
    return [(r.id, n) for r, n in atoms(topology)]


def test_what_counts_as_the_same():
    assert same_within(2.0) == 0.5
