"""The model that the parts of a region make, as it would be written, and how it agrees with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Ensemble
from densemble.crystal.scaling import scaled_amplitudes
from densemble.io.reflections import Reflections
from densemble.problem import RegionProblem
from densemble.refinement.conformers import Sites, Values
from densemble.refinement.waters import Displaced, model_structure


@dataclass(frozen=True, eq=False)
class BuiltModel:
    """A whole model, of which a region is in parts.

    Attributes:
        parts: together they have the region's atoms once.
        structure: the model, waters displaced.
        displaced: which they are.
        coords: Å, of the region's conformers, shape=(J, N, 3).
        density: of the region, as the target shows it.
        amplitudes: ``k Fc`` of each reflection, on the data's scale, shape=(h,); None without any.
    """

    parts: list[Ensemble]
    structure: gemmi.Structure
    displaced: Displaced
    coords: Float[Tensor, "j n 3"]
    density: Float[Tensor, "nx ny nz"]
    amplitudes: Float[np.ndarray, " h"] | None

    @classmethod
    def of(
        cls, problem: RegionProblem, parts: Sequence[Ensemble], reflections: Reflections | None = None
    ) -> BuiltModel:
        """Put parts into the model.

        Args:
            problem: the region and its target.
            parts: of the region.
            reflections: to be compared with, if there are any.
        """
        stretches = problem.stretches
        structure, displaced = model_structure(stretches.model, parts, stretches.model_atoms)
        sites = Sites.of(stretches.topology, parts)
        values = Values.of(parts, b_min=problem.forward.b_min)
        coords, occupancy, b_iso = values.of_conformers(sites)
        with torch.no_grad():
            density = problem.forward(coords, occupancy, b_iso)
        amplitudes = None if reflections is None else scaled_amplitudes(structure, reflections)
        return cls(list(parts), structure, displaced, coords, density, amplitudes)
