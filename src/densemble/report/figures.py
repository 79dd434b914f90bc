"""Figures of a report, drawn with matplotlib: PNG for papers, SVG for the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from densemble.errors import InputError
from densemble.grid import DensityMap
from densemble.io.model_results import State
from densemble.report.scene import GREY, MAP_COLOUR, PALETTE, Camera, Conformation, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, MUTED, LINE = "#22272e", "#5d6670", "#8b949e", "#d9dde2"
WIDTH = 7.0
"""Inches: two columns of a journal."""
BINS = 20
SCALE_BAR_BELOW = 0.1
"""Of half the height of the states: how far below the drawing its scale is."""
SLAB = 3.0
"""Å on either side of the atoms within which the map is projected."""
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa2ab",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.2,
    "svg.fonttype": "path",
    "svg.hashsalt": "densemble",
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished figure.

    Attributes:
        png: 300 dots an inch.
        svg: the same in vectors.
    """

    png: bytes
    svg: bytes


def finished(figure: Figure) -> Drawing:
    """Both forms of a figure; the same figure always gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=300, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(png.getvalue(), svg.getvalue())


def style() -> AbstractContextManager[None]:
    """A context in which figures look as those of a report do; nothing of it stays behind.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            "figures of a report need matplotlib (PSF licence): pip install 'densemble[report]'"
        ) from error
    return matplotlib.rc_context(STYLE)


