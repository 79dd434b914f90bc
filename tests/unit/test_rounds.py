"""Sampling in rounds, on priors whose samples are known."""

import itertools
from copy import copy
from dataclasses import replace

import pytest
import torch

from densemble.guidance.guided import AllAtom, GuidedPrior
from densemble.priors.edm import EDM
from densemble.priors.gaussian import anchored_chain
from densemble.priors.held import Held
from densemble.priors.variance_preserving import VariancePreserving
from densemble.rounds import Pass, Population, held_outside_windows, sample_rounds
from densemble.sampler import sample
from densemble.testing import chain_topology


class TwoPlaces:
    """Each atom is near -3 or +3 on x (s.d. 0.2), with equal probability: an exact mixture denoiser."""

    width = 0.2

    def __init__(self) -> None:
        self.topology = chain_topology(1)
        self.process = EDM(center=torch.zeros(4, 3), sigma_max=30.0, sigma_min=0.01, churn=0.3)

    def denoise(self, x_t, t):
        variance = self.width**2 + t**2
        places = torch.zeros(2, 3)
        places[0, 0], places[1, 0] = -3.0, 3.0
        offset = x_t[..., None, :] - places
        log_p = -offset.square().sum(-1) / (2 * variance)
        estimate = places + self.width**2 / variance * offset
        return (torch.softmax(log_p, -1)[..., None] * estimate).sum(-2)


def right(x):
    """Atoms at +3, of each member."""
    return (x[..., 0] > 0).sum(1)


def run(passes, score, *, seed=0, members=24, finish=lambda atoms: atoms, **options):
    return sample_rounds(
        GuidedPrior(TwoPlaces(), []),
        passes,
        backbone=torch.arange(4),
        members=members,
        generator=torch.Generator().manual_seed(seed),
        finish=finish,
        score=score,
        **options,
    )


def test_one_pass_is_the_sampler_itself():
    found = run([Pass(20)], None)
    x = sample(TwoPlaces(), steps=20, members=24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.atoms, x)


def score_right(atoms):
    return 4.0 * right(atoms).float()


def test_rounds_free_members_that_were_stuck():
    """No gradient guides here: comparing members finds what one pass gives to one member in sixteen."""
    once = run([Pass(20)], None)
    rounds = run([Pass(20), *[Pass(15, 2.0, 0.5)] * 5], score_right)
    assert float((right(once.atoms) == 4).float().mean()) < 0.3
    assert float((right(rounds.atoms) == 4).float().mean()) > 0.9
    spread = rounds.atoms[..., 1:].square().mean().sqrt()
    assert float(spread) == pytest.approx(0.2, abs=0.03)  # they are samples of the prior still


def test_members_come_best_first_with_their_scores():
    found = run([Pass(20), Pass(10, 1.0, 0.8)], score_right)
    assert torch.equal(found.score, score_right(found.atoms))
    assert torch.equal(found.score, found.score.sort(descending=True).values)


