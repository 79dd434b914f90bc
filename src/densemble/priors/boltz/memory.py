"""How many members are denoised together: as many as memory holds, measured and not guessed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from boltz.model.modules import transformers, transformersv2
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_TRANSFORMERS = (transformers.DiffusionTransformer, transformersv2.DiffusionTransformer)
SHARE = 0.6
"""Of the free memory; the rest is for densities, and for what a call needs but does not keep."""


def bytes_kept(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps to differentiate ``call`` at ``x``, each buffer counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or tensor.requires_grad:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        call(x.detach().requires_grad_())
    return sum(seen.values())


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    said = Path("/proc/meminfo")
    for line in said.read_text().splitlines() if said.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # not Linux: what it has, halved


def members_that_fit(call: Callable[[Tensor], Tensor], one: Tensor, *, device: torch.device) -> int:
    """How many members a differentiable denoiser can take at once, at least one.

    Args:
        call: the denoiser.
        one: coordinates of a single member, shape=(1, N, 3).
        device: where it keeps what its gradient needs.
    """
    return max(1, int(SHARE * free_bytes(device) / max(bytes_kept(call, one), 1)))


def recompute_layers(diffusion: nn.Module) -> bool:
    """Keep nothing within transformer layers for a gradient, but compute it again when it is taken.

    The layers are those of which Boltz does it in training (``activation_checkpointing``); it costs one more
    forward pass.

    Args:
        diffusion: a ``structure_module``.

    Returns:
        Whether that is new.
    """
    blocks = [m for m in diffusion.modules() if isinstance(m, _TRANSFORMERS)]
    layers = [layer for block in blocks for layer in block.layers if "forward" not in vars(layer)]
    for layer in layers:
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = again  # of this instance
    return bool(layers)
