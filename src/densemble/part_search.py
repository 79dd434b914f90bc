"""The parts of a region, each in as many states as held-out data support: how they are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.atoms import ResidueId, Topology
from densemble.geometry.objective import GeometryObjective
from densemble.io.model_results import Evidence
from densemble.likelihood.bfactor import fit_b
from densemble.problem import RegionProblem
from densemble.selection.judge import Judge, fit_shares
from densemble.selection.number import (
    Candidates,
    Choice,
    best_sets,
    choose,
    choose_by_information,
    worth_parameters,
)
from densemble.selection.parts import find_parts, joins_on, same_naming, spans_of
from densemble.selection.states import cluster, distances
from densemble.settle import Place, Settling
from densemble.sidechains.residues import chi_atoms

_CLOSING = 6
"""Conditions that place and turn of the second end of a stretch put on its torsion angles."""


@dataclass(frozen=True)
class Counting:
    """How states are counted.

    Attributes:
        most: states of a part, at most.
        least_weight: occupancy that a state must have.
        veto: standard errors by which held-out data must be worse with one state more to forbid it.
        settling: of the models that are compared.
    """

    most: int = 4
    least_weight: float = 0.08
    veto: float = 0.5
    settling: Settling = field(default_factory=Settling)


@dataclass(frozen=True, eq=False)
class PartModel:
    """A part of the region in some number of states.

    Attributes:
        residues: indices into the region's residues.
        atoms: of these, indices into the region's atoms, shape=(n,).
        coords: Å, the heaviest state first, shape=(s, n, 3).
        weights: sum to one, shape=(s,).
        b_iso: Å^2, shape=(n,).
        sources: members that the states started from; -1 for none of them.
        signals: what each state adds to the judge's data, shape=(s, d).
        evidence: of each number of states tried.
    """

    residues: list[int]
    atoms: Int[np.ndarray, " n"]
    coords: Float[Tensor, "s n 3"]
    weights: Float[np.ndarray, " s"]
    b_iso: Float[Tensor, " n"]
    sources: tuple[int, ...]
    signals: np.ndarray
    evidence: tuple[Evidence, ...] = ()

    def __len__(self) -> int:
        return len(self.weights)

    def sorted(self) -> PartModel:
        """The heaviest state first."""
        order = np.argsort(-self.weights, kind="stable")
        return replace(
            self,
            coords=self.coords[torch.as_tensor(order)],
            weights=self.weights[order],
            sources=tuple(self.sources[i] for i in order),
            signals=self.signals[order],
        )


class PartSearch:
    """The models of all parts, one after the other, each beside what the others are at the time."""

    def __init__(
        self,
        problem: RegionProblem,
        judge: Judge,
        same: float,
        counting: Counting,
        members: Float[Tensor, "k n 3"],
        tell: Callable[[str], None],
    ) -> None:
        self.problem, self.judge, self.same, self.counting, self.tell = problem, judge, same, counting, tell
        self.topology: Topology = problem.stretches.topology
        self.pool = torch.as_tensor(same_naming(self.topology, members.double().numpy())).float()
        self.geometry = GeometryObjective(problem.restraints())
        self.around = self.pool[0].clone()

    def run(self) -> list[PartModel]:
        """Parts with their chosen states, and what is left over last."""
        residues = find_parts(self.topology, self.pool.double().numpy(), same=self.same)
        parts = [self.held(part) for part in residues]
        rest = set(range(len(self.topology.residues))) - {r for part in residues for r in part}
        if rest:
            parts.append(self.held(sorted(rest)))
        for i in range(len(residues)):
            others = parts[:i] + parts[i + 1 :]
            parts[i] = self.decided(residues[i], others, self.pool, range(len(self.pool)))
            self.around[parts[i].atoms] = parts[i].coords[0]
        for part in parts[: len(residues)]:
            parts = self.split(parts, part)
        return self.weighed(self.merged(parts))

    def atoms_of(self, residues: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Atoms of some residues of the region."""
        return self.topology.atoms_of(residues)

    def model(
        self,
        residues: list[int],
        coords: Tensor,
        weights: np.ndarray,
        b_iso: Tensor,
        sources: tuple[int, ...],
        evidence: tuple[Evidence, ...] = (),
    ) -> PartModel:
        """States of some residues, the heaviest first."""
        atoms = self.atoms_of(residues)
        b = np.tile(b_iso.double().numpy(), (len(coords), 1))
        signals = self.judge.signals(atoms, coords.double().numpy(), b)
        return PartModel(residues, atoms, coords, weights, b_iso, sources, signals, evidence).sorted()

    def held(self, residues: list[int]) -> PartModel:
        """Some residues as in the start."""
        atoms = self.atoms_of(residues)
        return self.model(residues, self.around[atoms][None], np.ones(1), self.problem.b_start[atoms], (0,))

    def place(self, residues: list[int], others: Sequence[PartModel]) -> Place:
        """The part in its surroundings."""
        density = torch.zeros_like(self.problem.target.values)
        for other in others:
            w = torch.as_tensor(other.weights, dtype=density.dtype)
            with torch.no_grad():
                forward = self.problem.forward.of_atoms(other.atoms)
                density = density + forward(other.coords, w, other.b_iso)
        return Place(self.problem, self.geometry, self.atoms_of(residues), self.around, density)

    def decided(
        self,
        residues: list[int],
        others: list[PartModel],
        pool: Tensor,
        numbers: Sequence[int],
        believed: int = 1,
    ) -> PartModel:
        """The part in as many states as the data support.

        Args:
            residues: of the part.
            others: everything else, as it is at present.
            pool: Å, candidates, the whole region each, shape=(k, N, 3).
            numbers: of the members that these are, length k.
            believed: states that the part is known to have as a piece of a larger one.
        """
        place = self.place(residues, others)
        distance = distances(self.topology, pool.double().numpy(), residues)
        groups = cluster(distance, same=self.same)
        x = pool[:, place.atoms]
        normal = place.normal(x, self.saturated_b(place, x))
        counting = self.counting
        sets = best_sets(normal, groups, most=counting.most, least_weight=counting.least_weight)
        if not sets:
            return self.held(residues)
        models = [self.one_state(residues, place, x, sets[0], groups, others)]
        choice = self.compared(models, others, believed)
        for candidates in sets[1:]:
            models.append(self.settled(residues, place, x, candidates, others))
            apart = self.apart(models[-1])
            choice = self.compared(models, others, believed)
            if apart and choice.chosen == len(models) - 1:
                models[-2] = self.likelier([models[-2], self.simpler(place, models[-1], others)], others)
                choice = self.compared(models, others, believed)
            if not apart or choice.chosen < len(models) - 1:
                choice = replace(choice, chosen=min(choice.chosen, len(models) - 2))
                break
        found = models[choice.chosen]
        sources = tuple(numbers[m] for m in found.sources)
        return replace(found, sources=sources, evidence=self.evidence(models, others, choice))

    def saturated_b(self, place: Place, x: Float[Tensor, "k n 3"]) -> Float[Tensor, " n"]:
        """B factors under which all candidates together explain the map best."""
        b_iso = place.b_start
        w = place.normal(x, b_iso).weights(range(len(x)))[0]
        if w.sum() <= 0:
            return b_iso
        weights = torch.as_tensor(w / w.sum(), dtype=x.dtype)
        return fit_b(place.likelihood(b_iso), x, weights, base=b_iso)

    def settled(
        self,
        residues: list[int],
        place: Place,
        x: Tensor,
        candidates: Candidates,
        others: Sequence[PartModel],
    ) -> PartModel:
        """Candidates refined together."""
        chosen = x[list(candidates.members)]
        states = place.settled(chosen, candidates.weights, self.counting.settling)
        return self.weighted(residues, states, candidates.members, others)

    def simpler(self, place: Place, model: PartModel, others: Sequence[PartModel]) -> PartModel:
        """A model with its lightest state taken away, settled once more."""
        weights = model.weights[:-1] / model.weights[:-1].sum()
        settled = place.settled(model.coords[:-1], weights, self.counting.settling)
        return self.weighted(model.residues, settled, model.sources[:-1], others)

    def likelier(self, models: Sequence[PartModel], others: Sequence[PartModel]) -> PartModel:
        """Of models of as many states the one that the fitted data prefer.

        A state more is believed over the best simpler model, not over one that was stuck.
        """
        return max(models, key=lambda model: self.judge.fitted(*self.total([model, *others])))

    def one_state(
        self,
        residues: list[int],
        place: Place,
        x: Tensor,
        best: Candidates,
        groups: np.ndarray,
        others: Sequence[PartModel],
    ) -> PartModel:
        """The best single state: the start, as it is or refined, or the member that fits best, refined.

        Refined against a map, a start may fit the data less well than before: it was refined against these.
        What explains no more than it does as it is, is not worth a second state.
        """
        trials = [best.members[0]] if groups[best.members[0]] == groups[0] else [best.members[0], 0]
        single = [Candidates((m,), np.ones(1), 0.0) for m in trials]
        models = [self.settled(residues, place, x, each, others) for each in single]
        start = self.model(residues, x[:1], np.ones(1), place.b_start, (0,))
        return self.likelier([*models, start], others)

    def standing(self, model: PartModel) -> Float[np.ndarray, "s n 3"]:
        """Å, the whole region with each state of a part in place, the others in their heaviest."""
        whole = self.around.expand(len(model), -1, -1).clone()
        whole[:, model.atoms] = model.coords
        return whole.double().numpy()

    def apart(self, model: PartModel) -> bool:
        """Whether states that were settled together are still different states, and all of them are there."""
        found = distances(self.topology, self.standing(model), model.residues)
        np.fill_diagonal(found, np.inf)
        return bool(found.min() > self.same and model.weights.min() >= self.counting.least_weight)

    def weighted(
        self,
        residues: list[int],
        states: tuple[Tensor, np.ndarray, Tensor],
        sources: tuple[int, ...],
        others: Sequence[PartModel],
    ) -> PartModel:
        """States with occupancies fitted to the judge's data, the other parts' held."""
        coords, weights, b_iso = states
        model = self.model(residues, coords, weights, b_iso, sources)
        held = sum((other.weights @ other.signals for other in others), np.zeros(model.signals.shape[1]))
        signals = np.concatenate([model.signals, held[None]])
        groups = np.append(np.zeros(len(model), dtype=np.int64), 1)
        weights = fit_shares(self.judge, signals, np.append(model.weights, 1.0), groups)[:-1]
        return replace(model, weights=weights).sorted()

    def total(self, parts: Sequence[PartModel]) -> tuple[np.ndarray, np.ndarray]:
        """Signals and weights of all states of all parts."""
        return np.concatenate([p.signals for p in parts]), np.concatenate([p.weights for p in parts])

    def compared(self, models: Sequence[PartModel], others: Sequence[PartModel], believed: int) -> Choice:
        """How many states, among models of one, two, three ... of them.

        Without held-out data by Akaike's criterion. With them, a state more must be worth its parameters on
        the fitted data by that criterion, and pass the held-out ones. States that are believed already, of a
        larger part, are given up only where neither speaks for them.
        """
        totals = [self.total([model, *others]) for model in models]
        fits = [self.judge.fitted(*total) for total in totals]
        parameters = [self.parameters(models[0]) * len(model) for model in models]
        if not self.judge.holds_out:
            return choose_by_information(fits, parameters)
        worth = worth_parameters(fits, parameters)
        need = [self.need(len(m), w, believed) for m, w in zip(models, worth, strict=True)]
        return choose([self.judge.held_out(*total) for total in totals], need=need)

    def need(self, states: int, worth: bool, believed: int) -> float:
        """Standard errors by which held-out data must be better with so many states; negative: may be worse.

        Free reflections are a twentieth of the data. Where the fitted ones gain 100 nats, these gain 5 with a
        standard error of 3: they cannot decide alone, but would contradict a gain that was made of noise.
        """
        if states <= believed:
            return -np.inf if worth else self.counting.veto
        return -self.counting.veto if worth else np.inf

    def parameters(self, model: PartModel) -> int:
        """What a state adds: torsion angles, less the six that close a stretch at both ends; its share."""
        names = [self.topology.residues[r].name for r in model.residues]
        return sum(len(chi_atoms(name)) for name in names) + max(2 * len(names) - _CLOSING, 0) + 1

    def evidence(
        self, models: Sequence[PartModel], others: Sequence[PartModel], choice: Choice
    ) -> tuple[Evidence, ...]:
        """What the choice rests on, in nats above one state."""
        fits = [self.judge.fitted(*self.total([model, *others])) for model in models]
        found = []
        for i, model in enumerate(models):
            out = self.judge.holds_out
            found.append(
                Evidence(
                    states=len(model),
                    fit=fits[i] - fits[0],
                    held_out=choice.gains[i] if out else None,
                    error=choice.errors[i] if out and i else None,
                    asked=self.parameters(models[0]) * (len(model) - 1),
                    chosen=i == choice.chosen,
                )
            )
            self.tell(f"{spans_of(self.names(model.residues))}: {_in_words(found[-1])}")
        return tuple(found)

    def names(self, residues: Sequence[int]) -> list[ResidueId]:
        """Author naming of some residues."""
        return [self.topology.residues[r].id for r in residues]

    def split(self, parts: list[PartModel], part: PartModel) -> list[PartModel]:
        """Give back what all states of a part share; decide anew for pieces of it that are apart.

        Residues that are given back stand as in the heaviest state.
        """
        if len(part) == 1:
            return parts
        others = [other for other in parts if other is not part]
        states = self.standing(part)
        pieces = find_parts(self.topology, states, same=self.same)
        shared = [r for r in part.residues if r not in {r for piece in pieces for r in piece}]
        cut = [self.cut(part, piece, states) for piece in pieces]
        given_back = [replace(self.cut(part, shared, states[:1]), evidence=())] if shared else []
        if len(pieces) == 1:
            return [*others, *cut, *given_back]
        pool, around = self.pool.double().numpy(), self.around.double().numpy()
        for i, piece in enumerate(pieces):
            joining = np.flatnonzero(joins_on(self.topology, pool, piece, around, same=self.same))
            candidates = torch.as_tensor(np.concatenate([states, pool[joining]])).to(self.pool)
            numbers = [*part.sources, *joining.tolist()]
            rest = [*others, *cut[:i], *cut[i + 1 :], *given_back]
            cut[i] = self.decided(piece, rest, candidates, numbers, believed=len(cut[i]))
        return [*others, *cut, *given_back]

    def cut(self, part: PartModel, residues: list[int], states: Float[np.ndarray, "s n 3"]) -> PartModel:
        """Some residues of a part, in the states that are different there."""
        atoms = self.atoms_of(residues)
        b_iso = part.b_iso[np.searchsorted(part.atoms, atoms)]
        groups = cluster(distances(self.topology, states, residues), same=self.same)
        first = [int(np.flatnonzero(groups == g)[0]) for g in range(groups.max() + 1)]
        weights = np.bincount(groups, part.weights[: len(states)])
        sources = tuple(part.sources[i] for i in first)
        coords = torch.as_tensor(states[first][:, atoms]).to(self.pool)
        return self.model(residues, coords, weights / weights.sum(), b_iso, sources, part.evidence)

    def merged(self, parts: list[PartModel]) -> list[PartModel]:
        """Parts in chain order; residues that belong to none as one last model."""
        own = [p for p in parts if p.evidence]
        rest = [p for p in parts if not p.evidence]
        own.sort(key=lambda part: part.residues[0])
        if len(rest) > 1:
            residues = sorted(r for p in rest for r in p.residues)
            atoms = self.atoms_of(residues)
            coords, b_iso = self.around.clone(), self.problem.b_start.clone()
            for p in rest:
                coords[p.atoms], b_iso[p.atoms] = p.coords[0], p.b_iso
            rest = [self.model(residues, coords[atoms][None], np.ones(1), b_iso[atoms], (0,))]
        return own + rest

    def weighed(self, parts: list[PartModel]) -> list[PartModel]:
        """Occupancies of all parts fitted together."""
        signals, weights = self.total(parts)
        groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        found = fit_shares(self.judge, signals, weights, groups)
        return [replace(part, weights=found[groups == i]) for i, part in enumerate(parts)]


def _in_words(evidence: Evidence) -> str:
    """What one number of states has for it, in log units (nats) above one state."""
    number, said = evidence.states, ""
    if number > 1:
        said = f"fit {evidence.fit:+.1f}"
        if evidence.held_out is not None:
            error = "" if evidence.error is None else f" ± {evidence.error:.1f}"
            said += f", held out {evidence.held_out:+.1f}{error}"
        said += " log units, "
    return f"{number} state{'' if number == 1 else 's'}: {said}{'taken' if evidence.chosen else 'not taken'}"
