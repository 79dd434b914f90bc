"""Target maps of a stretch of chain, in e/Å^3: omit, 2mFo-DFc, and as phased by another program.

Each map comes as two sets of coefficients: ``total``, the map of everything in the crystal, and
``context``, everything but the stretch: the other atoms and the bulk solvent. Their difference,
``stretch``, is the density that an ensemble of the stretch has to explain.

No amplitude of a free reflection enters: at free reflections total is context, so that the
difference is zero there. (Leaving them out of both sets would give the same difference but puncture
the total map; the whole model's Fc in total would draw the start's conformation into it.)

All is on the scale of the whole model's calculated density: amplitudes are divided by the scale that
brings model to data (`densemble.crystal.scaling`). It is fitted with the stretch in place, for a model
that lacks atoms would be scaled up; no phase knows of it. Reflection (0, 0, 0) is the number of electrons
in the cell, solvent included, so that maps are absolute, as in Lang, P. T. et al. (2014). PNAS 111, 237-242.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from jaxtyping import Complex, Float

from densemble.atoms import ResidueId
from densemble.crystal.fcalc import (
    atom_factors,
    solvent_factors,
    solvent_mask,
    without_residues,
)
from densemble.crystal.scaling import BulkSolvent, Scale, bulk_solvent, fit_scale, resolution_shells
from densemble.crystal.sigmaa import figure_of_merit
from densemble.errors import InputError
from densemble.io.reflections import MapCoefficients, Reflections

_ORIGIN = np.zeros((1, 3), dtype=np.int32)


@dataclass(frozen=True, eq=False)
class ScaledModels:
    """The start and all but its stretch, as they were brought to the data's scale.

    Attributes:
        whole: structure factors of the start, with solvent and (0, 0, 0) last, shape=(n + 1,).
        rest: the same of all but its stretch, shape=(n + 1,).
        scale: model to data.
        solvent: the bulk solvent of both.
    """

    whole: Complex[np.ndarray, " n1"]
    rest: Complex[np.ndarray, " n1"]
    scale: Scale
    solvent: BulkSolvent


@dataclass(frozen=True, eq=False)
class StretchMap:
    """A map of the crystal, and the part of it that is not the stretch; the same hkl in both.

    In the context bulk solvent fills the place of the stretch, for anything else would draw the outline
    of its start. So the stretch's density is that of its atoms less that of the solvent which they displace.

    Attributes:
        total: the map.
        context: everything but the stretch.
        models: the start and the rest of it.
    """

    total: MapCoefficients
    context: MapCoefficients
    models: ScaledModels

    @property
    def solvent(self) -> BulkSolvent:
        """The solvent that the stretch displaces."""
        return self.models.solvent

    @property
    def stretch(self) -> MapCoefficients:
        """Density of the stretch alone: total minus context."""
        values = self.total.values - self.context.values
        return MapCoefficients(
            self.total.hkl, values, self.total.cell, self.total.spacegroup, self.total.source
        )


def omit_map(
    structure: gemmi.Structure, residues: Sequence[ResidueId], reflections: Reflections
) -> StretchMap:
    """The map of a stretch that has no part in the phases.

    ``total`` is 2mFo-DFc (mFo for centric reflections) and ``context`` DFc of the model without the
    stretch. So ``stretch`` is 2(mFo-DFc), because mFo-DFc shows what is missing at half weight, but
    mFo-DFc for centric reflections, where it does not.

    Args:
        structure: the start, one conformation of the stretch; its cell is the map's.
        residues: the stretch.
        reflections: the data.

    Raises:
        InputError: none of the residues is in the structure.
    """
    models = scaled_models(structure, residues, reflections)
    total, context, _ = _weighted(reflections, models, phasing=models.rest)
    return _stretch_map(structure, reflections, total, context, models)


def two_fofc_map(
    structure: gemmi.Structure, residues: Sequence[ResidueId], reflections: Reflections
) -> StretchMap:
    """2mFo-DFc with the stretch in the phases, hence biased towards the start.

    ``context`` is DFc of the model without the stretch, with D of the whole model.

    Raises:
        InputError: none of the residues is in the structure.
    """
    models = scaled_models(structure, residues, reflections)
    total, context, _ = _weighted(reflections, models, phasing=models.whole)
    return _stretch_map(structure, reflections, total, context, models)


def as_phased_map(
    coefficients: MapCoefficients,
    structure: gemmi.Structure,
    residues: Sequence[ResidueId],
    reflections: Reflections,
) -> StretchMap:
    """Coefficients of another program, brought to absolute scale against the start's density.

    In each resolution shell they are divided by their regression on the start's structure factors,
    which by Parseval's theorem is the regression of their map on the start's density. ``context`` is
    Fc of the model without the stretch. Coefficients that have no working reflection are not used:
    free reflections entered them, or they are calculated.

    Args:
        coefficients: of a 2mFo-DFc or like map, on any scale, phased in the start's setting.
        structure: the start.
        residues: the stretch.
        reflections: the data: which reflections are working.

    Raises:
        InputError: none of the residues is in the structure; or the phases have nothing to do with it.
    """
    models = scaled_models(structure, residues, reflections)
    values, usable = _match(coefficients, reflections)
    shells, f = resolution_shells(reflections), models.whole[:-1]
    total, context = models.rest[:-1].copy(), models.rest[:-1]
    for shell in range(shells.max() + 1):
        inside = (shells == shell) & usable
        power = (np.abs(f[inside]) ** 2).sum()
        scale = (values[inside] * f[inside].conj()).real.sum() / power if power > 0 else 0.0
        if scale <= 0:
            raise InputError(
                f"{coefficients.source}: the phases do not fit the model; give coefficients of the same "
                "origin and setting, and of working reflections"
            )
        total[inside] = values[inside] / scale
    with_000 = np.append(total, models.whole[-1]), np.append(context, models.rest[-1])
    return _stretch_map(structure, reflections, *with_000, models)


def atoms_map(structure: gemmi.Structure, reflections: Reflections) -> MapCoefficients:
    """2mFo-DFc less the bulk solvent around the whole model: the density of all its atoms, biased to it."""
    models = scaled_models(structure, None, reflections)
    total, solvent, _ = _weighted(reflections, models, phasing=models.whole)
    return _stretch_map(structure, reflections, total, solvent, models).stretch


@dataclass(frozen=True, eq=False)
class ResidualMaps:
    """What a model leaves unexplained, and what it is compared with.

    Attributes:
        difference: 2(mFo-DFc), and mFo-DFc for centric reflections, so that missing density shows at about
            full weight; nothing at free reflections.
        observed: as of ``atoms_map``.
        calculated: density of the atoms, scaled down with D as the model is in the difference.
    """

    difference: MapCoefficients
    observed: MapCoefficients
    calculated: MapCoefficients


def residual_maps(structure: gemmi.Structure, reflections: Reflections) -> ResidualMaps:
    """The difference map of a whole model, and the density of its atoms as observed and as calculated."""
    models = scaled_models(structure, None, reflections)
    total, solvent, d = _weighted(reflections, models, phasing=models.whole)
    weight = np.append(d, 1.0)
    difference = np.where(np.append(reflections.free, True), 0, total - weight * models.whole)
    hkl = np.concatenate([reflections.hkl, _ORIGIN])
    return ResidualMaps(
        *(
            MapCoefficients(hkl, values, structure.cell, reflections.spacegroup, reflections.source)
            for values in (difference, total - solvent, weight * (models.whole - models.rest))
        )
    )


def scaled_models(
    structure: gemmi.Structure, residues: Sequence[ResidueId] | None, reflections: Reflections
) -> ScaledModels:
    """The start, and all but some residues; where these are None, the start's bulk solvent alone."""
    hkl = np.concatenate([reflections.hkl, _ORIGIN])
    atoms = atom_factors(structure, hkl, d_min=reflections.d_min)
    mask = solvent_factors(solvent_mask(structure), hkl)
    scale = fit_scale(reflections, atoms[:-1], mask[:-1])
    density, bulk = np.append(scale.k_mask, scale.k_mask_0), bulk_solvent(reflections, scale)
    if residues is None:
        return ScaledModels(atoms + density * mask, density * mask, scale, bulk)
    without = without_residues(structure, residues)
    if without[0].count_atom_sites() == structure[0].count_atom_sites():
        raise InputError("the model has none of the region's residues; check chain and numbering")
    rest = atom_factors(without, hkl, d_min=reflections.d_min)
    mask_of_rest = solvent_factors(solvent_mask(without), hkl)
    return ScaledModels(atoms + density * mask, rest + density * mask_of_rest, scale, bulk)


