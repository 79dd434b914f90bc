"""What a report says of a run on a crystal, part by part; a part is there only if its data are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from densemble.atoms import Region
from densemble.io.model_results import FinalModel, Part, Refined, State, Validation
from densemble.io.models import alternates, read_model
from densemble.io.results import MEMBERS_FOLDER, Member, Result, member_file
from densemble.metrics import coordinates
from densemble.report import figures
from densemble.report.crystal_headline import chosen_with_held_out
from densemble.report.folder import RunFolder
from densemble.report.scene import Scene
from densemble.report.sections import Figure, Section, Table, optional, plain

SUBJECTS = {
    "start": "start, one state",
    "none": "unguided",
    "each": "guided, each member alone",
    "ensemble": "ensemble, the result",
    "model": "model of states, refined",
}
EVALUATION = "Distances to known states, and the score made of them, are evaluation: no run uses them."


def sections(run: RunFolder, scene: Scene | None) -> list[Section]:
    """Everything below the headline and the 3D view."""
    result = run.result
    assert isinstance(result, Result)
    found = []
    if result.model is not None:
        found += [states_of(result.model, scene)]
    found.append(_agreement(result))
    if run.residues and run.residue_figures:
        found.append(residues(run))
    found.append(_members(result.members))
    found += bimodality(run, result.members, result.model)
    if result.model is not None and result.model.validation:
        found.append(validation_of(result.model.validation))
    if run.trace:
        found.append(traces(run))
    return found


def states_of(model: FinalModel, scene: Scene | None) -> Section:
    """Parts, states, occupancies and what the number rests on."""
    states, parts = model.states, model.states.parts
    drawn = () if scene is None else scene.conformations
    colours = {(c.part, c.altloc): c.colour for c in drawn}
    text = [
        states.rule,
        f"Conformations nearer to each other than {states.coordinate_error:.2f} Å count as one.",
    ]
    if model.waters_displaced:
        text.append(
            f"Waters that no state leaves room for were removed: {', '.join(model.waters_displaced)}."
        )
    if model.waters_partial:
        text.append(f"Waters that stand in some states only: {'; '.join(model.waters_partial)}.")
    if not parts:
        none = "No two sampled conformations are further apart: all of the region has one state."
        return Section("states", "States and their occupancies", text=(*text, none))
    figure = Figure(
        "occupancies",
        "Occupancy of each state with its 95 % interval.",
        "Occupancies of the states, part by part. Bars on the points are 95 % intervals, provided that these "
        "states are there: whether they are is what the number of states rests on.",
        figures.finished(figures.state_weights([(p.region, p.states) for p in parts], colours)),
    )
    tables = [_state_table(parts), *(_evidence(part) for part in parts if part.evidence)]
    return Section(
        "states", "States and their occupancies", text=tuple(text), figures=(figure,), tables=tuple(tables)
    )


def _state_table(parts: list[Part]) -> Table:
    names = list(next((s.rmsd for p in parts for s in p.states if s.rmsd), {}) or {})

    def row(part: Part, state: State) -> tuple[str, ...]:
        interval = "–" if state.interval is None else f"{state.interval.low:.2f}–{state.interval.high:.2f}"
        members = ", ".join("start" if m == 0 else str(m) for m in state.members) or "–"
        to = [optional((state.rmsd or {}).get(name)) for name in names]
        return (f"{part.region} {state.label}".strip(), f"{state.occupancy:.2f}", interval, members, *to)

    header = ("state", "occupancy", "95 % interval", "members", *(f"to {n or 'known'}, Å" for n in names))
    note = f" {EVALUATION}" if names else ""
    caption = f"States: the sampled members that are in each, and their occupancies.{note}"
    return Table(caption, header, tuple(row(p, s) for p in parts for s in p.states))


def _evidence(part: Part) -> Table:
    """How well each number of states does; all with as many decimals."""
    largest = max(abs(e.fit) for e in part.evidence)
    form = ".4f" if largest < 10 else ".2f" if largest < 1000 else ".1f"
    rows = tuple(
        (
            str(e.states) + (" (taken)" if e.chosen else ""),
            f"{e.fit:{form}}",
            optional(e.held_out, form),
            optional(e.error, form),
        )
        for e in part.evidence
    )
    caption = (
        f"What the number of states in {part.region} rests on. Scores are in the unit of the rule above, "
        "larger is better; the error is that of the last step."
    )
    taken = part.taken
    if taken > len(part.states):
        caption += f" Refinement brought {taken} states together to {len(part.states)}."
    strong = tuple(i for i, e in enumerate(part.evidence) if e.chosen)
    return Table(caption, ("states", "fitted data", "held-out data", "error"), rows, strong)


def _agreement(result: Result) -> Section:
    """R factors, the held-out one marked, and map fit."""
    tables = []
    if result.model is not None and result.model.refinement is not None:
        refinement = result.model.refinement
        rows = (_refined("one state", refinement.start), _refined("model of states", refinement.model))
        caption = f"Before and after {refinement.cycles} cycles of the same refinement: the fair comparison."
        tables.append(Table(caption, ("", "R-work", "R-free (held\u00a0out)", "RSCC (fitted)"), rows, (1,)))
    names = [name for name in SUBJECTS if name in result.metrics.rscc]
    header, rows_of = ["", "RSCC (fitted)", "cosine (fitted)"], []
    if result.r_factors is not None:
        header += ["R-work", "R-free (held\u00a0out)"]
    for name in names:
        metrics = result.metrics
        cells = [f"{metrics.rscc[name]:.3f}", f"{metrics.cosine[name]:.3f}"]
        if result.r_factors is not None:
            factor = getattr(result.r_factors, name)
            cells += ["–", "–"] if factor is None else [f"{factor.r_work:.4f}", f"{factor.r_free:.4f}"]
        rows_of.append((SUBJECTS[name], *cells))
    caption = f"As sampled. Agreement with the map over voxels {result.metrics.voxels}."
    strong = (names.index("ensemble"),)
    tables.append(Table(caption, tuple(header), tuple(rows_of), strong))
    text = "The map was fitted, so agreement with it is no validation."
    if result.r_factors is not None:
        text += " R-free is: its reflections took no part in the map or the fit. Lower is better."
        if chosen_with_held_out(result):
            text += (
                " They had a say in the number of states, which favours the R-free of the model of states a "
                "little: a state more that worsens them beyond their noise was not taken."
            )
    return Section("agreement", "Agreement with the data", text=(text,), tables=tuple(tables))


def _refined(name: str, refined: Refined) -> tuple[str, ...]:
    def cell(pair: tuple[float, float] | None, digits: int) -> str:
        return "–" if pair is None else f"{pair[0]:.{digits}f} → {pair[1]:.{digits}f}"

    return (name, cell(refined.r_work, 4), cell(refined.r_free, 4), cell(refined.rscc, 3))


def residues(run: RunFolder) -> Section:
    """Fit of each residue, as ``residues.csv`` has it."""
    labels = {"rscc": "RSCC", "q_score": "Q-score", **SUBJECTS}
    columns = {n: v for n, v in run.residue_figures.items() if n in labels and np.isfinite(v).any()}
    if not columns:
        return Section("residues", "Fit of each residue", text=("residues.csv has no figures.",))
    last = list(columns)[-1] if "rscc" not in columns else "rscc"
    worst = sorted((v, name) for name, v in zip(run.residues, columns[last], strict=True) if v == v)[:5]
    text = (
        "Correlation with the map that was fitted, residue by residue: where it is low, look at the model. "
    )
    text += f"Lowest ({labels[last]}): {', '.join(f'{name} {plain(value)}' for value, name in worst)}."
    figure = Figure(
        "residue_fit",
        "Agreement with the map for each residue.",
        "Fit of each residue. Figures are in residues.csv.",
        figures.finished(figures.residue_fit(run.residues, columns, labels)),
    )
    return Section("residues", "Fit of each residue", text=(text,), figures=(figure,))


def _members(members: list[Member]) -> Section:
    """Those kept, with weights."""
    kept = sorted((m for m in members if m.selected), key=lambda m: -m.weight)
    names = list(kept[0].rmsd or {}) if kept else []
    scored = any(m.bimodality is not None for m in kept)
    header = ("member", "weight", "RSCC alone", *(f"to {n or 'known'}, Å" for n in names))
    rows = []
    for m in kept:
        to = [optional((m.rmsd or {}).get(name)) for name in names]
        row = (f"member {m.id}", f"{m.weight:.2f}", f"{m.rscc:.3f}", *to)
        rows.append((*row, optional(m.bimodality)) if scored else row)
    caption = f"Members kept of {len(members)} sampled, each a model of its own in members/. "
    caption += EVALUATION if names else "Weights are those that fit the map best, without intervals."
    table = Table(caption, (*header, "bimodality") if scored else header, tuple(rows))
    return Section("members", "Sampled conformations", tables=(table,))


def bimodality(run: RunFolder, members: Sequence[Member], model: FinalModel | None) -> list[Section]:
    """Where members are between the first two known states; where none is known, between those found."""
    title, text = "Between the known states", [EVALUATION]
    scored = [m for m in members if m.bimodality is not None]
    scores: Sequence[float | None] = [m.bimodality for m in scored]
    if scored:
        names = list(next(m.rmsd for m in members if m.rmsd))[:2]
    elif (found := _between_found(run, members, model)) is not None:
        (names, scores), scored = found, list(members)
        title, text = "Between the states found", []
    else:
        return []
    weights = [m.weight if m.selected else 0.0 for m in scored]
    figure = Figure(
        "bimodality",
        "Histogram of the bimodality score of all members sampled, and of the weight of those kept.",
        f"Score −1 at state {names[0]}, +1 at state {names[1]}, of the backbone of the region, by the "
        "definition of Maddipatla et al. (their Figure 3). Above all members sampled, below those kept, "
        "by weight.",
        figures.finished(figures.bimodality(np.array(scores), np.array(weights), names)),
    )
    return [Section("bimodality", title, text=tuple(text), figures=(figure,))]


def _between_found(
    run: RunFolder, members: Sequence[Member], model: FinalModel | None
) -> tuple[list[str], list[float]] | None:
    """Names of the two heaviest states of the first part that has several, and each member's score."""
    if model is None or not model.several:
        return None
    part, file = model.several[0], run.path / model.states_file
    paths = [run.path / MEMBERS_FOLDER / member_file(m.id) for m in members]
    if not all(path.is_file() for path in (file, *paths)):
        return None
    models = [read_model(path) for path in paths]
    topology = models[0].topology
    atoms = np.sort(topology.backbone(Region.parse(part.region).residues(topology)).ravel())
    states = alternates(file, topology.subset(atoms))
    names = [state.label for state in part.states[:2]]
    ends = [states[name].coords for name in names]
    return names, coordinates.bimodality(np.stack([m.coords[atoms] for m in models]), *ends).tolist()


