"""Reflection files: measured amplitudes with a free set, and map coefficients.

MTZ and SF-mmCIF. Columns are found by their MTZ type, not by their name; where several would do,
the error lists them and the caller names one. SF-mmCIF tags are turned into typed columns by gemmi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Bool, Complex, Float, Int32

from densemble.errors import InputError

#: Labels by which refinement programs call 2mFo-DFc coefficients (REFMAC and BUSTER, phenix.refine).
TWO_FOFC_LABELS = (("FWT", "PHWT"), ("2FOFCWT", "PH2FOFCWT"), ("2FOFCWT", "PHI2FOFCWT"))


@dataclass(frozen=True, eq=False)
class Reflections:
    """Merged amplitudes, one per unique reflection, in the reciprocal asymmetric unit.

    Attributes:
        hkl: Miller indices, shape=(n, 3).
        f: amplitudes on the scale of the file, shape=(n,).
        sigma: their standard uncertainties, shape=(n,).
        free: True where the reflection is held out, shape=(n,).
        cell: unit cell of the data.
        spacegroup: space group of the data.
        dropped: reflections of the file left out: without amplitude, uncertainty or free flag, or absent
            by symmetry.
        source: the file, for messages.
    """

    hkl: Int32[np.ndarray, "n 3"]
    f: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    free: Bool[np.ndarray, " n"]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    dropped: int = 0
    source: str = "the reflections"

    def __len__(self) -> int:
        return len(self.f)

    @cached_property
    def inverse_d2(self) -> Float[np.ndarray, " n"]:
        """1/d^2 in Å^-2."""
        return self.cell.calculate_1_d2_array(self.hkl)

    @property
    def d_min(self) -> float:
        """Å, resolution of the reflection that diffracts furthest."""
        return float(self.inverse_d2.max() ** -0.5)

    @cached_property
    def centric(self) -> Bool[np.ndarray, " n"]:
        """True where symmetry restricts the phase to two values."""
        return np.asarray(self.spacegroup.operations().centric_flag_array(self.hkl), dtype=bool)

    @cached_property
    def epsilon(self) -> Float[np.ndarray, " n"]:
        """How often symmetry maps the reflection onto itself (multiplies its expected intensity)."""
        ops = self.spacegroup.operations()
        return np.asarray(ops.epsilon_factor_without_centering_array(self.hkl), dtype=float)


@dataclass(frozen=True, eq=False)
class MapCoefficients:
    """Complex structure factors of a map, one per unique reflection; (0, 0, 0) carries its mean.

    Attributes:
        hkl: Miller indices, shape=(n, 3).
        values: electrons per cell when on absolute scale, shape=(n,).
        cell: unit cell.
        spacegroup: space group.
        source: the file, for messages.
    """

    hkl: Int32[np.ndarray, "n 3"]
    values: Complex[np.ndarray, " n"]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    source: str = "the map coefficients"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def d_min(self) -> float:
        """Å, resolution of the coefficient that reaches furthest."""
        return float(self.cell.calculate_1_d2_array(self.hkl).max() ** -0.5)


def read_reflections(
    path: Path | str, *, labels: tuple[str, str] | None = None, free_label: str | None = None
) -> Reflections:
    """Read measured amplitudes and their free set from an MTZ or SF-mmCIF file.

    Amplitudes are the column of type F that is followed by its uncertainty of type Q. The held-out
    set is the rarer of two flags, whether written as 0 (CCP4) or 1 (phenix); with more than two
    flags (CCP4's 0-19) it is flag 0.

    Args:
        path: the file.
        labels: names of amplitude and uncertainty, needed when there are several.
        free_label: name of the free-flag column, needed when there are several that disagree.

    Raises:
        InputError: the file is missing or of another kind; it has no amplitudes, no free set or no
            numbers; columns are ambiguous or not there.
    """
    mtz = _read_mtz(Path(path), wanted="amplitudes")
    f_label, sigma_label = _amplitude_labels(mtz, path, labels)
    f, sigma = _column(mtz, f_label), _column(mtz, sigma_label)
    measured = np.isfinite(f) & np.isfinite(sigma)
    if not measured.any():
        raise InputError(f"{path}: columns {f_label} and {sigma_label} hold no numbers; choose others")
    free, flagged = _free_set(mtz, path, free_label, measured)
    hkl = np.asarray(mtz.make_miller_array(), dtype=np.int32)
    absent = np.asarray(mtz.spacegroup.operations().systematic_absences(hkl), dtype=bool)
    keep = measured & flagged & ~absent
    _check_unique(hkl[keep], path)
    return Reflections(
        hkl=hkl[keep],
        f=f[keep],
        sigma=sigma[keep],
        free=free[keep],
        cell=mtz.cell,
        spacegroup=mtz.spacegroup,
        dropped=int((~keep).sum()),
        source=str(path),
    )


def read_coefficients(path: Path | str, *, labels: tuple[str, str] | None = None) -> MapCoefficients:
    """Read map coefficients from an MTZ or SF-mmCIF file.

    Coefficients are a column of type F followed by one of type P. Of several such pairs the one
    with a name of `TWO_FOFC_LABELS` is taken.

    Args:
        path: the file.
        labels: names of amplitude and phase, needed when there are several.

    Raises:
        InputError: the file is missing or of another kind; it has no coefficients or no numbers;
            columns are ambiguous or not there.
    """
    mtz = _read_mtz(Path(path), wanted="phases")
    f_label, phase_label = _coefficient_labels(mtz, path, labels)
    f, phase = _column(mtz, f_label), _column(mtz, phase_label)
    keep = np.isfinite(f) & np.isfinite(phase)
    if not keep.any():
        raise InputError(f"{path}: columns {f_label} and {phase_label} hold no numbers; choose others")
    hkl = np.asarray(mtz.make_miller_array(), dtype=np.int32)[keep]
    _check_unique(hkl, path)
    values = f[keep] * np.exp(1j * np.deg2rad(phase[keep]))
    return MapCoefficients(hkl, values, mtz.cell, mtz.spacegroup, source=str(path))


def check_same_crystal(
    structure: gemmi.Structure,
    data: Reflections | MapCoefficients,
    *,
    name: str = "the model",
    lengths: float = 0.015,
    angles: float = 2.0,
) -> None:
    """See that model and data are of the same crystal.

    Args:
        structure: the model.
        data: reflections or coefficients.
        name: the model's file, for the message.
        lengths: largest relative difference of the cell's edges.
        angles: largest difference of the cell's angles, degrees.

    Raises:
        InputError: the model has no cell, or its cell or space group is another than the data's.
    """
    if not structure.cell.is_crystal():
        raise InputError(f"{name} has no unit cell; add the CRYST1 record or _cell of {data.source}")
    group = structure.find_spacegroup()
    model, measured = np.array(structure.cell.parameters), np.array(data.cell.parameters)
    same_cell = (np.abs(model[:3] / measured[:3] - 1) <= lengths).all()
    same_cell = same_cell and (np.abs(model[3:] - measured[3:]) <= angles).all()
    if not same_cell:
        raise InputError(
            f"{name} has the cell {_numbers(model)} but {data.source} has {_numbers(measured)}; "
            "give a model of this crystal"
        )
    if group is None or group.operations() != data.spacegroup.operations():
        raise InputError(
            f"{name} is in space group {structure.spacegroup_hm or 'unknown'} but {data.source} is in "
            f"{data.spacegroup.xhm()}; give a model of this crystal, in the same setting"
        )


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.2f}" for v in values) + ")"


def _read_mtz(path: Path, *, wanted: str) -> gemmi.Mtz:
    """The file as a merged MTZ in the asymmetric unit, whichever of the two formats it has."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give an MTZ or SF-mmCIF file")
    try:
        if path.read_bytes()[:4] == b"MTZ ":
            mtz = gemmi.read_mtz_file(str(path))
        else:
            mtz = _convert_cif(path, wanted)
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not an MTZ or SF-mmCIF file; give one of these ({error})") from error
    if mtz.spacegroup is None or not mtz.cell.is_crystal():
        raise InputError(f"{path} has no unit cell or space group; write them into the file")
    if mtz.batches or mtz.column_with_label("M/ISYM") is not None:
        raise InputError(f"{path} holds unmerged reflections; merge them first")
    mtz.ensure_asu()
    return mtz


