"""The trunk: everything of a network that does not see coordinates, run once per input and kept on disk.

Embedding of the input, recycling through templates, alignment and pairformer, as ``Boltz1.forward`` and
``Boltz2.forward`` do it before they sample. Diffusion and confidence modules read nothing else of the input.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from densemble.priors.boltz.inputs import BoltzInput
from densemble.priors.boltz.memory import must_hold
from densemble.priors.boltz.package import Kind
from densemble.priors.boltz.weights import Network
from densemble.progress import Progress

RECYCLING = 3
"""Rounds of recycling, as Boltz's command line."""

KEPT = 20 * 10**9
"""Bytes of trunks that stay on disk, over a GB each for 1,600 residues; those used longest ago go first."""

_STORED = ("s_inputs", "s", "z")


@dataclass(frozen=True, eq=False)
class Trunk:
    """What the trunk makes of an input of T tokens; a batch of one, by Boltz's names.

    Attributes:
        kind: of which of the two models.
        s_inputs: embedded input, shape=(1, T, S'), with S' = S in Boltz-2.
        s: single representation, shape=(1, T, S).
        z: pair representation, shape=(1, T, T, Z).
        relative_position_encoding: shape=(1, T, T, Z).
        pdistogram: logits of distances between tokens, shape=(1, T, T, B), in Boltz-2 (1, T, T, 1, B).
    """

    kind: Kind
    s_inputs: Float[Tensor, "1 t s_in"]
    s: Float[Tensor, "1 t s"]
    z: Float[Tensor, "1 t t z"]
    relative_position_encoding: Float[Tensor, "1 t t z"]
    pdistogram: Tensor


@contextmanager
def precision(kind: Kind, device: torch.device) -> Iterator[None]:
    """As Boltz's command line: bfloat16 autocast for Boltz-2 on a GPU, otherwise single precision."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=_mixed(kind, device)):
        yield


def _mixed(kind: Kind, device: torch.device) -> bool:
    return kind == "boltz2" and device.type == "cuda"


def trunk_of(
    network: Network,
    given: BoltzInput,
    *,
    weights: str,
    cache: Path,
    recycling: int = RECYCLING,
    progress: Progress | None = None,
    kept: int = KEPT,
) -> Trunk:
    """The trunk of an input, from disk if it was run before.

    Args:
        network: Boltz-1 or Boltz-2.
        given: its input, on the device of the network.
        weights: what tells these weights from others: the SHA-256 of their file.
        cache: folder of trunks.
        recycling: rounds after the first.
        progress: told when the trunk is run.
        kept: bytes that the folder may hold; this trunk stays in any case.

    Raises:
        InputError: memory does not hold it.
    """
    device, tokens = given.feats["token_pad_mask"].device, given.feats["token_pad_mask"].shape[1]
    facts = {
        "input": given.key,
        "weights": weights,
        "recycling": str(recycling),
        "precision": "bfloat16" if _mixed(given.kind, device) else "float32",
        "boltz": version("boltz"),
    }
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    path = cache / f"trunk-{digest}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    lock = cache / f".{path.stem}.lock"
    with must_hold(f"the trunk of {tokens} tokens", device):
        with FileLock(lock):  # of several runs that want it one makes it
            try:
                stored = _read(path, device)
                if stored is None:
                    (progress or Progress()).message(f"trunk of {tokens} tokens")
                    stored = run_trunk(network, given, recycling=recycling)
                    _write(path, stored, facts)
            finally:  # while it is held; whoever slips past it all the same makes the trunk once more
                with suppress(OSError):  # Windows keeps files that are open
                    lock.unlink()
        _used(path, kept)
        return _completed(network, given, stored)


def run_trunk(
    network: Network, given: BoltzInput, *, recycling: int = RECYCLING
) -> dict[str, Float[Tensor, "1 ..."]]:
    """``s_inputs``, ``s`` and ``z`` after ``recycling`` rounds more than one."""
    feats, second = given.feats, given.kind == "boltz2"
    with torch.no_grad(), precision(given.kind, feats["token_pad_mask"].device):
        s_inputs = network.input_embedder(feats)
        s_init = network.s_init(s_inputs)
        z_init = network.z_init_1(s_inputs)[:, :, None] + network.z_init_2(s_inputs)[:, None, :]
        z_init = z_init + network.rel_pos(feats)
        z_init = z_init + network.token_bonds(feats["token_bonds"].float())
        if second and network.bond_type_feature:
            z_init = z_init + network.token_bonds_type(feats["type_bonds"].long())
        if second:
            z_init = z_init + network.contact_conditioning(feats)
        mask = feats["token_pad_mask"].float()
        pair_mask = mask[:, :, None] * mask[:, None, :]
        kernels = network.use_kernels
        s, z = torch.zeros_like(s_init), torch.zeros_like(z_init)
        for _ in range(recycling + 1):
            s = s_init + network.s_recycle(network.s_norm(s))
            z = z_init + network.z_recycle(network.z_norm(z))
            if second and network.use_templates:
                z = z + _eager(network.template_module)(z, feats, pair_mask, use_kernels=kernels)
            if second or not network.no_msa:
                z = z + _eager(network.msa_module)(z, s_inputs, feats, use_kernels=kernels)
            pairformer = _eager(network.pairformer_module)
            s, z = pairformer(s, z, mask=mask, pair_mask=pair_mask, use_kernels=kernels)
    return {"s_inputs": s_inputs, "s": s, "z": z}


def _eager(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` wrapped, where it did, which Boltz runs for inference."""
    return getattr(module, "_orig_mod", module)


