"""A reduced Boltz model, and what its own ``forward`` hands to its sampler."""

import contextlib
from pathlib import Path

import boltz.main
import numpy as np
import torch
from boltz.data.module import inference, inferencev2
from boltz.data.types import Manifest
from boltz_dictionary import write_cache
from boltz_networks import EXAMPLE_ATOMS, example_input, reduced_model

from densemble.atoms import Residue, ResidueId, Topology
from densemble.priors.boltz.prior import BoltzPrior

PARTS = ("s_trunk", "z_trunk", "s_inputs", "feats", "relative_position_encoding", "diffusion_conditioning")


def boltz_features(kind, folder, *, padded=False):
    """Features of the example by Boltz's own command line, step by step."""
    folder = Path(folder)
    cache = write_cache(folder / "cache")
    source = example_input(folder, padded=padded)
    second = kind == "boltz2"
    boltz.main.process_inputs(
        [source], folder, cache / "ccd.pkl", cache / "mols", msa_server_url="", msa_pairing_strategy="",
        boltz2=second,
    )  # fmt: skip
    done = folder / "processed"
    manifest = Manifest.load(done / "manifest.json")
    where = [manifest, done / "structures", done / "msa"]
    if second:
        dataset = inferencev2.PredictionDataset(
            *where, cache / "mols", done / "constraints", done / "templates", done / "mols"
        )
        return inferencev2.collate([dataset[0]])
    return inference.collate([inference.PredictionDataset(*where, done / "constraints")[0]])


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
