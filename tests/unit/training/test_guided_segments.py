"""Simulated maps, second states and guidance, on ideal chains."""

import json

import numpy as np
import pytest
import torch
from ideal import ideal_corpus, small_network

import guided
from densemble.geometry.restraints import build_restraints
from densemble.geometry.validation import validate
from densemble.grid import Grid
from densemble.metrics.coordinates import rmsd
from fragments import Fragments, second_state
from guided import Case, Settings, density_term, guide, measure, solve, text
from hidden import Hidden, residue_name
from noise import band_limited_noise
from simulated import Where, simulate

START, LENGTH = 20, 6


@pytest.fixture(scope="module")
def corpus():
    return ideal_corpus()


@pytest.fixture(scope="module")
def network():
    return small_network()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("chain", [0, 1, 2])
def test_the_stand_in_is_a_trans_chain_and_knows_no_answer(corpus, chain):
    hidden = Hidden.of(corpus, chain, START, LENGTH)
    moved = corpus.atoms.copy()
    first = corpus.offset[chain] + START
    moved[first : first + LENGTH] = np.nan
    blind = Hidden.of(type(corpus)(moved, *list(vars(corpus).values())[1:]), chain, START, LENGTH)
    assert np.array_equal(hidden.atoms, blind.atoms)
    restraints = hidden.restraints
    assert len(restraints.bonds) == 4 * LENGTH + 1  # three within a residue, and LENGTH + 1 links
    assert len(restraints.omegas) == LENGTH + 1
    assert (restraints.omegas.mean == np.pi).all()
    truth = corpus.chain(chain)[0][START : START + LENGTH].reshape(1, -1, 3)
    report = validate(restraints, torch.from_numpy(truth))
    assert float(report.bond_rmsz.max()) < 1
    assert float(report.angle_rmsz.max()) < 1
    assert int(report.clashes.sum()) == 0


def test_where_a_stand_in_stands_says_nothing_of_prolines(corpus):
    """Somewhere along the stand-in a peptide is nearer to cis: before a proline that would count."""
    types = np.full_like(corpus.types, 12)
    fields = vars(corpus) | {"types": types}
    for chain in range(3):
        hidden = Hidden.of(type(corpus)(**fields), chain, START, LENGTH)
        assert {residue.name for residue in hidden.topology.residues} == {"PRO"}
        assert (hidden.restraints.omegas.mean == np.pi).all()
    by_place = build_restraints(hidden.topology, hidden.coords, hidden.free)
    assert (by_place.omegas.mean == 0).any()


def test_a_segment_needs_two_anchors(corpus):
    with pytest.raises(ValueError, match="two anchors"):
        Hidden.of(corpus, 0, 0, LENGTH)
    assert [residue_name(t) for t in (0, 12, 20)] == ["ALA", "PRO", "UNK"]


@pytest.mark.parametrize("d_min", [1.5, 2.5])
def test_noise_has_its_level_and_ends_at_the_resolution(d_min):
    grid = Grid((0.0, 0.0, 0.0), (0.7, 0.7, 0.7), (40, 36, 44))
    noise = band_limited_noise(grid, d_min, 0.3, generator())
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    axes = np.meshgrid(*(np.fft.fftfreq(n, d=0.7) for n in grid.shape), indexing="ij")
    s = np.sqrt(sum(a**2 for a in axes))
    power = np.abs(np.fft.fftn(noise.numpy())) ** 2
    assert power[s > 1.01 / d_min].max() < 1e-8 * power.max()
    inner, outer = power[s < 0.5 / d_min].mean(), power[(s > 0.8 / d_min) & (s < 1 / d_min)].mean()
    assert inner == pytest.approx(outer, rel=0.25)
    with pytest.raises(ValueError, match="spacing"):
        band_limited_noise(grid, 1.3, 0.3, generator())


def test_box_and_mask_know_no_answer_but_hold_it(corpus):
    hidden = Hidden.of(corpus, 1, START, LENGTH)
    where = Where.of(hidden)
    truth = corpus.chain(1)[0][START : START + LENGTH].astype(float)
    simulated = simulate(where, [truth], [1.0], 2.0, level=0.0, generator=generator())
    assert simulated.covered > 0.8
    assert simulated.noise == 0
    far = truth + 100.0
    assert simulate(where, [truth, far], [0.6, 0.4], 2.0, generator=generator()).covered < 0.5


def test_the_truth_is_more_likely_than_others_and_noise_is_what_it_leaves(corpus):
    where = Where.of(Hidden.of(corpus, 1, START, LENGTH))
    truth = corpus.chain(1)[0][START : START + LENGTH].astype(float)
    other = truth + np.array([0.0, 1.0, 0.0])
    simulated = simulate(where, [truth, other], [0.6, 0.4], 1.5, level=0.2, generator=generator())
    likelihood = simulated.likelihood
    both = torch.tensor(np.stack([truth, other])).float().flatten(1, 2)
    assert likelihood.rms(both, torch.tensor([0.6, 0.4])) == pytest.approx(simulated.noise, rel=0.1)
    assert float(likelihood(both, torch.tensor([0.6, 0.4]))) > float(likelihood(both[:1], torch.ones(1)))
    term = density_term(likelihood, Settings().recipe)
    assert float(term(both[:1], 0.0)) > float(term(both[:1] + 0.5, 0.0))


