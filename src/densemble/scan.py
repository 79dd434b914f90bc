"""Stretches of a refined model whose density one conformation explains badly.

A conformation that is there only part of the time has been given too much density where it is modelled, and
none where the others are. The first is what is tested, for it points at the residues concerned. If the atoms
i of a window had the occupancy 1 - q in place of 1, the difference map d would be -q rho_i at each of them,
rho being their calculated density (``densemble.crystal.omit.residual_maps``). The least-squares deficit is
q = -sum d_i rho_i / sum rho_i^2, and in units of its error, up to a factor that all windows of one length
share, t = -sum d_i rho_i / sqrt(sum rho_i^2): the score test of the occupancy. That factor, and the mean of
t under the null hypothesis, are estimated robustly from the model itself, score = (t - median) / (1.4826 MAD)
over all windows of that length, so that errors which all residues have (missing hydrogens, B factors, noise)
do not count.

Density that is merely missing, of a ligand or a water beside the window, leaves the atoms of the window as
they are and has no part in the score. Whether the density that the window lost is found near it is asked
afterwards: a carboxylate lost to radiation, or a disordered loop, has a deficit and no second place.

Free reflections have no part in the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from densemble.crystal.context import symmetry_copies
from densemble.crystal.omit import residual_maps
from densemble.crystal.sampling import sample
from densemble.errors import InputError
from densemble.evaluation import NEAR
from densemble.grid import DensityMap, Grid
from densemble.io.models import Model, bonded_to_next, read_model, require_cell
from densemble.io.output import InputFile, Record
from densemble.io.reflections import Reflections, check_same_crystal, read_reflections
from densemble.metrics.maps import model_fit
from densemble.report import table

SCHEMA: Literal["densemble.scan/1"] = "densemble.scan/1"

SHORTEST = 3
"""Residues of the shortest window."""
LISTED = 2.0
"""Windows of a lower score are not listed."""
STRONG_SCORE = 5.0
STRONG_FOUND = 0.1
"""A window is strong with this score, this part of what it lost near it, and an RSCC below the median."""

_REACH = 4.5  # Å from the window's atoms, within which lost density may be found
_PEAK = 3.0  # standard deviations of the difference map, from which density counts as found
_FEWEST = 20  # windows, to tell what is usual from what is not


class Window(Record):
    """A stretch of residues.

    Attributes:
        chain: of the author.
        first: number of the first residue.
        last: number of the last residue.
        region: the same with insertion codes, as ``densemble xray`` takes it.
        score: of the deficit, in standard deviations of what is usual in this model.
        strong: whether it is worth a run.
        deficit: part of the occupancy that the density does not show.
        lost: that part in electrons.
        found: electrons of positive difference density within reach.
        rscc: mean of its residues.
        b_iso: mean of its atoms, Å^2.
    """

    chain: str
    first: int
    last: int
    region: str
    score: float
    strong: bool
    deficit: float
    lost: float
    found: float
    rscc: float
    b_iso: float


class Scan(Record):
    """What ``densemble scan --json`` gives: windows that do not overlap, best first."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.scan/1"] = Field(default=SCHEMA, alias="schema")
    inputs: list[InputFile]
    start_altloc: str | None
    messages: list[str]
    window: int
    strong_score: float = STRONG_SCORE
    median_rscc: float
    windows: list[Window]


def scan(
    model: Path,
    data: Path,
    *,
    start_altloc: str | None = None,
    window: int = 6,
    labels: tuple[str, str] | None = None,
    free_label: str | None = None,
) -> Scan:
    """Search a whole model for stretches that one conformation explains badly.

    Args:
        model: refined model, taken as one conformation.
        data: amplitudes with a free set (MTZ or SF-mmCIF).
        start_altloc: the conformation, where the model has several.
        window: residues of the longest window; the shortest has three.
        labels: columns of the amplitudes and their uncertainties, where the data have several.
        free_label: column of the free flags, where the data have several that differ.

    Raises:
        InputError: says which input is wrong and what to do; or the model is too small to tell what is usual.
    """
    if window < SHORTEST:
        raise InputError(f"--window {window}: a window has at least {SHORTEST} residues")
    start = read_model(model, altloc=start_altloc)
    require_cell(start)
    reflections = read_reflections(data, labels=labels, free_label=free_label)
    check_same_crystal(start.structure, reflections, name=str(model))
    windows, median_rscc = find_windows(start, reflections, longest=window)
    return Scan(
        inputs=[InputFile.of(path) for path in (model, data)],
        start_altloc=start_altloc,
        messages=list(start.messages),
        window=window,
        median_rscc=median_rscc,
        windows=windows,
    )


