"""What a network thinks of samples: the confidence head, run on them as Boltz's command line does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from densemble.priors.boltz.inputs import BoltzInput
from densemble.priors.boltz.memory import must_hold
from densemble.priors.boltz.trunk import Trunk, precision
from densemble.priors.boltz.weights import Network


@dataclass(frozen=True, eq=False)
class Confidence:
    """Confidence in K samples with R residues; all between 0 and 1, more is better.

    Attributes:
        score: by which Boltz ranks: 0.8 ``complex_plddt`` + 0.2 ``iptm``, or ``ptm`` where there is but one
            chain (``iptm`` is zero), shape=(K,).
        complex_plddt: pLDDT, mean over tokens, shape=(K,).
        ptm: predicted TM-score, shape=(K,).
        iptm: of interfaces alone, shape=(K,).
        plddt: of each residue, mean over its tokens (one, or one an atom), shape=(K, R).
    """

    score: Float[Tensor, " k"]
    complex_plddt: Float[Tensor, " k"]
    ptm: Float[Tensor, " k"]
    iptm: Float[Tensor, " k"]
    plddt: Float[Tensor, "k r"]


def confidence(
    network: Network,
    given: BoltzInput,
    trunk: Trunk,
    x: Float[Tensor, "k n 3"],
    *,
    s_diffusion: Float[Tensor, "k t c"] | None = None,
) -> Confidence | None:
    """Run the confidence head; None if the network has none.

    Args:
        network: Boltz-1 or Boltz-2.
        given: its input.
        trunk: of it.
        x: Å, samples in any frame, with Boltz's padding or without.
        s_diffusion: token representation accumulated over the steps of sampling (``diff_token_repr`` of
            ``AtomDiffusion.sample``), which the head of Boltz-1 reads.

    Raises:
        ValueError: the head reads ``s_diffusion``, and it is not given.
        InputError: memory does not hold it, which runs one sample at a time.
    """
    if not network.confidence_prediction:
        return None
    feats = given.feats
    extra = {}
    if getattr(network.confidence_module, "use_s_diffusion", False):
        if s_diffusion is None:
            raise ValueError("confidence: this network reads s_diffusion")
        extra = {"s_diffusion": s_diffusion.to(trunk.s)}
    padded, device = feats["atom_pad_mask"].shape[1], trunk.z.device
    x = torch.nn.functional.pad(x.to(device).float(), (0, 0, 0, padded - x.shape[1]))
    logits = trunk.pdistogram[:, :, :, 0] if trunk.kind == "boltz2" else trunk.pdistogram
    what = f"the confidence head on {trunk.z.shape[1]} tokens"
    with must_hold(what, device), torch.no_grad(), precision(trunk.kind, device):
        out = network.confidence_module(
            s_inputs=trunk.s_inputs,
            s=trunk.s,
            z=trunk.z,
            x_pred=x,
            feats=feats,
            pred_distogram_logits=logits,
            multiplicity=len(x),
            run_sequentially=True,
            use_kernels=network.use_kernels,
            **extra,
        )
    interface = out["iptm"]
    if torch.allclose(interface, torch.zeros_like(interface)):
        interface = out["ptm"]
    return Confidence(
        score=((4 * out["complex_plddt"] + interface) / 5).float().cpu(),
        complex_plddt=out["complex_plddt"].float().cpu(),
        ptm=out["ptm"].float().cpu(),
        iptm=out["iptm"].float().cpu(),
        plddt=_by_residue(given, out["plddt"].float().cpu()),
    )


def _by_residue(given: BoltzInput, plddt: Float[Tensor, "k t"]) -> Float[Tensor, "k r"]:
    """Mean over the tokens of each residue."""
    token = given.feats["atom_to_token"][0, : given.atoms].argmax(dim=-1).cpu()
    residue = torch.zeros(plddt.shape[1], dtype=torch.long)
    residue[token] = torch.from_numpy(given.topology.residue_index)
    number = torch.zeros(len(given.topology.residues)).index_add(0, residue, torch.ones(len(residue)))
    total = torch.zeros(len(plddt), len(number)).index_add(1, residue, plddt)
    return total / number
