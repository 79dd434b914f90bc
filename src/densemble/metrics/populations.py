"""Which reference state each member is in, and how much weight each state has. For evaluation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from densemble.metrics.coordinates import rmsd


def assign_states(
    coords: Float[np.ndarray, "k n 3"], states: Mapping[str, Float[np.ndarray, "n 3"]]
) -> list[str]:
    """The name of the state nearest to each member by RMSD in place, the first of equals.

    Args:
        coords: Å, atoms to judge by (the backbone, by convention), shape=(K, n, 3).
        states: reference coordinates by name, each shape=(n, 3), NaN where unknown. Atoms that any
            state lacks do not count for the others either.

    Raises:
        ValueError: no states, or no atom known in all of them.
    """
    if not states:
        raise ValueError("assign_states: no reference states")
    names = list(states)
    stacked = np.stack([states[name] for name in names])
    common = np.isfinite(stacked).all(axis=(0, 2))
    members = coords[:, common]
    distances = [rmsd(members, state[common]) for state in stacked]
    return [names[i] for i in np.argmin(distances, axis=0)]


def populations(
    weights: Float[np.ndarray, " k"], assigned: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
    """Share of the weight of each state; the shares sum to one.

    Args:
        weights: of the K members, non-negative.
        assigned: their states, as ``assign_states`` gives them.
        names: all states, so that one without members gets 0.

    Raises:
        ValueError: no weight is above zero, or a state is not among the names.
    """
    if not weights.sum() > 0:
        raise ValueError("populations: no weight is above zero")
    if unknown := set(assigned) - set(names):
        raise ValueError(f"populations: unknown states {sorted(unknown)}")
    share = weights / weights.sum()
    return {name: float(sum(w for w, s in zip(share, assigned, strict=True) if s == name)) for name in names}
