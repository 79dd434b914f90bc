"""Sampling in rounds: members that explain the map go on, noised part of the way and denoised again.

The first passes go from noise to structures: from pure noise, or from the start under some of it, a window
of half of the stretch or more being sampled and the rest held, for another conformation of a loop is often
near the known one and the same at the ends. Guidance by a gradient is local, and some members end where the
map does not want them. In each further round members are drawn in proportion to how well they explain the map
(``densemble.guidance.resampling``) and a window of each is sampled anew under the same guidance, the rest of
the member being held: an error is seldom that of a whole loop, and it is where the map speaks for a residue
least. A member that a round did not better goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.resampling import crowding, systematic, tempered_weights
from densemble.priors.held import Held
from densemble.priors.protocol import Conditional, Prior
from densemble.sampler import SamplerState, sample

Finish = Callable[[Tensor], Tensor]
"""All atoms of all members, Å, shape=(K, N, 3), to the same, better."""
Score = Callable[[Tensor], Tensor]
"""All atoms of all members, Å, to the log probability of each, nats, shape=(K,)."""

Support = Callable[[Tensor], Tensor]
"""All atoms of all members, Å, to how well each residue of each is explained, shape=(K, R)."""


@dataclass(frozen=True)
class Pass:
    """From a noise level to structures.

    Attributes:
        steps: reverse steps.
        first: noise at which members of the passes before go on, Å; None begins with pure noise.
        share: of as many members as are sampled, those that stay in play when the ones that go on are drawn.
        window: least and largest number of residues that are sampled anew; None is all of them.
        from_start: all members go on from the start, not from those of the passes before, and the window is
            of half of the residues or more.
        temperature: nats of score that count as one when members are drawn.
        alike: Å, backbone RMSD below which members share their weight; None: each has its own.
    """

    steps: int
    first: float | None = None
    share: float = 1.0
    window: tuple[int, int] | None = None
    from_start: bool = False
    temperature: float = 1.0
    alike: float | None = None


@dataclass(frozen=True, eq=False)
class Population:
    """Members at the end of a pass.

    Attributes:
        atoms: Å, all atoms, shape=(K, N, 3).
        score: nats, shape=(K,); of no meaning where no score was given.
    """

    atoms: Float[Tensor, "k n 3"]
    score: Float[Tensor, " k"]

    def best_first(self) -> Population:
        """The same members, by falling score."""
        order = self.score.argsort(descending=True, stable=True)
        return Population(self.atoms[order], self.score[order])

    def drawn(self, count: int, how: Pass, backbone: Tensor, generator: torch.Generator) -> Population:
        """So many members in proportion to their tempered probability, shared among those that are alike."""
        share = how.share * count / len(self.score)
        weights = tempered_weights(self.score, share=share, temperature=how.temperature)
        if how.alike is not None:
            weights = weights / crowding(self.atoms[:, backbone], how.alike)
        kept = systematic(weights, count, generator)
        return Population(self.atoms[kept], self.score[kept])

    def joined(self, other: Population | None) -> Population:
        """These members, and others."""
        if other is None:
            return self
        return Population(torch.cat([other.atoms, self.atoms]), torch.cat([other.score, self.score]))

    def bettered(self, other: Population) -> Population:
        """Of each pair of members the one with the higher score."""
        better = other.score > self.score
        return Population(
            torch.where(better[:, None, None], other.atoms, self.atoms),
            torch.where(better, other.score, self.score),
        )


def held_outside_windows(
    topology: Topology,
    members: int,
    window: tuple[int, int],
    generator: torch.Generator,
    support: Float[Tensor, "k r"] | None = None,
) -> Bool[Tensor, "k n"]:
    """Atoms outside a random window of consecutive residues, one for each member.

    The length is uniform between the two bounds and the same for all members, so that a network can sample
    their windows together; the places are each member's own, uniform among those inside. With ``support``
    they are drawn in proportion to

    ``exp(1/2 sum_r (mean(s) - s_r) / sd(s))`` over the residues r of a window,

    so that most of them are of residues that are less well explained than the others of the member.

    Args:
        topology: of the prior.
        members: K.
        window: least and largest number of residues.
        generator: source of randomness.
        support: how well each residue of each member is explained, in any unit.
    """
    residue, count = torch.as_tensor(topology.residue_index), len(topology.residues)
    length = min(int(torch.randint(window[0], window[1] + 1, (), generator=generator)), count)
    first, place = torch.arange(count - length + 1), torch.arange(count)
    inside = (place >= first[:, None]) & (place < (first + length)[:, None])
    log_p = torch.zeros(members, len(first), dtype=torch.float64)
    if support is not None:
        s = support.double()
        lack = (s.mean(1, keepdim=True) - s) / s.std(1, keepdim=True).clamp_min(1e-12)
        log_p = lack @ inside.double().T / 2
    chosen = torch.multinomial(log_p.softmax(1), 1, generator=generator)[:, 0]
    return ~inside[chosen][:, residue]


@dataclass(frozen=True, eq=False)
class RoundsState:
    """Where a run stands.

    Attributes:
        index: of the pass under way.
        sampler: within that pass.
        parents: the members that it goes on from; None where it begins with pure noise.
        held: which of the prior's atoms are held, shape=(K, N); None if none are.
        pool: the members of the passes before that it does not go on from, if there are any.
    """

    index: int
    sampler: SamplerState
    parents: Population | None
    held: Tensor | None
    pool: Population | None = None


def sample_rounds(
    guided: GuidedPrior,
    passes: Sequence[Pass],
    *,
    backbone: Tensor,
    members: int,
    generator: torch.Generator,
    finish: Finish,
    score: Score | None,
    start: Tensor | None = None,
    support: Support | None = None,
    state: RoundsState | None = None,
    on_step: Callable[[RoundsState], None] | None = None,
) -> Population:
    """Sample members in one or several passes.

    Args:
        guided: the guided prior.
        passes: the first begins with pure noise, the others at their own level.
        backbone: indices of the prior's atoms among all atoms.
        members: K.
        generator: the only source of randomness but for the completion's own.
        finish: applied to the members of every pass.
        score: by which members are compared; None where there is but one pass.
        start: Å, all atoms, shape=(N, 3), of passes from it.
        support: by which windows are chosen; None: anywhere alike.
        state: go on from here.
        on_step: called after every step.

    Returns:
        The members of the last pass, best first if there was more than one.

    Raises:
        ValueError: several passes and no score.
        FloatingPointError: sampling diverged.
    """
    if len(passes) > 1 and score is None:
        raise ValueError("sample_rounds: several passes need a score")
    population = None
    for index in range(0 if state is None else state.index, len(passes)):
        this = passes[index]
        first = None if this.first is None else guided.process.level(this.first)
        pool = None
        if state is not None:
            parents, held, sampler, pool = state.parents, state.held, state.sampler, state.pool
        else:
            parents, held, sampler = None, None, None
            if this.from_start:
                parents, pool = _copies(start, members), population
                held = _held(guided, this, parents, None, generator)
            elif population is not None:
                parents = population.drawn(members, this, backbone, generator)
                held = _held(guided, this, parents, support, generator)
        prior: Prior = guided
        if parents is not None:
            if first is None:
                raise ValueError("sample_rounds: only the first pass begins with pure noise")
            prior, center, first = _again(guided, parents.atoms[:, backbone], held, first)
            if sampler is None:
                guided.completion.adopt(parents.atoms)
                x = guided.process.diffuse(center, first, generator)
                sampler = SamplerState(0, x, generator.get_state())

        def after(
            new: SamplerState,
            index: int = index,
            parents: Population | None = parents,
            held: Tensor | None = held,
            pool: Population | None = pool,
        ) -> None:
            if on_step is not None:
                on_step(RoundsState(index, new, parents, held, pool))

        x = sample(
            prior,
            steps=this.steps,
            members=members,
            generator=generator,
            first=first,
            state=sampler,
            on_step=after,
        )
        children = _completed(guided, x, finish, score)
        if parents is None or this.from_start:
            population = children.joined(pool)
        else:
            population = parents.bettered(children)
        state = None
    assert population is not None
    if len(passes) == 1:
        return population
    best = population.best_first()
    return Population(best.atoms[:members], best.score[:members])


def _copies(start: Tensor | None, members: int) -> Population:
    """The start, as every member; it is not compared with what comes of it."""
    if start is None:
        raise ValueError("sample_rounds: a pass from the start needs a start")
    return Population(start.repeat(members, 1, 1), start.new_zeros(members))


def _held(
    guided: GuidedPrior, this: Pass, parents: Population, support: Support | None, generator: torch.Generator
) -> Tensor | None:
    """Which atoms of the prior a pass leaves where its parents have them."""
    window = this.window
    if this.from_start:
        residues = len(guided.topology.residues)
        window = (-(-residues // 2), residues)
    if window is None:
        return None
    where = None if support is None else support(parents.atoms)
    return held_outside_windows(guided.topology, len(parents.atoms), window, generator, where)


def _again(
    guided: GuidedPrior, known: Tensor, held: Tensor | None, first: float
) -> tuple[Prior, Tensor, float]:
    """The prior of a further pass, and where and at which level its noise begins."""
    if held is None:
        return guided, known, first
    if not isinstance(guided.prior, Conditional):
        return Held(guided, known, held), known, first
    prior = guided.prior.anew(known, held)
    widest = prior.process.times(1)[0]
    return guided.of(prior), prior.start if first >= widest else known, min(first, widest)


def _completed(guided: GuidedPrior, x: Tensor, finish: Finish, score: Score | None) -> Population:
    """All atoms of the members at the end of a pass, finished and scored."""
    with torch.no_grad():
        guided.completion.finish(x)
        atoms = guided.completion(x)
    atoms = finish(atoms)
    if score is None:
        return Population(atoms, atoms.new_zeros(len(atoms)))
    with torch.no_grad():
        return Population(atoms, score(atoms))
