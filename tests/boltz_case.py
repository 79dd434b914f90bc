"""A reduced Boltz model, and what its own ``forward`` hands to its sampler."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from boltz_dictionary import write_cache
from boltz_networks import EXAMPLE_ATOMS, example_input, reduced_model

from densemble.atoms import Residue, ResidueId, Topology
from densemble.priors.boltz.inputs import read_input
from densemble.priors.boltz.prior import BoltzPrior
from densemble.priors.boltz.weights import BoltzFiles

PARTS = ("s_trunk", "z_trunk", "s_inputs", "feats", "relative_position_encoding", "diffusion_conditioning")


def boltz_features(kind, folder, *, padded=False):
    """Features of the example, the same in every run; that they are Boltz's is tested elsewhere."""
    name = "mols" if kind == "boltz2" else "ccd.pkl"
    files = BoltzFiles(kind, Path(folder) / "none.ckpt", write_cache(Path(folder) / "cache") / name)
    return read_input(example_input(folder, padded=padded), files).feats


class _CaughtError(Exception):
    pass


class BoltzCase:
    """The reduced model, its features, and the arguments of its sampler.

    Its estimates are brought to the size of a protein: as drawn, they are ten times as wide.
    """

    def __init__(self, kind, folder, *, padded=False):
        self.kind, self.atoms = kind, EXAMPLE_ATOMS[padded]
        self.feats = boltz_features(kind, folder, padded=padded)
        self.model = reduced_model(kind)
        self.diffusion = self.model.structure_module
        self.diffusion.score_model.atom_attention_decoder.atom_feat_to_atom_pos_update[-1].weight.mul_(0.05)
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
