"""Chroma's prior and packer as a recipe and a stretch make them."""

import numpy as np
import pytest
import torch
from small_crystal import write_crystal

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from small_chroma import small_backbone, small_design

from densemble.assembly import chroma_packer, chroma_prior
from densemble.atoms import Region
from densemble.io.models import read_model
from densemble.problem import Stretches
from densemble.recipes import load_recipe
from densemble.sidechains.packing import SideChains


@pytest.fixture(scope="module")
def stretches(tmp_path_factory):
    model = read_model(write_crystal(tmp_path_factory.mktemp("crystal")).model)
    return Stretches.of(model, Region.parse("A:176-178,A:184-186"), window=5)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("chroma-2024")


def test_chroma_prior_moves_the_stretches_and_holds_the_rest(stretches, recipe):
    prior = chroma_prior(stretches, recipe, small_backbone())
    expected = stretches.topology.subset(stretches.backbone_atoms)
    assert (prior.topology.names, prior.topology.residues) == (expected.names, expected.residues)
    start = stretches.start[torch.as_tensor(stretches.backbone_atoms)]
    whole = prior.whole(start[None] + 1)
    topology = prior.prior.topology
    numbers = np.array([topology.residues[r].id.number for r in topology.residue_index])
    free = np.isin(numbers, [176, 177, 178, 184, 185, 186])
    model = torch.as_tensor(stretches.model.coords[prior.prior.atoms], dtype=torch.float32)
    assert torch.equal(whole[0, ~free], model[~free])
    assert torch.allclose(whole[0, free], model[free] + 1, atol=1e-5)
    assert prior.process.inverse_temperature == recipe.noise.inverse_temperature
    away = (prior.process.center - start).norm(dim=-1)
    assert float(away.max()) < 12, "noise is about where the chain goes on"


def test_chroma_prior_takes_its_options_from_the_recipe(stretches, recipe):
    noise = recipe.noise.model_copy(update={"inverse_temperature": 10.0, "langevin_factor": 2.0})
    process = chroma_prior(stretches, recipe.model_copy(update={"noise": noise}), small_backbone()).process
    assert (process.inverse_temperature, process.langevin_factor) == (10.0, 2.0)


def test_chroma_packer_knows_the_model(stretches, recipe):
    packer = chroma_packer(stretches, recipe, small_design())
    assert packer.temperature == 0.001
    residues = sorted(r for stretch in stretches.residues for r in stretch)
    chains = SideChains(stretches.whole, stretches.coords, residues, members=1, window=5)
    before = chains.chi.clone()
    backbone = torch.tensor(
        stretches.model.coords[stretches.model.topology.backbone(residues)], dtype=torch.float32
    )
    packer(chains, backbone[None], torch.Generator().manual_seed(0))
    assert chains.chi.shape == before.shape
    assert not torch.equal(chains.chi, before)
