"""The rotamer library: Lovell et al. (2000), kept in ``data/geometry/rotamers.csv``."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.sidechains.residues import CHI_COUNT, SYMMETRIC_CHI, chi_atoms


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


_OFFSETS = [math.radians(degrees) for degrees in (-15.0, 0.0, 15.0)]
_FLAT_STEP = math.radians(30.0)
_FLAT = ("ASN", "ASP", "HIS", "PHE", "TRP", "TYR")  # chi2 turns a flat group, with low barriers
_SPREAD = (math.radians(15.0), math.radians(20.0))  # of chi1 about a rotamer, and of the others
_RARE = 2e-3
"""Share of what is far from all rotamers, for each choice: density may well ask for it."""


@cache
def fine_rotamers(residue: str) -> Rotamers:
    """Choices between and around the rotamers, for density to choose from.

    Chi1 and chi2 take the library's values and 15° to either side, chi2 of a flat group all values at steps
    of 30°. Each weighs as the library's rotamers do, spread by 15° (chi1) and 20°, and at least 2 in 1000.
    """
    library = rotamers(residue)
    count = len(chi_atoms(residue)) if residue in _table() else 0
    if count == 0 or residue == "PRO":  # whose ring does not turn freely
        return library
    period = [2.0 if SYMMETRIC_CHI.get(residue) == i + 1 else 1.0 for i in range(count)]
    choices: dict[tuple[float, ...], None] = {}
    for chi in library.chi[:, :count].tolist():
        axes = [[value + offset for offset in _OFFSETS] for value in chi[:2]] + [[value] for value in chi[2:]]
        if residue in _FLAT:
            axes[1] = [k * _FLAT_STEP for k in range(round(2 * math.pi / period[1] / _FLAT_STEP))]
        choices.update(dict.fromkeys(itertools.product(*axes)))
    found = torch.tensor(list(choices), dtype=torch.float64)
    p = torch.tensor(period, dtype=torch.float64)
    spread = torch.tensor([_SPREAD[min(i, 1)] for i in range(count)], dtype=torch.float64)
    off = (1 - torch.cos(p * (found[:, None] - library.chi[None, :, :count]))) / (p * spread).square()
    log_p = torch.logsumexp(library.log_probability - off.sum(-1), dim=1)
    log_p = torch.logaddexp(log_p, torch.full_like(log_p, math.log(_RARE)))
    return Rotamers(
        names=("",) * len(found),
        chi=torch.nn.functional.pad(found, (0, CHI_COUNT - count)),
        log_probability=log_p - torch.logsumexp(log_p, 0),
    )


def nearest(residue: str, chi: Sequence[float]) -> int:
    """Index of the rotamer closest to chi angles in radians (largest single deviation counts)."""
    library = rotamers(residue)
    difference = torch.as_tensor(chi, dtype=torch.float64)[:CHI_COUNT] - library.chi
    return int((1 - difference.cos()).max(dim=1).values.argmin())
