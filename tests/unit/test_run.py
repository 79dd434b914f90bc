"""One guided sampling run: its prior, terms, stages, checkpoints, selection and refinement."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_crystal import OCCUPANCY, write_crystal

from densemble.assembly import embedded_prior, gaussian_prior
from densemble.errors import InputError
from densemble.evaluation import reference_states
from densemble.geometry.objective import GeometryObjective
from densemble.grid import DensityMap
from densemble.guidance.guided import AllAtom
from densemble.guidance.stage import Stage
from densemble.inputs import load, problem_of
from densemble.priors.edm import EDM
from densemble.priors.gaussian import anchored_chain
from densemble.recipes import Rounds, StageRecipe, Starts
from densemble.region import Draw, finisher
from densemble.rounds import Pass
from densemble.run import (
    Checkpoints,
    choose_members,
    density_term,
    guidance_terms,
    member_score,
    passes_of,
    pursue_members,
    refine,
    regularise_members,
    residue_support,
    sample_members,
    stages_of,
)
from densemble.selection.amplitudes import AmplitudeJudge
from densemble.selection.judge import fit_shares
from densemble.testing import chain_topology


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture(scope="module")
def inputs(crystal):
    return load(crystal.settings())


@pytest.fixture(scope="module")
def problem(crystal, inputs):
    return problem_of(crystal.settings(), inputs)


@pytest.fixture(scope="module")
def states(crystal, problem):
    found = reference_states(crystal.reference, problem.stretches)
    return torch.as_tensor(np.stack([found["A"], found["B"]]), dtype=torch.float32)


def showing(problem, coords, weights):
    """The problem with the density of known members as its target."""
    with torch.no_grad():
        density = problem.forward(coords, torch.tensor(weights), problem.b_start)
    return replace(problem, target=DensityMap(problem.target.grid, density))


# prior


def test_gaussian_prior_is_centred_on_the_start_and_held_at_both_ends(inputs):
    prior = gaussian_prior(inputs.stretches, inputs.recipe)
    assert len(prior.topology) == 4 * 8
    start = inputs.stretches.start[torch.as_tensor(inputs.stretches.backbone_atoms)]
    assert torch.equal(prior.mean, start)
    spread = prior.covariance.diagonal().sqrt()
    assert float(spread[0]) < float(spread[16])
    assert float(spread[-2]) < float(spread[16])  # C of the last residue


def test_gaussian_prior_is_free_at_a_chain_end(crystal):
    inputs = load(crystal.settings(region="A:190-194"))
    spread = gaussian_prior(inputs.stretches, inputs.recipe).covariance.diagonal().sqrt()
    assert float(spread[-1]) > 3 * float(spread[0])
    assert float(spread[-1]) == pytest.approx(inputs.recipe.gaussian.amplitude, rel=0.1)


def test_several_stretches_are_independent(crystal):
    inputs = load(crystal.settings(region="A:175-177,A:184-187"))
    prior = gaussian_prior(inputs.stretches, inputs.recipe)
    assert prior.covariance.shape == (28, 28)
    assert float(prior.covariance[:12, 12:].abs().max()) == 0
    assert float(prior.covariance[:12, :12].abs().max()) > 0


# terms and stages


@pytest.mark.parametrize("guide", ["ensemble", "each"])
def test_density_term_is_the_likelihood_of_the_blurred_map_at_equal_weights(problem, inputs, states, guide):
    term = density_term(problem, guide, problem.b_start, inputs.recipe)
    likelihood = problem.likelihood(guide, problem.b_start)
    half = torch.full((2,), 0.5)
    per_sigma, limit = inputs.recipe.density.blur_per_sigma, inputs.recipe.density.blur_limit
    assert (per_sigma, limit) == (0.5, 2.0)
    cases = ((0.0, 0.0), (0.07, 0.0), (0.42, 0.2), (1.0, 0.5), (3.86, 1.9), (4.0, 2.0), (50.0, 2.0))
    for sigma, blur in cases:
        expected = float(likelihood(states, half, blur=round(blur * 10) * 0.1))
        assert float(term(states, sigma)) == pytest.approx(expected, rel=1e-6)
    assert float(term(states, 4.0)) != float(term(states, 0.0))


def test_term_of_the_ensemble_knows_that_states_share_the_map(problem, inputs, states):
    """Both states together explain their mixture; each alone does not."""
    exact = showing(problem, states, [0.5, 0.5])
    joint, each = (density_term(exact, g, problem.b_start, inputs.recipe) for g in ("ensemble", "each"))
    assert float(joint(states, 0.0)) == pytest.approx(0, abs=1e-3)
    assert float(each(states, 0.0)) < -1


def beside(recipe):
    """The recipe, seeking members beside the start in two rounds."""
    rounds = Rounds(count=2, sigma=3.0, steps=7, share=0.5, window=(2, 3))
    density = recipe.density.model_copy(update={"ensemble": "beside_start"})
    return recipe.model_copy(update={"density": density, "rounds": rounds})


def test_beside_the_start_the_start_gains_nothing_and_the_other_state_does(problem, inputs, states):
    exact = showing(problem, states, [0.39, 0.61])
    recipe = beside(inputs.recipe)
    term = density_term(exact, "ensemble", problem.b_start, recipe)
    start = problem.stretches.start[None]
    assert float(term(states[:1], 0.0)) > 100
    assert float(term(start, 0.0)) < 0.02 * float(term(states[:1], 0.0))
    each = density_term(exact, "each", problem.b_start, recipe)
    plain = density_term(exact, "each", problem.b_start, inputs.recipe)
    assert float(each(states, 0.0)) == float(plain(states, 0.0))  # the ablation knows no start


def test_score_is_fit_and_stereochemistry_of_each_member(problem, inputs, states):
    exact = showing(problem, states, [0.39, 0.61])
    soft = GeometryObjective(problem.restraints(), cap=5.0)
    recipe = beside(inputs.recipe)
    joint = member_score(exact, "ensemble", soft, recipe)(states)
    gain = exact.beside_start(problem.b_start)(states)
    assert torch.allclose(joint - soft.per_member(states), gain, atol=1e-2)
    each = member_score(exact, "each", soft, recipe)(states) - soft.per_member(states)
    one = torch.ones(1)
    for found, x in zip(each, states, strict=True):
        alone = exact.likelihood("ensemble", problem.b_start)(x[None], one)
        assert float(found) == pytest.approx(float(alone), rel=1e-3)
    assert float(gain[0]) > 10 * float(gain[1])  # the second state is the one that is missing
    assert float(each[1]) > float(each[0])  # alone, the major one explains more


def test_support_is_the_density_that_a_residues_backbone_stands_in(problem, inputs, states):
    exact = showing(problem, states, [0.39, 0.61])
    rows = torch.as_tensor(problem.stretches.backbone_atoms).reshape(-1, 4)
    for recipe, guide, beside_start in (
        (inputs.recipe, "each", False),
        (beside(inputs.recipe), "ensemble", True),
    ):
        at = exact.density_at(1.0, beside_start=beside_start)
        expected = torch.stack([at(states[:, row]).mean(1) for row in rows], 1)
        found = residue_support(exact, guide, recipe)(states)
        assert torch.allclose(found, expected, atol=1e-6)
    assert float(found[0].mean()) > 5 * float(
        found[1].abs().mean()
    )  # beside the start the other state is missing


def test_rounds_are_for_guides_that_compare_members(inputs):
    recipe = beside(inputs.recipe)
    assert passes_of("none", 9, recipe) == [Pass(9)]
    assert passes_of("ensemble", 9, inputs.recipe) == [Pass(9)]
    rounds = [Pass(7, 3.0, 0.5, (2, 3))] * 2
    assert passes_of("each", None, recipe) == [Pass(recipe.noise.steps), *rounds]
    starting = recipe.model_copy(update={"starts": Starts(noise=(1.5, 4.0), steps=11)})
    starts = [Pass(11, 1.5, from_start=True), Pass(11, 4.0, from_start=True)]
    assert passes_of("ensemble", None, starting) == [*starts, *rounds]
    assert passes_of("ensemble", 5, starting)[1] == Pass(5, 4.0, from_start=True)
    assert passes_of("none", 9, starting) == [Pass(9)]
    wide = recipe.rounds.model_copy(update={"temperature": 15.0, "alike": 0.8})
    last = passes_of("each", None, recipe.model_copy(update={"rounds": wide}))[-1]
    assert last == Pass(7, 3.0, 0.5, (2, 3), temperature=15.0, alike=0.8)


def drawn(inputs, **changes):
    """How members are drawn, with changes to the recipe's side chains."""
    recipe = beside(inputs.recipe)
    steps = recipe.sidechains.model_copy(update=changes)
    finish = recipe.finish.model_copy(update={"regularise_steps": 30})
    recipe = recipe.model_copy(update={"sidechains": steps, "finish": finish})
    return Draw(prior=inputs.prior, recipe=recipe, members=2, keep=2, steps=None, seed=0)


