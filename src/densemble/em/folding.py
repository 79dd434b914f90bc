"""A fold from sequence as the start, and its network as the prior, of a fit to a cryo-EM map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.em.inputs import StateSettings
from densemble.errors import InputError
from densemble.io.built import built_model
from densemble.io.models import Model
from densemble.io.state_results import FoldRecord
from densemble.progress import Progress
from densemble.recipes.state import StateRecipe
from densemble.sampler import sample

if TYPE_CHECKING:
    from densemble.priors.boltz.model import BoltzModel
    from densemble.priors.boltz.prior import BoltzPrior

STEPS = 200
"""Of the reverse diffusion, as Boltz's command line."""
ANCHORED = {"protein": "CA", "nucleic": "C1'"}
"""Atoms by which samples are placed, one for each residue of a polymer, by its kind."""
PLACED_AT = 20.0
"""Å of noise above which an estimate has no shape by which it could be placed, nor be guided."""
FEWEST = 2
"""Steps of Boltz's schedule, which divides by one less."""
APART = 50.0
"""Å from one atom of the input to the next, which are bonded or nearly so: 1 to 3 Å in a molecule."""
REMEDY = "take more --steps, leave --step-scale out, or see whether the --weights are the released ones"


@dataclass(frozen=True, eq=False)
class Fold:
    """A network that folds, and what it makes of the input where no map guides it.

    Attributes:
        boltz: network, trunk and names.
        model: one unguided sample, in no place; the B column holds 100 times the pLDDT of each residue.
    """

    boltz: BoltzModel
    model: Model

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.boltz.messages

    def standing(self, docked: Model) -> Model:
        """All atoms of the input in the map.

        Args:
            docked: the unguided sample, or the starting model, as it was docked.
        """
        if self.boltz.match is None:
            return docked
        return replace(self.model, coords=self.boltz.standing(self.model, docked))

    def prior(self, start: Model) -> BoltzPrior:
        """The network as a prior, from pure noise or, if the settings say so, from the start.

        Args:
            start: all atoms in the map.
        """
        coords = torch.from_numpy(start.coords).float()
        if self.boltz.settings.from_noise is not None:
            return self.boltz.prior(start=coords)
        return self.boltz.prior(centre=coords.mean(0))

    def place(self, prior: BoltzPrior, start: Model, *, level: float) -> None:
        """Let samples from pure noise be placed where the start stands, by one atom of each residue.

        Args:
            prior: of the samples.
            start: all atoms in the map.
            level: noise level, Å, of the step in which they are placed.
        """
        from densemble.priors.boltz.process import Anchor

        if self.boltz.settings.from_noise is not None:
            return  # they begin there
        topology = start.topology
        atoms = [
            i
            for i, (name, r) in enumerate(zip(topology.names, topology.residue_index, strict=True))
            if name == ANCHORED.get(topology.residues[r].kind)
        ]
        index = torch.tensor(atoms if len(atoms) > 2 else range(len(topology)))
        prior.process.anchor = Anchor(level, topology, torch.from_numpy(start.coords), index)

    def rated(self, prior: BoltzPrior, members: Float[Tensor, "k n 3"]) -> dict[str, Tensor]:
        """The network's confidence in samples that the prior has just drawn, by name."""
        found = self.boltz.confidence(prior, members)
        return {} if found is None else dict(vars(found))


def fold_steps(recipe: StateRecipe) -> int:
    """Steps of the reverse diffusion where nothing else is said."""
    return STEPS if recipe.schedule is None else recipe.schedule.steps


def check_steps(steps: int) -> None:
    """See that the steps are enough for the networks' noise.

    Raises:
        InputError: says how many it takes.
    """
    if steps < FEWEST:
        raise InputError(f"--steps {steps}: a fold takes at least {FEWEST}, or leave --steps out")


def check_fold(x: Float[Tensor, "n 3"]) -> None:
    """See that an unguided sample is a molecule: that sampling did not diverge.

    Raises:
        InputError: it is none.
    """
    apart = float((x[1:] - x[:-1]).norm(dim=1).median()) if len(x) > 1 else 0.0
    if not bool(torch.isfinite(x).all()) or apart > APART:
        raise InputError(f"the fold diverged: atoms that should be bonded are {apart:.3g} Å apart; {REMEDY}")


def opened(settings: StateSettings, given: Model | None, *, tell: Progress) -> BoltzModel:
    """The network, with its trunk run on the input.

    Args:
        settings: with what to fold.
        given: the starting model, if there is one.
        tell: told of downloads and of the trunk.

    Raises:
        InputError: the input, the weights or the package is missing or wrong.
    """
    from densemble.priors.boltz.model import open_boltz

    assert settings.fold is not None
    return open_boltz(settings.fold, given, progress=tell)


def record_of(boltz: BoltzModel) -> FoldRecord:
    """The network and its input, for ``result.json``."""
    return FoldRecord(
        prior=boltz.settings.prior,
        weights=boltz.weights,
        input=boltz.given.key,
        recycling=boltz.settings.recycling,
        step_scale=float(boltz.network.structure_module.step_scale),
        potentials=boltz.settings.potentials,
    )


def unguided(boltz: BoltzModel, *, steps: int, seed: int, tell: Progress) -> dict[str, Tensor]:
    """One sample without a map, as a checkpoint keeps it.

    Args:
        boltz: the network.
        steps: of the reverse diffusion.
        seed: of the random numbers.
        tell: told of every step.

    Returns:
        ``coords``, Å, shape=(N, 3); and ``b``, 100 times the pLDDT of each atom's residue, shape=(N,).

    Raises:
        InputError: sampling diverged.
    """
    prior = boltz.prior(together=1)
    generator = torch.Generator().manual_seed(seed)
    try:
        with tell.steps("fold", steps) as on_step, torch.no_grad():
            x = sample(
                prior, steps=steps, members=1, generator=generator, on_step=lambda state: on_step(state.step)
            )
    except FloatingPointError as error:
        raise InputError(f"the fold: {error}; {REMEDY}") from error
    check_fold(x[0])
    opinion = boltz.confidence(prior, x)
    residue = torch.from_numpy(boltz.topology.residue_index)
    b = torch.zeros(len(residue)) if opinion is None else 100 * opinion.plddt[0].cpu()[residue]
    return {"coords": x[0].double().cpu(), "b": b.double()}


def fold_of(settings: StateSettings, boltz: BoltzModel, kept: dict[str, Tensor]) -> Fold:
    """The network with what it made of its input.

    Args:
        settings: with what was folded.
        boltz: the network.
        kept: see ``unguided``.
    """
    assert settings.fold is not None
    source = settings.fold.sequence or settings.model
    assert source is not None
    coords, b = kept["coords"].numpy(), kept["b"].numpy()
    return Fold(boltz, built_model(boltz.topology, coords, b, source=source))