def _figure(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def residue_fit(
    names: Sequence[str], columns: Mapping[str, Float[np.ndarray, " r"]], labels: Mapping[str, str]
) -> Figure:
    """A figure for each residue, for one or several models.

    Args:
        names: of the residues, for example ``A:180 ASP``.
        columns: a line for each, NaN where there is no figure.
        labels: of the lines.
    """
    figure, axes = _figure(2.5)
    x = np.arange(len(names))
    few = len(names) <= 40
    colours = iter(PALETTE)
    for name, values in columns.items():
        colour = MUTED if name == "start" else next(colours)
        axes.plot(x, values, color=colour, marker="o" if few else None, markersize=3.2, label=labels[name])
    step = max(1, int(np.ceil(len(names) / 24)))
    axes.set_xticks(
        x[::step], [name.split()[0] for name in names[::step]], rotation=90 if len(names) > 12 else 0
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    top = max(1.0, float(np.nanmax([np.nanmax(v) for v in columns.values()])))
    low = float(np.nanmin([np.nanmin(v) for v in columns.values()]))
    axes.set_ylim(min(0.0, low) - 0.02, top + 0.02)
    axes.set_ylabel("correlation with the map" if "q_score" not in columns else "RSCC, Q-score")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    if len(columns) > 1:
        axes.legend(loc="lower left", ncols=len(columns), bbox_to_anchor=(0, 1.0), borderaxespad=0)
    return figure


def bimodality(
    scores: Float[np.ndarray, " k"], weights: Float[np.ndarray, " k"], states: Sequence[str]
) -> Figure:
    """Where the members are between two states: all that were sampled, and those kept by weight.

    The score of paper 1, its Figure 3: -1 at the first state, +1 at the second. Members that are not kept
    have weight 0.
    """
    figure, (upper, lower) = _figure(2.7, rows=2, sharex=True)
    edges = np.linspace(-1, 1, BINS + 1)
    upper.hist(scores, bins=edges, color=GREY, edgecolor="white", linewidth=0.6)
    upper.set_ylabel("members\nsampled")
    upper.yaxis.get_major_locator().set_params(integer=True)
    weights, _ = np.histogram(scores, bins=edges, weights=weights)
    lower.bar((edges[:-1] + edges[1:]) / 2, weights, width=2 / BINS, color=PALETTE[0], edgecolor="white")
    lower.set_ylabel("weight\nkept")
    lower.set_ylim(0, max(1.0, float(weights.max())))
    lower.set_xlim(-1.02, 1.02)
    lower.set_xticks(
        [-1, -0.5, 0, 0.5, 1], [f"−1\nas {states[0]}", "−0.5", "0", "0.5", f"+1\nas {states[1]}"]
    )
    lower.set_xlabel("bimodality score")
    return figure


def state_weights(
    parts: Sequence[tuple[str, Sequence[State]]], colours: Mapping[tuple[str, str], str]
) -> Figure:
    """Occupancy of every state with its 95 % interval."""
    rows = [(region, state) for region, states in parts for state in states]
    figure, axes = _figure(0.75 + 0.3 * len(rows))
    for y, (region, state) in enumerate(rows):
        colour = colours.get((region, state.label), PALETTE[0])
        axes.barh(y, state.occupancy, height=0.56, color=colour, alpha=0.28)
        if state.interval is not None:
            axes.plot([state.interval.low, state.interval.high], [y, y], color=colour, linewidth=2)
        axes.plot(state.occupancy, y, marker="o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [f"{region}  {state.label or 'one state'}" for region, state in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("occupancy, with 95 % interval")
    return figure


def traces(trace: Mapping[str, Float[np.ndarray, " t"]]) -> Figure:
    """The value of every objective, step by step, above the noise it was seen through."""
    names = [name for name in trace if name not in ("sigma", "batch") and np.isfinite(trace[name]).any()]
    shown = [*names, *(["sigma"] if "sigma" in trace else [])]
    figure, axes = _figure(0.5 + 0.95 * len(shown), rows=len(shown), sharex=True, squeeze=False)
    sigma = trace.get("sigma", np.zeros(len(next(iter(trace.values())))))
    again = np.flatnonzero(np.diff(sigma) > 0) + 1  # the noise rises: a new pass, or the next members
    for row, name in zip(axes[:, 0], shown, strict=True):
        colour = MUTED if name == "sigma" else PALETTE[names.index(name) % len(PALETTE)]
        steps = np.split(np.arange(len(sigma)), again)
        for one in steps:
            row.plot(one + 1, trace[name][one], color=colour, marker=".", markersize=3, linewidth=0.9)
        if name == "sigma":
            row.set_yscale("log")
        row.set_ylabel("noise, Å" if name == "sigma" else name)
        row.grid(axis="y", color=LINE, linewidth=0.6)
    axes[-1, 0].set_xlabel("step")
    figure.align_ylabels()
    return figure


def overview(scene: Scene, density: DensityMap | None, level: float) -> Figure:
    """The states in the map as the 3D view first shows them, projected onto the page.

    The map is the largest value along the line of sight, within reach of the atoms. Whole models are drawn by
    their CA atoms.
    """
    camera = Camera.of(scene)
    figure, axes = _figure(4.4)
    shown = [c for c in scene.conformations if c.shown]
    if density is not None:
        _projected(axes, camera, density, level, np.concatenate([c.coords for c in shown]))
    for conformation in reversed(shown):
        _bonds(axes, camera, conformation)
    for conformation in shown:
        weight = "" if conformation.occupancy is None else f"  {conformation.occupancy:.2f}"
        axes.plot([], [], color=conformation.colour, linewidth=2.5, label=conformation.name + weight)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
    length = 5 if camera.reach[0] < 40 else 20
    (x, _), (y, _) = axes.get_xlim(), axes.get_ylim()
    y -= SCALE_BAR_BELOW * camera.reach[1]
    axes.plot([x, x + length], [y, y], color=INK, linewidth=1.5)
    axes.annotate(f"{length} Å", (x + length, y), (4, 0), textcoords="offset points", va="center")
    return figure


def _projected(axes: Axes, camera: Camera, density: DensityMap, level: float, atoms: np.ndarray) -> None:
    """Contour lines of the map's largest values along the line of sight."""
    flat = camera.project(atoms)
    low, high = flat.min(axis=0) - SLAB, flat.max(axis=0) + SLAB
    steps = [
        int(np.ceil((b - a) / max(density.grid.spacing) * 1.5)) + 2 for a, b in zip(low, high, strict=True)
    ]
    x, y, z = (np.linspace(a, b, n) for a, b, n in zip(low, high, steps, strict=True))
    largest = np.full((len(y), len(x)), -np.inf)
    for depth in z:
        u, v = np.meshgrid(x, y)
        points = (
            camera.target + u[..., None] * camera.right + v[..., None] * camera.up + depth * camera.towards
        )
        largest = np.maximum(largest, density.at(points, order=1))
    if largest.max() > level:
        above = [step * level for step in (1, 2, 3) if step * level < largest.max()]
        axes.contourf(x, y, largest, levels=[level, largest.max()], colors=[MAP_COLOUR], alpha=0.12)
        axes.contour(
            x, y, largest, levels=above, colors=[MAP_COLOUR], linewidths=[0.8, 0.5, 0.4][: len(above)]
        )


def _bonds(axes: Axes, camera: Camera, conformation: Conformation) -> None:
    """Bonds by distance, of whole models those from CA to CA; those in front over those behind."""
    from matplotlib.collections import LineCollection
    from scipy.spatial import cKDTree

    coords, reach, width = conformation.coords, 1.95, 2.0
    if not conformation.part:
        alphas = [s.atom.pos.tolist() for s in conformation.structure[0].all() if s.atom.name == "CA"]
        coords, reach, width = np.array(alphas).reshape(-1, 3), 4.2, 1.2
    if len(coords) < 2:
        return
    pairs = cKDTree(coords).query_pairs(reach, output_type="ndarray")
    flat = camera.project(coords)
    pairs = pairs[np.argsort(flat[pairs].mean(axis=1)[:, 2])]
    lines = list(flat[pairs][:, :, :2])
    axes.add_collection(LineCollection(lines, colors=conformation.colour, linewidths=width, capstyle="round"))
    axes.autoscale_view()
