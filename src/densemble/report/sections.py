"""The parts that a page is made of: plain text and numbers, escaped only where the page is written."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from densemble.report.figures import Drawing

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Tile:
    """One figure of the headline.

    Attributes:
        question: that it answers.
        value: large.
        note: in words, what it rests on.
        tone: whether it speaks for the result or against it.
    """

    question: str
    value: str
    note: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row, the others are figures.

    Attributes:
        caption: says what the figures are and over what.
        header: of the columns.
        rows: each as long as the header.
        strong: rows to stress, from 0.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"Table: a row is not as long as the header {self.header}")


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure of the page, and the file beside it.

    Attributes:
        name: of the file without its ending.
        alt: what it shows, for those who do not see it.
        caption: below it.
        drawing: itself.
    """

    name: str
    alt: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page under its own heading; ``notes`` are what the run reported, in its words."""

    key: str
    title: str
    _: KW_ONLY
    text: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, eq=False)
class Headline:
    """What the page begins with.

    Attributes:
        title: what was looked at.
        kind: of which experiment.
        answer: in a sentence or two, without jargon.
        tiles: how many states, how sure, did agreement with held-out data improve.
    """

    title: str
    kind: str
    answer: tuple[str, ...]
    tiles: tuple[Tile, ...]


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def in_words(number: int) -> str:
    """A small number in words, a large one in digits."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def counted(number: int, noun: str) -> str:
    """``two states``."""
    return f"{in_words(number)} {noun}{'' if number == 1 else 's'}"


def signed(value: float, digits: int) -> str:
    """With a sign that is as wide as a digit."""
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int = 2) -> str:
    """With a sign that is as wide as a digit, where it is negative."""
    return f"{value:.{digits}f}".replace("-", "−")


def optional(value: float | int | None, form: str = ".2f") -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else format(value, form).replace("-", "−")
