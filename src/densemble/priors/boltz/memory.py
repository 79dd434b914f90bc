"""How many members are denoised together: as many as memory holds, measured and not guessed.

And what is said where memory does not hold even what there is only one of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from boltz.model.modules import transformers, transformersv2
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densemble.errors import InputError

_TRANSFORMERS = (transformers.DiffusionTransformer, transformersv2.DiffusionTransformer)
SHARE = 0.6
"""Of the free memory; the rest is for densities, and for what a call needs but does not keep."""

_RAN_OUT = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What PyTorch says of it: on a GPU, on a CPU, and where a library of CUDA finds no room for itself."""


def ran_out(error: BaseException) -> bool:
    """Whether an error is a want of memory, on whatever device."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _RAN_OUT)


def too_little(what: str, device: torch.device) -> InputError:
    """The error where memory does not hold ``what``, with what can be done about it."""
    if device.type == "cuda":
        remedy = (
            "take a GPU with more memory, or one that nothing else uses (CUDA_VISIBLE_DEVICES chooses it), "
            "fold fewer or shorter chains, or leave the GPU out, which is slow: CUDA_VISIBLE_DEVICES= before "
            "the command"
        )
    else:
        remedy = "take a machine with more memory, or fold fewer or shorter chains"
    return InputError(f"out of memory: {device} does not hold {what}; {remedy}")


@contextmanager
def must_hold(what: str, device: torch.device) -> Iterator[None]:
    """What is done here cannot be done in parts.

    Raises:
        InputError: memory ran out; says what it does not hold, and what can be done about it.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise too_little(what, device) from error


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
    """Memory that a device has left: also what PyTorch keeps for itself and does not use."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
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
