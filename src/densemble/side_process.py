"""Ways of guidance that a result is only compared with, sampled in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from densemble.errors import InputError
from densemble.inputs import Settings, draw_of, load, problem_of
from densemble.problem import Guide
from densemble.region import sample_guide
from densemble.run import Checkpoints


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are then in the same order on any number of cores, and processes leave cores to each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use, where the system tells that; those of the machine elsewhere."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SideProcess:
    """Samples with some guides while this process samples with another.

    A process, not a thread: sampling a region is thousands of small operations, which would wait for each
    other's interpreter. It ends with the one that started it.
    """

    def __init__(
        self, settings: Settings, guides: Sequence[Guide], checkpoints: Checkpoints, *, resume: bool
    ) -> None:
        """Begin, where there is a core to spare and something to do.

        Args:
            settings: of the run.
            guides: what to sample with.
            checkpoints: of the run; the process keeps its own beside them.
            resume: go on from those of the process.
        """
        path = checkpoints.path
        self._own = Checkpoints(path.with_name(f"{path.stem}-side{path.suffix}"), checkpoints.key)
        self._process = None
        if resume:
            self._own.load()
        left = [guide for guide in guides if guide not in {*self._own.finished, *checkpoints.finished}]
        if left and cores() > 1:
            context = multiprocessing.get_context("spawn")  # a fork would share locks of threads
            self._process = context.Process(
                target=_sample, args=(settings, left, self._own.path, self._own.key), daemon=True
            )
            self._process.start()

    def outcomes(self) -> dict[str, Any]:
        """Wait; what was sampled, by guide. What is missing, for whatever reason, is to be sampled here."""
        if self._process is not None:
            self._process.join()
            self._own.load()
        return self._own.finished

    def clean(self) -> None:
        """Remove what the process kept."""
        self._own.path.unlink(missing_ok=True)


def end_with_parent() -> None:
    """Let this process end when the one that started it is no more, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _sample(settings: Settings, guides: Sequence[Guide], path: Path, key: str) -> None:
    """In the other process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the first one says what happened
    checkpoints = Checkpoints(path, key)
    with one_thread(), suppress(InputError):  # the first process comes upon it too, and says it
        checkpoints.load()
        inputs = load(settings)
        problem, draw = problem_of(settings, inputs), draw_of(settings, inputs)
        for guide in guides:
            sample_guide(problem, draw, guide, checkpoints=checkpoints, on_step=lambda done: None)
