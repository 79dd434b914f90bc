"""Batches for the training loop: built in the background, moved to where the network is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")


class _Steps(Dataset):
    """The batch of each step; a step's batch depends on nothing else."""

    def __init__(self, make: Callable[[int], Any], last: int) -> None:
        self.make, self.last = make, last

    def __len__(self) -> int:
        return self.last

    def __getitem__(self, step: int) -> Any:  # noqa: ANN401
        torch.set_num_threads(1)
        return self.make(step)


def _whole(batches: list[Any]) -> Any:  # noqa: ANN401
    return batches[0]


def batches(make: Callable[[int], Any], first: int, last: int, workers: int) -> Iterator[Any]:
    """The batches of steps ``first`` to ``last - 1`` in order, built by ``workers`` processes (0: here).

    The number of workers changes nothing but the time.
    """
    steps = _Steps(make, last)
    return iter(DataLoader(steps, sampler=range(first, last), num_workers=workers, collate_fn=_whole))


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same dataclass of tensors, nested ones and tuples of them included, on a device."""

    def on_device(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: on_device(getattr(value, f.name)) for f in fields(value)})
        return tuple(map(on_device, value)) if isinstance(value, tuple) else value

    return on_device(batch)
