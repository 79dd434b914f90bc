"""Joint refinement of a region's states: coordinates, occupancies and B factors, a few cycles.

Each cycle makes the target anew for the present model and ascends it together with the stereochemistry and
the expectations of B by L-BFGS. With amplitudes the target is their likelihood about the present model
(``amplitudes``), bulk solvent and scales fitted again in every cycle; with a map alone that of the region's
density. One state is refined by the same function, which makes R factors of the two comparable. The rest
of the model stays as it is, but for waters, which make room for the states (``waters``), in every cycle anew.
Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import gemmi
import torch
from jaxtyping import Bool
from torch import Tensor

from densemble.atoms import Ensemble
from densemble.crystal.scaling import r_factors_of, r_free_error
from densemble.crystal.sigmaa import free_gain
from densemble.evaluation import NEAR
from densemble.geometry.ascent import ascend
from densemble.geometry.objective import GeometryObjective
from densemble.io.altlocs import build_altlocs, letters_of
from densemble.io.model_results import Refined, Refinement
from densemble.io.naming import residue_id
from densemble.io.reflections import Reflections
from densemble.metrics.maps import rscc, voxels_near
from densemble.problem import RegionProblem
from densemble.refinement.amplitudes import ModelAndData, local_likelihood
from densemble.refinement.built import BuiltModel
from densemble.refinement.conformers import Sites, Values, site_restraints, unflat
from densemble.refinement.restraints import BRestraints
from densemble.refinement.split import split_where_different
from densemble.refinement.waters import make_room, residues_of

CYCLES = 4
EVALUATIONS = 40
"""Of target and gradient in one cycle, at most."""
B_LEAST = 2.0
"""Å^2, below which no B factor is refined against amplitudes."""

Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Log likelihood of coordinates (k, n, 3), occupancies (k, n) and B factors (k, n) of conformers."""


def compare(
    problem: RegionProblem,
    start: Sequence[Ensemble],
    parts: Sequence[Ensemble],
    *,
    coordinate_error: float,
    reflections: Reflections | None = None,
    cycles: int = CYCLES,
) -> tuple[BuiltModel, BuiltModel, Refinement]:
    """The start and the model of states, refined alike, with their fit over the same voxels.

    Args:
        problem: the region and its target.
        start: the parts of one state.
        parts: the parts of the model.
        coordinate_error: Å, see ``refine``.
        reflections: see ``refine``.
        cycles: of each.

    Returns:
        Both, refined, and the record.
    """
    coords = torch.cat([part.coords.reshape(-1, 3) for part in (*start, *parts)])
    voxels = voxels_near(problem.target.grid, coords, NEAR)
    (first, of_first), (second, of_second) = (
        refine(
            problem,
            each,
            coordinate_error=coordinate_error,
            reflections=reflections,
            cycles=cycles,
            voxels=voxels,
        )
        for each in (start, parts)
    )
    error, gain = float("nan"), None
    if reflections is not None and first.amplitudes is not None and second.amplitudes is not None:
        error = r_free_error(first.amplitudes, second.amplitudes, reflections)
        gain = free_gain(first.amplitudes, second.amplitudes, reflections)
    record = Refinement(
        cycles=cycles,
        start=of_first,
        model=of_second,
        r_free_error=None if math.isnan(error) else error,
        free_gain=None if gain is None else gain[0],
        free_gain_error=None if gain is None else gain[1],
    )
    return first, second, record


def refine(
    problem: RegionProblem,
    parts: Sequence[Ensemble],
    *,
    coordinate_error: float,
    reflections: Reflections | None = None,
    cycles: int = CYCLES,
    evaluations: int = EVALUATIONS,
    voxels: Bool[Tensor, "nx ny nz"] | None = None,
) -> tuple[BuiltModel, Refined]:
    """Refine the states of a region.

    Args:
        problem: the region, what surrounds it, and its density.
        parts: together they have the region's free atoms (``problem.stretches.topology``) once; members are
            states, weights their occupancies. What their states share is refined as one atom
            (``split.split_where_different``).
        coordinate_error: Å, up to which states count as the same (``states.same_within``).
        reflections: refine against the working ones of these; against the region's density if None.
        cycles: how often the target is made anew.
        evaluations: of the objective in a cycle, at most (the line search under way is finished).
        voxels: of the target's grid, over which RSCC is stated; those within 2 Å of the parts if None.

    Returns:
        The refined model, in its parts what states share apart and the most occupied state first; and the
        record.

    Raises:
        ValueError: the parts do not make up the region.
    """
    stretches = problem.stretches
    if voxels is None:
        everywhere = torch.cat([part.coords.reshape(-1, 3) for part in parts])
        voxels = voxels_near(problem.target.grid, everywhere, NEAR)
    parts = split_where_different(parts, coordinate_error)
    sites = Sites.of(stretches.topology, parts)
    least = problem.forward.b_min if reflections is None else B_LEAST
    values = Values.of(parts, b_min=least + 1.0)
    before = BuiltModel.of(problem, parts, reflections)
    restraints = site_restraints(problem.restraints(), sites)
    geometry, expected = GeometryObjective(restraints), BRestraints.of(restraints, sites)
    whole = None if reflections is None else _WholeModel(problem, parts, reflections)
    for _ in range(cycles):
        target = _map_target(problem) if whole is None else whole.target(values, sites)
        values = _ascend(values, sites, target, geometry, expected, least=least, evaluations=evaluations)
    refined = split_where_different(_parts_of(values, parts), coordinate_error)
    after = BuiltModel.of(problem, refined, reflections)
    return after, _record(problem, before, after, reflections, voxels)


