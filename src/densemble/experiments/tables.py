"""The results of a suite as a table, ours beside what was printed: CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from densemble.experiments.jobs import Job, JobRecord
from densemble.io.output import write_text
from densemble.suites import Figure, Suite, Variant

TABLE = "results"
_TITLES = {
    "case": "case",
    "name": "name",
    "table": "table",
    "method": "method",
    "measure": "measure",
    "best_by": "best by",
    "printed": "printed",
    "ours": "ours",
    "runs": "runs",
    "residues": "residues",
    "remark": "",
}


@dataclass(frozen=True)
class Row:
    """One line: a measure of a case by a method; empty text where there is nothing to say.

    ``ours`` is the mean over seeds with the half width of its 95 % interval (Student), where there are two
    or more; ``runs`` how many are done of how many; ``residues`` those that were run, in the author's
    numbers.
    """

    case: str
    name: str
    table: str
    method: str
    measure: str
    best_by: str
    printed: str
    ours: str
    runs: str
    residues: str
    remark: str


def rows_of(suite: Suite, jobs: Sequence[Job], records: dict[str, JobRecord]) -> list[Row]:
    """The table as far as it is known: jobs without record are waiting, and said to be."""
    rows = []
    for case in suite.cases:
        own = [job for job in jobs if job.case.id == case.id]
        variants = list(dict.fromkeys(job.variant for job in own))
        for variant in variants:
            of_variant = [records.get(job.id) for job in own if job.variant == variant]
            rows += _rows_of_variant(own[0], variant, of_variant)
        run = {variant.prints for variant in suite.variants if variant.id in case.variants}
        printed_only = [
            (figure, method) for figure in case.figures for method in figure.values if method not in run
        ]
        if own:
            rows += [
                Row(
                    case=case.id,
                    name=case.printed,
                    table=figure.table,
                    method=method,
                    measure=figure.measure,
                    best_by=figure.best_by or "",
                    printed=_printed(figure, method),
                    ours="",
                    runs="",
                    residues="",
                    remark="not run: the suite has no such method",
                )
                for figure, method in printed_only
            ]
    return rows


def _rows_of_variant(job: Job, variant: Variant, records: Sequence[JobRecord | None]) -> list[Row]:
    case = job.case
    done = [record for record in records if record is not None and record.state == "done"]
    printed = {(f.measure, f.best_by): f for f in case.figures if variant.prints in f.values}
    measures = [*printed, *((f.measure, f.best_by) for record in done for f in record.figures)]
    runs, remark = f"{len(done)}/{len(records)}", _remark(records)
    residues = "; ".join(dict.fromkeys(record.residues for record in done))
    rows = []
    for measure, best_by in dict.fromkeys(measures) or [("", None)]:
        values = [
            f.value for record in done for f in record.figures if (f.measure, f.best_by) == (measure, best_by)
        ]
        figure = printed.get((measure, best_by))  # type: ignore[arg-type]
        rows.append(
            Row(
                case=case.id,
                name=case.printed,
                table=case.table if figure is None else figure.table,
                method=variant.id,
                measure=measure,
                best_by=best_by or "",
                printed="" if figure is None or variant.prints is None else _printed(figure, variant.prints),
                ours=_ours(values),
                runs=runs,
                residues=residues,
                remark=remark if remark or values else "not measured",
            )
        )
    return rows


def _remark(records: Sequence[JobRecord | None]) -> str:
    """Why runs are missing; each reason once."""
    reasons = [
        "waiting" if r is None else f"{r.state}: {r.why}" for r in records if r is None or r.state != "done"
    ]
    return "; ".join(dict.fromkeys(reasons))


def _printed(figure: Figure, method: str) -> str:
    value = figure.values[method]
    return f"{value[0]:.4f} ± {value[1]:.4f}" if isinstance(value, tuple) else f"{value:g}"


def _ours(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.4f}"
    n = len(values)
    if n < 2:
        return mean
    return f"{mean} ± {student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n):.4f}"


def write_tables(out: Path, suite: Suite, rows: Sequence[Row]) -> None:
    """``results.csv``, ``results.md`` and ``results.html``; each is replaced when it is complete."""
    names = [field.name for field in fields(Row)]
    cells = [[getattr(row, name) for name in names] for row in rows]
    sheet = io.StringIO()
    csv.writer(sheet, lineterminator="\n").writerows([names, *cells])
    write_text(out / f"{TABLE}.csv", sheet.getvalue())
    titles = [_TITLES[name] for name in names]
    write_text(out / f"{TABLE}.md", _markdown(suite, titles, cells))
    write_text(out / f"{TABLE}.html", _html(suite, titles, cells))


def _markdown(suite: Suite, titles: list[str], cells: list[list[str]]) -> str:
    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"

    head = [f"# {suite.name}", "", suite.source, "", line(titles), "|" + " --- |" * len(titles)]
    return "\n".join([*head, *map(line, cells)]) + "\n"


_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse}"
    "td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ccc}"
)


def _html(suite: Suite, titles: list[str], cells: list[list[str]]) -> str:
    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(suite.name)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(suite.name)}</h1><p>{html.escape(suite.source)}</p><table>",
            line(titles, "th"),
            *(line(row, "td") for row in cells),
            "</table></body></html>",
            "",
        ]
    )
