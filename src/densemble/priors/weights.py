"""Networks in files: safetensors in half precision, with the network's sizes as metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from densemble.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def save_network(network: nn.Module, path: Path, *, facts: dict[str, str]) -> None:
    """Write the weights, with ``network.config`` (a dataclass of sizes) and ``facts`` as metadata."""
    tensors = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = json.dumps(asdict(network.config))  # type: ignore[call-overload]
    save_file(tensors, str(path), metadata={"network": sizes} | facts)
    path.chmod(0o644)  # safetensors writes for the owner alone


def read_network(path: Path, make: Callable[[dict[str, Any]], Network]) -> Network:
    """The network with its weights, in single precision, ready for inference.

    Args:
        path: what ``save_network`` wrote.
        make: the network from its sizes, lists as tuples.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: the weights of the embedded prior are missing; reinstall densemble, or train them "
            "with training/train.py and write them with training/export.py"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            sizes = json.loads(file.metadata()["network"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = make({k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
        network.load_state_dict(tensors)
    except Exception as error:
        raise InputError(
            f"{path}: not weights of the embedded prior ({error}); reinstall densemble or write the file "
            "again with training/export.py"
        ) from error
    return network.eval().requires_grad_(False)
