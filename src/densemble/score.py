"""How well a model with altlocs agrees with data: map fit, R factors and distances to known states.

The target depends on what is given.

- Reflections and a region: the omit map of the region. What is compared with it is the density of
  the region's atoms less the solvent that they displace, as in ``result.json`` of a run: the same voxels
  and the same forward model.
  A run makes the map of its start, so the figures of its ensemble are the run's when the start is given;
  the model's own omit map differs a little, in scale and solvent.
- Reflections alone: 2mFo-DFc less the bulk solvent, phased by the model, hence biased towards it. What is
  compared is the density of all atoms. Free reflections have no part in the map.
- A map: what is in it, compared with the density of all atoms (so that a neighbour's density counts
  for neither), truncated at a resolution.

Map fit is stated over the voxels within 2 Å of the region's atoms (of all atoms without a region): of any
altloc of the model, or of the reference's states where there is a reference.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field

from densemble.atoms import Region, Topology
from densemble.crystal.omit import atoms_map, omit_map
from densemble.crystal.sampling import sample, sample_crystal_map
from densemble.crystal.scaling import r_factors
from densemble.errors import InputError, check_resolution
from densemble.evaluation import NEAR, Voxels, distances
from densemble.forward.scattering import FormFactors
from densemble.forward.solvent import displaced_volumes, displacement_factors
from densemble.forward.xray import SymmetryImages, XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import CrystalMap, read_either
from densemble.io.models import alternates, read_model, require_cell
from densemble.io.output import InputFile, Record
from densemble.io.reflections import MapCoefficients, Reflections, check_same_crystal, read_reflections
from densemble.io.results import RFactor
from densemble.io.sites import Sites
from densemble.metrics.maps import cosine, rscc, voxels_near
from densemble.recipes import load_recipe
from densemble.report import table
from densemble.simulate import xray_density

SCHEMA: Literal["densemble.score/1"] = "densemble.score/1"


class State(Record):
    """One altloc of the model in the region, ``""`` where there are none, against the reference.

    ``rmsd`` is that of the backbone in place, in Å, to each state of the reference; ``bimodality`` is -1 at
    the first two states' first, +1 at their second, None where the reference has one state.
    """

    altloc: str
    occupancy: float
    rmsd: dict[str, float]
    bimodality: float | None


class Score(Record):
    """What ``densemble score --json`` prints; None where the input does not give it."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.score/1"] = Field(default=SCHEMA, alias="schema")
    inputs: list[InputFile]
    region: str | None
    voxels: str
    rscc: float
    cosine: float
    r_work: float | None
    r_free: float | None
    states: list[State] | None


@dataclass(frozen=True, eq=False)
class Subject:
    """The model, which of its atoms are judged, and where.

    Attributes:
        sites: of the model.
        region: None for all of it.
        topology: the atoms judged, as one conformation.
        inside: the sites judged, shape=(n,).
        reference: states of the same atoms by name, NaN where unknown; empty without a reference.
        reference_name: of the file.
    """

    sites: Sites
    region: Region | None
    topology: Topology
    inside: Bool[np.ndarray, " n"]
    reference: dict[str, np.ndarray]
    reference_name: str

    @classmethod
    def of(cls, model: Path, region: str | None, reference: Path | None) -> Subject:
        """Read the files; errors as for ``score``."""
        sites = Sites.read(model)
        topology = sites.model.topology
        parsed = None if region is None else Region.parse(region)
        residues: Sequence[int] = range(len(topology.residues))
        if parsed is not None:
            residues = parsed.residues(topology)
        own = topology.subset(topology.atoms_of(residues))
        ids = {topology.residues[r].id for r in residues}
        states = {}
        if reference is not None:
            states = {name: state.coords for name, state in alternates(reference, own).items()}
        inside = np.array([residue in ids for residue in sites.residues])
        return cls(sites, parsed, own, inside, states, "" if reference is None else reference.name)

    @property
    def path(self) -> Path:
        """The model's file."""
        return self.sites.model.path

    def points(self) -> Float[np.ndarray, "p 3"]:
        """Å, the atoms near which voxels count."""
        if self.reference:
            known = np.concatenate(list(self.reference.values()))
            return known[np.isfinite(known).all(axis=1)]
        return self.sites.coords[self.inside]

    def voxels(self, target: DensityMap) -> Voxels:
        """Those of the target that count."""
        if self.reference:
            return Voxels.of_states(target, self.reference, self.reference_name)
        what = "the model" if self.region is None else "the region"
        inside = voxels_near(target.grid, torch.as_tensor(self.points()), NEAR)
        return Voxels(inside, f"within {NEAR:g} Å of an atom of {what} in {self.path.name}, any altloc")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Calculated density and target on one box; and the map that this is a part of, if it is no crystal's."""

    calculated: DensityMap
    target: DensityMap
    r_factor: RFactor | None = None
    whole: DensityMap | None = None


