"""What a report says of a fit to a cryo-EM map."""

from __future__ import annotations

from densemble.io.model_results import FinalModel, HeldOut
from densemble.io.state_results import Distance, Fit, Geometry, RegionRecord, StateResult
from densemble.report.crystal_headline import (
    agreement_of,
    certainty_of,
    clash_warning,
    number_of,
    verdicts_of,
)
from densemble.report.crystal_page import (
    EVALUATION,
    bimodality,
    residues,
    states_of,
    traces,
    validation_of,
)
from densemble.report.folder import RunFolder
from densemble.report.scene import Scene
from densemble.report.sections import (
    Headline,
    Section,
    Table,
    Tile,
    counted,
    optional,
    plain,
)

NO_CHECK = "No half map was held out, so there is no independent check of it in this run."


def headline(result: StateResult) -> Headline:
    """How many states, how well they fit, and whether agreement with the half map held out improved."""
    held, verdict = _held_out(result), NO_CHECK
    if held is not None:
        does = "better" if held.better else "no better"
        verdict = f"The result agrees {does} than the start with the half map that the fit never saw."
    region, model = result.region, None if result.region is None else result.region.model
    if region is not None and model is not None:
        title = f"Conformations of {region.region}"
        return Headline(title, "cryo-EM map", *_of_model(region.region, model))
    if region is None:
        title, answer, tiles = f"The state in {_map_name(result)}", _of_state(result), _state_tiles(result)
    else:
        title, answer, tiles = f"Conformations of {region.region}", _of_region(region), _region_tiles(region)
    return Headline(title, "cryo-EM map", (*answer, verdict), (*tiles, agreement_of(held)))


def _of_state(result: StateResult) -> list[str]:
    """What was found of the whole model, in a sentence or two."""
    gain = result.best.fit.correlation - result.start.correlation
    does = "fits the map better" if gain > 0 else "fits the map no better"
    answer = [f"The best of {counted(len(result.members), 'sample')} {does} than the start as it was docked."]
    if result.ensemble is not None:
        number = counted(len(result.ensemble.members), "sample").capitalize()
        answer.append(f"{number} together, with weights, were compared with the map as well.")
    return answer


def _state_tiles(result: StateResult) -> tuple[Tile, Tile]:
    best = result.best.fit
    note = f"correlation with the map that was fitted, start {plain(result.start.correlation, 3)}; "
    return (
        Tile("How many states?", "1", "one model is fitted to one map"),
        Tile("How well does it fit?", plain(best.correlation, 3), f"{note}Q-score {plain(best.q_score)}"),
    )


def _of_model(region: str, model: FinalModel) -> tuple[tuple[str, ...], tuple[Tile, Tile, Tile]]:
    """Of a region's states, what is said and shown of them."""
    held, check = model.held_out, NO_CHECK
    if held is not None:
        check = (
            "Nothing was fitted to the half map held out, but it had a say in the number of states; errors "
            "of the model are the same in both half maps."
        )
    tile = agreement_of(held, several=bool(model.several))
    answer = (*verdicts_of(model, region, held), check, *clash_warning(model))
    return answer, (number_of(model, held), certainty_of(model), tile)


def _of_region(region: RegionRecord) -> list[str]:
    kept = sum(m.selected for m in region.members)
    verb, why = "explains" if kept == 1 else "together explain", region.model_failure
    return [
        f"{counted(kept, 'conformation').capitalize()} of {region.region} {verb} the map there.",
        "How many states the data support was not tested in this run."
        if why is None
        else f"How many states the data support could not be told: {why}.",
    ]


def _region_tiles(region: RegionRecord) -> tuple[Tile, Tile]:
    kept, rscc = sum(m.selected for m in region.members), region.metrics.rscc
    note = f"correlation with the map that was fitted, over the region; one state {plain(rscc['start'], 3)}"
    return (
        Tile("How many states?", str(kept), f"kept of {len(region.members)} sampled; number not tested"),
        Tile("How well does it fit?", plain(rscc["ensemble"], 3), note),
    )


