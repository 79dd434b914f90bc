"""The density of a model alone, as a map of given resolution shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from densemble.crystal import sampling
from densemble.errors import InputError, check_resolution
from densemble.forward.molmap import MolmapDensity
from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import require_cell
from densemble.io.output import check_output_file
from densemble.io.sites import Sites

Kind = Literal["xray", "molmap"]

MARGIN = 3.0
"""Å; the box reaches this and one resolution beyond the atoms."""

MAX_VOXELS = 10**8  # half a gigabyte of values, and several in their making


def xray_density(sites: Sites, grid: Grid, *, d_min: float) -> DensityMap:
    """Electron density of all sites without solvent, no Fourier component beyond ``d_min``, in e/Å^3.

    With a unit cell it is that of the crystal, symmetry copies included, by Fourier synthesis (ANISOU
    as in the file; for its error see ``densemble.crystal.sampling``). Without one it is that of the
    model alone, isotropic, by ``XrayDensity`` with B factors raised to its least one of 10 Å^2 where they
    are below; its errors are given at ``densemble.forward.truncation.truncated_form_factors``.

    Args:
        sites: the model.
        grid: the box, anywhere.
        d_min: Å.

    Raises:
        InputError: the model has a cell but no known space group, or an element without form factors.
    """
    if sites.structure.cell.is_crystal():
        require_cell(sites.model)
        return sampling.sample(sampling.simulate(sites.structure, d_min=d_min), grid)
    forward = XrayDensity(
        grid, sites.elements, occupancy=torch.as_tensor(sites.occupancy, dtype=torch.float32), d_min=d_min
    )
    coords = torch.as_tensor(sites.coords, dtype=torch.float32)
    b_iso = torch.as_tensor(sites.b_iso, dtype=torch.float32).clamp(min=forward.b_min)
    return DensityMap(grid, forward(coords[None], torch.ones(1), b_iso))


def molmap_density(sites: Sites, grid: Grid, *, resolution: float) -> DensityMap:
    """``MolmapDensity`` of all sites, altlocs with their occupancies; no symmetry copies."""
    occupancy = torch.as_tensor(sites.occupancy, dtype=torch.float32)
    forward = MolmapDensity(grid, sites.elements, resolution=resolution, occupancy=occupancy)
    coords = torch.as_tensor(sites.coords, dtype=torch.float32)
    return DensityMap(grid, forward(coords[None], torch.ones(1)))


def simulate(
    model: Path, out: Path, *, resolution: float, spacing: float, kind: Kind = "xray", force: bool = False
) -> DensityMap:
    """Write the density of a model on an orthonormal box around it, as a CCP4 map.

    Voxels lie at multiples of the spacing.

    Args:
        model: mmCIF or PDB; altlocs count with their occupancies, hydrogens not at all.
        out: the map's file.
        resolution: Å.
        spacing: Å between voxels, at most half the resolution (the Nyquist limit).
        kind: ``xray``, see ``xray_density``; ``molmap``, see ``MolmapDensity``.
        force: replace a file that exists.

    Returns:
        What was written.

    Raises:
        InputError: resolution and spacing do not go together or make too large a map; the file exists
            or its folder does not; the model cannot be read.
    """
    _check_sampling(resolution, spacing)
    check_output_file(out, force=force)
    sites = Sites.read(model)
    extent = np.ptp(sites.coords, axis=0) + 2 * (MARGIN + resolution)
    if np.prod(extent / spacing + 2) > MAX_VOXELS:
        raise InputError(
            f"a box around {model} has more than {MAX_VOXELS:.0e} voxels of {spacing:g} Å; "
            "give a larger --spacing"
        )
    grid = Grid.around(sites.coords, margin=MARGIN + resolution, spacing=spacing)
    if kind == "xray":
        density = xray_density(sites, grid, d_min=resolution)
    else:
        density = molmap_density(sites, grid, resolution=resolution)
    write_map(out, density)
    return density


def _check_sampling(resolution: float, spacing: float) -> None:
    check_resolution(resolution)
    if not 0 < spacing <= resolution / 2:
        raise InputError(
            f"--spacing {spacing:g} Å: must be above zero and at most half the resolution, "
            f"{resolution / 2:g} Å, or the map loses detail"
        )
