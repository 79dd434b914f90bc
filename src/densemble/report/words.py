"""Results in words, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densemble.io.model_results import FinalModel, Refined, Refinement
from densemble.io.results import Result
from densemble.io.state_results import Distance, Fit, Mixture, RegionRecord, StateResult
from densemble.report.crystal_headline import clash_warning, gain_in_words, verdicts_of


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a plain table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells)

    return [line(header), "  ".join("-" * w for w in widths), *map(line, rows)]


def summary(result: Result, out: Path) -> str:
    """What a run found: fit and R factors of start and ensemble, the members kept, and a verdict."""
    rows = []
    factors = result.r_factors
    for subject in ("start", "ensemble"):
        row = [subject, f"{result.metrics.rscc[subject]:.3f}", f"{result.metrics.cosine[subject]:.3f}"]
        if factors is not None:
            factor = getattr(factors, subject)
            row += [f"{factor.r_work:.4f}", f"{factor.r_free:.4f}"]
        rows.append(row)
    header = [result.region, "RSCC", "cosine", *(["R-work", "R-free"] if factors is not None else [])]
    kept = ", ".join(f"{m.id} ({m.weight:.2f})" for m in result.members if m.selected)
    lines = [*table(header, rows), f"Map fit: {result.metrics.voxels}.", f"Kept members (weights): {kept}."]
    if factors is not None:
        gain = factors.start.r_free - factors.ensemble.r_free
        verdict = "better" if gain > 0 else "not better"
        lines.append(
            f"By the free reflections, which took no part in it, the ensemble is {verdict} than the start "
            f"(R-free {'falls' if gain > 0 else 'rises'} by {abs(gain):.4f})."
        )
    files = "ensemble.cif, members/, map.ccp4, result.json"
    if result.model is not None:
        lines += ["", *model_lines(result.model, result.region), ""]
        files = f"model.cif, {files}"
    elif result.model_failure is not None:
        lines.append(f"No final model: {result.model_failure}; see model.log.")
    return "\n".join([*lines, f"Written to {out}/: {files}"])


def model_lines(model: FinalModel, region: str) -> list[str]:
    """A verdict, the states of each part with their occupancies, R factors and validation of both models."""
    parts, found = model.states.parts, model.refinement
    if not parts:
        within = f"no two members differ by {model.states.coordinate_error:.2f} Å"
        lines = [f"One state: {within}; more were not tested."]
    else:
        lines = verdicts_of(model, region, model.held_out)
        lines += table(["model of states", "occupancy", "95 % interval"], _state_rows(model))
    if found is not None and found.start.r_free is not None and found.model.r_free is not None:
        lines.append(
            f"Refined alike, {found.cycles} cycles: {_r_factors(found.start)} of one state, "
            f"{_r_factors(found.model)} of the model of states{_errors(found)}."
        )
    if found is not None and found.start.r_free is None:
        lines.append(_map_line(found))
    lines += [*_validation_line(model), *clash_warning(model)]
    if model.states.by_held_out:
        data, they = (
            ("free reflections", "they") if found is None or found.start.r_free else ("half map 2", "it")
        )
        lines.append(f"Nothing was fitted to the {data}; {they} had a say in the number of states.")
    return lines


def _errors(found: Refinement) -> str:
    """How sure the difference in free reflections is, in brackets; nothing where that is not known."""
    known = []
    if found.r_free_error is not None:
        known.append(f"standard error of the difference of R-free {found.r_free_error:.4f}")
    if found.free_gain is not None and found.free_gain_error is not None:
        known.append(gain_in_words(found.free_gain, found.free_gain_error))
    return f" ({'; '.join(known)})" if known else ""


def _map_line(found: Refinement) -> str:
    """Agreement with the map of one state and of the model."""
    line = (
        f"Refined alike, {found.cycles} cycles: RSCC {found.start.rscc[1]:.3f} of one state, "
        f"{found.model.rscc[1]:.3f} of the model of states"
    )
    if found.held_out_rscc is None:
        return f"{line}."
    before, after = found.held_out_rscc
    error = (
        ""
        if found.held_out_error is None
        else f" (standard error of the difference {found.held_out_error:.3f})"
    )
    return f"{line}; in half map 2, held out, {before:.3f} and {after:.3f}{error}."


def _state_rows(model: FinalModel) -> list[list[str]]:
    return [
        [
            f"{part.region} {state.label}".strip(),
            f"{state.occupancy:.2f}",
            "-" if state.interval is None else f"{state.interval.low:.2f}-{state.interval.high:.2f}",
        ]
        for part in model.states.parts
        for state in part.states
    ]


def _r_factors(refined: Refined) -> str:
    """After refinement."""
    known = (("R-work", refined.r_work), ("R-free", refined.r_free))
    return ", ".join(f"{name} {pair[1]:.4f}" for name, pair in known if pair is not None)


def _validation_line(model: FinalModel) -> list[str]:
    """Clash score and rotamer outliers of start and model, where both are known."""
    if not {"start", "model"} <= model.validation.keys():
        return []
    start, final = model.validation["start"], model.validation["model"]
    said = []
    if start.clashscore is not None and final.clashscore is not None:
        said.append(f"clash score {start.clashscore:.1f} -> {final.clashscore:.1f}")
    if start.rotamer_outliers is not None and final.rotamer_outliers is not None:
        said.append(f"rotamer outliers {start.rotamer_outliers:.1%} -> {final.rotamer_outliers:.1%}")
    return [f"Validation of the region, one state -> model of states: {', '.join(said)}."] if said else []


def state_summary(result: StateResult, out: Path) -> str:
    """What a fit to a cryo-EM map found: start and members by rank, where the best one is, and warnings."""
    rows = [["start", *_fit_cells(result.start), "", "", "", *_distance_cells(result.start_reference)]]
    for m in result.members:
        shape = ["-" if v is None else f"{v:.2f}" for v in (m.geometry.bond_rmsz, m.geometry.angle_rmsz)]
        sure = "" if m.confidence is None else f"{m.confidence['score']:.3f}"
        rows.append([f"model {m.model}", *_fit_cells(m.fit), *shape, sure, *_distance_cells(m.reference)])
    if result.reference_fit is not None:
        rows.append(["reference", *_fit_cells(result.reference_fit), "", "", "", *_distance_cells(None)])
    header = ["", "CC mask", "RSCC", "held out", "Q", "FSC 0.5, Å", "bonds Z", "angles Z", "confidence"]
    header += ["CA RMSD, Å", "in place, Å", "all atoms, Å", "TM-score", "selection, Å"]
    used = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = table([header[i] for i in used], [[row[i] for i in used] for row in rows])
    target = "the map" if result.start.held_out_rscc is None else "half map 1"
    lines.append(
        f"Ranked by the correlation with {target} {result.map.mask} (CC mask); RSCC within 2 Å of the atoms."
    )
    if result.start.held_out_rscc is not None:
        lines.append(
            "Held out: RSCC in half map 2, used for nothing but the resolution, where that was not given."
        )
    if result.selection is not None:
        lines.append(f"Selection: the backbone of {result.selection}, superposed on all other CA atoms.")
    if result.ensemble is not None:
        lines.append(_mixture_line(result.ensemble))
    files = "best.cif, models.cif, start.cif, residues.csv, map.ccp4, result.json"
    if result.region is not None:
        lines += ["", *_region_lines(result.region), ""]
        files = f"ensemble.cif, members/, {files}"
        if result.region.model is not None:
            lines += [*model_lines(result.region.model, result.region.region), ""]
            files = f"model.cif, {files}"
        elif result.region.model_failure is not None:
            lines.append(f"No final model: {result.region.model_failure}; see model.log.")
    lines.append(f"Written to {out}/: {files}")
    return "\n".join([*lines, *(f"Warning: {message.rstrip('.')}." for message in result.messages)])


def _region_lines(region: RegionRecord) -> list[str]:
    """The one state and the ensemble over the region, and the members kept."""
    other, rows = region.held_out, []
    for subject, name in (("start", "one state"), ("ensemble", "ensemble")):
        row = [name, f"{region.metrics.rscc[subject]:.3f}", f"{region.metrics.cosine[subject]:.3f}"]  # type: ignore[index]
        rows.append(row if other is None else [*row, f"{other[subject]:.3f}"])  # type: ignore[index]
    header = [region.region, "RSCC", "cosine", *([] if other is None else ["held out"])]
    lines = [*table(header, rows), f"Map fit: {region.metrics.voxels}."]
    kept = [m for m in region.members if m.selected]
    names = list(kept[0].rmsd or {})
    to = [f"to {name or 'its one state'}, Å" for name in names]
    cells = [
        [f"member {m.id}", f"{m.weight:.2f}", *(f"{(m.rmsd or {})[n]:.2f}" for n in names)] for m in kept
    ]
    return [*lines, *table(["kept", "weight", *to], cells)]


def _mixture_line(mixture: Mixture) -> str:
    kept = ", ".join(f"{i} ({w:.2f})" for i, w in zip(mixture.members, mixture.weights, strict=True))
    line = (
        f"Together, models (weights) {kept} correlate with the map by {mixture.correlation:.3f}; the best "
        f"alone by {mixture.best_alone:.3f}."
    )
    if mixture.held_out is not None:
        line += f" With half map 2: {mixture.held_out:.3f}, alone {mixture.best_alone_held_out:.3f}."
    return line


def _fit_cells(fit: Fit) -> list[str]:
    held_out = "" if fit.held_out_rscc is None else f"{fit.held_out_rscc:.3f}"
    ends = "-" if fit.fsc_05 is None else f"{fit.fsc_05:.2f}"
    return [f"{fit.correlation:.3f}", f"{fit.rscc:.3f}", held_out, f"{fit.q_score:.3f}", ends]


def _distance_cells(distance: Distance | None) -> list[str]:
    if distance is None:
        return [""] * 5
    lengths = (distance.ca_rmsd, distance.ca_rmsd_in_place, distance.all_atom_rmsd)
    local = "" if distance.local_rmsd is None else f"{distance.local_rmsd:.2f}"
    return [*(f"{length:.2f}" for length in lengths), f"{distance.tm_score:.3f}", local]