def score(
    model: Path,
    data: Path,
    *,
    region: str | None = None,
    reference: Path | None = None,
    resolution: float | None = None,
    start: Path | None = None,
    labels: tuple[str, str] | None = None,
    free_label: str | None = None,
) -> Score:
    """Score a model against reflections or a map; see above for what is compared.

    Args:
        model: mmCIF or PDB; altlocs count with their occupancies, hydrogens not at all.
        data: amplitudes with a free set (MTZ or SF-mmCIF), or a map (CCP4 or MRC).
        region: for example ``A:176-191``; all atoms if None.
        reference: a model whose altlocs are the states that the region is compared with.
        resolution: Å, of a map; reflections bring their own.
        start: one-state model that the omit map is made of, for scores of several models on one target
            and of a run's ensemble on the run's; ``model`` itself if None.
        labels: columns of the amplitudes and their uncertainties, where the data have several.
        free_label: column of the free flags, where the data have several that differ.

    Raises:
        InputError: says which input is wrong and what to do.
    """
    subject, compared = compare(
        model,
        data,
        region=region,
        reference=reference,
        resolution=resolution,
        start=start,
        labels=labels,
        free_label=free_label,
    )
    voxels = subject.voxels(compared.target)
    files = [path for path in (model, data, reference, start) if path is not None]
    fit = _fit(subject, compared, voxels, data)
    return Score(
        inputs=[InputFile.of(path) for path in files],
        region=None if subject.region is None else str(subject.region),
        voxels=voxels.description,
        rscc=fit[0],
        cosine=fit[1],
        r_work=None if compared.r_factor is None else compared.r_factor.r_work,
        r_free=None if compared.r_factor is None else compared.r_factor.r_free,
        states=_states(subject) if reference is not None else None,
    )


def compare(
    model: Path,
    data: Path,
    *,
    region: str | None = None,
    reference: Path | None = None,
    resolution: float | None = None,
    start: Path | None = None,
    labels: tuple[str, str] | None = None,
    free_label: str | None = None,
) -> tuple[Subject, Comparison]:
    """What is judged, and its density beside the target; arguments and errors as for ``score``."""
    if reference is not None and region is None:
        raise InputError("--reference needs --region: states are those of a stretch of chain")
    subject = Subject.of(model, region, reference)
    if is_map(data):
        if labels is not None or free_label is not None:
            raise InputError(
                f"--labels and --free-label are of reflections, but {data} is a map; leave them out"
            )
        if start is not None:
            raise InputError(f"--start is the source of an omit map, but {data} is a map; leave it out")
        return subject, _against_map(subject, data, resolution)
    if resolution is not None:
        raise InputError(f"--resolution is for maps; {data} has reflections, which bring their own")
    reflections = read_reflections(data, labels=labels, free_label=free_label)
    return subject, _against_reflections(subject, reflections, start)


