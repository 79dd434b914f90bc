"""A Boltz network with its trunk done for one input: what priors and confidences are made from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from boltz.main import get_cache_path
from jaxtyping import Float
from torch import Tensor

from densemble.atoms import Topology
from densemble.errors import InputError
from densemble.io.models import Model
from densemble.io.output import InputFile
from densemble.priors.boltz.alignments import COLABFOLD, MsaServer
from densemble.priors.boltz.confidence import Confidence, confidence
from densemble.priors.boltz.inputs import BoltzInput, checked, featurized
from densemble.priors.boltz.matching import Match, matched, renamed
from densemble.priors.boltz.memory import must_hold
from densemble.priors.boltz.model_sequences import model_contents
from densemble.priors.boltz.prior import BoltzPrior
from densemble.priors.boltz.sequences import read_contents
from densemble.priors.boltz.standing import ENOUGH, standing_atoms
from densemble.priors.boltz.steering import Steering
from densemble.priors.boltz.trunk import Trunk, conditioning, trunk_of
from densemble.priors.boltz.weights import check_weights, find_files, load_network
from densemble.priors.fold import FoldSettings
from densemble.progress import Progress

OWN_CACHE = "densemble"
"""Folder in Boltz's cache where trunks and alignments are kept."""


@dataclass(frozen=True, eq=False)
class BoltzModel:
    """A network and what its trunk made of one input.

    Attributes:
        settings: of the fold.
        given: the input.
        topology: its N atoms, named as in the starting model where that has them.
        match: what the input and the starting model have in common; None without a starting model.
        network: Boltz-1 or Boltz-2.
        weights: the checkpoint that it was loaded from.
        trunk: of the input.
        messages: what the user should know.
    """

    settings: FoldSettings
    given: BoltzInput
    topology: Topology
    match: Match | None
    network: Any
    weights: InputFile
    trunk: Trunk
    messages: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the network is; samples, and what guides them, are there too."""
        return self.trunk.z.device

    @property
    def versions(self) -> dict[str, str]:
        """Of the network's package."""
        return {"boltz": version("boltz")}

    def prior(
        self,
        *,
        centre: Float[Tensor, " 3"] | None = None,
        start: Float[Tensor, "n 3"] | None = None,
        together: int | None = None,
    ) -> BoltzPrior:
        """The network as a prior; see ``BoltzPrior``.

        Args:
            centre: of pure noise, Å; the origin if None.
            start: where the atoms are before the settings' noise is added, if there are to be any.
            together: members in one call; as many as memory holds if None.
        """
        feats, second, device = self.given.feats, self.settings.prior == "boltz2", self.device
        if start is not None:
            start = start.to(device)
        prior = BoltzPrior(
            self.network.structure_module,
            self.topology,
            conditioning(self.network, self.trunk, feats),
            centre=torch.zeros(3, device=device) if centre is None else centre.to(device),
            together=together or 1,
            start=start,
            first=None if start is None else self.settings.from_noise,
            steering=Steering(feats, boltz2=second, physical=self.settings.potentials),
        )
        if together is None:
            prior.measure(10.0)
        return prior

    def confidence(self, prior: BoltzPrior, x: Float[Tensor, "k n 3"]) -> Confidence | None:
        """What the network thinks of samples that the prior has just drawn."""
        tokens = None if prior.tokens is None else prior.tokens.so_far
        return confidence(self.network, self.given, self.trunk, x, s_diffusion=tokens)

    def standing(self, fold: Model, docked: Model) -> Float[np.ndarray, "n 3"]:
        """Å, the docked starting model, with what it lacks of the fold; see ``standing_atoms``.

        Args:
            fold: all atoms of the input, anywhere.
            docked: the starting model.

        Raises:
            InputError: they have fewer than three atoms in common.
        """
        assert self.match is not None
        if len(self.match.atoms) < ENOUGH:
            raise InputError(
                f"model {docked.path}: {len(self.match.atoms)} of its atoms are of the sequences, too few to "
                "place a fold by; give a model with backbones"
            )
        places = np.full(fold.coords.shape, np.nan)
        places[self.match.atoms] = docked.coords[self.match.model_atoms]
        return standing_atoms(self.topology, fold.coords, places)


def open_boltz(settings: FoldSettings, model: Model | None, *, progress: Progress) -> BoltzModel:
    """Read the input, find and load the weights, and run the trunk, or find it done.

    Args:
        settings: of the fold.
        model: the starting model, which names the atoms, and gives the sequence if the settings do not.
        progress: told of downloads and of the trunk.

    Raises:
        InputError: a file is missing or not what it should be; see ``inputs``, ``matching`` and ``weights``.
    """
    cache = Path(get_cache_path()) / OWN_CACHE
    server = None
    if settings.use_msa_server:
        server = MsaServer(cache / "msa", url=settings.msa_server_url or COLABFOLD)
    if settings.sequence is not None:
        contents = read_contents(settings.sequence)
    else:
        assert model is not None
        contents = model_contents(model, alone=server is None)
    wanted = checked(contents, server)  # before gigabytes are downloaded for it
    if settings.weights is not None:
        check_weights(settings.prior, settings.weights)
    files = find_files(settings.prior, weights=settings.weights, progress=progress)
    given = featurized(wanted, files, progress=progress)
    match = None if model is None else matched(given.topology, model, links=given.links)
    topology = given.topology
    if match is not None and model is not None:
        topology = renamed(topology, match, model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(settings.prior, files.weights, device=device, step_scale=settings.step_scale)
    weights = InputFile.of(files.weights)
    with must_hold("the features of the input", device):
        given = given.to(device)
    trunk = trunk_of(
        network,
        given,
        weights=weights.sha256,
        cache=cache,
        recycling=settings.recycling,
        progress=progress,
    )
    messages = given.messages + (() if match is None else match.messages)
    return BoltzModel(settings, given, topology, match, network, weights, trunk, messages)