def _map_name(result: StateResult) -> str:
    """The file that was fitted."""
    return str(result.settings.get("half1") or result.settings.get("map") or "the map")


def _held_out(result: StateResult) -> HeldOut | None:
    """How start and result agree with the half map held out, if there is one."""
    region = result.region
    before, after = result.start.held_out_rscc, result.best.fit.held_out_rscc
    of = "start and best model"
    if region is not None and region.held_out is not None:
        before, after, of = region.held_out["start"], region.held_out["ensemble"], "one state and ensemble"
    return None if before is None or after is None else HeldOut(before, after, of, higher=True)


def sections(run: RunFolder, scene: Scene | None) -> list[Section]:
    """Everything below the headline and the 3D view."""
    result = run.result
    assert isinstance(result, StateResult)
    found = []
    if result.region is not None:
        model = result.region.model
        if model is not None:
            found += [states_of(model, scene), _alike(model)]
            found += [validation_of(model.validation)] if model.validation else []
        found.append(_region(result.region))
        found += bimodality(run, result.region.members, model)
    found.append(_fits(result))
    if run.residues and run.residue_figures:
        found.append(residues(run))
    found.append(_geometry(result))
    if result.start_reference is not None:
        found.append(_distances(result))
    if run.trace:
        found.append(traces(run))
    return found


def _fits(result: StateResult) -> Section:
    """Agreement of start and models with the map."""
    held = result.start.held_out_rscc is not None
    rows = [("start, as docked", *_fit(result.start, held))]
    rows += [(f"model {m.model}", *_fit(m.fit, held)) for m in result.members]
    if result.reference_fit is not None:
        rows.append(("reference", *_fit(result.reference_fit, held)))
    header = ["", "correlation", "RSCC", "Q-score", "FSC 0.5, Å"]
    if held:
        header.insert(3, "RSCC (held\u00a0out)")
    caption = (
        f"Models in order of their correlation {result.map.mask}; RSCC within 2 Å of the atoms; where the "
        "Fourier shell correlation of map and model falls below 0.5."
    )
    tables = [Table(caption, tuple(header), tuple(rows), (1,))]
    if result.ensemble is not None:
        tables.append(_mixture(result))
    target = "The first half map was fitted" if held else "The map was fitted"
    text = f"{target}, so agreement with it is no validation."
    if held:
        text += " Half map 2 was held out."
    found = result.map
    about = (
        f"Map: {found.resolution:g} Å ({found.resolution_source}), "
        f"{' × '.join(map(str, found.box))} voxels, contour {found.level:.3g} ({found.rule})."
    )
    return Section(
        "agreement",
        "Agreement with the map",
        text=(text, about),
        notes=tuple(message[:1].upper() + message[1:] for message in result.messages),
        tables=tuple(tables),
    )


def _fit(fit: Fit, held: bool) -> tuple[str, ...]:
    cells = [plain(fit.correlation, 3), plain(fit.rscc, 3), plain(fit.q_score, 3), optional(fit.fsc_05)]
    if held:
        cells.insert(2, optional(fit.held_out_rscc, ".3f"))
    return tuple(cells)


def _mixture(result: StateResult) -> Table:
    """Models that together explain the map."""
    mixture = result.ensemble
    assert mixture is not None
    rows = (
        ("best alone", f"{mixture.best_alone:.3f}", optional(mixture.best_alone_held_out, ".3f")),
        ("together", f"{mixture.correlation:.3f}", optional(mixture.held_out, ".3f")),
    )
    weights = ", ".join(f"model {i} {w:.2f}" for i, w in zip(mixture.members, mixture.weights, strict=True))
    return Table(f"Together, by weight: {weights}.", ("", "fitted map", "half map held out"), rows, (1,))


