"""Sampling in rounds: members that explain the map go on, noised part of the way and denoised again.

The first pass goes from pure noise to structures. Guidance by a gradient is local, and some members end
where the map does not want them. In each further round members are drawn in proportion to how well they
explain the map (``densemble.guidance.resampling``) and a window of each is sampled anew under the same
guidance, the rest of the member being held: an error is seldom that of a whole loop, and it is where the map
speaks for a residue least. A member that a round did not better goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.resampling import systematic, tempered_weights
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
        first: noise at which members of the pass before go on, Å; None begins with pure noise.
        share: of the members that stay in play when those that go on are drawn.
        window: least and largest number of residues that are sampled anew; None is all of them.
    """

    steps: int
    first: float | None = None
    share: float = 1.0
    window: tuple[int, int] | None = None


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

    def drawn(self, share: float, generator: torch.Generator) -> Population:
        """As many members, in proportion to their tempered probability."""
        kept = systematic(tempered_weights(self.score, share=share), len(self.score), generator)
        return Population(self.atoms[kept], self.score[kept])

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

    Lengths are uniform between the two bounds, and so is the place of the window's middle; windows that
    reach beyond an end are cut there. With ``support`` they are drawn in proportion to

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
    lengths, middles = torch.arange(window[0], window[1] + 1), torch.arange(count)
    length, middle = (x.flatten() for x in torch.meshgrid(lengths, middles, indexing="ij"))
    first = middle - torch.div(length, 2, rounding_mode="floor")
    place = torch.arange(count)
    inside = (place >= first[:, None]) & (place < (first + length)[:, None])
    log_p = torch.zeros(members, len(length), dtype=torch.float64)
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
        parents: the members that it goes on from; None in the first pass.
        held: which of the prior's atoms are held, shape=(K, N); None if none are.
    """

    index: int
    sampler: SamplerState
    parents: Population | None
    held: Tensor | None


def sample_rounds(
    guided: GuidedPrior,
    passes: Sequence[Pass],
    *,
    backbone: Tensor,
    members: int,
    generator: torch.Generator,
    finish: Finish,
    score: Score | None,
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
        if state is not None:
            parents, held, sampler = state.parents, state.held, state.sampler
        elif population is not None:
            parents = population.drawn(this.share, generator)
            held = None
            if this.window is not None:
                where = None if support is None else support(parents.atoms)
                held = held_outside_windows(guided.topology, members, this.window, generator, where)
            sampler = None
        else:
            parents, held, sampler = None, None, None
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
        ) -> None:
            if on_step is not None:
                on_step(RoundsState(index, new, parents, held))

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
        population = children if parents is None else parents.bettered(children)
        state = None
    assert population is not None
    return population if len(passes) == 1 else population.best_first()


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
