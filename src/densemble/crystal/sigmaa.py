"""Figure of merit m, Luzzati factor D and the errors of a model, estimated in resolution shells.

Read, R. J. (1986). Acta Cryst. A42, 140-149; the likelihood is Srinivasan's distribution of a true
amplitude given a model of partial completeness and finite error. sigma_A is estimated by maximum
likelihood on the *working* reflections, so that nothing of a free amplitude enters a map. The price is
that a refined model fits them better than it deserves: m and D come out somewhat too high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Complex, Float
from scipy.optimize import minimize_scalar
from scipy.special import i0e, i1e

from densemble.crystal.scaling import resolution_shells
from densemble.io.reflections import Reflections

_BOUNDS = (1e-3, 0.9995)
_LEAST_F = 1e-6
"""Electrons."""
LEAST_FREE = 20
"""Free reflections below which their scatter has no standard error worth the name."""


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


def log_rice(
    f_obs: Float[np.ndarray, " n"],
    f_model: Float[np.ndarray, " n"],
    variance: Float[np.ndarray, " n"],
    centric: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Log density of amplitudes, given those of a model and the variance of a structure factor's error.

    Rice's distribution; of a centric reflection the sum of two normal ones (Read 1986, Woolfson's).
    An amplitude measured as zero, where the density is none, counts as a small one: models are compared,
    and what depends on the amplitude alone is the same for all of them.
    """
    square = (f_obs - f_model) ** 2 / variance
    x = 2 * f_obs * f_model / variance
    acentric = np.log(2 * np.maximum(f_obs, _LEAST_F) / variance) - square + np.log(i0e(x))
    both_signs = 0.5 * np.log(1 / (2 * np.pi * variance)) - square / 2 + np.log1p(np.exp(-x))
    return np.where(centric, both_signs, acentric)


def error_variance(
    reflections: Reflections, f_obs: Float[np.ndarray, " n"], f_model: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Variance of a model's structure factors: maximum likelihood on working reflections, shell by shell.

    Murshudov, G. N., Vagin, A. A. & Dodson, E. J. (1997). Acta Cryst. D53, 240-255.

    Args:
        reflections: hkl, symmetry and free flags; its amplitudes are not used.
        f_obs: amplitudes; free ones are ignored.
        f_model: amplitudes of the model, on the same scale.
    """
    shells, variance = resolution_shells(reflections), np.empty(len(reflections))
    for shell in range(shells.max() + 1):
        inside = shells == shell
        work = inside & ~reflections.free
        epsilon, centric = reflections.epsilon[work], reflections.centric[work]
        observed, model = f_obs[work], f_model[work]
        scale = float(np.mean((observed - model) ** 2 / epsilon))

        def loss(
            log_factor: float,
            observed: np.ndarray = observed,
            model: np.ndarray = model,
            spread: np.ndarray = scale * epsilon,
            centric: np.ndarray = centric,
        ) -> float:
            return -float(log_rice(observed, model, np.exp(log_factor) * spread, centric).sum())

        best = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
        variance[inside] = np.exp(best.x) * scale * reflections.epsilon[inside]
    return variance


def free_gain(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], reflections: Reflections
) -> tuple[float, float] | None:
    """Log-likelihood of the free reflections under the second of two models, less that under the first.

    ``sum d`` with ``d = log_rice(Fo, k2 Fc2, v) - log_rice(Fo, k1 Fc1, v)`` over the n free reflections; its
    standard error is ``sqrt(n) sd(d)``, these taken as independent. All that they say of which model is the
    better is in it, and each counts by the error that it has, as in R-free it does not: Tickle, I. J.
    (2007). Acta Cryst. D63, 1274-1281. The variance v is the first model's for both, so that nothing but
    the amplitudes differs.

    Args:
        first: ``scaled_amplitudes`` of the one model, shape=(n,).
        second: those of the other.
        reflections: the data.

    Returns:
        Both in nats; None where there are fewer than ``LEAST_FREE``.
    """
    free = reflections.free
    if free.sum() < LEAST_FREE:
        return None
    variance = error_variance(reflections, reflections.f, first)[free]
    observed, centric = reflections.f[free], reflections.centric[free]
    before, after = (log_rice(observed, model[free], variance, centric) for model in (first, second))
    change = after - before
    return float(change.sum()), float(np.sqrt(len(change)) * change.std(ddof=1))


def slopes(
    f_obs: Float[np.ndarray, " n"],
    f_model: Float[np.ndarray, " n"],
    variance: Float[np.ndarray, " n"],
    centric: Bool[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """First derivative of ``log_rice`` by the model's amplitude, and its second, negated."""
    x = 2 * f_obs * f_model / variance
    m = np.where(centric, np.tanh(x / 2), i1e(x) / i0e(x))
    ratio = np.where(x > 1e-6, m / np.maximum(x, 1e-6), 0.5)
    twice = np.where(centric, 1.0, 2.0)
    bend = np.where(centric, 1 - m**2, 1 - ratio - m**2)
    return twice * (m * f_obs - f_model) / variance, twice / variance - (twice * f_obs / variance) ** 2 * bend


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