def test_members_go_on_with_the_side_chains_that_score_higher(problem, inputs, states):
    """From the other state with all its side chains turned away: fine choices bring most of them back."""
    truth = states[:1].repeat(2, 1, 1)
    chains, moving = problem.side_chains(2), [r for part in problem.stretches.moving for r in part]
    rows = torch.as_tensor(problem.stretches.topology.backbone(moving))
    chains.adopt(truth)
    chains.chi = chains.chi + torch.tensor([0.0, 1.0])[:, None, None]  # of the second member alone
    atoms = chains.complete(truth[:, rows])
    once, fine = drawn(inputs), drawn(inputs, fine_gain=8.0)
    density = density_term(problem, "ensemble", problem.b_start, fine.recipe)
    soft = GeometryObjective(problem.restraints(), cap=fine.recipe.geometry_cap)
    score = member_score(problem, "ensemble", soft, fine.recipe)
    given = problem, GeometryObjective(problem.restraints())
    found = [finisher(*given, draw, "ensemble", density, score, 2)(atoms) for draw in (once, fine)]
    scores = [score(x) for x in found]
    assert bool((scores[1] >= scores[0]).all())
    assert float(scores[1][1] - scores[0][1]) > 20
    alone = finisher(*given, fine, "none", None, None, 2)(atoms)  # nothing to compare members by
    assert torch.equal(alone, finisher(*given, once, "none", None, None, 2)(atoms))