def _convert_cif(path: Path, wanted: str) -> gemmi.Mtz:
    """The first block that has what is wanted (``amplitudes`` or ``phases``), as an MTZ."""
    blocks = gemmi.as_refln_blocks(gemmi.cif.read(str(path)))
    converted = [gemmi.CifToMtz().convert_block_to_mtz(block) for block in blocks if block]
    if not converted:
        raise ValueError("no _refln loop in it")
    kind = "Q" if wanted == "amplitudes" else "P"
    for mtz in converted:
        if mtz.columns_with_type(kind):
            return mtz
    return converted[0]


def _column(mtz: gemmi.Mtz, label: str) -> np.ndarray:
    return np.array(mtz.column_with_label(label), dtype=np.float64)


def _pairs(mtz: gemmi.Mtz, first: str, second: str) -> list[tuple[str, str]]:
    """Labels of neighbouring columns of two types."""
    columns = list(mtz.columns)
    return [(a.label, b.label) for a, b in pairwise(columns) if (a.type, b.type) == (first, second)]


def _check_labels(mtz: gemmi.Mtz, path: Path | str, labels: Sequence[str], types: str) -> None:
    for label, kind in zip(labels, types, strict=True):
        column = mtz.column_with_label(label)
        if column is None or column.type != kind:
            has = ", ".join(c.label for c in mtz.columns if c.type == kind) or "none"
            raise InputError(f"{path} has no column {label} of type {kind}; of this type it has: {has}")


