"""The rotamer library: Lovell et al. (2000), kept in ``data/geometry/rotamers.csv``."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.sidechains.residues import CHI_COUNT


@dataclass(frozen=True, eq=False)
class Rotamers:
    """The rotamers of one kind of residue.

    Attributes:
        names: as in the library; a single empty name for a residue without chi angles.
        chi: radians, 0 beyond the last chi angle.
        log_probability: of each rotamer, normalised over the library's.
    """

    names: tuple[str, ...]
    chi: Float[Tensor, "c 4"]
    log_probability: Float[Tensor, " c"]


@cache
def _table() -> dict[str, list[dict[str, str]]]:
    text = (resources.files("densemble") / "data" / "geometry" / "rotamers.csv").read_text()
    table: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        table.setdefault(row["residue"], []).append(row)
    return table


@cache
def rotamers(residue: str) -> Rotamers:
    """Rotamers of a residue by its three-letter name; one trivial rotamer where the library has none."""
    rows = _table().get(residue)
    if rows is None:
        return Rotamers(
            ("",), torch.zeros(1, CHI_COUNT, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        )
    chi = [[math.radians(float(row[f"chi{i + 1}"] or 0)) for i in range(CHI_COUNT)] for row in rows]
    percent = torch.tensor([float(row["percent"]) for row in rows], dtype=torch.float64)
    return Rotamers(
        names=tuple(row["rotamer"] for row in rows),
        chi=torch.tensor(chi, dtype=torch.float64),
        log_probability=(percent / percent.sum()).log(),
    )


def nearest(residue: str, chi: Sequence[float]) -> int:
    """Index of the rotamer closest to chi angles in radians (largest single deviation counts)."""
    library = rotamers(residue)
    difference = torch.as_tensor(chi, dtype=torch.float64)[:CHI_COUNT] - library.chi
    return int((1 - difference.cos()).max(dim=1).values.argmin())