def test_contacts_are_a_part_of_the_stereochemistry(problem, inputs, states):
    restraints = problem.restraints()
    terms = guidance_terms(restraints, None, inputs.recipe)
    assert set(terms) == {"geometry", "contacts"}
    crowded = torch.cat([states, states + 1.5])
    soft = GeometryObjective(restraints, cap=inputs.recipe.geometry_cap)
    assert float(terms["geometry"](crowded, 1.0)) == pytest.approx(float(soft(crowded)))
    assert float(terms["contacts"](crowded, 1.0)) == pytest.approx(
        float(soft.terms(crowded)["contacts"].sum())
    )
    assert float(terms["contacts"](crowded, 1.0)) < 0


def test_embedded_prior_begins_its_noise_at_the_start(inputs):
    prior = embedded_prior(inputs.stretches, inputs.recipe)
    start = inputs.stretches.start[torch.as_tensor(inputs.stretches.backbone_atoms)]
    assert torch.equal(prior.process.center, start)
    assert prior.process.sigma_max == inputs.recipe.noise.sigma_max
    assert prior.topology.names == gaussian_prior(inputs.stretches, inputs.recipe).topology.names


def test_stages_are_those_whose_terms_take_part(inputs):
    terms = {"geometry": lambda x, sigma: x.sum()}
    (stage,) = stages_of(inputs.recipe, terms)
    (data,) = (s for s in inputs.recipe.stages if s.term == "geometry")
    assert (stage.name, stage.term) == ("geometry", terms["geometry"])
    for key in StageRecipe.model_fields.keys() - {"term"}:
        assert getattr(stage, key) == getattr(data, key)
    both = stages_of(inputs.recipe, terms | {"density": terms["geometry"]})
    assert [s.name for s in both] == [s.term for s in inputs.recipe.stages]


# checkpoints


