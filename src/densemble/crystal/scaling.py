"""Bringing model and amplitudes to one scale, and R factors.

The model amplitude is ``k(h) |F_atoms + k_mask(s) F_mask|``. ``k(h)`` is anisotropic times isotropic: the
tensor and the solvent's fall-off with resolution are fitted by gemmi, after which the isotropic scale
and the solvent's density are refined in resolution shells, as proposed by Afonine, P. V. et al. (2013).
Acta Cryst. D69, 625-634. Free reflections enter none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.optimize import least_squares

from densemble.crystal.fcalc import atom_factors, solvent_factors, solvent_mask
from densemble.io.reflections import Reflections

_MIN_WORKING = 300  # reflections that a shell should have, to carry two or three parameters
_MAX_SHELLS = 30
_SOLVENT_DENSITIES = np.arange(0.0, 1.001, 0.02)  # e/Å^3, tried in each shell; water has 0.334
_B_SOL = (10.0, 150.0)  # Å^2, within which gemmi's fit is believed; beyond it has lost the solvent


@dataclass(frozen=True, eq=False)
class Scale:
    """What brings a model and amplitudes together.

    Attributes:
        k: amplitude scale of each reflection, model times ``k`` is data; shape=(n,).
        k_mask: density of the bulk solvent at each reflection's resolution, e/Å^3, shape=(n,).
        k_mask_0: the same at infinite resolution d, for reflection (0, 0, 0).
    """

    k: Float[np.ndarray, " n"]
    k_mask: Float[np.ndarray, " n"]
    k_mask_0: float


@dataclass(frozen=True)
class BulkSolvent:
    """The usual two parameters of the bulk solvent, ``density exp(-b s^2 / 4)``, in e/Å^3 and Å^2."""

    density: float
    b: float

    def at(self, s2: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """e/Å^3, at ``s^2 = 1/d^2`` in Å^-2, shape=(n,)."""
        return np.asarray(self.density * np.exp(-self.b * s2 / 4))


def bulk_solvent(reflections: Reflections, scale: Scale) -> BulkSolvent:
    """The solvent's density in the lowest shell, and the B with which it falls off best (least squares)."""
    density = scale.k_mask_0

    def residual(b: np.ndarray) -> np.ndarray:
        return BulkSolvent(density, b[0]).at(reflections.inverse_d2) - scale.k_mask

    fitted = least_squares(residual, x0=[50.0], bounds=([0.0], [300.0])).x
    return BulkSolvent(density, float(fitted[0]))


@dataclass(frozen=True)
class RFactors:
    """Agreement of amplitudes, ``sum |Fo - k Fc| / sum Fo``, over working and free reflections."""

    r_work: float
    r_free: float


def resolution_shells(reflections: Reflections) -> Int[np.ndarray, " n"]:
    """Shell of each reflection, 0 at the lowest resolution.

    Shells are even in ln(d), so that the solvent at low resolution gets fine ones, and are merged
    until each has `_MIN_WORKING` working reflections.
    """
    log_d = -0.5 * np.log(reflections.inverse_d2)
    fine = np.linspace(log_d.max(), log_d.min(), 2 * _MAX_SHELLS + 1)
    bins = np.clip(np.searchsorted(-fine, -log_d, side="right") - 1, 0, 2 * _MAX_SHELLS - 1)
    counts = np.bincount(bins[~reflections.free], minlength=2 * _MAX_SHELLS)
    shell_of_bin = np.zeros(2 * _MAX_SHELLS, dtype=np.int64)
    shell, inside = 0, 0
    for i, count in enumerate(counts):
        shell_of_bin[i] = shell
        inside += count
        if inside >= _MIN_WORKING:
            shell, inside = shell + 1, 0
    last = max(shell - 1, 0) if inside < _MIN_WORKING else shell
    return np.minimum(shell_of_bin, last)[bins]


def fit_scale(
    reflections: Reflections,
    atoms: Complex[np.ndarray, " n"],
    solvent: Complex[np.ndarray, " n"],
) -> Scale:
    """Fit anisotropic and shell-wise scale, and the solvent's density, to working reflections.

    Args:
        reflections: the data.
        atoms: structure factors of the atoms at their hkl, electrons, shape=(n,).
        solvent: structure factors of the solvent mask, Å^3, shape=(n,).
    """
    anisotropic, fall_off = _fit_overall(reflections, atoms, solvent)
    k, k_mask = np.empty(len(reflections)), np.empty(len(reflections))
    shells = resolution_shells(reflections)
    densities = []
    for shell in range(shells.max() + 1):
        inside = shells == shell
        working = inside & ~reflections.free
        density, scale = _fit_shell(
            reflections.f[working],
            anisotropic[working] * atoms[working],
            anisotropic[working] * fall_off[working] * solvent[working],
        )
        k[inside], k_mask[inside] = scale * anisotropic[inside], density * fall_off[inside]
        densities.append(density)
    return Scale(k, k_mask, densities[0])