class _WholeModel:
    """The whole structure, whose region is set to the present values: where amplitudes are calculated."""

    def __init__(self, problem: RegionProblem, parts: Sequence[Ensemble], reflections: Reflections) -> None:
        stretches = problem.stretches
        self.elements, self.reflections = stretches.topology.elements, reflections
        self.structure = build_altlocs(stretches.model, parts, stretches.model_atoms)
        self.region = residues_of(stretches.model, stretches.model_atoms)
        self.atoms = _atoms_of_sites(self.structure, parts)

    def target(self, values: Values, sites: Sites) -> Target:
        """The likelihood of the amplitudes about these values."""
        per_site = (values.coords, values.weights[sites.group], values.b_iso)
        rows = zip(self.atoms, *(v.double().tolist() for v in per_site), strict=True)
        for atom, place, occ, b_iso in rows:
            atom.pos, atom.occ, atom.b_iso = gemmi.Position(*place), occ, b_iso
        structure = self.structure.clone()
        make_room(structure, self.region)
        state = ModelAndData.of(structure, self.reflections)
        return local_likelihood(state, self.reflections, self.elements, *values.of_conformers(sites))


def _atoms_of_sites(structure: gemmi.Structure, parts: Sequence[Ensemble]) -> list[gemmi.Atom]:
    """The atom of each site, in the order of ``Sites``."""
    found = {
        (residue_id(cra.chain, cra.residue), cra.atom.name, cra.atom.altloc): cra.atom
        for cra in structure[0].all()
    }
    return [
        found[(*key, letter)]
        for part in parts
        for letter in letters_of(part)
        for key in part.topology.atom_keys
    ]


def _map_target(problem: RegionProblem) -> Target:
    """The likelihood of the region's density."""

    def target(coords: Tensor, occupancy: Tensor, b_iso: Tensor) -> Tensor:
        return problem.likelihood("ensemble", b_iso)(coords, occupancy)

    return target


def _ascend(
    values: Values,
    sites: Sites,
    target: Target,
    geometry: GeometryObjective,
    expected: BRestraints,
    *,
    least: float,
    evaluations: int,
) -> Values:
    """Raise the sum of all terms by L-BFGS; the best of all evaluations.

    Occupancies are refined as the logits of each part's shares, B factors as ``ln(B - least)``, which keeps
    both within their bounds.
    """
    logits = values.weights.detach().clamp(min=1e-3).log()
    log_b = (values.b_iso.detach() - least).clamp(min=1e-3).log()

    def at(x: Tensor, logits: Tensor, log_b: Tensor) -> Values:
        weights = torch.cat([part.softmax(0) for part in logits.split(sites.states)])
        return Values(x, weights, least + log_b.exp())

    def value(*variables: Tensor) -> Tensor:
        now = at(*variables)
        return target(*now.of_conformers(sites)) + geometry(now.coords[None]) + expected(now.b_iso)

    return at(*ascend([values.coords, logits, log_b], value, evaluations=evaluations).best)


def _parts_of(values: Values, parts: Sequence[Ensemble]) -> list[Ensemble]:
    pieces = zip(
        parts,
        unflat(values.coords, parts),
        values.weights.split([len(part) for part in parts]),
        unflat(values.b_iso, parts),
        strict=True,
    )
    return [Ensemble(part.topology, x, w, b) for part, x, w, b in pieces]


def _record(
    problem: RegionProblem,
    before: BuiltModel,
    after: BuiltModel,
    reflections: Reflections | None,
    voxels: Bool[Tensor, "nx ny nz"],
) -> Refined:
    """RSCC over the voxels, and R factors where there are reflections."""
    fits = [rscc(built.density, problem.target.values, voxels) for built in (before, after)]
    fit = (fits[0], fits[1])
    if reflections is None or before.amplitudes is None or after.amplitudes is None:
        return Refined(rscc=fit)
    first, last = (r_factors_of(built, reflections) for built in (before.amplitudes, after.amplitudes))
    return Refined(r_work=(first.r_work, last.r_work), r_free=(first.r_free, last.r_free), rscc=fit)