def test_checkpoint_comes_back(tmp_path):
    written = Checkpoints(tmp_path / "c.pt", "key")
    written.current = {"guide": "each", "x": torch.arange(6.0).reshape(1, 2, 3), "trace": [{"sigma": 1.5}]}
    written.finish("none", {"atoms": torch.ones(1, 2, 3), "trace": []})
    assert written.current == {}
    written.current = {"guide": "each", "step": 3}
    written.save()
    read = Checkpoints(tmp_path / "c.pt", "key")
    read.load()
    assert read.current == {"guide": "each", "step": 3}
    assert torch.equal(read.finished["none"]["atoms"], torch.ones(1, 2, 3))
    assert [f.name for f in tmp_path.iterdir()] == ["c.pt"]  # no part of a file is left


def test_checkpoint_of_another_run_is_refused(tmp_path):
    Checkpoints(tmp_path / "c.pt", "one").save()
    other = Checkpoints(tmp_path / "c.pt", "another")
    with pytest.raises(InputError, match=r"c\.pt: belongs to a run with other inputs or settings"):
        other.load()


def test_no_checkpoint_is_a_new_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c.pt", "key")
    checkpoints.load()
    assert (checkpoints.finished, checkpoints.current) == ({}, {})


ONE_PASS = (Pass(25),)


class Counting(AllAtom):
    """A completion with a state that a resumed run must have."""

    def __init__(self) -> None:
        self.calls = 0

    def update(self, x0_hat, sigma) -> None:
        self.calls += 1

    def __call__(self, x0_hat):
        return x0_hat + 0.01 * self.calls

    def adopt(self, atoms) -> None:
        self.calls += 1

    def state_dict(self):
        return {"calls": torch.tensor(self.calls)}

    def load_state_dict(self, state) -> None:
        self.calls = int(state["calls"])


class KilledError(Exception):
    """Stands for the user's Ctrl-C."""


def toy(checkpoints, on_step, *, passes=ONE_PASS):
    topology = chain_topology(4)
    start = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    prior = anchored_chain(
        topology,
        start,
        [[0, 1, 2, 3]],
        anchored=[(True, True)],
        amplitude=1.0,
        smoothness=2.0,
        jitter=0.1,
        process=EDM(center=start, sigma_max=5.0, churn=0.3),
    )
    stage = Stage(name="pull", term=lambda x, sigma: -((x - 1) ** 2).sum(), high=2.0, weight=0.01)
    return sample_members(
        prior,
        [stage],
        Counting(),
        guide="ensemble",
        passes=passes,
        backbone=np.arange(16),
        finish=lambda atoms: atoms + 0.1,
        score=lambda atoms: -atoms.square().sum((1, 2)),
        members=2,
        seed=3,
        start=start + 0.5,
        checkpoints=checkpoints,
        on_step=on_step,
    )


