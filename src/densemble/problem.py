"""What is to be explained: the target density of a region, where it is compared, and what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import grid_sample

from densemble.atoms import BACKBONE, Region, Topology
from densemble.crystal.context import symmetry_copies
from densemble.crystal.omit import ScaledModels, StretchMap
from densemble.crystal.sampling import sample
from densemble.errors import InputError
from densemble.forward.scattering import FormFactors
from densemble.forward.solvent import displaced_volumes, displacement_factors
from densemble.forward.xray import SymmetryImages, XrayDensity
from densemble.geometry.restraints import Restraints, build_restraints
from densemble.grid import DensityMap, Grid
from densemble.io.models import Anchors, Model, anchors, bonded_to_next
from densemble.likelihood.beside import BesideKnown
from densemble.likelihood.density import DensityLikelihood, effective_sigma
from densemble.likelihood.mask import reach_mask
from densemble.recipes import Density
from densemble.sidechains.candidates import DensityAt
from densemble.sidechains.packing import SideChains, window_of
from densemble.sidechains.residues import chi_atoms, complete_topology

Guide = Literal["none", "each", "ensemble"]

_CUTOFF = 1e-4
"""Of the largest Gaussian, where one is left out. A likelihood changes by a thousandth of itself for it, its
gradient likewise, and takes two thirds of the time; the noise of a map is a tenth of its height."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """The free part of a model.

    Attributes:
        model: the start, one conformation.
        region: as the user wrote it.
        residues: of each stretch, indices into ``model.topology.residues``.
        anchors: what holds each stretch at its two ends.
        window: residues on either side of a stretch whose side chains are free too.
        free: residues with free atoms, those of the stretches and their windows, increasing.
        whole: the model's atoms with the side chains of the free residues completed.
        coords: Å, NaN for the atoms that were not there, shape=(n, 3).
        topology: the N free atoms.
        start: Å, their place in the start, side chains completed, shape=(N, 3).
        b_start: Å^2, their B factors in the start, shape=(N,).
    """

    model: Model
    region: Region
    residues: list[list[int]]
    anchors: list[Anchors]
    window: int
    free: list[int]
    whole: Topology
    coords: Float[np.ndarray, "a 3"]
    topology: Topology
    start: Float[Tensor, "n 3"]
    b_start: Float[Tensor, " n"]

    @classmethod
    def of(cls, model: Model, region: Region, *, window: int) -> Stretches:
        """Find a region in a model.

        Args:
            model: the start.
            region: stretches of chain.
            window: residues on either side whose side chains are free too.

        Raises:
            InputError: a residue of the region is not in the model, lacks backbone atoms, is not bonded
                to the next, or is not one whose side chain can be built.
        """
        residues = region.resolve(model.topology)
        flat = [r for stretch in residues for r in stretch]
        for r in flat:
            missing = [name for name in BACKBONE if (r, name) not in model.topology.atom_index]
            if missing:
                raise InputError(
                    f"model {model.path}: residue {model.topology.residues[r].id} of the region has no "
                    f"{', '.join(missing)}; complete its backbone or leave it out of the region"
                )
        bonded = bonded_to_next(model.topology, model.coords)
        for r in (r for stretch in residues for r in stretch[:-1] if not bonded[r]):
            this, following = model.topology.residues[r].id, model.topology.residues[r + 1].id
            raise InputError(
                f"model {model.path}: {this} and {following} of the region are not bonded to each other; "
                "build the residues between them, or write two stretches"
            )
        free = sorted([*flat, *window_of(model.topology, model.coords, flat, window)])
        whole, source = _completed(model.topology, free)
        coords = np.where(source[:, None] >= 0, model.coords[source], np.nan)
        atoms = whole.atoms_of(free)
        topology = whole.subset(atoms)
        built = SideChains(whole, coords, free, members=1)
        known = torch.as_tensor(coords[atoms], dtype=torch.float32)
        backbone = known[torch.as_tensor(topology.backbone(range(len(free))))]
        return cls(
            model=model,
            region=region,
            residues=residues,
            anchors=[anchors(model.topology, model.coords, stretch) for stretch in residues],
            window=window,
            free=free,
            whole=whole,
            coords=coords,
            topology=topology,
            start=torch.where(known.isnan(), built.complete(backbone[None])[0], known),
            b_start=_b_factors(model, source[atoms], topology),
        )

    @property
    def moving(self) -> list[list[int]]:
        """The residues of each stretch, as indices into ``topology.residues``."""
        rank = {r: i for i, r in enumerate(self.free)}
        return [[rank[r] for r in stretch] for stretch in self.residues]

    @property
    def torsions(self) -> int:
        """Torsion angles of one conformation: phi and psi of the stretches, chi of all free residues."""
        chi = sum(len(chi_atoms(residue.name)) for residue in self.topology.residues)
        return chi + 2 * sum(len(stretch) for stretch in self.residues)

    @property
    def backbone_atoms(self) -> np.ndarray:
        """N, CA, C, O of the stretches, as increasing indices into the free atoms: what a prior moves."""
        return np.sort(self.topology.backbone([r for stretch in self.moving for r in stretch]).ravel())

    @property
    def model_atoms(self) -> np.ndarray:
        """The free atoms that the model has, as indices into ``model.topology``."""
        return self.model.topology.atoms_of(self.free)


def _completed(topology: Topology, free: list[int]) -> tuple[Topology, np.ndarray]:
    """Complete the side chains of some residues; with the source of each atom, -1 for new ones."""
    whole, source = complete_topology(topology)
    keep = np.flatnonzero((source >= 0) | np.isin(whole.residue_index, free))
    return whole.subset(keep), source[keep]


def _b_factors(model: Model, source: np.ndarray, topology: Topology) -> Tensor:
    """B factors of the model; an atom that was not there gets the mean of its residue."""
    b = np.where(source >= 0, model.b_iso[source], np.nan)
    for r in range(len(topology.residues)):
        own = topology.residue_index == r
        b[own] = np.where(np.isnan(b[own]), np.nanmean(b[own]), b[own])
    return torch.as_tensor(b, dtype=torch.float32)


def _waters(topology: Topology) -> np.ndarray:
    """Waters do not hold their place: an ensemble may displace them."""
    return topology.atoms_of([i for i, residue in enumerate(topology.residues) if residue.kind == "water"])


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What stays where it is, without waters.

    Attributes:
        coords: Å, atoms of the model and symmetry copies within reach of the free ones, shape=(M, 3).
        copies: Å, the symmetry copies alone, shape=(c, 3).
        copy_elements: length c.
        absent: atoms of ``Stretches.whole`` that are ignored.
    """

    coords: Float[np.ndarray, "m 3"]
    copies: Float[np.ndarray, "c 3"]
    copy_elements: tuple[str, ...]
    absent: np.ndarray

    @classmethod
    def of(cls, stretches: Stretches, *, reach: float) -> Surroundings:
        """The fixed atoms within ``reach`` Å of a free atom of the start."""
        topology, coords = stretches.whole, stretches.coords
        absent = _waters(topology)
        moving = np.concatenate([topology.atoms_of(stretches.free), absent])
        fixed = np.setdiff1d(np.arange(len(topology)), moving)
        near = stretches.start.double().numpy()
        copies, sources = symmetry_copies(stretches.model.structure, coords[fixed], near, reach=reach)
        distance, _ = cKDTree(near).query(coords[fixed], distance_upper_bound=reach)
        return cls(
            coords=np.concatenate([coords[fixed[np.isfinite(distance)]], copies]),
            copies=copies,
            copy_elements=tuple(topology.elements[fixed[i]] for i in sources),
            absent=absent,
        )


