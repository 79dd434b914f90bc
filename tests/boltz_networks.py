"""Boltz's own classes at small size with random weights, and inputs for them.

Same options as the released checkpoints have (Boltz-1: confidence head that imitates the trunk and reads the
accumulated token representation; Boltz-2: conditioning on method and molecule type, bond types, templates),
fewer and narrower blocks.
"""

import math
from dataclasses import asdict
from pathlib import Path

import torch
from boltz.main import (
    Boltz2DiffusionParams,
    BoltzDiffusionParams,
    BoltzSteeringParams,
    MSAModuleArgs,
    PairformerArgs,
    PairformerArgsV2,
)
from boltz.model.models.boltz1 import Boltz1
from boltz.model.models.boltz2 import Boltz2
from omegaconf import OmegaConf

from densemble.priors.boltz.weights import BoltzFiles

TOKEN_S, TOKEN_Z, ATOM_S, ATOM_Z = 32, 16, 32, 8
_BLOCKS, _HEADS = 2, 2
_EMBEDDER = {"atom_encoder_depth": 1, "atom_encoder_heads": 2}
_SCORE_MODEL = {
    "sigma_data": 16,
    "dim_fourier": 32,
    "atom_encoder_depth": 2,
    "atom_encoder_heads": 2,
    "token_transformer_depth": 2,
    "token_transformer_heads": 2,
    "atom_decoder_depth": 2,
    "atom_decoder_heads": 2,
    "conditioning_transition_layers": 1,
}
_TRAINING = {  # what on_load_checkpoint reads of it
    "recycling_steps": 3,
    "sampling_steps": 20,
    "diffusion_multiplicity": 16,
    "diffusion_samples": 1,
    "max_lr": 1e-3,
    "weight_decay": 0.0,
}
_HEADS_OF_CONFIDENCE = {"num_plddt_bins": 50, "num_pde_bins": 64, "num_pae_bins": 64}


def reduced_model(kind, seed=20240607, **overrides):
    """Boltz-1 or Boltz-2 at small size, in eval mode, without gradients of its weights.

    Args:
        kind: ``boltz1`` or ``boltz2``.
        seed: of the weights.
        overrides: arguments of the class in place of those here.
    """
    second = kind == "boltz2"
    arguments = (_boltz2 if second else _boltz1)() | overrides
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (Boltz2 if second else Boltz1)(**arguments)
        _randomise(model)
    return model.eval().requires_grad_(False)


def compact_model(kind, **overrides):
    """A reduced model whose estimates are of the size of a protein: as drawn, they are ten times as wide."""
    model = reduced_model(kind, **overrides)
    decoder = model.structure_module.score_model.atom_attention_decoder
    decoder.atom_feat_to_atom_pos_update[-1].weight.mul_(0.05)
    return model


def save_checkpoint(model, path):
    """Write a model as Lightning writes checkpoints, so that ``load_from_checkpoint`` reads it."""
    parameters = {name: value for name, value in model.hparams.items()}
    torch.save(
        {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": model.state_dict(),
            "hparams_name": "kwargs",
            "hyper_parameters": parameters,
        },
        path,
    )
    return Path(path)


def _common(second):
    size = {"num_blocks": _BLOCKS, "num_heads": _HEADS}
    msa = {"msa_s": 16, "msa_blocks": 1, "pairwise_head_width": 8, "pairwise_num_heads": 2}
    msa |= {"subsample_msa": False, "use_paired_feature": second}
    pairformer = asdict((PairformerArgsV2 if second else PairformerArgs)(**size))
    return {
        "atom_s": ATOM_S,
        "atom_z": ATOM_Z,
        "token_s": TOKEN_S,
        "token_z": TOKEN_Z,
        "num_bins": 64,
        "training_args": OmegaConf.create(_TRAINING),
        "validation_args": OmegaConf.create({}),
        "msa_args": asdict(MSAModuleArgs(**msa)),
        "pairformer_args": pairformer,
        "score_model_args": dict(_SCORE_MODEL),
        "diffusion_process_args": asdict((Boltz2DiffusionParams if second else BoltzDiffusionParams)()),
        "diffusion_loss_args": {},
        "confidence_prediction": True,
        "alpha_pae": 1.0,
        "structure_prediction_training": False,
        "predict_args": {"recycling_steps": 0, "sampling_steps": 5, "diffusion_samples": 1},
        "steering_args": asdict(BoltzSteeringParams()),
    }