def summary(result: Score) -> str:
    """A score in words and plain tables."""
    header, row = ["RSCC", "cosine"], [f"{result.rscc:.3f}", f"{result.cosine:.3f}"]
    if result.r_work is not None and result.r_free is not None:
        header, row = [*header, "R-work", "R-free"], [*row, f"{result.r_work:.4f}", f"{result.r_free:.4f}"]
    lines = table([result.region or "all atoms", *header], [[result.inputs[0].name, *row]])
    lines.append(f"Map fit: {result.voxels}.")
    if result.states:
        names = list(result.states[0].rmsd)
        rows = [
            [
                f"altloc {state.altloc}" if state.altloc else "the one state",
                f"{state.occupancy:.2f}",
                *(f"{state.rmsd[name]:.2f}" for name in names),
                "-" if state.bimodality is None else f"{state.bimodality:+.2f}",
            ]
            for state in result.states
        ]
        to = [f"to {name or 'its one state'}, Å" for name in names]
        lines += ["", *table(["backbone RMSD", "occupancy", *to, "bimodality"], rows)]
    return "\n".join(lines)


def _fit(subject: Subject, compared: Comparison, voxels: Voxels, data: Path) -> tuple[float, float]:
    maps = compared.calculated.values, compared.target.values, voxels.inside
    try:
        return rscc(*maps), cosine(*maps)
    except ValueError as error:
        raise InputError(
            f"{subject.path} cannot be compared with {data}: {error}; check that model and map share one "
            "frame and that occupancies are above zero"
        ) from error


def _states(subject: Subject) -> list[State]:
    own = alternates(subject.path, subject.topology)
    coords = np.stack([state.coords for state in own.values()])
    try:
        to, bimodal = distances(subject.topology, coords, subject.reference)
    except ValueError as error:
        raise InputError(
            f"{subject.path} and {subject.reference_name} have no backbone atom of "
            f"{subject.region} in common; check chains and numbering"
        ) from error
    return [
        State(
            altloc=letter,
            occupancy=state.occupancy,
            rmsd={name: float(values[k]) for name, values in to.items()},
            bimodality=None if bimodal is None else float(bimodal[k]),
        )
        for k, (letter, state) in enumerate(own.items())
    ]


def _against_reflections(subject: Subject, reflections: Reflections, start: Path | None) -> Comparison:
    if start is not None and subject.region is None:
        raise InputError("--start is the source of an omit map, which needs a --region")
    sites = subject.sites
    require_cell(sites.model)
    check_same_crystal(sites.structure, reflections, name=str(subject.path))
    factors = r_factors(sites.structure, reflections)
    if subject.region is None:
        calculated, target = _whole(subject, reflections)
    else:
        source = sites.structure
        if start is not None:
            source = read_model(start).structure
            check_same_crystal(source, reflections, name=str(start))
        calculated, target = _omitted(subject, source, reflections)
    return Comparison(calculated, target, RFactor(r_work=factors.r_work, r_free=factors.r_free))


def _omitted(
    subject: Subject, source: gemmi.Structure, reflections: Reflections
) -> tuple[DensityMap, DensityMap]:
    """Density of the region's atoms less the solvent that they displace, and its omit map.

    On voxels of the default recipe's spacing, so that a run's figures come back.
    """
    sites, inside = subject.sites, subject.inside
    maps = omit_map(source, [residue.id for residue in subject.topology.residues], reflections)
    spacing = load_recipe("densemble").density.spacing
    grid = Grid.around(subject.points(), margin=NEAR, spacing=spacing)
    coords, cell, group = sites.coords[inside], sites.structure.cell, sites.structure.find_spacegroup()
    kinds = [
        [kind for kind, used in zip(values, inside, strict=True) if used]
        for values in (sites.residue_names, sites.names, sites.elements)
    ]
    solvent = displacement_factors(
        displaced_volumes(*kinds), density=maps.solvent.density, b_solvent=maps.solvent.b
    )
    forward = XrayDensity(
        grid,
        kinds[2],
        extra=FormFactors(*solvent),
        occupancy=torch.as_tensor(sites.occupancy[inside], dtype=torch.float32),
        d_min=maps.total.d_min,
        images=SymmetryImages.reaching(grid, coords, cell, group),
    )
    b_iso = torch.as_tensor(sites.b_iso[inside], dtype=torch.float32).clamp(min=forward.b_min)
    density = forward(torch.as_tensor(coords, dtype=torch.float32)[None], torch.ones(1), b_iso)
    return DensityMap(grid, density), sample(maps.stretch, grid)