def test_no_round_makes_the_best_member_worse():
    scores = []
    for count in range(4):
        found = run([Pass(20), *[Pass(6, 4.0, 0.3)] * count], lambda x: -(x - 2.5).square().sum((1, 2)))
        scores.append(float(found.score.max()))
    # a draw in proportion to weights may lose the best of equals, but not one whose weight is above 1 / K
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_the_better_of_parent_and_child_goes_on():
    parents = Population(torch.zeros(3, 4, 3), torch.tensor([1.0, 5.0, 2.0]))
    children = Population(torch.ones(3, 4, 3), torch.tensor([3.0, 4.0, 2.0]))
    found = parents.bettered(children)
    assert found.score.tolist() == [3.0, 5.0, 2.0]
    assert found.atoms[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_copies_of_one_answer_do_not_outvote_another(generator):
    """Ten copies of one answer at 100 nats, and another answer at 98."""
    atoms, score = torch.zeros(11, 4, 3), torch.full((11,), 100.0)
    atoms[10], score[10] = 5.0, 98.0
    population = Population(atoms, score)

    def others(how):
        return int((population.drawn(40, how, torch.arange(4), generator).atoms[:, 0, 0] > 0).sum())

    # e^-2 of one in eleven by probability; one in eleven if 20 nats are one; half if copies share theirs
    assert others(Pass(5, 1.0, 0.1)) <= 2
    assert others(Pass(5, 1.0, 0.1, temperature=20.0)) in {3, 4}
    assert others(Pass(5, 1.0, 0.1, temperature=20.0, alike=1.0)) in {18, 19, 20}
    assert others(Pass(5, 1.0, 0.1, temperature=20.0, alike=9.0)) in {3, 4}  # all alike


def test_what_goes_on_is_what_was_finished():
    found = run([Pass(20), Pass(10, 0.5, 0.5)], score_right, finish=lambda atoms: atoms + 100.0)
    assert float(found.atoms[..., 1].mean()) == pytest.approx(100, abs=0.5)


def test_side_chains_are_those_of_the_parents():
    class Remembering(AllAtom):
        adopted = ()

        def adopt(self, atoms):
            self.adopted = (*self.adopted, atoms)

    completion = Remembering()
    seen = []
    sample_rounds(
        GuidedPrior(TwoPlaces(), [], completion),
        [Pass(8), Pass(8, 0.5, 0.5)],
        backbone=torch.arange(4),
        members=6,
        generator=torch.Generator().manual_seed(0),
        finish=lambda atoms: atoms,
        score=score_right,
        on_step=seen.append,
    )
    (atoms,) = completion.adopted
    assert torch.equal(atoms, seen[-1].parents.atoms)
    assert seen[0].parents is None


def six_residues():
    """A prior in closed form of a chain of six residues, and its centre, Å."""
    center = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    prior = anchored_chain(
        chain_topology(6),
        center,
        [[0, 1, 2, 3, 4, 5]],
        anchored=[(True, True)],
        amplitude=2.0,
        smoothness=2.0,
        jitter=0.2,
        process=EDM(center=center, sigma_max=20.0, churn=0.3),
    )
    return prior, center


def test_only_the_window_is_sampled_anew():
    (prior, _), found = six_residues(), []
    result = sample_rounds(
        GuidedPrior(prior, []),
        [Pass(10), Pass(10, 3.0, 1.0, (1, 3))],
        backbone=torch.arange(24),
        members=40,
        generator=torch.Generator().manual_seed(2),
        finish=lambda atoms: atoms,
        score=lambda atoms: torch.full((len(atoms),), float(len(found))),  # children are better
        on_step=found.append,
    )
    last = found[-1]
    moved = (last.sampler.x - last.parents.atoms).norm(dim=-1)
    assert torch.equal(result.atoms, last.sampler.x)
    assert float(moved[last.held].max()) < 1e-5
    assert float(moved[~last.held].median()) > 0.2
    assert found[0].held is None


def test_windows_are_consecutive_of_the_lengths_asked_for_and_everywhere(generator):
    topology, lengths, share = chain_topology(9), [], torch.zeros(9)
    for _ in range(60):
        held = held_outside_windows(topology, 100, (2, 4), generator).reshape(100, 9, 4)
        assert torch.equal(held, held[..., :1].expand(-1, -1, 4))  # whole residues
        free = ~held[..., 0]
        assert int(((free[:, 1:] != free[:, :-1]).sum(1)).max()) <= 2  # one run
        (length,) = set(free.sum(1).tolist())  # of all members, so that they are sampled together
        lengths.append(length)
        share += free.float().mean(0) / 60
        assert len({tuple(row) for row in free.tolist()}) == 9 - length + 1  # each where it likes
    assert {lengths.count(n) > 8 for n in (2, 3, 4)} == {True}
    assert set(lengths) == {2, 3, 4}
    assert torch.allclose(share[3:6], share[3:6].mean().expand(3), rtol=0.1)


def test_a_window_is_not_longer_than_the_chain(generator):
    assert not held_outside_windows(chain_topology(3), 5, (6, 8), generator).any()


def test_windows_are_where_there_is_least_support(generator):
    """In proportion to exp(half the sum by which its residues fall short, in standard deviations)."""
    topology, members = chain_topology(9), 20_000
    support = torch.tensor([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 3.0, 3.0, 3.0]).expand(members, -1)
    held = held_outside_windows(topology, members, (2, 2), generator, support)
    free = ~held.reshape(members, 9, 4)[..., 0]
    z = (support[0].double().mean() - support[0].double()) / support[0].double().std()
    weight = torch.stack([z[first : first + 2].sum() for first in range(8)]).div(2).exp()
    found = torch.stack([(free[:, first] & free[:, first + 1]).float().mean() for first in range(8)])
    assert torch.allclose(found.double(), weight / weight.sum(), atol=0.012)
    assert float(found.argmax()) == 4
    assert float(found[4]) > 0.3
    alike = held_outside_windows(topology, members, (2, 2), generator, torch.ones(members, 9))
    assert float((~alike).float().mean(0)[4:32].std()) < 0.01  # nothing to choose by


def from_the_start(passes, *, members=30, **options):
    """A chain whose start is far from the prior's centre; and what was told of every step."""
    (prior, center), seen = six_residues(), []
    result = sample_rounds(
        GuidedPrior(prior, []),
        passes,
        backbone=torch.arange(24),
        members=members,
        generator=torch.Generator().manual_seed(2),
        finish=lambda atoms: atoms,
        on_step=seen.append,
        **{"start": center + 10.0, **options},
    )
    return result, seen, center + 10.0


def test_passes_from_the_start_sample_half_of_it_or_more_and_hold_the_rest():
    passes = [Pass(8, 1.0, from_start=True), Pass(8, 3.0, from_start=True)]
    _, seen, start = from_the_start(passes, score=lambda atoms: atoms[:, 0, 0])
    for index in (0, 1):
        last = [state for state in seen if state.index == index][-1]
        assert torch.equal(last.parents.atoms, start.expand(30, -1, -1))
        (free,) = {int((~row).sum()) for row in last.held}
        assert free in {12, 16, 20, 24}
        moved = (last.sampler.x - start).norm(dim=-1)
        assert float(moved[last.held].max() if bool(last.held.any()) else 0.0) < 1e-4
        assert float(moved[~last.held].min()) > 0.05


def test_rounds_draw_from_all_that_came_of_the_start():
    """Members of three passes are one pool, of which the better go on; the start is not one of them."""
    passes = [*[Pass(6, 2.0, from_start=True)] * 3, Pass(6, 1.0, 0.3)]
    result, seen, _ = from_the_start(passes, score=lambda atoms: -atoms[:, 8, 0])
    pools = [next(state.pool for state in seen if state.index == index) for index in range(4)]
    assert [None if pool is None else len(pool.score) for pool in pools] == [None, 30, 60, None]
    assert torch.equal(pools[2].atoms[:30], pools[1].atoms)
    parents = next(state.parents for state in seen if state.index == 3)
    assert len(parents.score) == 30
    everyone = torch.cat([pools[2].score, parents.score])
    assert float(parents.score.mean()) > float(pools[2].score.mean()) + pools[2].score.std() / 2
    assert float(parents.score.max()) >= float(pools[2].score.max())
    assert float(everyone.max()) <= float(result.score[0])
    assert len(result.score) == 30
    assert torch.equal(result.score, result.score.sort(descending=True).values)


def test_without_a_round_the_best_of_the_pool_are_the_members():
    passes = [Pass(6, 2.0, from_start=True)] * 2
    result, seen, _ = from_the_start(passes, score=lambda atoms: -atoms[:, 8, 0])
    pool = seen[-1].pool
    assert len(result.score) == 30
    assert int((result.score > pool.score.median()).sum()) > 20


def test_a_pass_from_the_start_needs_one():
    with pytest.raises(ValueError, match="needs a start"):
        from_the_start([Pass(6, 2.0, from_start=True)] * 2, score=lambda atoms: atoms[:, 0, 0], start=None)


def test_held_atoms_are_estimated_where_they_are_known_to_be(generator):
    prior = TwoPlaces()
    known = torch.full((5, 4, 3), 7.0)
    held = torch.tensor([True, False, False, False]).expand(5, 4)
    x = torch.randn(5, 4, 3, generator=generator)
    found = Held(prior, known, held).denoise(x, 1.0)
    assert torch.equal(found[:, 0], known[:, 0])
    assert torch.equal(found[:, 1:], prior.denoise(x, 1.0)[:, 1:])


def test_passes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="need a score"):
        run([Pass(5), Pass(5, 1.0)], None)
    with pytest.raises(ValueError, match="only the first pass"):
        run([Pass(5), Pass(5)], score_right)


