"""What is said of a result: map fit, R factors, and distances to reference states where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densemble.atoms import BACKBONE, Ensemble, Topology
from densemble.errors import InputError
from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap
from densemble.io.models import alternates
from densemble.io.results import Member, Metrics, Subject
from densemble.metrics.coordinates import bimodality, rmsd
from densemble.metrics.maps import cosine, rscc, voxels_near
from densemble.problem import RegionProblem, Stretches

NEAR = 2.0
"""Å; voxels this close to an atom are the atom's."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """The voxels over which map fit is stated, and which these are in words."""

    inside: Bool[Tensor, "nx ny nz"]
    description: str

    @classmethod
    def of_states(cls, target: DensityMap, states: dict[str, np.ndarray], source: str) -> Voxels:
        """Those near any atom of some reference states (evaluation only)."""
        known = np.concatenate([x[np.isfinite(x).all(axis=1)] for x in states.values()])
        inside = voxels_near(target.grid, torch.as_tensor(known), NEAR)
        names = " or ".join(name or "its one state" for name in states)
        return cls(inside, f"within {NEAR:g} Å of an atom of the region in {source}, state {names}")

    @classmethod
    def of_models(cls, target: DensityMap, *coords: Float[Tensor, "... n 3"]) -> Voxels:
        """Those near any atom of the models compared."""
        points = torch.cat([x.reshape(-1, 3) for x in coords])
        inside = voxels_near(target.grid, points, NEAR)
        return cls(inside, f"within {NEAR:g} Å of an atom of the region in the start or any ensemble")


@dataclass(frozen=True)
class MapFit:
    """Agreement of calculated density with the target over stated voxels."""

    rscc: float
    cosine: float


def ensemble_density(forward: XrayDensity, ensemble: Ensemble) -> Float[Tensor, "nx ny nz"]:
    """What the target would be if the ensemble made it."""
    with torch.no_grad():
        return forward(ensemble.coords, ensemble.weights, ensemble.b_iso.clamp(min=forward.b_min))


def map_fit(forward: XrayDensity, target: DensityMap, voxels: Voxels, ensemble: Ensemble) -> MapFit:
    """Of an ensemble's weighted density."""
    density = ensemble_density(forward, ensemble)
    return MapFit(
        rscc=rscc(density, target.values, voxels.inside), cosine=cosine(density, target.values, voxels.inside)
    )


def backbone_atoms(topology: Topology) -> np.ndarray:
    """Indices of N, CA, C, O, by which conformations are compared."""
    return np.flatnonzero(np.isin(topology.names, BACKBONE))


def distances(
    topology: Topology, coords: Float[np.ndarray, "k n 3"], states: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Backbone RMSD in place of each member to each state, and the bimodality score of the first two.

    Args:
        topology: the N atoms.
        coords: Å, shape=(K, N, 3).
        states: reference coordinates by name, NaN where unknown, each shape=(N, 3).

    Returns:
        RMSD in Å by state, each shape=(K,); the score, shape=(K,), or None with fewer than two states or
        no backbone atom that the first two share.
    """
    atoms = backbone_atoms(topology)
    names = list(states)
    to = {name: rmsd(coords[:, atoms], states[name][atoms]) for name in names}
    if len(names) < 2:
        return to, None
    a, b = (states[name][atoms] for name in names[:2])
    if not (np.isfinite(a) & np.isfinite(b)).all(axis=1).any():
        return to, None
    return to, bimodality(coords[:, atoms], a, b)


def reference_states(reference: Path | None, stretches: Stretches) -> dict[str, np.ndarray]:
    """Coordinates of the free atoms in each altloc of a reference that has a backbone; empty without one.

    Raises:
        InputError: the reference cannot be read, or has none of the region's atoms or of its backbone.
    """
    if reference is None:
        return {}
    atoms = backbone_atoms(stretches.topology)
    states = {name: state.coords for name, state in alternates(reference, stretches.topology).items()}
    known = {name: x for name, x in states.items() if np.isfinite(x[atoms]).all(axis=1).any()}
    if not known:
        raise InputError(
            f"reference {reference}: has no backbone atom of {stretches.region}; give one that has"
        )
    return known


def start_ensemble(problem: RegionProblem) -> Ensemble:
    """The start as an ensemble of one."""
    stretches = problem.stretches
    return Ensemble(stretches.topology, stretches.start[None], torch.ones(1), stretches.b_start[None])


def map_fits(
    problem: RegionProblem, ensembles: dict[Subject, Ensemble], states: dict[str, np.ndarray], source: str
) -> tuple[Metrics, Voxels]:
    """RSCC and cosine of each ensemble, over one set of voxels."""
    target = problem.target
    if states:
        voxels = Voxels.of_states(target, states, source)
    else:
        voxels = Voxels.of_models(target, *(e.coords[e.weights > 0] for e in ensembles.values()))
    fits = {name: map_fit(problem.forward, target, voxels, e) for name, e in ensembles.items()}
    return (
        Metrics(
            voxels=voxels.description,
            rscc={name: fit.rscc for name, fit in fits.items()},
            cosine={name: fit.cosine for name, fit in fits.items()},
        ),
        voxels,
    )


def residue_rows(
    problem: RegionProblem,
    densities: Mapping[str, Float[Tensor, "nx ny nz"]],
    coords: Float[Tensor, "k n 3"],
) -> list[dict[str, str | float]]:
    """RSCC of each residue with the target, for ``residues.csv``; NaN where it is not defined.

    A residue's voxels are those within 2 Å of any of its atoms in any of the conformations given, the same
    for every subject, so that the columns can be compared. The density of neighbours within the region is on
    both sides of the comparison.

    Args:
        problem: the target.
        densities: calculated ones by subject, a column each, for example of ``ensemble_density``.
        coords: Å, all conformations that are compared, of the atoms of ``problem.stretches.topology``.
    """
    topology, target = problem.stretches.topology, problem.target
    rows: list[dict[str, str | float]] = []
    for r, residue in enumerate(topology.residues):
        atoms = torch.as_tensor(topology.atoms_of([r]))
        inside = voxels_near(target.grid, coords[:, atoms], NEAR)
        row: dict[str, str | float] = {"residue": str(residue.id), "name": residue.name}
        for subject, density in densities.items():
            try:
                row[subject] = rscc(density, target.values, inside)
            except ValueError:  # no voxels, or one of the maps is constant there
                row[subject] = float("nan")
        rows.append(row)
    return rows


def member_records(
    problem: RegionProblem,
    voxels: Voxels,
    coords: Float[Tensor, "k n 3"],
    weights: dict[int, float],
    b_iso: Float[Tensor, " n"],
    states: dict[str, np.ndarray],
) -> list[Member]:
    """One record a member: alone against the map, and against the reference states."""
    topology = problem.stretches.topology
    to, score = distances(topology, coords.double().numpy(), states) if states else ({}, None)
    records = []
    for k in range(len(coords)):
        alone = Ensemble(topology, coords[[k]], torch.ones(1), b_iso[None])
        records.append(
            Member(
                id=k + 1,
                selected=weights.get(k, 0.0) > 0,
                weight=weights.get(k, 0.0),
                rscc=map_fit(problem.forward, problem.target, voxels, alone).rscc,
                bimodality=None if score is None else float(score[k]),
                rmsd={name: float(values[k]) for name, values in to.items()} or None,
            )
        )
    return records