@pytest.mark.parametrize("kill", [4, 10, 17, 20, 25])
def test_sampling_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, kill):
    whole, trace = toy(Checkpoints(tmp_path / "a.pt", "k"), lambda step: None)

    def stop(step: int) -> None:
        if step == kill:
            raise KilledError

    path = tmp_path / "b.pt"
    with pytest.raises(KilledError):
        toy(Checkpoints(path, "k"), stop)
    steps: list[int] = []
    again = Checkpoints(path, "k")
    again.load()
    resumed, resumed_trace = toy(again, steps.append)
    last_saved = min(kill // 10 * 10, 20)  # every 10 steps, not at the end
    assert steps == list(range(max(last_saved, 1), 26))
    assert torch.equal(resumed, whole)
    assert resumed_trace == trace
    assert trace


ROUNDS = (Pass(12), *[Pass(15, 1.0, 0.6, (1, 2))] * 2)
STARTS = (Pass(12, 1.0, from_start=True), Pass(15, 2.0, from_start=True), Pass(15, 1.0, 0.6, (1, 2)))


@pytest.mark.parametrize("passes", [ROUNDS, STARTS], ids=["noise", "start"])
@pytest.mark.parametrize("kill", [9, 24, 30, 34, 41])
def test_rounds_go_on_from_a_checkpoint_to_the_same_bits(tmp_path, kill, passes):
    """Killed in the first pass, at its end, in the second pass (after its step 10), and in the third."""
    told: list[int] = []
    whole, trace = toy(Checkpoints(tmp_path / "a.pt", "k"), told.append, passes=passes)
    assert told == list(range(1, 43))

    def stop(step: int) -> None:
        if step == kill:
            raise KilledError

    path = tmp_path / "b.pt"
    with pytest.raises(KilledError):
        toy(Checkpoints(path, "k"), stop, passes=passes)
    steps: list[int] = []
    again = Checkpoints(path, "k")
    again.load()
    resumed, resumed_trace = toy(again, steps.append, passes=passes)
    saved = max(s for s in (0, 10, 22, 37) if s <= kill)  # step 10 of each pass
    assert steps == list(range(max(saved, 1), 43))
    assert torch.equal(resumed, whole)
    assert resumed_trace == trace


def test_checkpoint_of_another_guide_is_not_gone_on_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c.pt", "k")
    whole, _ = toy(Checkpoints(tmp_path / "a.pt", "k"), lambda step: None)
    checkpoints.current = {"guide": "each", "step": 10}
    found, _ = toy(checkpoints, lambda step: None)
    assert torch.equal(found, whole)


# after sampling


def as_it_is(ensemble):
    return ensemble


def test_selection_finds_the_members_that_made_the_map(problem, states):
    exact = showing(problem, states, [0.39, 0.61])
    drift = states[1] + torch.linspace(-2, 2, states.shape[1])[:, None]
    candidates = torch.stack([states.mean(0), states[0], drift, states[1], states[1] + 1.5])
    members, ensemble = choose_members(exact, candidates, keep=2, settle=as_it_is)
    assert set(members) == {1, 3}
    weights = dict(zip(members, ensemble.weights.tolist(), strict=True))
    assert (weights[1], weights[3]) == pytest.approx((0.39, 0.61), abs=0.02)
    assert torch.equal(ensemble.coords, candidates[list(members)])
    shift = ensemble.b_iso[0] - problem.b_start  # the map was made with the start's B factors
    assert float(shift.abs().median()) < 3


def test_selection_keeps_no_more_than_told(problem, states):
    exact = showing(problem, states, [0.39, 0.61])
    members, ensemble = choose_members(exact, states, keep=1, settle=as_it_is)
    assert len(members) == len(ensemble) == 1
    assert ensemble.weights.tolist() == [1.0]


def test_map_that_no_member_explains_is_an_error(problem, states):
    inverted = showing(problem, states, [0.5, 0.5])
    target = DensityMap(inverted.target.grid, -inverted.target.values)
    with pytest.raises(InputError, match="no member"):
        choose_members(replace(inverted, target=target), states, keep=2, settle=as_it_is)


def test_a_member_must_be_worth_its_parameters(problem, states):
    """The same second state is kept where the data are good, and not where they are noisy."""
    exact = showing(problem, states, [0.2, 0.8])

    def kept(sigma):
        return len(choose_members(replace(exact, sigma=sigma), states, keep=2, settle=as_it_is)[1])

    gains = []
    for sigma in (0.01, 10.0):
        likelihood = replace(exact, sigma=sigma).likelihood("ensemble", problem.b_start)
        both = float(likelihood(states, torch.tensor([0.2, 0.8])))
        gains.append(both - float(likelihood(states[1:], torch.ones(1))))
    assert gains[0] > problem.stretches.torsions + 1 > gains[1]
    assert (kept(0.01), kept(10.0)) == (2, 1)


def test_reflections_choose_where_they_are_asked(inputs, problem, states):
    """Weights are those of the data; a single member that refinement makes worse is taken as it was."""
    judge = AmplitudeJudge.of(problem.models, problem.stretches.topology, inputs.reflections)
    members, ensemble = choose_members(problem, states, keep=2, settle=as_it_is, judge=judge)
    assert sorted(members) == [0, 1]
    atoms, x, b = (
        np.arange(states.shape[1]),
        ensemble.coords.double().numpy(),
        ensemble.b_iso.double().numpy(),
    )
    signals = judge.signals(atoms, x, b)
    shares = fit_shares(judge, signals, np.array([0.5, 0.5]), np.zeros(2, dtype=int))
    assert ensemble.weights.numpy() == pytest.approx(shares, abs=1e-3)
    assert dict(zip(members, shares, strict=True))[0] == pytest.approx(OCCUPANCY["A"], abs=0.06)

    def away(ensemble):
        return replace(ensemble, coords=ensemble.coords + 1.0)

    members, ensemble = choose_members(problem, states, keep=2, settle=away, judge=judge)
    assert torch.equal(ensemble.coords, states[list(members)])
    assert len(members) == 1


def test_torsions_are_counted(problem):
    """phi and psi of each residue of the region, and the chi angles of each side chain."""
    topology = problem.stretches.topology
    chi = {"ALA": 0, "ASP": 2, "GLU": 3, "GLY": 0, "PHE": 2, "PRO": 2, "SER": 1, "THR": 1, "TRP": 2, "VAL": 1}
    names = [residue.name for residue in topology.residues]
    region = sum(len(stretch) for stretch in problem.stretches.residues)
    assert problem.stretches.torsions == 2 * region + sum(chi[name] for name in names)


def test_regularisation_repairs_geometry(problem, states, inputs):
    geometry = GeometryObjective(problem.restraints())
    noise = 0.15 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    finish = inputs.recipe.finish.model_copy(update={"regularise_steps": 40})
    fixed = regularise_members(states + noise, geometry, None, finish)
    assert float(geometry(fixed)) > 0.2 * float(geometry(states + noise))
    assert fixed.shape == states.shape


def test_regularisation_with_density_stays_closer_to_the_map(problem, states, inputs):
    exact = showing(problem, states, [0.5, 0.5])
    geometry = GeometryObjective(problem.restraints())
    noise = 0.15 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    density = density_term(exact, "ensemble", problem.b_start, inputs.recipe)
    finish = inputs.recipe.finish.model_copy(update={"regularise_steps": 30})
    without = regularise_members(states + noise, geometry, None, finish)
    weighted = regularise_members(
        states + noise, geometry, density, finish.model_copy(update={"density_weight": 100.0})
    )
    unweighted = regularise_members(
        states + noise, geometry, density, finish.model_copy(update={"density_weight": 0.0})
    )
    assert float(density(weighted, 0.0)) > float(density(without, 0.0))
    assert torch.allclose(unweighted, without, atol=1e-3)


def test_refinement_betters_the_fit_and_keeps_the_members(problem, states, inputs):
    exact = showing(problem, states, [0.39, 0.61])
    noise = 0.2 * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    _, ensemble = choose_members(
        replace(exact, sigma=1e-3 * exact.sigma),
        states + noise,
        keep=2,
        settle=as_it_is,
    )
    geometry = GeometryObjective(problem.restraints())
    finish = inputs.recipe.finish.model_copy(update={"refine_steps": 25, "density_weight": 10.0})
    refined = refine(exact, ensemble, geometry, finish, "ensemble")
    assert len(refined) == 2
    assert refined.topology is ensemble.topology
    assert float(refined.weights.sum()) == pytest.approx(1, abs=1e-5)

    def residual(e) -> float:
        return exact.likelihood("ensemble", e.b_iso[0]).rms(e.coords, e.weights)

    assert residual(refined) < 0.6 * residual(ensemble)
    assert float((refined.coords - ensemble.coords).norm(dim=-1).max()) > 0.05


def test_paper_1_keeps_members_as_they_are_at_equal_weights(problem, states):
    """Algorithm A2 on plain means: both states of an even mixture, in the order of what they explain."""
    exact = showing(problem, states, [0.5, 0.5])
    candidates = torch.cat([states[:1] + 4.0, states])
    members, ensemble = pursue_members(exact, candidates, keep=5)
    assert set(members) == {1, 2}
    assert ensemble.weights.tolist() == [0.5, 0.5]
    assert torch.equal(ensemble.coords, candidates[list(members)])
    assert torch.equal(ensemble.b_iso[0], exact.b_start)
    assert len(pursue_members(exact, candidates, keep=1)[0]) == 1
    inverted = replace(exact, target=DensityMap(exact.target.grid, -exact.target.values))
    with pytest.raises(InputError, match="no member has a positive correlation"):
        pursue_members(inverted, states, keep=2)