def test_second_states_are_sound_and_neither_too_near_nor_too_far(corpus):
    hidden = Hidden.of(corpus, 1, START, LENGTH)
    truth = corpus.chain(1)[0][START : START + LENGTH]
    fragments = Fragments(corpus, LENGTH, chains=3, seed=0)
    same = fragments.onto(hidden, leave_out=0)
    assert rmsd(same.reshape(-1, 4 * LENGTH, 3), truth.reshape(-1, 3)).min() < 0.01
    without = fragments.onto(hidden, leave_out=1)
    assert len(without) < len(same)
    # strands cannot be closed onto a strand of other torsions 1.5 Å away, helices not at all
    assert second_state(hidden, truth, fragments, chain=1) is None


def test_a_second_state_is_found_where_there_is_one(corpus, monkeypatch):
    hidden = Hidden.of(corpus, 1, START, LENGTH)
    truth = corpus.chain(1)[0][START : START + LENGTH]
    fragments = Fragments(corpus, LENGTH, chains=3, seed=0)
    monkeypatch.setattr("fragments.APART", (0.0, 4.0))
    found = second_state(hidden, truth, fragments, chain=0)
    assert found.shape == truth.shape
    report = validate(hidden.restraints, torch.from_numpy(found.reshape(1, -1, 3)))
    assert float(report.bond_rmsz.max()) < 1.5
    assert int(report.outliers.sum() + report.clashes.sum()) == 0


def test_guidance_raises_the_likelihood_and_can_be_swapped(corpus, network):
    case = Case.of(corpus, 1, START, LENGTH, network)
    simulated = simulate(case.where, case.states, [1.0], 2.0, generator=generator())
    settings = Settings(members=3, steps=8)
    weights = torch.full((3,), 1 / 3)
    unguided = Settings(members=3, steps=8, recipe=settings.recipe.model_copy(update={"stages": ()}))
    with torch.no_grad():
        before, after = (
            float(simulated.likelihood(guide(case.prior, simulated.likelihood, s), weights))
            for s in (unguided, settings)
        )
    assert after > before
    given = []

    def exact(prior, likelihood, settings):
        given.append(set(settings.terms))
        return torch.from_numpy(case.states[0]).float().reshape(1, -1, 3)

    row = solve(case, simulated, settings, exact)
    assert given == [{"geometry"}]
    assert row["kept"] == [0]
    assert row["rmsd"][0][0] < 0.3
    assert row["drawn"][0][0] < 1e-5


def test_summary_counts_a_state_as_found_by_a_member_kept():
    def row(to_first, to_second, kept, weights):
        return {
            "rmsd": [to_first, to_second],
            "drawn": [to_first, to_second],
            "kept": kept,
            "weights": weights,
            "seconds": 1.0,
            "cpu_seconds": 1.0,
        }

    rows = [
        row([0.3, 2.0, 2.0], [2.0, 0.5, 2.0], [0, 1], [0.6, 0.4]),
        row([0.3, 2.0, 2.0], [2.0, 0.5, 2.0], [0, 2], [0.5, 0.5]),
        row([2.0, 2.0, 2.0], [2.0, 2.0, 0.9], [], []),
    ]
    found = guided.summary(rows, 2)
    assert found["found"] == pytest.approx(1 / 3)
    assert found["found_any"] == pytest.approx(2 / 3)
    assert found["major_found"] == pytest.approx(2 / 3)
    assert found["minor_found"] == pytest.approx(1 / 3)
    assert found["best_median"] == pytest.approx(0.3)
    assert guided.summary(rows[:1], 2)["weighted_median"] == pytest.approx(0.6 * 0.3 + 0.4 * 0.5)
    assert guided.summary([], 1) == {"segments": 0}


def test_the_measurement_fills_every_cell(corpus, network, monkeypatch):
    monkeypatch.setattr("fragments.APART", (0.0, 4.0))
    monkeypatch.setattr("guided.CHAINS", 3)
    seen = []
    result = measure(
        network,
        corpus,
        sets=[("loop", LENGTH)],
        resolutions=[2.5],
        segments=1,
        states=[1, 2],
        settings=Settings(members=2, steps=2),
        seed=0,
        on_case=lambda r: seen.append(json.dumps(r)),
    )
    one, two = result["cells"]
    assert (one["states"], two["states"]) == (1, 2)
    assert one["segments"] == 1
    assert two["segments"] + result["without_second_state"][f"loop {LENGTH}"] == 1
    assert len(seen) == one["segments"] + two["segments"]
    assert "loop 6" in text(result)


def test_a_run_that_was_stopped_goes_on(corpus, network):
    """Its cases are taken over, and those that follow are what they would have been."""
    given = {
        "sets": [("loop", LENGTH)],
        "resolutions": [2.5],
        "states": [1],
        "settings": Settings(members=2, steps=2),
        "seed": 0,
    }
    whole, solved = measure(network, corpus, segments=2, **given), []
    first = json.loads(json.dumps(measure(network, corpus, segments=1, **given)))
    on = measure(network, corpus, segments=2, earlier=first, on_case=solved.append, **given)
    assert len(solved) == 1
    both = [[c["chain"], c["start"], c["rmsd"]] for c in on["cells"][0]["cases"]]
    assert both == [[c["chain"], c["start"], c["rmsd"]] for c in whole["cells"][0]["cases"]]
    with pytest.raises(ValueError, match="other settings"):
        measure(network, corpus, segments=2, earlier=first, **given | {"seed": 1})