def _completed(network: Network, given: BoltzInput, stored: dict[str, Tensor]) -> Trunk:
    """With what one linear layer makes of the rest, which is cheaper to run than to keep."""
    with torch.no_grad(), precision(given.kind, stored["z"].device):
        return Trunk(
            kind=given.kind,
            relative_position_encoding=network.rel_pos(given.feats),
            pdistogram=network.distogram_module(stored["z"]),
            **stored,
        )


def _read(path: Path, device: torch.device) -> dict[str, Tensor] | None:
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in _STORED}
    except (OSError, SafetensorError):  # not there, or cut short by a full disk: it is run anew
        return None


def _write(path: Path, stored: dict[str, Tensor], facts: dict[str, str]) -> None:
    """As a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trunk-") as folder:
        temporary = Path(folder) / path.name
        save_file(
            {name: value.contiguous() for name, value in stored.items()}, str(temporary), metadata=facts
        )
        os.replace(temporary, path)


def _used(path: Path, kept: int) -> None:
    """Mark a trunk as the last that was used, and remove those used longest ago where there are too many.

    Another run may do the same at the same time: what is gone already is gone.
    """
    with suppress(FileNotFoundError):
        os.utime(path)
    found = []
    for file in path.parent.glob("trunk-*.safetensors"):
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= kept:
            return
        if file != path:
            file.unlink(missing_ok=True)
            total -= size


def conditioning(network: Network, trunk: Trunk, feats: dict[str, Tensor]) -> dict[str, Any]:
    """What the diffusion module reads beside coordinates and their noise, for any number of members.

    The arguments of ``structure_module.preconditioned_network_forward``, as ``network_condition_kwargs``, but
    for ``multiplicity``. That of Boltz-1 fills its ``model_cache`` at the first call, with what does not
    depend on the coordinates.

    Raises:
        InputError: memory does not hold it.
    """
    if trunk.kind == "boltz1":
        return {
            "s_trunk": trunk.s,
            "z_trunk": trunk.z,
            "s_inputs": trunk.s_inputs,
            "relative_position_encoding": trunk.relative_position_encoding,
            "feats": feats,
            "model_cache": {} if network.structure_module.use_inference_model_cache else None,
        }
    names = ("q", "c", "to_keys", "atom_enc_bias", "atom_dec_bias", "token_trans_bias")
    device = trunk.z.device
    what = f"the conditioning on {trunk.z.shape[1]} tokens"
    with must_hold(what, device), torch.no_grad(), precision(trunk.kind, device):
        values = network.diffusion_conditioning(
            s_trunk=trunk.s,
            z_trunk=trunk.z,
            relative_position_encoding=trunk.relative_position_encoding,
            feats=feats,
        )
    return {
        "s_trunk": trunk.s.float(),
        "s_inputs": trunk.s_inputs.float(),
        "feats": feats,
        "diffusion_conditioning": dict(zip(names, values, strict=True)),
    }