def test_first_level_of_a_pass_is_where_its_noise_begins():
    process = EDM(center=torch.zeros(4, 3), sigma_max=30.0)
    assert process.times(7, 2.0)[0] == pytest.approx(2.0)
    assert process.times(7, 2.0)[-2:] == pytest.approx([0.01, 0.0])
    with pytest.raises(ValueError, match="above sigma_min"):
        process.times(7, 0.01)
    x = process.diffuse(torch.ones(500, 4, 3), 2.0, torch.Generator().manual_seed(1))
    assert float(x.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(x.std()) == pytest.approx(2.0, rel=0.05)


def test_gaussian_prior_is_kept_by_a_round_without_preference(generator):
    """Noised to a level and denoised again, samples of the prior are samples of the prior."""
    start = torch.zeros(8, 3, dtype=torch.float64)
    prior = anchored_chain(
        chain_topology(2),
        start,
        [[0, 1]],
        anchored=[(True, True)],
        amplitude=1.5,
        smoothness=1.5,
        jitter=0.3,
        process=EDM(center=start, sigma_max=60.0, sigma_min=0.005, heun=True),
    )
    found = sample_rounds(
        GuidedPrior(prior, []),
        [Pass(60), Pass(40, 2.0, 1.0)],
        backbone=torch.arange(8),
        members=3000,
        generator=generator,
        finish=lambda atoms: atoms,
        score=later_is_better(),
    )
    spread = found.atoms.square().mean((0, 2))
    assert torch.allclose(spread, prior.covariance.diagonal(), rtol=0.08)


def later_is_better():
    """A score without preference among members, by which those of a later pass go on."""
    calls = itertools.count()
    return lambda atoms: torch.full((len(atoms),), float(next(calls)))


class LikeNoise:
    """x0 ~ N(center, (width L)(width L)^T) under variance-preserving noise L z, as Chroma has it."""

    width = 0.6

    def __init__(self, residues):
        self.topology, n = chain_topology(residues), 4 * residues
        factor = torch.tril(torch.ones(n, n, dtype=torch.float64)) + 0.3 * torch.eye(n, dtype=torch.float64)
        self.process = VariancePreserving(factor, center=torch.zeros(n, 3, dtype=torch.float64))

    def denoise(self, x_t, t):
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        return alpha * self.width**2 / (alpha**2 * self.width**2 + sigma**2) * x_t


def test_a_round_of_windows_under_correlated_noise_keeps_the_prior(generator):
    """The condition is the one of all priors: what is held foretells the window, and samples stay samples."""
    prior, members, seen = LikeNoise(3), 2000, []
    found = sample_rounds(
        GuidedPrior(prior, []),
        [Pass(120), Pass(120, 4.0, 1.0, (1, 2))],
        backbone=torch.arange(12),
        members=members,
        generator=generator,
        finish=lambda atoms: atoms,
        score=later_is_better(),
        on_step=seen.append,
    )
    moved = (found.atoms - seen[-1].parents.atoms).norm(dim=-1)
    held = seen[-1].held
    assert float(moved[held].max()) < 0.1, "by the noise of Chroma's last level"
    assert float(moved[~held].median()) > 0.3
    z = torch.linalg.solve(prior.process.factor, found.atoms) / prior.width
    covariance = torch.einsum("kid,kjd->ij", z, z) / (3 * members) - torch.eye(12, dtype=torch.float64)
    assert float(covariance.abs().max()) < 5 * (2 / (3 * members)) ** 0.5 + 0.03  # and steps of 1/120


class ToldOfTheRest(TwoPlaces):
    """Two residues of it, and it can be told of atoms in known places; the rest then begins around 100."""

    def __init__(self) -> None:
        super().__init__()
        self.topology = chain_topology(2)
        self.process = replace(self.process, center=torch.zeros(8, 3))

    def anew(self, known, held):
        told = self.told = copy(self)
        told.start = torch.where(held[..., None], known, torch.full_like(known, 100.0))
        told.process = replace(self.process, sigma_max=5.0)
        told.seen = []

        def denoise(x_t, t):
            told.seen.append((x_t, t))
            return torch.where(held[..., None], known, TwoPlaces.denoise(told, x_t, t))

        told.denoise = denoise
        return told


@pytest.mark.parametrize(("first", "level"), [(2.0, 2.0), (8.0, 5.0)])
def test_a_prior_that_can_be_told_of_the_rest_is_told(first, level):
    prior, seen = ToldOfTheRest(), []
    result = sample_rounds(
        GuidedPrior(prior, []),
        [Pass(10), Pass(12, first, 1.0, (1, 1))],
        backbone=torch.arange(8),
        members=200,
        generator=torch.Generator().manual_seed(0),
        finish=lambda atoms: atoms,
        score=lambda atoms: torch.full((len(atoms),), float(len(seen))),  # children are better
        on_step=seen.append,
    )
    last = seen[-1]
    known = last.parents.atoms
    assert float((last.sampler.x - known)[last.held].abs().max()) < 1e-4
    assert float((last.sampler.x - known)[~last.held].abs().max()) > 3
    assert torch.equal(result.atoms, last.sampler.x)
    # the noise begins where and with what the prior of the rest says, if it has less room than the pass
    x, t = prior.told.seen[0]
    center = known if level == first else prior.told.start
    assert t == pytest.approx(1.3 * level)
    assert float((x - center).std()) == pytest.approx(t, rel=0.05)
