"""What a long run says while it runs: nothing by default, a bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Silent; the base of others."""

    def message(self, text: str) -> None:
        """One sentence for the user."""

    def warning(self, text: str) -> None:
        """A sentence that the user should read to judge the result."""
        self.message(text)

    @contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Of a part with a known number of steps; call with the number done."""
        del name, total
        yield lambda done: None


class TerminalProgress(Progress):
    """Messages and bars on stderr.

    Args:
        quiet: warnings alone.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def message(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            self._console.print(text, style="dim", markup=False)

    def warning(self, text: str) -> None:
        """Print a line, quiet or not."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar, unless quiet."""
        if self._quiet:
            yield lambda done: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.update(task, completed=done)


@dataclass
class Clock:
    """Seconds that the parts of a run took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a part; what one part takes at several times adds up."""
        begin = time.perf_counter()
        yield
        spent = time.perf_counter() - begin
        self.seconds[part] = round(self.seconds.get(part, 0.0) + spent, 3)
