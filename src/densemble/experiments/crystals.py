"""Crystals for experiments: amplitudes of a model whose region is in several known states.

The truth is all of a model as it is but for the region, which is in states of known occupancies. Each
structure factor has a complex normal error of the variance that the real model's has against the real data
at that reflection, so that R factors are as high, and maps as noisy, as those of the real crystal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from densemble.atoms import Ensemble, Region, Topology
from densemble.crystal.fcalc import atom_factors, solvent_factors, solvent_mask
from densemble.crystal.omit import scaled_models
from densemble.crystal.sigmaa import error_variance
from densemble.errors import InputError
from densemble.evaluation import backbone_atoms
from densemble.geometry.objective import GeometryObjective
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import build_restraints
from densemble.io.models import Model, alternates
from densemble.io.output import replacing
from densemble.io.reflections import Reflections
from densemble.io.results import write_structure
from densemble.metrics.coordinates import rmsd
from densemble.problem import Stretches, Surroundings
from densemble.refinement.waters import model_structure

ERROR = 0.2
"""Å by which each state is off from where it is taken, so that the start is none of them."""
FARTHEST = 2.5
"""Å, RMSD of backbones up to which states are tried."""
WORSE = 3.0
"""Nats an atom by which the stereochemistry of a state may be worse than that of the start."""
TRIALS = 50
"""After so many in a row that are not good, no further state is looked for."""
_REACH = 13.0  # Å around the region within which atoms are obstacles
_EVALUATIONS = 30


def deformed(
    start: Float[Tensor, "n 3"], residue: Int[np.ndarray, " n"], rng: np.random.Generator, rms: float
) -> Float[Tensor, "n 3"]:
    """Residues moved along a smooth random field that is zero beyond both ends.

    Args:
        start: Å.
        residue: of each atom, from 0 in chain order.
        rng: of the field, four sine waves along the chain.
        rms: Å, root mean square displacement of the atoms.
    """
    count = int(residue.max()) + 1
    place = np.arange(1, count + 1) / (count + 1)
    waves = np.sin(np.pi * np.arange(1, 5)[:, None] * place[None])
    field = (rng.normal(size=(3, 4)) / np.arange(1, 5)) @ waves
    moved = field.T[residue]
    return start + torch.as_tensor(moved * rms / np.sqrt((moved**2).sum(1).mean())).to(start)


@dataclass(frozen=True, eq=False)
class Bending:
    """Makes conformations of a region that have good stereochemistry among what surrounds it.

    Attributes:
        stretches: the region.
        geometry: its stereochemistry.
        rng: of all fields.
    """

    stretches: Stretches
    geometry: GeometryObjective
    rng: np.random.Generator

    @classmethod
    def of(cls, stretches: Stretches, rng: np.random.Generator) -> Bending:
        """Of a region, with contacts to all that does not move but waters."""
        around = Surroundings.of(stretches, reach=_REACH)
        restraints = build_restraints(
            stretches.whole,
            stretches.coords,
            stretches.whole.atoms_of(stretches.free),
            absent=around.absent,
            copies=around.copies,
            copy_elements=around.copy_elements,
        )
        return cls(stretches, GeometryObjective(restraints), rng)

    def near(self, x: Float[Tensor, "n 3"], rms: float) -> Float[Tensor, "n 3"]:
        """Bent smoothly by so many Å, then with good stereochemistry again."""
        moved = deformed(x, self.stretches.topology.residue_index, self.rng, rms)
        return regularise(moved[None], self.geometry, evaluations=_EVALUATIONS).coords[0]

    def states(self, count: int, *, apart: float) -> Float[Tensor, "k n 3"]:
        """One state near the start, and others of which no two have backbones nearer than ``apart`` Å.

        Raises:
            InputError: ``TRIALS`` trials in a row gave none.
        """
        start, backbone = self.stretches.start, backbone_atoms(self.stretches.topology)
        limit = float(self.geometry(start[None])) - WORSE * len(start)
        found, failed = [self.near(start, ERROR)], 0
        while len(found) < count and failed < TRIALS:
            trial = self.near(start, self.rng.uniform(apart, max(FARTHEST, 1.5 * apart)))
            nearest = rmsd(torch.stack(found)[:, backbone].numpy(), trial[backbone].numpy()).min()
            good = nearest > apart and float(self.geometry(trial[None])) > limit
            failed = 0 if good else failed + 1
            if good:
                found.append(trial)
        if len(found) < count:
            raise InputError(
                f"{self.stretches.region} of {self.stretches.model.path}: no {count} states {apart:g} Å "
                "apart fit between what surrounds it; take a longer region, fewer states or less between them"
            )
        return torch.stack(found)

    def known(self, path: Path) -> Float[Tensor, "k n 3"]:
        """The altlocs of a file, by letter, each bent by ``ERROR``.

        Raises:
            InputError: the file lacks atoms of the region in one of them.
        """
        states = alternates(path, self.stretches.topology)
        for letter, state in states.items():
            if not np.isfinite(state.coords).all():
                raise InputError(f"model {path}: altloc {letter or 'none'} lacks atoms of the region")
        return torch.stack([self.near(torch.from_numpy(s.coords).float(), ERROR) for s in states.values()])


def simulate_crystal(
    model: Model,
    real: Reflections,
    region: Region,
    *,
    occupancies: tuple[float, ...],
    states: Path | None = None,
    apart: float = 1.0,
    d_min: float | None = None,
    seed: int = 0,
    truth: Path,
    data: Path,
) -> None:
    """Write a truth with several states, and its amplitudes.

    Args:
        model: the start: one conformation of everything.
        real: its measured data: reflections, free set, scale and uncertainties are taken from here, and how
            large errors are.
        region: what has states.
        occupancies: of the states.
        states: file with altlocs that are the states; where None, they are made.
        apart: Å, RMSD of their backbones above which states that are made differ.
        d_min: Å, where the data end; where the real ones do if None.
        seed: of states and errors.
        truth: file (mmCIF) to write: altlocs A, B, ... in the order of the occupancies.
        data: file (MTZ) to write: FP, SIGFP, FREE (0: held out).

    Raises:
        InputError: the region is not in the model, or has not so many states.
    """
    rng = np.random.default_rng(seed)
    stretches = Stretches.of(model, region, window=0)
    bending = Bending.of(stretches, rng)
    coords = bending.states(len(occupancies), apart=apart) if states is None else bending.known(states)
    if len(coords) != len(occupancies):
        raise InputError(
            f"model {states}: {len(coords)} altlocs in {region}, and {len(occupancies)} occupancies"
        )
    ensemble = _ensemble(stretches.topology, coords, occupancies, stretches.b_start)
    structure, _ = model_structure(model, [ensemble], stretches.model_atoms)
    write_structure(truth, structure)
    write_amplitudes(data, amplitudes(structure, model, real, rng, d_min=d_min))


def _ensemble(
    topology: Topology, coords: Float[Tensor, "k n 3"], occupancies: tuple[float, ...], b_iso: Tensor
) -> Ensemble:
    return Ensemble(topology, coords, torch.tensor(occupancies), b_iso.expand(len(coords), -1))


def amplitudes(
    truth: gemmi.Structure, model: Model, real: Reflections, rng: np.random.Generator, *, d_min: float | None
) -> Reflections:
    """Amplitudes of a truth with errors as large as those of a model against its data, on the data's scale.

    Args:
        truth: its altlocs add up with their occupancies, each with the solvent around it.
        model: whose errors against ``real`` are the measure.
        real: the data.
        rng: of the errors.
        d_min: Å, where the amplitudes end; where the real ones do if None.
    """
    models = scaled_models(model.structure, None, real)
    variance = error_variance(real, real.f / models.scale.k, np.abs(models.whole[:-1]))
    f = atom_factors(truth, real.hkl, d_min=real.d_min)
    f = f + models.solvent.at(real.inverse_d2) * solvent_factors(solvent_mask(truth), real.hkl)
    # complex normal, but of a centric reflection along the one line that symmetry allows
    x, y = rng.normal(size=(2, len(f))) * np.sqrt(variance)
    error = np.where(real.centric, x * np.exp(1j * np.angle(f)), (x + 1j * y) / np.sqrt(2))
    measured = models.scale.k * np.abs(f + error)
    kept = np.ones(len(f), dtype=bool) if d_min is None else real.inverse_d2 <= d_min**-2
    return replace(
        real, hkl=real.hkl[kept], f=measured[kept], sigma=real.sigma[kept], free=real.free[kept], dropped=0
    )


def write_amplitudes(path: Path, reflections: Reflections) -> None:
    """Write amplitudes, uncertainties and the free set as an MTZ file."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "simulated"
    mtz.spacegroup = reflections.spacegroup
    mtz.set_cell_for_all(reflections.cell)
    mtz.add_dataset("simulated")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FREE", "I")):
        mtz.add_column(label, kind)
    columns = [reflections.hkl, reflections.f, reflections.sigma, 1 - reflections.free.astype(int)]
    mtz.set_data(np.column_stack(columns).astype(np.float32))
    with replacing(path) as temporary:
        mtz.write_to_file(str(temporary))
