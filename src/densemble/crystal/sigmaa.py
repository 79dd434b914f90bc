"""Figure of merit m and Luzzati factor D, estimated in resolution shells.

Read, R. J. (1986). Acta Cryst. A42, 140-149; the likelihood is Srinivasan's distribution of a true
amplitude given a model of partial completeness and finite error. sigma_A is estimated by maximum
likelihood on the *working* reflections, so that nothing of a free amplitude enters a map. The price is
that a refined model fits them better than it deserves: m and D come out somewhat too high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float
from scipy.optimize import minimize_scalar
from scipy.special import i0e, i1e

from densemble.crystal.scaling import resolution_shells
from densemble.io.reflections import Reflections

_BOUNDS = (1e-3, 0.9995)


@dataclass(frozen=True, eq=False)
class ModelError:
    """How far a model is from the data, of each reflection.

    Attributes:
        m: figure of merit, zero at free reflections, shape=(n,).
        d: Luzzati factor D, shape=(n,).
        variance: of a true structure factor about D times the model's, over epsilon; electrons^2,
            ``Sigma_N (1 - sigma_A^2)``, shape=(n,).
    """

    m: Float[np.ndarray, " n"]
    d: Float[np.ndarray, " n"]
    variance: Float[np.ndarray, " n"]


def figure_of_merit(
    reflections: Reflections, f_obs: Float[np.ndarray, " n"], f_model: Complex[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Weights of the coefficients 2mFo-DFc and mFo-DFc: m and D of ``model_error``."""
    error = model_error(reflections, f_obs, f_model)
    return error.m, error.d


def model_error(
    reflections: Reflections, f_obs: Float[np.ndarray, " n"], f_model: Complex[np.ndarray, " n"]
) -> ModelError:
    """Estimate the error of a model.

    Args:
        reflections: hkl, symmetry and free flags; its amplitudes are not used.
        f_obs: amplitudes on the model's scale; free ones are ignored.
        f_model: structure factors of the model with solvent.
    """
    m, d, variance = (np.zeros(len(reflections)) for _ in range(3))
    shells = resolution_shells(reflections)
    f_calc = np.abs(f_model)
    for shell in range(shells.max() + 1):
        inside = shells == shell
        working = inside & ~reflections.free
        epsilon, centric = reflections.epsilon[working], reflections.centric[working]
        sigma_n = np.mean(f_obs[working] ** 2 / epsilon)
        sigma_p = np.mean(f_calc[working] ** 2 / epsilon)
        e_obs, e_calc = (
            f_obs[working] / np.sqrt(epsilon * sigma_n),
            f_calc[working] / np.sqrt(epsilon * sigma_p),
        )
        sigma_a = fit_sigma_a(e_obs, e_calc, centric)
        d[inside] = sigma_a * np.sqrt(sigma_n / sigma_p)
        variance[inside] = sigma_n * (1 - sigma_a**2)
        x = 2 * sigma_a * e_obs * e_calc / (1 - sigma_a**2)
        m[working] = np.where(centric, np.tanh(x / 2), i1e(x) / i0e(x))
    return ModelError(m, d, variance)


def log_likelihood(
    reflections: Reflections,
    f_obs: Float[np.ndarray, " n"],
    f_model: Complex[np.ndarray, " n"],
    error: ModelError,
) -> float:
    """Log probability of the working amplitudes given a model and its error, up to what is theirs alone.

    Rice's distribution of an acentric amplitude and the sum of two normal ones of a centric (Read 1986).

    Args:
        reflections: as for ``model_error``.
        f_obs: amplitudes on the model's scale.
        f_model: structure factors of the model with solvent.
        error: of this model or of one like it.
    """
    work = ~reflections.free
    variance = (error.variance * reflections.epsilon)[work]
    f_calc = error.d[work] * np.abs(f_model[work])
    square, x = (f_obs[work] ** 2 + f_calc**2) / variance, 2 * f_obs[work] * f_calc / variance
    acentric = -square + x + np.log(i0e(x))
    centric = -square / 2 + x / 2 + np.log1p(np.exp(-x))
    return float(np.where(reflections.centric[work], centric, acentric).sum())


def fit_sigma_a(
    e_obs: Float[np.ndarray, " n"], e_calc: Float[np.ndarray, " n"], centric: np.ndarray
) -> float:
    """Maximum-likelihood sigma_A of normalised amplitudes (Read 1986, equations 6 and 7)."""

    def negative_log_likelihood(sigma_a: float) -> float:
        variance = 1 - sigma_a**2
        x = sigma_a * e_obs * e_calc / variance
        square = (e_obs**2 + (sigma_a * e_calc) ** 2) / variance
        acentric_term = np.log(variance) + square - 2 * x - np.log(i0e(2 * x))
        centric_term = 0.5 * np.log(variance) + square / 2 - x - np.log1p(np.exp(-2 * x))
        return float(np.where(centric, centric_term, acentric_term).sum())

    return float(minimize_scalar(negative_log_likelihood, bounds=_BOUNDS, method="bounded").x)
