"""Structure factors of a model: of its atoms, and of the bulk solvent around them.

Both are calculated by gemmi, by fast Fourier transform of a density on a grid of the whole cell.
Reflection (0, 0, 0) is calculated like any other: the number of electrons, or the solvent volume.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import gemmi
import numpy as np
from jaxtyping import Complex, Int32

from densemble.atoms import ResidueId
from densemble.io.naming import residue_id

_OVERSAMPLING = 1.5  # grid for Fcalc: spacing d_min / (2 * 1.5)
_MASK_SPACING = 0.55  # Å; between 0.35 and 0.8 R-free of the packaged example varies by 0.002, without trend


def without_residues(structure: gemmi.Structure, residues: Sequence[ResidueId]) -> gemmi.Structure:
    """A copy of the structure's first model, all its altlocs, without some of its residues."""
    left_out = set(residues)
    partial = structure.clone()
    for chain in partial[0]:
        for i in reversed(range(len(chain))):
            if residue_id(chain, chain[i]) in left_out:
                del chain[i]
    partial.remove_empty_chains()
    return partial


def atom_factors(
    structure: gemmi.Structure, hkl: Int32[np.ndarray, "n 3"], *, d_min: float
) -> Complex[np.ndarray, " n"]:
    """Structure factors of the atoms of the first model, with occupancies, B and ANISOU, in electrons.

    The root mean square difference from direct summation is below 0.05 % of the mean amplitude.

    Args:
        structure: the model; altlocs add up with their occupancies.
        hkl: reflections within ``d_min``.
        d_min: Å, resolution for which the grid is chosen.
    """
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min = d_min
    calculator.rate = _OVERSAMPLING
    calculator.set_refmac_compatible_blur(structure[0])
    calculator.set_grid_cell_and_spacegroup(structure)
    calculator.put_model_density_on_grid(structure[0])
    transform = gemmi.transform_map_to_f_phi(calculator.grid, half_l=True)
    return transform.get_value_by_hkl(hkl, unblur=calculator.blur).astype(np.complex128)


def solvent_mask(structure: gemmi.Structure) -> gemmi.FloatGrid:
    """The bulk-solvent mask: 1 in the solvent, 0 within reach of any atom.

    Radii, probe and shrinkage are those of REFMAC (gemmi's ``AtomicRadiiSet.Refmac``), made for models
    without hydrogens; of gemmi's three sets it gives the packaged example the lowest R factors. Where
    altlocs differ the mask is the mean of theirs, so that solvent fills what a conformation leaves
    empty as often as it is away: on the deposited 7RIN this lowers R-free from 0.154 to 0.151.
    """
    grid = gemmi.FloatGrid()
    grid.setup_from(structure, spacing=_MASK_SPACING)
    total = np.zeros(grid.shape, dtype=np.float32)
    for weight, conformer in conformers(structure):
        gemmi.SolventMasker(gemmi.AtomicRadiiSet.Refmac).put_mask_on_float_grid(grid, conformer[0])
        total += weight * np.array(grid, copy=False)
    np.array(grid, copy=False)[:] = total
    return grid


def conformers(structure: gemmi.Structure) -> list[tuple[float, gemmi.Structure]]:
    """The first model's conformations, one per altloc label, with weights that sum to one.

    A label's weight is the mean occupancy of its atoms, over the sum of these means. A residue
    without the label is in the conformation with all its atoms.
    """
    occupancies: dict[str, list[float]] = defaultdict(list)
    for site in structure[0].all():
        if site.atom.has_altloc():
            occupancies[site.atom.altloc].append(site.atom.occ)
    means = {label: float(np.mean(values)) for label, values in sorted(occupancies.items())}
    total = sum(means.values())
    if len(means) < 2 or total <= 0:
        return [(1.0, structure)]
    return [(mean / total, _only_altloc(structure, label)) for label, mean in means.items()]


def _only_altloc(structure: gemmi.Structure, label: str) -> gemmi.Structure:
    conformer = structure.clone()
    for chain in conformer[0]:
        for residue in chain:
            if any(atom.altloc == label for atom in residue):
                for i in reversed(range(len(residue))):
                    if residue[i].altloc not in ("\0", label):
                        del residue[i]
    return conformer


def solvent_factors(mask: gemmi.FloatGrid, hkl: Int32[np.ndarray, "n 3"]) -> Complex[np.ndarray, " n"]:
    """Structure factors in Å^3 of a solvent mask: to be multiplied with the solvent's density in e/Å^3."""
    transform = gemmi.transform_map_to_f_phi(mask, half_l=True)
    return transform.get_value_by_hkl(hkl).astype(np.complex128)
