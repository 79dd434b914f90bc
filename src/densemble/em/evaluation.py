"""How good the models of a state are: fit to the map, to the half map not used, geometry, distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.align.chains import chain_groups, matched_rmsd
from densemble.atoms import BACKBONE, Region, Topology
from densemble.em.state import refinable
from densemble.errors import InputError
from densemble.forward.cryoem import AtomForm, FormKind
from densemble.geometry.restraints import build_restraints
from densemble.geometry.validation import validate
from densemble.grid import DensityMap
from densemble.io.models import Model
from densemble.io.state_results import Distance, Fit, Geometry, Mixture, StateMember
from densemble.likelihood.state import StateLikelihood, weighted_correlation
from densemble.metrics.chains import best_chain_assignment
from densemble.metrics.coordinates import local_rmsd, superposed_rmsd
from densemble.metrics.fsc import map_model_resolution
from densemble.metrics.maps import ModelFit, model_fit
from densemble.metrics.qscore import q_scores
from densemble.metrics.tmscore import tm_score
from densemble.selection.pursuit import correlation, matching_pursuit

NEAR = 2.0
"""Å from the atoms of a model within which voxels count for its RSCC."""


def matched(topology: Topology, other: Model) -> Float[np.ndarray, "n 3"]:
    """Å, the atoms of another model by chain, number, insertion code and name; NaN where it has none."""
    index = other.topology.places_of(topology)
    return np.where(index[:, None] >= 0, other.coords[index], np.nan)


def check_reference(start: Model, reference: Model) -> None:
    """See that distances from a reference can be stated.

    Raises:
        InputError: fewer than three CA atoms have the same chain, number and name in both.
    """
    alpha = np.array(start.topology.names) == "CA"
    shared = np.isfinite(matched(start.topology, reference)[alpha]).all(axis=1).sum()
    if shared < 3:
        raise InputError(
            f"reference {reference.path} has {shared} CA atoms of the chains and numbers of {start.path}, "
            "too few to compare; name chains and residues alike"
        )


def selected(selection: Region, start: Model, reference: Model) -> list[int]:
    """Indices of the residues over which a distance from the reference is stated too.

    Raises:
        InputError: the start lacks some of them, the reference has nothing of their backbone, or too few CA
            atoms are left to superpose on.
    """
    topology = start.topology
    residues = selection.residues(topology)
    known, names = np.isfinite(matched(topology, reference)).all(axis=1), np.array(topology.names)
    chosen = np.isin(topology.residue_index, residues)
    if not (known & chosen & np.isin(names, BACKBONE)).any():
        raise InputError(f"--selection {selection}: reference {reference.path} has no backbone there")
    if (known & ~chosen & (names == "CA")).sum() < 3:
        raise InputError(
            f"--selection {selection}: fewer than three other CA atoms are in {reference.path} to superpose "
            "on; select less"
        )
    return residues


@dataclass(frozen=True, eq=False)
class Seen:
    """A model compared with the map.

    Attributes:
        fit: the figures of the whole.
        form: how atoms look, with the width that suits the model.
        rscc: of each residue; NaN where there is no figure.
        q_scores: of each residue, likewise.
    """

    fit: Fit
    form: AtomForm
    rscc: Float[np.ndarray, " r"]
    q_scores: Float[np.ndarray, " r"]


class Judge:
    """Judges models of the same atoms by the same map; the reference is for evaluation only.

    Args:
        start: the start, which has the same atoms and says which residues are bonded.
        likelihood: the map that was fitted, and its mask.
        kind: how atoms look in the sharp map; how wide they are is fitted for each model.
        held_out: the half map that took no part, on the grid of ``likelihood.target``.
        reference: a model in the frame of the map, from which distances are stated.
        selection: residues over which a local distance is stated too.
    """

    def __init__(
        self,
        start: Model,
        likelihood: StateLikelihood,
        *,
        kind: FormKind = "electron",
        held_out: DensityMap | None = None,
        reference: Model | None = None,
        selection: Sequence[int] = (),
    ) -> None:
        self.start = start
        self.topology = start.topology
        self.likelihood = likelihood
        self.kind: FormKind = kind
        self.held_out = held_out
        self.selection = tuple(selection)
        self._reference = None if reference is None else matched(start.topology, reference)
        names = () if reference is None else reference.topology.names
        self._reference_length = sum(name == "CA" for name in names)

    def form(self, coords: Float[Tensor, "n 3"]) -> AtomForm:
        """The width of atoms that suits a model."""
        known = self._known(coords)
        return known.fitted(coords[torch.isfinite(coords).all(-1)], self.kind).form

    def see(self, coords: Float[Tensor, "n 3"]) -> Seen:
        """Agreement of a model with the map; coordinates in Å, NaN for atoms that it lacks."""
        observed, x, mask = self.likelihood.target, coords.double().numpy(), self.likelihood.mask
        form = self.form(coords)
        calculated = self._density(coords, form)
        near, scores = self._near(observed, calculated, x), q_scores(observed, self.topology, x)
        held_out = None
        if self.held_out is not None:
            held_out = self._near(self.held_out, calculated, x).overall
        ends = map_model_resolution(observed.values, calculated, observed.grid, mask=mask)
        fit = Fit(
            correlation=float(weighted_correlation(observed.values, calculated[None], mask)[0]),
            rscc=near.overall,
            held_out_rscc=held_out,
            q_score=scores.overall,
            fsc_05=ends if math.isfinite(ends) else None,
        )
        return Seen(fit, form, near.residues, scores.residues)

    def fit(self, coords: Float[Tensor, "n 3"]) -> Fit:
        """The figures of a whole model."""
        return self.see(coords).fit

    def reference_fit(self) -> Fit | None:
        """The same of the reference, of those atoms that the models have too (it is evaluation only)."""
        return None if self._reference is None else self.fit(torch.from_numpy(self._reference).float())

    def residues(self, seen: Seen) -> list[dict[str, str | float]]:
        """RSCC and Q-score of each residue of a model, as rows of a table."""
        return [
            {"residue": str(r.id), "name": r.name, "rscc": float(c), "q_score": float(q)}
            for r, c, q in zip(self.topology.residues, seen.rscc, seen.q_scores, strict=True)
        ]

    def distance(self, coords: Float[np.ndarray, "n 3"]) -> Distance | None:
        """From the reference, chains of the same sequence exchanged where that is nearer."""
        if self._reference is None:
            return None
        arranged = best_chain_assignment(self.topology, coords, self._reference).coords
        found = superposed_rmsd(self.topology, arranged, self._reference, symmetric=True)
        protein = [i for i, r in enumerate(self.topology.residues) if r.kind == "protein"]
        index = self.topology.atom_index
        alpha = [index[r, "CA"] for r in protein if (r, "CA") in index]
        x, reference = arranged[alpha], self._reference[alpha]
        known = np.isfinite(x).all(axis=1) & np.isfinite(reference).all(axis=1)
        local, local_ca = self._local(arranged)
        return Distance(
            ca_rmsd=found.alpha,
            ca_rmsd_in_place=self._in_place(coords),
            all_atom_rmsd=found.all_atoms,
            tm_score=tm_score(x[known], reference[known], length=self._reference_length),
            local_rmsd=local,
            local_ca_rmsd=local_ca,
        )

    def _local(self, arranged: Float[np.ndarray, "n 3"]) -> tuple[float | None, float | None]:
        """RMSD over the selection: backbone, superposed on the CA atoms outside it; CA, superposed on all CA.

        The second is None where the reference has no CA atom of the selection.
        """
        if not self.selection or self._reference is None:
            return None, None
        names, known = np.array(self.topology.names), np.isfinite(self._reference).all(axis=1)
        chosen, alpha = np.isin(self.topology.residue_index, self.selection), names == "CA"
        over = np.flatnonzero(chosen & np.isin(names, BACKBONE))
        outside = local_rmsd(arranged, self._reference, over=over, fit=np.flatnonzero(~chosen & alpha))
        if not (known & chosen & alpha).any():
            return outside, None
        everywhere = np.flatnonzero(alpha)
        return outside, local_rmsd(
            arranged, self._reference, over=np.flatnonzero(chosen & alpha), fit=everywhere
        )

    def _in_place(self, coords: Float[np.ndarray, "n 3"]) -> float:
        """RMSD of CA atoms without superposition, whichever of equal chains stand where."""
        assert self._reference is not None
        known = np.isfinite(self._reference).all(axis=1)
        groups = []
        for group in chain_groups(self.topology):
            shared = np.all([known[atoms] for atoms in group], axis=0)
            if shared.any():
                groups.append([atoms[shared] for atoms in group])
        return float(matched_rmsd(coords[None], self._reference, groups)[0])

    def geometry(self, coords: Float[Tensor, "n 3"]) -> Geometry:
        """Stereochemistry of the protein atoms, bonded as in the start."""
        free = refinable(self.topology)
        restraints = build_restraints(
            self.topology, coords.double().numpy(), free, bonded_as=self.start.coords
        )
        report = validate(restraints, coords[None, torch.from_numpy(free)]).rows()[0]
        return Geometry.model_validate({k: None if math.isnan(v) else v for k, v in report.items()})

    def member(self, coords: Float[Tensor, "n 3"], fit: Fit, *, sample: int, model: int) -> StateMember:
        """Everything about one sample, with its number among the models."""
        return StateMember(
            model=model,
            sample=sample,
            fit=fit,
            geometry=self.geometry(coords),
            reference=self.distance(coords.double().numpy()),
        )

    def voxel_values(self, members: Float[Tensor, "k n 3"], form: AtomForm) -> tuple[np.ndarray, np.ndarray]:
        """Densities of the members, shape=(K, V), and the map, shape=(V,), where the mask is above a half."""
        inside = self.likelihood.mask > 0.5
        densities = torch.stack([self._density(x, form)[inside] for x in members])
        return densities.double().numpy(), self.likelihood.target.values[inside].double().numpy()

    def mixture(self, members: Float[Tensor, "k n 3"], *, keep: int) -> Mixture:
        """The few members that together explain the map best, by matching pursuit, and how well they do.

        The half map that was not used has no part in the choice.
        """
        densities, target = self.voxel_values(members, self.form(members[0]))
        found = matching_pursuit(densities, target, keep=keep)
        mixed = found.weights @ densities[list(found.members)]
        alone = max(densities, key=lambda density: correlation(density, target))
        other = None
        if self.held_out is not None:
            other = self.held_out.values[self.likelihood.mask > 0.5].double().numpy()
        return Mixture(
            members=[k + 1 for k in found.members],
            weights=found.weights.tolist(),
            correlation=correlation(mixed, target),
            held_out=None if other is None else correlation(mixed, other),
            best_alone=correlation(alone, target),
            best_alone_held_out=None if other is None else correlation(alone, other),
        )

    def _known(self, coords: Float[Tensor, "n 3"]) -> StateLikelihood:
        """The likelihood of those atoms that have coordinates."""
        known = torch.isfinite(coords).all(-1)
        whole = self.likelihood
        return StateLikelihood(
            whole.target,
            whole.mask,
            [e for e, here in zip(self.topology.elements, known.tolist(), strict=True) if here],
            resolution=whole.resolution,
            volume=whole.volume,
            occupancy=None if whole.occupancy is None else whole.occupancy[known],
        )

    def _density(self, coords: Float[Tensor, "n 3"], form: AtomForm) -> Float[Tensor, "nx ny nz"]:
        """Of the atoms that are known."""
        known = self._known(coords)
        density = form.density(known.target.grid, known.elements, occupancy=known.occupancy)
        with torch.no_grad():
            return density.members(coords[None, torch.isfinite(coords).all(-1)])[0]

    def _near(self, observed: DensityMap, calculated: Tensor, x: np.ndarray) -> ModelFit:
        return model_fit(observed.values, calculated, observed.grid, self.topology, x, radius=NEAR)