def _boltz1():
    return _common(second=False) | {
        "atom_feature_dim": 389,
        "embedder_args": dict(_EMBEDDER),
        "confidence_imitate_trunk": True,
        "confidence_model_args": {
            "num_dist_bins": 64,
            "max_dist": 22,
            "add_s_to_z_prod": True,
            "add_s_input_to_s": True,
            "use_s_diffusion": True,
            "add_z_input_to_z": True,
            "confidence_args": dict(_HEADS_OF_CONFIDENCE),
        },
    }


def _boltz2():
    conditioning = dict.fromkeys(
        ("add_mol_type_feat", "add_method_conditioning", "add_modified_flag", "add_cyclic_flag"), True
    )
    return _common(second=True) | {
        "atom_feature_dim": 388,
        "embedder_args": _EMBEDDER | conditioning,
        "fix_sym_check": True,
        "cyclic_pos_enc": True,
        "bond_type_feature": True,
        "validate_structure": False,
        "predict_bfactor": True,
        "use_templates": True,
        "use_templates_v2": True,
        "template_args": {
            "template_dim": 8,
            "template_blocks": 1,
            "pairwise_head_width": 8,
            "pairwise_num_heads": 2,
        },
        "confidence_model_args": {
            "num_dist_bins": 64,
            "max_dist": 22,
            "add_s_to_z_prod": True,
            "add_s_input_to_s": True,
            "add_z_input_to_z": True,
            "confidence_args": _HEADS_OF_CONFIDENCE | {"use_separate_heads": True},
            "pairformer_args": {"num_blocks": 1, "num_heads": _HEADS, "dropout": 0.0},
        },
    }


def _randomise(model):
    """Give every parameter a random value that keeps outputs of order one.

    Boltz starts many output layers at zero; a model whose blocks do nothing would prove nothing.
    """
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape)
            if "fourier_embed" in name and ".proj." in name:
                parameter.copy_(noise)  # as Boltz draws it
            elif parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            elif name.endswith("weight"):  # of a normalisation
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)


EXAMPLE_ATOMS = {False: 192, True: 188}
"""Heavy atoms of the example by ``padded``: exactly six of Boltz's windows of 32, and four atoms fewer."""


CONTACTS = """constraints:
  - contact: {token1: [A, 2], token2: [B, 11], max_distance: 5.0, force: true}
  - pocket: {binder: L, contacts: [[B, 3], [B, 9]], max_distance: 6.0, force: true}
"""
"""What the samples of the example do not have by themselves, in the words of Boltz-2."""


def example_input(folder, *, padded=False, more=""):
    """A Boltz YAML of two protein chains, a ligand (paracetamol, as SMILES) and a zinc ion (by its code).

    Chains A (11 residues, or 10 if ``padded``), B (12 residues), L and Z; ``more`` are chains or constraints.
    """
    first = "MKTAYIAGLE" if padded else "MKTAYIAGGLE"
    path = Path(folder) / "example.yaml"
    path.write_text(
        f"""version: 1
sequences:
  - protein: {{id: A, sequence: {first}, msa: empty}}
  - protein: {{id: B, sequence: GSHWVNDPQRCF, msa: empty}}
  - ligand: {{id: L, smiles: "CC(=O)Nc1ccc(O)cc1"}}
  - ligand: {{id: Z, ccd: ZN}}
{more}"""
    )
    return path


RNA = "  - rna: {id: R, sequence: AAC}\n"
"""One chain more: 64 atoms, which are two windows."""


def boltz_files(kind, cache):
    """The dictionary in a cache made by ``write_cache``; there are no weights."""
    return BoltzFiles(kind, cache / "none.ckpt", cache / {"boltz1": "ccd.pkl", "boltz2": "mols"}[kind])