def find_windows(model: Model, reflections: Reflections, *, longest: int) -> tuple[list[Window], float]:
    """The windows of a model, best first, and the median RSCC of its residues.

    Args:
        model: one conformation.
        reflections: of the same crystal.
        longest: residues of the longest window.

    Raises:
        InputError: the model has too few windows.
    """
    evidence = Evidence.of(model, reflections)
    bonded = bonded_to_next(model.topology, model.coords)
    candidates = [
        candidate
        for length in range(SHORTEST, longest + 1)
        for candidate in _candidates(evidence, _runs(bonded, evidence.residues, length), model.path)
    ]
    candidates.sort(key=lambda candidate: -candidate[0])
    taken: set[int] = set()
    windows = []
    for score, residues in candidates:
        if score >= LISTED and not taken.intersection(residues):
            taken.update(residues)
            windows.append(_window(model, evidence, score, residues))
    return windows, evidence.median_rscc


def summary(result: Scan) -> str:
    """The windows as a table, and what is said of them."""
    names = " and ".join(file.name for file in result.inputs)
    state = f", altloc {result.start_altloc}" if result.start_altloc else ""
    rows = [
        [
            w.region,
            f"{w.score:.1f}",
            "strong" if w.strong else "",
            f"{w.deficit:.2f}",
            f"{w.lost:.0f}",
            f"{w.found:.0f}",
            f"{w.rscc:.2f}",
            f"{w.b_iso:.0f}",
        ]
        for w in result.windows
    ]
    header = ["window", "score", "", "deficit", "lost, e", "found, e", "RSCC", "B, Å^2"]
    strong = sum(w.strong for w in result.windows)
    lines = [f"{names}{state}: {strong or 'no'} strong window{'' if strong == 1 else 's'}"]
    if rows:
        lines += ["", *table(header, rows), ""]
    return "\n".join(
        [
            *lines,
            f"Strong: score at least {STRONG_SCORE:g}, {STRONG_FOUND:.0%} of the lost electrons near by, and "
            f"RSCC below the model's median ({result.median_rscc:.2f}).",
        ]
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the maps say of each of the R protein residues.

    Attributes:
        residues: their indices in the topology, shape=(R,).
        overlap: sum over the atoms of minus difference times calculated density, shape=(R,).
        norm: sum over the atoms of the calculated density squared, shape=(R,).
        electrons: of their atoms, shape=(R,).
        rscc: of each residue of the topology.
        near: which peaks of the difference map are near which residue of the topology, sparse.
        peaks: electrons in each voxel of them.
    """

    residues: Int[np.ndarray, " r"]
    overlap: Float[np.ndarray, " r"]
    norm: Float[np.ndarray, " r"]
    electrons: Float[np.ndarray, " r"]
    rscc: Float[np.ndarray, " t"]
    near: csr_matrix
    peaks: Float[np.ndarray, " p"]

    @classmethod
    def of(cls, model: Model, reflections: Reflections) -> Evidence:
        """From the maps of a model in one conformation."""
        maps = residual_maps(model.structure, reflections)
        grid = Grid.around(model.coords, margin=_REACH, spacing=reflections.d_min / 3)
        difference, observed, calculated = (
            sample(c, grid) for c in (maps.difference, maps.observed, maps.calculated)
        )
        topology, owner = model.topology, model.topology.residue_index
        count = len(topology.residues)
        d, rho = (density.at(model.coords, order=3) for density in (difference, calculated))
        electrons = np.array([gemmi.Element(name).atomic_number for name in topology.elements])
        residues = np.array([r for r, x in enumerate(topology.residues) if x.kind == "protein"], dtype=int)
        overlap, norm, weight = (
            np.bincount(owner, values, minlength=count)[residues]
            for values in (-d * rho, rho**2, electrons * model.occupancy)
        )
        fit = model_fit(observed.values, calculated.values, grid, topology, model.coords, radius=NEAR)
        near, peaks = _peaks(model, difference)
        return cls(residues, overlap, norm, weight, fit.residues, near, peaks)

    @property
    def median_rscc(self) -> float:
        """Of the protein residues."""
        return float(np.nanmedian(self.rscc[self.residues]))


def _peaks(model: Model, difference: DensityMap) -> tuple[csr_matrix, Float[np.ndarray, " p"]]:
    """Voxels of strong positive difference density: near which residues they are, and their electrons.

    A voxel nearer to a symmetry copy of the model than to the model is not counted: its equivalent is.
    """
    values, coords = difference.values.double().numpy().ravel(), model.coords
    points = difference.grid.points().reshape(-1, 3)
    tree = cKDTree(coords)
    distance, _ = tree.query(points, distance_upper_bound=_REACH)
    inside = np.isfinite(distance)
    spread = 1.4826 * np.median(np.abs(values[inside]))
    chosen = np.flatnonzero(inside & (values > _PEAK * spread))
    copies, _ = symmetry_copies(model.structure, coords, points[chosen], reach=_REACH)
    if len(copies) and len(chosen):
        chosen = chosen[cKDTree(copies).query(points[chosen])[0] >= distance[chosen]]
    atoms = tree.query_ball_point(points[chosen], _REACH)
    pairs = [(model.topology.residue_index[i], v) for v, found in enumerate(atoms) for i in found]
    row, column = np.array(pairs, dtype=int).reshape(-1, 2).T
    shape = (len(model.topology.residues), len(chosen))
    near = csr_matrix((np.ones(len(pairs), dtype=bool), (row, column)), shape=shape)
    return near, values[chosen] * difference.grid.voxel_volume


def _runs(bonded: np.ndarray, residues: np.ndarray, length: int) -> list[tuple[int, ...]]:
    """Every stretch of so many peptide-bonded residues, as places in ``residues``."""
    place = {int(r): i for i, r in enumerate(residues)}
    return [
        tuple(place[q] for q in range(r, r + length))
        for r in map(int, residues)
        if all(q in place for q in range(r, r + length)) and bonded[r : r + length - 1].all()
    ]


def _candidates(
    evidence: Evidence, runs: Sequence[tuple[int, ...]], path: Path
) -> list[tuple[float, tuple[int, ...]]]:
    """Score of each window of one length."""
    if len(runs) < _FEWEST:
        raise InputError(
            f"model {path}: {len(runs)} windows of bonded protein residues are too few to tell what is usual "
            f"in it; at least {_FEWEST} are needed, with a shorter --window perhaps"
        )
    places = np.array(runs)
    norm = evidence.norm[places].sum(axis=1)
    t = evidence.overlap[places].sum(axis=1) / np.sqrt(norm)
    usual = np.median(t)
    scores = (t - usual) / (1.4826 * np.median(np.abs(t - usual)))
    return list(zip(scores.tolist(), runs, strict=True))


def _window(model: Model, evidence: Evidence, score: float, places: tuple[int, ...]) -> Window:
    inside = list(places)
    deficit = float(evidence.overlap[inside].sum() / evidence.norm[inside].sum())
    lost = deficit * float(evidence.electrons[inside].sum())
    residues = evidence.residues[inside]
    within_reach = np.asarray(evidence.near[residues].sum(axis=0)).ravel() > 0
    found = float(evidence.peaks[within_reach].sum())
    rscc = float(np.nanmean(evidence.rscc[residues]))
    first, last = (model.topology.residues[r].id for r in residues[[0, -1]])
    return Window(
        chain=first.chain,
        first=first.number,
        last=last.number,
        region=f"{first}-{last.number}{last.icode}",
        score=score,
        strong=bool(score >= STRONG_SCORE and found >= STRONG_FOUND * lost and rscc < evidence.median_rscc),
        deficit=deficit,
        lost=lost,
        found=found,
        rscc=rscc,
        b_iso=float(model.b_iso[model.topology.atoms_of(residues.tolist())].mean()),
    )
