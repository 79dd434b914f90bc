"""How the parts of a region are taken apart once their states are known."""

import numpy as np
import pytest
import small_crystal
import torch

from densemble.inputs import load, problem_of
from densemble.io.model_results import Evidence
from densemble.part_search import Counting, PartSearch, _in_words
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.selection.number import Choice
from densemble.settle import Place
from densemble.sidechains.residues import chi_atoms


class TwoStates(PartSearch):
    """Takes the first two members as the states of every part, without asking the data."""

    def decided(self, residues, others, pool, numbers, believed=1):
        atoms = self.atoms_of(residues)
        b_iso = self.problem.b_start[atoms]
        evidence = (Evidence(states=2, fit=1.0, chosen=True),)
        return self.model(residues, pool[:2, atoms], np.array([0.6, 0.4]), b_iso, (0, 1), evidence)


@pytest.fixture(scope="module")
def problem_and_judge(tmp_path_factory):
    crystal = small_crystal.write_crystal(tmp_path_factory.mktemp("parts"))
    settings = crystal.settings(region="A:176-191")
    inputs = load(settings)
    stretches = inputs.stretches
    problem = problem_of(settings, inputs)
    judge = AmplitudeJudge.of(problem.models, stretches.topology, inputs.reflections)
    return problem, judge


def test_every_part_gives_back_what_its_states_share(problem_and_judge):
    """Two parts of five residues, for a third member moves so much; their states differ in one residue."""
    problem, judge = problem_and_judge
    topology, start = problem.stretches.topology, problem.stretches.start
    place = {residue.id.number: r for r, residue in enumerate(topology.residues)}

    def moved(numbers):
        x = start.clone()
        x[topology.atoms_of([place[n] for n in numbers])] += torch.tensor([0.0, 1.0, 0.0])
        return x

    members = torch.stack([start, moved([178, 188]), moved([*range(176, 181), *range(186, 191)])])
    search = TwoStates(problem, judge, 0.5, Counting(), members, lambda text: None)
    parts = search.run()
    states = {tuple(topology.residues[r].id.number for r in p.residues): len(p) for p in parts}
    assert {numbers: n for numbers, n in states.items() if n > 1} == {(178,): 2, (188,): 2}
    (rest,) = (numbers for numbers, n in states.items() if n == 1)
    assert sorted([*rest, 178, 188]) == list(range(176, 192))


def test_a_start_that_is_not_bettered_counts_as_it_is(problem_and_judge, monkeypatch):
    """Settled models that fit the data less well than it are not believed, however they compare."""
    problem, judge = problem_and_judge
    start = problem.stretches.start
    settled = Place.settled

    def worse(self, coords, weights, how):
        coords, weights, b_iso = settled(self, coords, weights, how)
        return coords + 0.6 / len(coords), weights, b_iso

    monkeypatch.setattr(Place, "settled", worse)
    members = torch.stack([start, start + torch.tensor([0.0, 1.5, 0.0])])
    search = PartSearch(problem, judge, 0.5, Counting(), members, lambda text: None)
    part = max(search.run(), key=lambda part: len(part.residues))
    assert torch.equal(part.coords[0], start[part.atoms])
    assert len(part) == 1


def test_what_a_state_more_is_asked_for_is_a_nat_for_each_of_its_parameters(problem_and_judge):
    problem, judge = problem_and_judge
    start = problem.stretches.start
    search = PartSearch(problem, judge, 0.5, Counting(), start[None], lambda text: None)
    residues = [2, 3, 4, 5]
    atoms = search.atoms_of(residues)
    models = [
        search.model(
            residues, start[atoms].expand(n, -1, -1), np.full(n, 1 / n), problem.b_start[atoms], (0,) * n
        )
        for n in (1, 2, 3)
    ]
    evidence = search.evidence(models, [], Choice(1, (0.0, 1.0, 2.0), (0.0, 1.0, 1.0)))
    # chi angles; phi and psi of four residues, less the six that close the stretch; an occupancy
    chi = sum(len(chi_atoms(problem.stretches.topology.residues[r].name)) for r in residues)
    assert chi > 0
    assert [e.asked for e in evidence] == [0, chi + 2 + 1, 2 * (chi + 2 + 1)]


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (Evidence(states=1, fit=0.0, held_out=0.0, chosen=True), "1 state: taken"),
        (
            Evidence(states=2, fit=49.21, held_out=-6.53, error=5.58),
            "2 states: fit +49.2, held out -6.5 ± 5.6 log units, not taken",
        ),
        (Evidence(states=2, fit=49.21, chosen=True), "2 states: fit +49.2 log units, taken"),
    ],
)
def test_what_speaks_for_a_number_of_states_is_said_in_log_units(evidence, said):
    assert _in_words(evidence) == said