@dataclass(frozen=True, eq=False)
class RegionProblem:
    """The density of a region, and the model of it.

    Attributes:
        stretches: the free part of the model.
        around: the fixed part within reach.
        target: density of the region alone, in the unit of ``forward``: e/Å^3 in a crystal.
        mask: weight of each voxel, from the start's reach alone.
        forward: atoms to density: what the target shows.
        sigma: noise of a voxel, in that unit, such that the log-likelihood counts independent data.
        fit_scale: solve scale and offset of the model; the target is absolute otherwise.
        uniform_b: all atoms have the mean B factor of the model's protein.
    """

    stretches: Stretches
    around: Surroundings
    target: DensityMap
    mask: Float[Tensor, "nx ny nz"]
    forward: XrayDensity
    sigma: float
    fit_scale: bool = True
    uniform_b: bool = False

    @staticmethod
    def within(
        stretches: Stretches,
        around: Surroundings,
        target: DensityMap,
        forward: XrayDensity,
        recipe: Density,
        *,
        d_min: float,
    ) -> RegionProblem:
        """Weigh the voxels and estimate their noise.

        Args:
            stretches: the free part.
            around: the fixed part.
            target: density of the free part.
            forward: atoms to density.
            recipe: how far from the start voxels count, and how they are compared.
            d_min: Å, resolution of the target.
        """
        start = stretches.start.double().numpy()
        mask = reach_mask(target.grid, start, recipe.reach, exclude=around.coords)
        fit_scale, uniform_b = recipe.fit_scale, recipe.b_iso == "mean"
        found = RegionProblem(
            stretches, around, target, mask, forward, recipe.sigma or 1.0, fit_scale, uniform_b
        )
        if recipe.sigma is not None:
            return found
        # what the start leaves unexplained is the noise that is known before anything is fitted
        noise = found.likelihood("ensemble", found.b_start).rms(stretches.start[None], torch.ones(1))
        return replace(found, sigma=effective_sigma(target.grid, noise, d_min))

    def likelihood(self, mode: Literal["ensemble", "each"], b_iso: Tensor) -> DensityLikelihood:
        """Eq. 2 of paper 1, or its i.i.d. ablation."""
        return self._likelihood(self.forward, mode, b_iso, None)

    def likelihood_of(
        self, atoms: Int[np.ndarray, " n"], b_iso: Float[Tensor, " n"], others: Float[Tensor, "nx ny nz"]
    ) -> DensityLikelihood:
        """The same of some of the region's atoms, beside the density of the others."""
        return self._likelihood(self.forward.of_atoms(atoms), "ensemble", b_iso, others)

    def _likelihood(
        self,
        forward: XrayDensity,
        mode: Literal["ensemble", "each"],
        b_iso: Tensor,
        context: Tensor | None,
    ) -> DensityLikelihood:
        return DensityLikelihood(
            forward,
            self.target,
            self.mask,
            b_iso=b_iso,
            sigma=self.sigma,
            context=context,
            mode=mode,
            fit_scale=self.fit_scale,
            fit_offset=self.fit_scale,
        )

    def beside_start(self, b_iso: Tensor) -> BesideKnown:
        """The likelihood of each member as a second state beside the start."""
        known = self.stretches.start
        return BesideKnown(self.forward, self.target, self.mask, known, b_iso, sigma=self.sigma)

    @property
    def b_start(self) -> Float[Tensor, " n"]:
        """Å^2, B factors of the start, or their mean, not below what the forward model allows."""
        b_iso, model = self.stretches.b_start, self.stretches.model
        if self.uniform_b:
            protein = [i for i, residue in enumerate(model.topology.residues) if residue.kind == "protein"]
            b_iso = torch.full_like(b_iso, float(model.b_iso[model.topology.atoms_of(protein)].mean()))
        return b_iso.clamp(min=self.forward.b_min)

    def voxel_values(
        self, coords: Float[Tensor, "k n 3"], b_iso: Float[Tensor, " n"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Densities of each member, shape=(K, V), and the target, shape=(V,), at the voxels of the mask."""
        inside = self.mask > 0.5
        with torch.no_grad():
            densities = self.forward.members(coords, b_iso)[:, inside]
        return densities.double().numpy(), self.target.values[inside].double().numpy()

    def density_at(self, gain: float, *, beside_start: bool = False) -> DensityAt:
        """``gain`` times the target, interpolated at points in Å; zero outside the box.

        Args:
            gain: per unit of the map.
            beside_start: take out of the target what the start explains of it.
        """
        grid = self.target.grid
        low = torch.tensor(grid.origin)
        size = torch.tensor([h * (n - 1) for h, n in zip(grid.spacing, grid.shape, strict=True)])
        values = self.beside_start(self.b_start).unexplained() if beside_start else self.target.values
        values = values.permute(2, 1, 0)[None, None]

        def at(points: Tensor) -> Tensor:
            place = (2 * (points - low) / size - 1).reshape(1, 1, 1, -1, 3)
            found = grid_sample(values, place, mode="bilinear", align_corners=True)
            return gain * found.reshape(points.shape[:-1])

        return at

    def restraints(self) -> Restraints:
        """Stereochemistry of the free atoms, with contacts to what surrounds them."""
        whole, around = self.stretches.whole, self.around
        return build_restraints(
            whole,
            self.stretches.coords,
            whole.atoms_of(self.stretches.free),
            absent=around.absent,
            copies=around.copies,
            copy_elements=around.copy_elements,
        )

    def side_chains(self, members: int) -> SideChains:
        """Side chains of the free residues, as in the start."""
        region = sorted(r for stretch in self.stretches.residues for r in stretch)
        return SideChains(
            self.stretches.whole,
            self.stretches.coords,
            region,
            members=members,
            window=self.stretches.window,
            absent=self.around.absent,
            copies=self.around.copies,
            copy_elements=self.around.copy_elements,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CrystalProblem(RegionProblem):
    """The density of a region in a crystal: of its atoms less the solvent that they displace.

    Attributes:
        models: structure factors of the start, and of all but the region, on the data's scale.
    """

    models: ScaledModels

    @classmethod
    def of(cls, stretches: Stretches, maps: StretchMap, recipe: Density) -> CrystalProblem:
        """Sample the region's density onto a box and prepare the forward model.

        Args:
            stretches: the free part.
            maps: of the whole crystal and of what is not the region.
            recipe: box, spacing and reach.
        """
        start = stretches.start.double().numpy()
        grid = Grid.around(start, margin=recipe.margin, spacing=recipe.spacing)
        around = Surroundings.of(stretches, reach=recipe.margin + 3.0)
        structure, d_min = stretches.model.structure, maps.total.d_min
        images = SymmetryImages.reaching(grid, start, structure.cell, structure.find_spacegroup(), margin=3.0)
        topology = stretches.topology
        volumes = displaced_volumes(topology.residue_names, topology.names, topology.elements)
        solvent = displacement_factors(volumes, density=maps.solvent.density, b_solvent=maps.solvent.b)
        extra = FormFactors(*solvent)
        forward = XrayDensity(
            grid, topology.elements, d_min=d_min, images=images, extra=extra, cutoff=_CUTOFF
        )
        target = sample(maps.stretch, grid)
        region = RegionProblem.within(stretches, around, target, forward, recipe, d_min=d_min)
        region = replace(region, forward=forward.counting(region.mask))
        return cls(**{f.name: getattr(region, f.name) for f in fields(region)}, models=maps.models)