VALIDATION_ROWS = (
    ("clash score", "clashscore", ".1f"),
    ("Ramachandran favoured", "ramachandran_favoured", ".1%"),
    ("Ramachandran outliers", "ramachandran_outliers", ".1%"),
    ("rotamer outliers", "rotamer_outliers", ".1%"),
    ("bond lengths, RMSZ", "bond_rmsz", ".2f"),
    ("bond angles, RMSZ", "angle_rmsz", ".2f"),
    ("wrong hand", "chirality_outliers", "d"),
    ("atoms judged", "atoms", "d"),
)


def validation_of(found: dict[str, Validation]) -> Section:
    """Stereochemistry of start and model, side by side."""
    names: list[str] = [name for name in ("start", "model") if name in found] or list(found)
    rows = []
    for title, field, form in VALIDATION_ROWS:
        values = [getattr(found[name], field) for name in names]
        if any(value is not None for value in values):
            rows.append((title, *(optional(value, form) for value in values)))
    caption = "Stereochemistry, all conformers counted. Clashes are per 1000 atoms."
    table = Table(caption, ("", *(SUBJECTS.get(name, name) for name in names)), tuple(rows))
    return Section("validation", "Validation", tables=(table,))


def traces(run: RunFolder) -> Section:
    """Objectives step by step."""
    figure = Figure(
        "traces",
        "Value of every objective at every step of the sampling, with the noise level.",
        "Log-likelihood or energy of every term, in nats, at every step at which it guided. A line ends "
        "where a pass does. Figures are in trace.csv.",
        figures.finished(figures.traces(run.trace)),
    )
    return Section("traces", "How the sampling went", figures=(figure,))
