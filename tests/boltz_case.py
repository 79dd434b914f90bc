"""A reduced Boltz model, and what its own ``forward`` hands to its sampler."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from boltz_dictionary import write_cache
from boltz_networks import EXAMPLE_ATOMS, boltz_files, compact_model, example_input

from densemble.atoms import Residue, ResidueId, Topology
from densemble.priors.boltz.inputs import read_input
from densemble.priors.boltz.prior import BoltzPrior

PARTS = ("s_trunk", "z_trunk", "s_inputs", "feats", "relative_position_encoding", "diffusion_conditioning")


def boltz_features(kind, folder, *, padded=False, more=""):
    """Features of the example, the same in every run; that they are Boltz's is tested elsewhere."""
    files = boltz_files(kind, write_cache(Path(folder) / "cache"))
    return read_input(example_input(folder, padded=padded, more=more), files).feats


class _CaughtError(Exception):
    pass


class BoltzCase:
    """A compact model, its features, and the arguments of its sampler."""

    def __init__(self, kind, folder, *, padded=False, more=""):
        self.kind, self.atoms = kind, EXAMPLE_ATOMS[padded]
        self.feats = boltz_features(kind, folder, padded=padded, more=more)
        self.model = compact_model(kind)
        self.diffusion = self.model.structure_module
        self.given = self._given()

    def _given(self):
        found = {}

        def sample(**given):
            found.update(given)
            raise _CaughtError

        self.diffusion.sample = sample
        with contextlib.suppress(_CaughtError), torch.no_grad():
            self.model(self.feats, recycling_steps=1, num_sampling_steps=5, diffusion_samples=1)
        del self.diffusion.sample
        return found

    def prior(self, *, together=3, **options):
        conditioning = {name: self.given[name] for name in PARTS if name in self.given}
        options = {"centre": torch.zeros(3), "together": together} | options
        return BoltzPrior(self.diffusion, unnamed(self.atoms), conditioning, **options)


def unnamed(atoms):
    """A topology of so many atoms of which nothing else matters."""
    residues = (Residue(ResidueId("A", 1), "UNK"),)
    return Topology(("X",) * atoms, ("C",) * atoms, np.zeros(atoms, dtype=np.int64), residues)