def _choices(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join("/".join(pair) for pair in pairs)


def _amplitude_labels(mtz: gemmi.Mtz, path: Path | str, labels: tuple[str, str] | None) -> tuple[str, str]:
    if labels is not None:
        _check_labels(mtz, path, labels, "FQ")
        return labels
    pairs = _pairs(mtz, "F", "Q")
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        raise InputError(
            f"{path} has several amplitude columns: {_choices(pairs)}; name one pair of them (--labels)"
        )
    if mtz.columns_with_type("J") or mtz.columns_with_type("K"):
        hint = "it has intensities; convert them (for example with CCP4's servalcat fw or ctruncate)"
    elif mtz.columns_with_type("G"):
        hint = "it has anomalous pairs F(+)/F(-) only; merge them to their mean"
    elif alone := _without_sigma(mtz):
        raise InputError(
            f"{path} has amplitudes {', '.join(alone)} but no uncertainties for them; give a file with a "
            "column of type Q after that of the amplitudes"
        )
    else:
        hint = "give a file with a column of type F followed by its sigma of type Q"
    raise InputError(f"{path} has no amplitudes: {hint}")


def _without_sigma(mtz: gemmi.Mtz) -> list[str]:
    """Amplitudes, not the coefficients of maps, which phases follow, where the file has no sigmas at all."""
    if mtz.columns_with_type("Q"):
        return []
    coefficients = {first for first, _ in _pairs(mtz, "F", "P")}
    return [c.label for c in mtz.columns_with_type("F") if c.label not in coefficients]


def _coefficient_labels(mtz: gemmi.Mtz, path: Path | str, labels: tuple[str, str] | None) -> tuple[str, str]:
    if labels is not None:
        _check_labels(mtz, path, labels, "FP")
        return labels
    pairs = _pairs(mtz, "F", "P")
    if not pairs:
        raise InputError(f"{path} has no map coefficients: no column of type F followed by a phase of type P")
    known = [pair for pair in pairs if pair in TWO_FOFC_LABELS]
    best = known or pairs
    if len(best) > 1:
        raise InputError(f"{path} has several map coefficients: {_choices(best)}; name one pair of them")
    return best[0]


def _free_set(
    mtz: gemmi.Mtz, path: Path | str, label: str | None, measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which reflections are held out, and which have a flag at all."""
    if label is not None:
        _check_labels(mtz, path, [label], "I")
    names = [label] if label else [c.label for c in mtz.columns_with_type("I") if "free" in c.label.lower()]
    sets = {name: held_out(_column(mtz, name), measured) for name in names}
    usable = {name: free for name, free in sets.items() if free is not None}
    if not usable:
        raise InputError(
            f"{path} has no free set: no integer column named FREE, FreeR_flag or R-free-flags with two or "
            "more flags; take the flags that the model was refined with"
        )
    first, *others = usable
    if any((usable[first] != usable[name]).any() for name in others):
        raise InputError(
            f"{path} has several free sets that differ: {', '.join(usable)}; name one of them (--free-label)"
        )
    return usable[first], np.isfinite(_column(mtz, first))


def held_out(flags: Float[np.ndarray, " n"], measured: Bool[np.ndarray, " n"]) -> np.ndarray | None:
    """Which reflections the flags hold out: the rarer of two flags, flag 0 of more than two.

    Counted over the measured reflections. None when there is nothing to tell sets apart.
    """
    values, counts = np.unique(flags[measured & np.isfinite(flags)], return_counts=True)
    if len(values) < 2:
        return None
    if len(values) == 2:
        return flags == values[np.argmin(counts)]
    return flags == 0 if 0 in values else None


def _check_unique(hkl: np.ndarray, path: Path | str) -> None:
    if len(np.unique(hkl, axis=0)) != len(hkl):
        raise InputError(f"{path} holds some reflections more than once; merge them first")