def _fit_overall(
    reflections: Reflections, atoms: np.ndarray, solvent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale ``k exp(-h^T B h / 4)`` and fall-off ``exp(-B_sol / 4d^2)`` of each reflection, by gemmi."""
    work = ~reflections.free
    hkl, cell, group = reflections.hkl[work], reflections.cell, reflections.spacegroup
    data = gemmi.Mtz(with_base=True)
    data.spacegroup = group
    data.set_cell_for_all(cell)
    data.add_dataset("working")
    data.add_column("F", "F")
    data.add_column("SIGF", "Q")
    data.set_data(np.column_stack([hkl, reflections.f[work], reflections.sigma[work]]).astype(np.float32))
    scaling = gemmi.Scaling(cell, group)
    scaling.use_solvent = True
    calculated, mask = (
        gemmi.ComplexAsuData(cell, group, hkl, f[work].astype(np.complex64)) for f in (atoms, solvent)
    )
    scaling.prepare_points(calculated, data.get_value_sigma("F", "SIGF"), mask)
    scaling.fit_isotropic_b_approximately()
    scaling.fit_parameters()
    k = np.asarray(scaling.get_overall_scale_factor(reflections.hkl), dtype=np.float64)
    return k, BulkSolvent(1.0, float(np.clip(scaling.b_sol, *_B_SOL))).at(reflections.inverse_d2)


def _fit_shell(f: np.ndarray, atoms: np.ndarray, solvent: np.ndarray) -> tuple[float, float]:
    """Solvent density and scale of least ``sum (f - scale |atoms + density solvent|)^2``."""
    residuals, scales = [], []
    for density in _SOLVENT_DENSITIES:
        model = np.abs(atoms + density * solvent)
        scale = (f * model).sum() / (model**2).sum()
        residuals.append(((f - scale * model) ** 2).sum())
        scales.append(scale)
    best = int(np.argmin(residuals))
    return float(_SOLVENT_DENSITIES[best]), float(scales[best])


def model_factors(
    structure: gemmi.Structure, reflections: Reflections
) -> tuple[Complex[np.ndarray, " n"], Complex[np.ndarray, " n"]]:
    """Structure factors of the atoms and of the solvent mask of a model, at the data's hkl."""
    atoms = atom_factors(structure, reflections.hkl, d_min=reflections.d_min)
    return atoms, solvent_factors(solvent_mask(structure), reflections.hkl)


def r_factors(structure: gemmi.Structure, reflections: Reflections) -> RFactors:
    """R-work and R-free of a model, which may have altlocs with occupancies.

    Scale and bulk solvent are fitted to the working reflections for each model anew.
    """
    return r_factors_of(scaled_amplitudes(structure, reflections), reflections)


def r_factors_of(model: Float[np.ndarray, " n"], reflections: Reflections) -> RFactors:
    """R-work and R-free of a model with these amplitudes, on the scale of the data."""
    left = np.abs(reflections.f - model)
    work, free = (
        float(left[subset].sum() / reflections.f[subset].sum())
        for subset in (~reflections.free, reflections.free)
    )
    return RFactors(r_work=work, r_free=free)


def r_free_error(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], reflections: Reflections
) -> float:
    """Standard error of the difference between the R-free of two models, on the same reflections.

    ``sqrt(n) sd(|Fo - k2 Fc2| - |Fo - k1 Fc1|) / sum Fo`` over the n free ones, taken as independent. What
    both models get wrong alike cancels, so that it is less than the error of either R-free. NaN where there
    are fewer than two.

    Args:
        first: ``scaled_amplitudes`` of the one model, shape=(n,).
        second: those of the other.
        reflections: the data.
    """
    free = reflections.free
    if free.sum() < 2:
        return float("nan")
    observed = reflections.f[free]
    change = np.abs(observed - second[free]) - np.abs(observed - first[free])
    return float(np.sqrt(len(change)) * change.std(ddof=1) / observed.sum())


def scaled_amplitudes(structure: gemmi.Structure, reflections: Reflections) -> Float[np.ndarray, " n"]:
    """``k Fc`` of each reflection, on the scale of the data; scale and bulk solvent are fitted anew."""
    atoms, solvent = model_factors(structure, reflections)
    scale = fit_scale(reflections, atoms, solvent)
    return scale.k * np.abs(atoms + scale.k_mask * solvent)
