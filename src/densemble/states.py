"""How many states a region has, part by part, and with what occupancies: from members to states.

Members are sampled conformations of a region, the start first. They are split into parts that move
together; for each part the best model of one state, of two ... is settled in the density, and one state
more is believed only if data that were held out of all this say so. What two states of a part share is then
given back, and halves of it that combine freely become parts of their own.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Ensemble
from densemble.io.model_results import Interval, Part, State, States
from densemble.part_search import Counting, PartModel, PartSearch
from densemble.problem import RegionProblem
from densemble.selection.intervals import bootstrap, widened
from densemble.selection.judge import Judge
from densemble.selection.parts import spans_of
from densemble.selection.states import distances

_SAME_PER_RESOLUTION = 0.25


def same_within(d_min: float) -> float:
    """Å, difference up to which two conformations count as the same, at a resolution of ``d_min`` Å.

    A quarter of it: two half-occupied atoms that near make one peak that a B factor describes. This is a
    threshold for merging, not an estimate of the error of coordinates.
    """
    return _SAME_PER_RESOLUTION * d_min


def find_states(
    problem: RegionProblem,
    members: Float[Tensor, "k n 3"],
    judge: Judge,
    *,
    same: float,
    counting: Counting,
    on_step: Callable[[str], None] | None = None,
) -> tuple[States, list[Ensemble]]:
    """States of each part of a region, their occupancies, and what the choice rests on.

    Args:
        problem: the density of the region.
        members: Å, conformations of all atoms of the region, the start first, shape=(K, N, 3).
        judge: the data, part of which may be held out.
        same: Å, difference up to which conformations count as the same (``same_within``).
        counting: how.
        on_step: told in words what was found.

    Returns:
        The record; and one ensemble a part: atoms that belong to no other, its states with their
        occupancies as members. What belongs to no part is a last ensemble of one.
    """
    search = PartSearch(problem, judge, same, counting, members, on_step or (lambda text: None))
    parts = [part.sorted() for part in search.run()]
    return _record(search, parts), [_ensemble(search, part) for part in parts]


def _record(search: PartSearch, parts: list[PartModel]) -> States:
    """For ``result.json``; the heaviest state first."""
    signals, weights = search.total(parts)
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    low, high = widened(weights, *bootstrap(search.judge.blocks(signals, weights), groups))
    found = []
    for i, part in enumerate(parts):
        if not part.evidence:
            continue
        several = len(part) > 1
        ends = zip(low[groups == i].tolist(), high[groups == i].tolist(), strict=True)
        states = [
            State(
                label=string.ascii_uppercase[place] if several else "",
                occupancy=float(weight),
                interval=Interval(low=first, high=last) if several else None,
                members=members,
            )
            for place, (weight, (first, last), members) in enumerate(
                zip(part.weights, ends, _members_in(search, part), strict=True)
            )
        ]
        region = spans_of(search.names(part.residues))
        found.append(Part(region=region, states=states, evidence=list(part.evidence)))
    return States(rule=_rule(search), coordinate_error=search.same, parts=found)


def _rule(search: PartSearch) -> str:
    """In words."""
    if not search.judge.holds_out:
        return search.judge.rule
    veto = search.counting.veto
    must = f"must not be worse by more than {veto:g} standard error" if veto else "must be better"
    return (
        "one state more must explain the fitted data by more than the torsion angles and the occupancy that "
        f"it adds (AIC), and data held out {must}: {search.judge.rule}"
    )


def _members_in(search: PartSearch, part: PartModel) -> list[list[int]]:
    """Members that are nearest to each state and within twice what counts as the same, and its source.

    Twice, for a state has been refined since.
    """
    pool = search.pool.double().numpy()
    both = np.concatenate([search.standing(part), pool])
    to = distances(search.topology, both, part.residues)[: len(part), len(part) :]
    near = (to <= 2 * search.same) & (to == to.min(axis=0))
    for state, source in enumerate(part.sources):
        near[state, source] = True
    return [np.flatnonzero(row).tolist() for row in near]


def _ensemble(search: PartSearch, part: PartModel) -> Ensemble:
    """States as members."""
    weights = torch.as_tensor(part.weights, dtype=part.coords.dtype)
    topology = search.topology.subset(part.atoms)
    return Ensemble(topology, part.coords, weights, part.b_iso.expand(len(part), -1))
