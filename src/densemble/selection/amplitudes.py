"""Crystal amplitudes as judge of states: working reflections are fitted, free ones held out.

The likelihood of an amplitude given a model is Rice's distribution (centric: Woolfson's), with the variance
that the model's errors have in a shell of resolution (``crystal.sigmaa``). The scale is that of the whole
model and stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from densemble.atoms import Topology
from densemble.crystal.direct import DirectFactors
from densemble.crystal.omit import ScaledModels
from densemble.crystal.sigmaa import LEAST_FREE, error_variance, log_rice, slopes
from densemble.forward.scattering import FormFactors, xray_form_factors
from densemble.forward.solvent import displaced_volumes, displacement_factors
from densemble.io.reflections import Reflections
from densemble.selection.intervals import Blocks

_BLOCKS = 500
"""Groups of working reflections that are drawn together; each has dozens, near to none of its own."""


def hashed(hkl: Int[np.ndarray, "n 3"], spacegroup: gemmi.SpaceGroup) -> Int[np.ndarray, " n"]:
    """A number for each reflection that is as good as random, and the same whenever and wherever.

    Friedel mates and symmetry equivalents have the same one.

    Args:
        hkl: shape=(n, 3).
        spacegroup: whose asymmetric unit the indices are brought to.
    """
    asu, ops = gemmi.ReciprocalAsu(spacegroup), spacegroup.operations()
    unique = np.array([asu.to_asu(list(map(int, index)), ops)[0] for index in hkl], dtype=np.int64)
    state = np.zeros(len(hkl), dtype=np.uint64)
    for column in unique.T.astype(np.uint64):  # splitmix64, index by index
        state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(33)).astype(np.int64)


def choosing_half(reflections: Reflections) -> Bool[np.ndarray, " n"]:
    """Half of the free reflections, to choose by, where the other half is to judge the choice.

    Models compared on all of them are told apart with sqrt(2) the power, and the price is small: of models
    that are no better in truth, choosing what is better by 1.645 standard errors favours R-free by a tenth of
    a standard error of the difference between the two, on average.
    """
    half = hashed(reflections.hkl, reflections.spacegroup) % 2 == 0
    return np.asarray(reflections.free & half)


@dataclass(frozen=True, eq=False)
class AmplitudeJudge:
    """Amplitudes, all of the model but the region, and what the region's atoms scatter.

    Attributes:
        reflections: the data.
        f_obs: amplitudes on the model's scale, shape=(n,).
        rest: structure factors of all but the region, solvent included, shape=(n,).
        variance: of the error of a structure factor, shape=(n,).
        factors: of the region's atoms, less the solvent that they displace.
    """

    reflections: Reflections
    f_obs: Float[np.ndarray, " n"]
    rest: Complex[np.ndarray, " n"]
    variance: Float[np.ndarray, " n"]
    factors: DirectFactors

    @classmethod
    def of(
        cls,
        models: ScaledModels,
        topology: Topology,
        reflections: Reflections,
    ) -> AmplitudeJudge:
        """See how large the model's errors are, and what the region's atoms scatter.

        Args:
            models: the start, with the region in one conformation, and all but the region.
            topology: the region's atoms.
            reflections: the data.
        """
        f_obs = reflections.f / models.scale.k
        volumes = displaced_volumes(topology.residue_names, topology.names, topology.elements)
        solvent = models.solvent
        displaced = displacement_factors(volumes, density=solvent.density, b_solvent=solvent.b)
        atoms = xray_form_factors(topology.elements)
        factors = FormFactors(np.hstack([atoms.a, displaced[0]]), np.hstack([atoms.b, displaced[1]]))
        return cls(
            reflections,
            f_obs,
            models.rest[:-1],
            error_variance(reflections, f_obs, np.abs(models.whole[:-1])),
            DirectFactors(factors, reflections.hkl, reflections.cell, reflections.spacegroup),
        )

    @property
    def rule(self) -> str:
        """What is compared, in words."""
        free = int(self.reflections.free.sum())
        if not self.holds_out:
            return (
                "log-likelihood (Rice) of the working reflections, less parameters (AIC), for with "
                f"{free} free reflections to choose by nothing can be held out"
            )
        return f"log-likelihood (Rice) of the {free} free reflections, which nothing was fitted to"

    @property
    def holds_out(self) -> bool:
        """There are free reflections enough to choose by."""
        return int(self.reflections.free.sum()) >= LEAST_FREE

    @cached_property
    def _block(self) -> Int[np.ndarray, " m"]:
        """Group of each working reflection."""
        return hashed(self.reflections.hkl[~self.reflections.free], self.reflections.spacegroup) % _BLOCKS

    def signals(
        self,
        atoms: Int[np.ndarray, " n"],
        coords: Float[np.ndarray, "k n 3"],
        b_iso: Float[np.ndarray, "k n"],
    ) -> Complex[np.ndarray, "k d"]:
        """Structure factors of each conformation."""
        return np.array([self.factors(atoms, x, b) for x, b in zip(coords, b_iso, strict=True)])

    def blocks(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Blocks:
        """Linear about the weights: ``|F|`` changes by the part of a state that is along F."""
        work = ~self.reflections.free
        model = self.rest[work] + weights @ signals[:, work]
        amplitude = np.abs(model)
        along = (signals[:, work] * (model.conj() / np.maximum(amplitude, 1e-12))).real
        slope, information = slopes(
            self.f_obs[work], amplitude, self.variance[work], self.reflections.centric[work]
        )
        block = self._block
        found = Blocks.of(along, weights @ along, information, block)
        score = np.stack(
            [np.bincount(block, slope * row, minlength=len(found.gram)) for row in along], axis=1
        )
        return Blocks(found.gram, found.cross + score)

    def fitted(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> float:
        """Log-likelihood of the working reflections."""
        return float(self._log_likelihood(signals, weights, ~self.reflections.free).sum())

    def held_out(self, signals: np.ndarray, weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, " m"]:
        """Log-likelihood of each free reflection."""
        return self._log_likelihood(signals, weights, self.reflections.free)

    def _log_likelihood(self, signals: np.ndarray, weights: np.ndarray, which: np.ndarray) -> np.ndarray:
        model = np.abs(self.rest[which] + weights @ signals[:, which])
        return log_rice(self.f_obs[which], model, self.variance[which], self.reflections.centric[which])
