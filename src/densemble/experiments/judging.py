"""How far the states of a result are from those of a reference: evaluation only.

The states of a result are those of its model of states, part by part. What a part has not, is in one state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from densemble.atoms import Region, Topology
from densemble.evaluation import backbone_atoms
from densemble.io.model_results import FinalModel, States
from densemble.io.models import Alternate, alternates, read_model
from densemble.metrics.coordinates import rmsd


@dataclass(frozen=True)
class Judged:
    """States of a region against those of a reference.

    Attributes:
        found: the largest number of states of a part.
        rmsd: Å, by letter of the reference: backbone RMSD over the whole region, in place, of the nearest
            conformation of the model; states of its parts combine freely.
        occupancy_error: the largest difference, over the states of the reference, between its occupancy and
            what the states of the model that are nearest to it add up to: the mean over residues where the
            states of the reference differ. None where it has one state, or they differ nowhere.
    """

    found: int
    rmsd: dict[str, float]
    occupancy_error: float | None


def judge_states(folder: Path, region: str, made: FinalModel, reference: Path) -> Judged | None:
    """Compare the model of states of a run with a reference, whether or not it is the one that is advised.

    Args:
        folder: of the run.
        region: of the run.
        made: record of its final model.
        reference: model with the states as altlocs.

    Returns:
        What is said of them; None if the reference lacks backbone atoms of the region.
    """
    states, path = made.states, folder / made.states_file
    topology = _backbone(path, region)
    true = {name: (state.coords, state.occupancy) for name, state in alternates(reference, topology).items()}
    if not all(np.isfinite(x).all() for x, _ in true.values()):
        return None
    model = alternates(path, topology)
    square, shares, weight, most = {name: 0.0 for name in true}, {name: 0.0 for name in true}, 0, 1
    for atoms, found in _parts(topology, states, model):
        to = np.array([[float(rmsd(x, y[atoms])) for y, _ in true.values()] for x, _ in found])
        most = max(most, len(found))
        for name, nearest in zip(true, to.min(axis=0), strict=True):
            square[name] += len(atoms) * nearest**2
        if _apart(true, atoms) > states.coordinate_error:
            weight += len(atoms)
            for (_, occupancy), s in zip(found, to.argmin(axis=1), strict=True):
                shares[list(true)[s]] += len(atoms) * occupancy
    error = None
    if weight:
        error = max(abs(shares[name] / weight - occupancy) for name, (_, occupancy) in true.items())
    return Judged(most, {name: float(np.sqrt(v / len(topology))) for name, v in square.items()}, error)


def _backbone(path: Path, region: str) -> Topology:
    """N, CA, C, O of a region."""
    topology = read_model(path).topology
    own = topology.subset(topology.atoms_of(Region.parse(region).residues(topology)))
    return own.subset(backbone_atoms(own))


def _parts(
    topology: Topology, states: States, model: dict[str, Alternate]
) -> Iterator[tuple[Int[np.ndarray, " m"], list[tuple[Float[np.ndarray, "m 3"], float]]]]:
    """Atoms of each part, and its states with their occupancies; at last what is in no part."""
    left = np.ones(len(topology), dtype=bool)
    for part in states.parts:
        atoms = topology.atoms_of(Region.parse(part.region).residues(topology))
        left[atoms] = False
        yield atoms, [(_standing(model, atoms, s.label), s.occupancy) for s in part.states]
    if left.any():
        atoms = np.flatnonzero(left)
        yield atoms, [(_standing(model, atoms, ""), 1.0)]


def _standing(
    model: dict[str, Alternate], atoms: Int[np.ndarray, " m"], label: str
) -> Float[np.ndarray, "m 3"]:
    """Where a state of some atoms stands; without a letter all conformations have the same."""
    return model[label].coords[atoms] if label in model else next(iter(model.values())).coords[atoms]


def _apart(true: dict[str, tuple[np.ndarray, float]], atoms: Int[np.ndarray, " m"]) -> float:
    """Å, the least RMSD between two states over some atoms; zero where there is one only."""
    coords = [x[atoms] for x, _ in true.values()]
    pairs = [float(rmsd(x, y)) for i, x in enumerate(coords) for y in coords[:i]]
    return min(pairs, default=0.0)
