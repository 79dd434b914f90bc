"""Results in words, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densemble.io.results import Result


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
            f"By the free reflections, used for nothing else, the ensemble is {verdict} than the start "
            f"(R-free {'falls' if gain > 0 else 'rises'} by {abs(gain):.4f})."
        )
    return "\n".join([*lines, f"Written to {out}/: ensemble.cif, members/, map.ccp4, result.json"])
