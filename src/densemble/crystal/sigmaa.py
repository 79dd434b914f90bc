"""Figure of merit m and Luzzati factor D, estimated in resolution shells.

Read, R. J. (1986). Acta Cryst. A42, 140-149; the likelihood is Srinivasan's distribution of a true
amplitude given a model of partial completeness and finite error. sigma_A is estimated by maximum
likelihood on the *working* reflections, so that nothing of a free amplitude enters a map. The price is
that a refined model fits them better than it deserves: m and D come out somewhat too high.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float
from scipy.optimize import minimize_scalar
from scipy.special import i0e, i1e

from densemble.crystal.scaling import resolution_shells
from densemble.io.reflections import Reflections

_BOUNDS = (1e-3, 0.9995)


def figure_of_merit(
    reflections: Reflections, f_obs: Float[np.ndarray, " n"], f_model: Complex[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Weights of the coefficients 2mFo-DFc and mFo-DFc.

    Args:
        reflections: hkl, symmetry and free flags; its amplitudes are not used.
        f_obs: amplitudes on the model's scale; free ones are ignored.
        f_model: structure factors of the model with solvent.

    Returns:
        m, zero at free reflections, and D, at each reflection.
    """
    m, d = np.zeros(len(reflections)), np.zeros(len(reflections))
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
        x = 2 * sigma_a * e_obs * e_calc / (1 - sigma_a**2)
        m[working] = np.where(centric, np.tanh(x / 2), i1e(x) / i0e(x))
    return m, d


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
