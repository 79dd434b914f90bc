"""Validation of a model file, alone or beside the data: ``densemble validate``.

Geometry is judged by ``metrics.validation``. With data, the map that the model is compared with is that of
``score``: the omit map of a region, 2mFo-DFc of a whole crystal, or a map. The RSCC of a residue is Pearson's
correlation over the voxels within 2 Å of its atoms, all altlocs. The Q-score (Pintilie et al. 2020; see
``metrics.qscore``) and the resolution at which the map-model FSC falls below 0.5 (Rosenthal & Henderson 2003,
J. Mol. Biol. 333, 721-745) are for cryo-EM maps: the Q-score of the first conformer of each residue, the FSC
of the whole model, under a mask that reaches one resolution beyond its atoms and falls over another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field

from densemble.atoms import Region, ResidueId
from densemble.errors import InputError
from densemble.evaluation import NEAR
from densemble.io.output import InputFile, Record
from densemble.io.sites import Sites
from densemble.likelihood.mask import reach_mask
from densemble.metrics.conformers import Conformers
from densemble.metrics.fsc import map_model_resolution
from densemble.metrics.maps import model_fit
from densemble.metrics.qscore import q_scores
from densemble.metrics.validation import ModelValidation, ResidueRow, validate_structure
from densemble.report import table
from densemble.score import Comparison, Subject, compare, cut
from densemble.simulate import xray_density

SCHEMA: Literal["densemble.validate/1"] = "densemble.validate/1"
_LISTED = 40  # residues in the table, the rest in the JSON file
_LARGE_Z = 6.0
"""Standard deviations of a bond or angle from which a residue is listed (as in the PDB's REMARK 500)."""


class DataFit(Record):
    """Agreement with the data; None where it does not apply."""

    rscc: float
    q_score: float | None = None
    fsc_05: float | None = None
    r_work: float | None = None
    r_free: float | None = None


class ValidatedModel(Record):
    """What ``densemble validate --json`` writes."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["densemble.validate/1"] = Field(default=SCHEMA, alias="schema")
    inputs: list[InputFile]
    region: str | None = None
    model: ModelValidation
    data: DataFit | None = None


def validate_files(
    model: Path,
    data: Path | None = None,
    *,
    region: str | None = None,
    resolution: float | None = None,
    labels: tuple[str, str] | None = None,
    free_label: str | None = None,
) -> ValidatedModel:
    """Validate a model file.

    Args:
        model: mmCIF or PDB, with any altlocs; hydrogens in it are replaced by placed ones.
        data: amplitudes (MTZ, SF-mmCIF) or a map (CCP4, MRC), if there are.
        region: only these residues are judged; all if None.
        resolution: Å, of a map; reflections bring their own.
        labels: columns of the amplitudes and their uncertainties, where the data have several.
        free_label: column of the free flags, where the data have several that differ.

    Raises:
        InputError: says which input is wrong and what to do.
    """
    parsed = None if region is None else Region.parse(region)
    if data is None:
        if resolution is not None or labels is not None or free_label is not None:
            raise InputError(
                "--resolution, --labels and --free-label are about data, but there are none; give a map or "
                "reflections, or leave them out"
            )
        sites, fit = Sites.read(model), None
    else:
        subject, compared = compare(
            model, data, region=region, resolution=resolution, labels=labels, free_label=free_label
        )
        sites, fit = subject.sites, _fit(subject, compared, data, resolution)
    found = validate_structure(sites.structure, region=parsed)
    if fit is not None:
        found = found.model_copy(update={"residues": [fit.completed(row) for row in found.residues]})
    return ValidatedModel(
        inputs=[InputFile.of(path) for path in (model, data) if path is not None],
        region=None if parsed is None else str(parsed),
        model=found,
        data=None if fit is None else fit.whole,
    )


@dataclass(frozen=True)
class _Fit:
    """Agreement of the whole, and RSCC and Q-score by residue and name."""

    whole: DataFit
    rscc: dict[tuple[ResidueId, str], float]
    q_score: dict[tuple[ResidueId, str], float]

    def completed(self, row: ResidueRow) -> ResidueRow:
        key = ResidueId(row.chain, row.number, row.icode), row.name
        return row.model_copy(update={"rscc": self.rscc.get(key), "q_score": self.q_score.get(key)})


def _fit(subject: Subject, compared: Comparison, data: Path, resolution: float | None) -> _Fit:
    atoms = Conformers.of(subject.sites.structure)
    inside = np.isin(atoms.residue_index, sorted(atoms.inside(subject.region)))
    coords = np.where(inside[:, None], atoms.coords, np.nan)
    observed, calculated = compared.target, compared.calculated
    try:
        near = model_fit(
            observed.values, calculated.values, observed.grid, atoms.topology, coords, radius=NEAR
        )
    except ValueError as error:
        raise InputError(
            f"{subject.path} cannot be compared with {data}: {error}; check that they share one frame"
        ) from error
    keys = [(residue.id, residue.name) for residue in atoms.residues]
    q_score, ends, by_residue = None, None, np.full(len(keys), np.nan)
    if compared.whole is not None:
        assert resolution is not None  # compare() has seen to it
        one = np.where(atoms.first[:, None], atoms.coords, np.nan)
        whole = cut(compared.whole, subject, data, margin=2 * resolution + NEAR)
        scores = q_scores(whole, atoms.topology, one)
        by_residue, judged = scores.residues, scores.atoms[inside & np.isfinite(scores.atoms)]
        q_score = float(judged.mean()) if len(judged) else None
        if subject.region is None:
            mask = reach_mask(whole.grid, atoms.coords, resolution, softness=resolution)
            density = xray_density(subject.sites, whole.grid, d_min=2 * max(whole.grid.spacing))
            found = map_model_resolution(whole.values, density.values, whole.grid, mask=mask)
            ends = found if math.isfinite(found) else None
    factor = compared.r_factor
    return _Fit(
        whole=DataFit(
            rscc=near.overall,
            q_score=q_score,
            fsc_05=ends,
            r_work=None if factor is None else factor.r_work,
            r_free=None if factor is None else factor.r_free,
        ),
        rscc=_known(keys, near.residues),
        q_score=_known(keys, by_residue),
    )


def _known(keys: list[tuple[ResidueId, str]], values: np.ndarray) -> dict[tuple[ResidueId, str], float]:
    return {key: float(value) for key, value in zip(keys, values, strict=True) if np.isfinite(value)}


def summary(result: ValidatedModel) -> str:
    """The figures in a table, and the residues that need a look."""
    totals, data = result.model.totals, result.data
    rows = [
        ["clash score", _number(totals.clashscore, "{:.2f}"), "clashes (0.4 Å) per 1000 atoms"],
        ["Ramachandran favoured", _number(totals.ramachandran_favoured, "{:.2%}"), "of residues"],
        ["Ramachandran outliers", _number(totals.ramachandran_outliers, "{:.2%}"), "of residues"],
        ["rotamer outliers", _number(totals.rotamer_outliers, "{:.2%}"), "of side chains"],
        ["bonds RMSZ", _number(totals.bond_rmsz, "{:.2f}"), "standard deviations"],
        ["angles RMSZ", _number(totals.angle_rmsz, "{:.2f}"), "standard deviations"],
        ["chirality outliers", _number(totals.chirality_outliers, "{:d}"), "centres"],
    ]
    if data is not None:
        rows += [["RSCC", f"{data.rscc:.3f}", "within 2 Å of the atoms"]]
        for name, value, form, what in (
            ("Q-score", data.q_score, "{:.3f}", "mean over atoms"),
            ("map-model FSC 0.5", data.fsc_05, "{:.2f}", "Å"),
            ("R-work", data.r_work, "{:.4f}", "whole model"),
            ("R-free", data.r_free, "{:.4f}", "whole model"),
        ):
            if value is not None:
                rows.append([name, _number(value, form), what])
    name = f"{result.inputs[0].name} {result.region or ''}".rstrip()
    lines = [f"{name}: {totals.atoms} atoms, every altloc", *_aligned(rows)]
    return "\n".join([*lines, "", *_listing(result.model.residues)])


def _aligned(rows: list[list[str]]) -> list[str]:
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"  {a.ljust(first)}  {b.rjust(second)}  {c}" for a, b, c in rows]


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _listing(residues: list[ResidueRow]) -> list[str]:
    marked = [(row, remarks) for row in residues if (remarks := _remarks(row))]
    if not marked:
        return ["No residue stands out."]
    cells = [
        [
            f"{row.chain}:{row.number}{row.icode} {row.name} {row.altloc}".rstrip(),
            _number(row.rscc, "{:.2f}"),
            text,
        ]
        for row, text in marked[:_LISTED]
    ]
    if all(row.rscc is None for row, _ in marked[:_LISTED]):
        cells, header = [[a, c] for a, _, c in cells], ["residue", "remarks"]
    else:
        header = ["residue", "RSCC", "remarks"]
    widths = max(len(row[-1]) for row in [header, *cells])
    lines = table(header, [[*row[:-1], row[-1].ljust(widths)] for row in cells])
    if len(marked) > _LISTED:
        lines.append(f"... and {len(marked) - _LISTED} more; --json writes all of them")
    return [line.rstrip() for line in lines]


def _remarks(row: ResidueRow) -> str:
    found = []
    if row.ramachandran == "outlier":
        found.append("Ramachandran outlier")
    if row.rotamer == "outlier":
        found.append("rotamer outlier")
    found += [f"wrong hand at {name}" for name in row.wrong_hand]
    for worst in (row.bond, row.angle):
        if worst is not None and abs(worst.z) > _LARGE_Z:
            found.append(f"{worst.atoms} {worst.value:.3g} (Z {worst.z:+.1f})")
    own = f"{row.chain}:{row.number}{row.icode} "
    for pair in row.clashes[:2]:
        mine, other = (pair.first, pair.second) if pair.first.startswith(own) else (pair.second, pair.first)
        found.append(f"{mine.split(' ', 2)[2]} on {other} ({pair.overlap:.2f} Å)")
    if len(row.clashes) > 2:
        found.append(f"{len(row.clashes) - 2} more clashes")
    return ", ".join(found)