def _weighted(
    reflections: Reflections, models: ScaledModels, *, phasing: Complex[np.ndarray, " n1"]
) -> tuple[Complex[np.ndarray, " n1"], Complex[np.ndarray, " n1"], Float[np.ndarray, " n"]]:
    """2mFo-DFc (centric: mFo) phased by a model, and DFc of the rest; equal at free reflections. And D."""
    f, rest = phasing[:-1], models.rest[:-1]
    f_obs = reflections.f / models.scale.k
    m, d = figure_of_merit(reflections, f_obs, f)
    context = d * rest
    best = m * f_obs * np.exp(1j * np.angle(f))
    total = np.where(reflections.centric, best, 2 * best - d * f)
    total = np.where(reflections.free, context, total)
    return np.append(total, models.whole[-1]), np.append(context, models.rest[-1]), d


def _match(coefficients: MapCoefficients, reflections: Reflections) -> tuple[np.ndarray, np.ndarray]:
    """Coefficient of each reflection, and whether there is one and the reflection is working."""
    index = {tuple(hkl): i for i, hkl in enumerate(coefficients.hkl.tolist())}
    found = np.array([index.get(tuple(hkl), -1) for hkl in reflections.hkl.tolist()])
    return coefficients.values[found], (found >= 0) & ~reflections.free


def _stretch_map(
    structure: gemmi.Structure,
    reflections: Reflections,
    total: Complex[np.ndarray, " n1"],
    context: Complex[np.ndarray, " n1"],
    models: ScaledModels,
) -> StretchMap:
    hkl = np.concatenate([reflections.hkl, _ORIGIN])
    total_map, context_map = (
        MapCoefficients(hkl, values, structure.cell, reflections.spacegroup, reflections.source)
        for values in (total, context)
    )
    return StretchMap(total_map, context_map, models)