def _whole(subject: Subject, reflections: Reflections) -> tuple[DensityMap, DensityMap]:
    """Density of all atoms, and 2mFo-DFc less the bulk solvent."""
    sites = subject.sites
    coefficients = atoms_map(sites.structure, reflections)
    grid = Grid.around(subject.points(), margin=NEAR, spacing=reflections.d_min / 3)
    return xray_density(sites, grid, d_min=reflections.d_min), sample(coefficients, grid)


def is_map(path: Path) -> bool:
    """Whether a file has the CCP4 format's mark, or the name of a map; also when it is gzipped."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give reflections (MTZ, SF-mmCIF) or a map (CCP4, MRC)")
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(212)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it anew") from error
    name = path.with_suffix("") if packed else path
    return head[208:212] == b"MAP " or name.suffix.lower() in (".map", ".mrc", ".ccp4")


def _against_map(subject: Subject, data: Path, resolution: float | None) -> Comparison:
    if resolution is None:
        raise InputError(f"{data} is a map, which does not say its resolution; give --resolution in Å")
    check_resolution(resolution)
    given, whole = read_either(data), None
    if isinstance(given, DensityMap):
        target, whole = cut(given, subject, data), given
    else:
        target = _crystal_box(subject, given, data)
    return Comparison(xray_density(subject.sites, target.grid, d_min=resolution), target, whole=whole)


def _crystal_box(subject: Subject, crystal: CrystalMap, data: Path) -> DensityMap:
    """A crystal's map around the atoms judged, at its own spacing."""
    structure = subject.sites.structure
    require_cell(subject.sites.model)
    # a map may be given in P 1 though the crystal is not, so the cells are compared alone
    none = np.zeros((0, 3), dtype=np.int32), np.zeros(0, dtype=np.complex128)
    same = MapCoefficients(*none, crystal.grid.unit_cell, structure.find_spacegroup(), source=str(data))
    check_same_crystal(structure, same, name=str(subject.path))
    grid = Grid.around(subject.points(), margin=NEAR, spacing=min(crystal.grid.spacing))
    return sample_crystal_map(crystal, grid)


def cut(density: DensityMap, subject: Subject, data: Path, *, margin: float = NEAR) -> DensityMap:
    """The part of a box around the atoms judged, and a margin in Å as far as the box has it."""
    grid, points = density.grid, subject.points()
    origin, spacing = np.array(grid.origin), np.array(grid.spacing)
    low = np.maximum(np.floor((points.min(axis=0) - margin - origin) / spacing), 0).astype(int)
    high = np.ceil((points.max(axis=0) + margin - origin) / spacing) + 1
    high = np.minimum(high, grid.shape).astype(int)
    outside = ((points < origin) | (points > origin + spacing * (np.array(grid.shape) - 1))).any(axis=1)
    if (high <= low).any() or outside.any():
        raise InputError(
            f"{data} does not hold {int(outside.sum())} of the {len(points)} atoms of "
            f"{subject.region or 'the model'}; check that the model stands in the map's frame, "
            "or give a --region that does"
        )
    (ox, oy, oz), (nx, ny, nz) = (origin + low * spacing).tolist(), (high - low).tolist()
    cut = density.values[low[0] : high[0], low[1] : high[1], low[2] : high[2]].contiguous()
    return DensityMap(Grid((ox, oy, oz), grid.spacing, (nx, ny, nz)), cut)