def _alike(model: FinalModel) -> Section:
    """One state and the model of states, refined alike."""
    assert model.refinement is not None
    refined = model.refinement
    pairs = (("one state", refined.start.rscc), ("model of states", refined.model.rscc))
    held = refined.held_out_rscc or (None, None)
    rows = tuple(
        (name, f"{rscc[0]:.3f} → {rscc[1]:.3f}", optional(other, ".3f"))
        for (name, rscc), other in zip(pairs, held, strict=True)
    )
    caption = f"Before and after {refined.cycles} cycles of the same refinement: the fair comparison."
    if refined.held_out_error is not None:
        caption += (
            f" Standard error of the difference in the half map held out: {refined.held_out_error:.3f}."
        )
    table = Table(caption, ("", "RSCC (fitted)", "RSCC (held\u00a0out)"), rows, (1,))
    return Section("refined", "One state and the model of states", tables=(table,))


def _region(region: RegionRecord) -> Section:
    """One state and the ensemble of a region."""
    rows = []
    for subject, name in (("start", "one state"), ("ensemble", "ensemble")):
        row = [name, f"{region.metrics.rscc[subject]:.3f}", f"{region.metrics.cosine[subject]:.3f}"]  # type: ignore[index]
        rows.append((*row, "–" if region.held_out is None else f"{region.held_out[subject]:.3f}"))  # type: ignore[index]
    header = ("", "RSCC (fitted)", "cosine (fitted)", "RSCC (held\u00a0out)")
    fit = Table(f"Agreement with the map over voxels {region.metrics.voxels}.", header, tuple(rows), (1,))
    kept = sorted((m for m in region.members if m.selected), key=lambda m: -m.weight)
    names = list(kept[0].rmsd or {}) if kept else []
    cells = [
        (f"member {m.id}", f"{m.weight:.2f}", *(optional((m.rmsd or {}).get(n)) for n in names)) for m in kept
    ]
    members = Table(
        EVALUATION if names else "Weights are those that fit the map best, without intervals.",
        ("kept", "weight", *(f"to {name or 'known'}, Å" for name in names)),
        tuple(cells),
    )
    text = "Everything outside the region is held, and its density is taken out of the map."
    return Section(
        "members", f"Sampled conformations of {region.region}", text=(text,), tables=(members, fit)
    )


def _geometry(result: StateResult) -> Section:
    def row(name: str, g: Geometry) -> tuple[str, ...]:
        judged = g.favoured + g.allowed + g.outliers
        share = optional(g.favoured / judged if judged else None, ".1%")
        cells = [optional(g.bond_rmsz), optional(g.angle_rmsz), share]
        return (name, *cells, *map(str, (g.outliers, g.cis, g.twisted, g.wrong_hand, g.clashes)))

    header = (
        "",
        "bonds RMSZ",
        "angles RMSZ",
        "favoured",
        "outliers",
        "cis",
        "twisted",
        "wrong hand",
        "clashes",
    )
    rows = tuple(row(f"model {m.model}", m.geometry) for m in result.members)
    caption = "Stereochemistry of the protein; favoured and outliers are of the Ramachandran plot."
    return Section("validation", "Validation", tables=(Table(caption, header, rows, (0,)),))


def _distances(result: StateResult) -> Section:
    def row(name: str, d: Distance | None) -> tuple[str, ...]:
        if d is None:
            return (name, *["–"] * (len(header) - 1))
        lengths = (d.ca_rmsd, d.ca_rmsd_in_place, d.all_atom_rmsd)
        cells = [name, *(f"{x:.2f}" for x in lengths), f"{d.tm_score:.3f}"]
        return tuple(cells if result.selection is None else [*cells, optional(d.local_rmsd)])

    header, caption = ["", "CA RMSD, Å", "CA in place, Å", "all atoms, Å", "TM-score"], ""
    if result.selection is not None:
        header.append("selection, Å")
        caption = f" Selection: the backbone of {result.selection}, superposed on all other CA atoms."
    rows = [row("start", result.start_reference)]
    rows += [row(f"model {m.model}", m.reference) for m in result.members]
    table = Table(f"From the known structure.{caption}", tuple(header), tuple(rows), (1,))
    return Section("reference", "Against the known structure", text=(EVALUATION,), tables=(table,))
