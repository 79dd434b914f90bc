"""A suite of a folder of crystals: one region of all, or what a scan of each finds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from densemble.atoms import Region, Topology
from densemble.errors import InputError
from densemble.io.models import Model, bonded_to_next, read_model, require_cell
from densemble.io.reflections import check_same_crystal, read_reflections
from densemble.progress import Progress
from densemble.recipes.writing import toml_text
from densemble.scan import find_windows
from densemble.suites import Crystal, Site, Suite, Variant

MODELS = (".cif", ".pdb", ".ent", ".mmcif")
MARGIN = 2
"""Residues added on either side of a strong window, so that a conformation has room to leave the start."""


@dataclass(frozen=True)
class Found:
    """A crystal of the folder: names of its files below the folder, without which there is none."""

    model: Path
    data: Path

    @property
    def id(self) -> str:
        """Of a case: the place of the data, in letters that are allowed."""
        name = str(self.data.with_suffix("")).lower()
        return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")


def crystals_in(folder: Path) -> tuple[list[Found], list[str]]:
    """Every MTZ file below a folder with its model, and a sentence for each without one.

    The model is the file of the same name, or the only model beside the only MTZ file of a folder.

    Raises:
        InputError: it is not a folder, or there is no MTZ file in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found, missing = [], []
    files = sorted(folder.rglob("*.mtz"))
    for data in files:
        models = [f for f in sorted(data.parent.iterdir()) if f.suffix.lower() in MODELS]
        named = [f for f in models if f.stem == data.stem]
        alone = models if len(list(data.parent.glob("*.mtz"))) == 1 else []
        chosen = named or alone
        if len(chosen) == 1:
            found.append(Found(chosen[0].relative_to(folder), data.relative_to(folder)))
        else:
            what = f"{len(chosen)} models" if chosen else "no model"
            missing.append(f"{data}: {what} of the same name; name the model as the data")
    if not files:
        raise InputError(f"{folder}: there is no MTZ file in it")
    return found, missing


def suite_of_folder(
    folder: Path,
    *,
    variants: Sequence[Variant],
    region: str | None = None,
    start_altloc: str | None = None,
    progress: Progress | None = None,
) -> tuple[Suite, list[str]]:
    """A suite of all crystals of a folder.

    Args:
        folder: see ``crystals_in``; it is given as ``--data`` when the suite is run.
        variants: methods, all of them for each case.
        region: of every crystal; None to scan each, and take its strong windows.
        start_altloc: conformation to start from, in models that have it.
        progress: told of every crystal.

    Returns:
        The suite, and a sentence for each crystal that is not in it.

    Raises:
        InputError: as for ``crystals_in``; or no crystal has a case.
    """
    tell = progress or Progress()
    crystals, left_out = crystals_in(folder)
    cases: list[Crystal] = []
    with tell.steps("crystals", len(crystals)) as done:
        for n, found in enumerate(crystals, start=1):
            try:
                new = list(_cases(folder, found, variants, region, start_altloc))
                if not new:
                    left_out.append(f"{folder / found.data}: no strong window")
                cases += new
            except InputError as error:
                left_out.append(str(error))
            done(n)
    if not cases:
        raise InputError(f"{folder}: no crystal gives a case: {'; '.join(left_out)}")
    suite = Suite(
        name=re.sub(r"[^a-z0-9.]+", "-", folder.resolve().name.lower()).strip("-.") or "folder",
        source=f"crystals of the folder {folder.resolve().name}",
        variants=tuple(variants),
        crystals=tuple(_told_apart(cases)),
    )
    return suite, left_out


def _told_apart(cases: Sequence[Crystal]) -> Iterator[Crystal]:
    """The same with a number behind ids that files, or chains, have in common but for their case."""
    taken: set[str] = set()
    for case in cases:
        id, number = case.id, 1
        while id in taken:
            number += 1
            id = f"{case.id}-{number}"
        taken.add(id)
        yield case.model_copy(update={"id": id})


def _cases(
    folder: Path,
    found: Found,
    variants: Sequence[Variant],
    region: str | None,
    start_altloc: str | None,
) -> Iterator[Crystal]:
    """One case for each region of a crystal."""
    model, altloc = _read(folder / found.model, start_altloc)
    require_cell(model)
    reflections = read_reflections(folder / found.data)
    check_same_crystal(model.structure, reflections, name=str(folder / found.model))
    if region is None:
        windows, _ = find_windows(model, reflections, longest=6)
        regions = widened(model, [window.region for window in windows if window.strong])
    else:
        regions = [stretch for stretch in Region.parse(region).resolve(model.topology)]
    for stretch in regions:
        site = _site(model.topology, stretch)
        yield Crystal(
            id=f"{found.id}-{site.chain.lower()}{site.first}",
            printed=found.id,
            table="screen",
            model=f"data:{found.model.as_posix()}",
            data=f"data:{found.data.as_posix()}",
            start_altloc=altloc,
            site=site,
            variants=tuple(variant.id for variant in variants),
        )


def _read(path: Path, altloc: str | None) -> tuple[Model, str | None]:
    """The model, in the conformation asked for if it has that."""
    whole = read_model(path)
    if altloc is None:
        return whole, None
    try:
        return read_model(path, altloc=altloc), altloc
    except InputError:
        return whole, None


def widened(model: Model, regions: Sequence[str]) -> list[list[int]]:
    """Stretches with ``MARGIN`` bonded residues on either side; those that meet become one."""
    bonded = bonded_to_next(model.topology, model.coords)
    inside: set[int] = set()
    for region in regions:
        (stretch,) = Region.parse(region).resolve(model.topology)
        first, last = stretch[0], stretch[-1]
        for _ in range(MARGIN):
            first -= 1 if first > 0 and bonded[first - 1] else 0
            last += 1 if bonded[last] else 0
        inside.update(range(first, last + 1))
    stretches: list[list[int]] = []
    for r in sorted(inside):
        if stretches and stretches[-1][-1] == r - 1 and bonded[r - 1]:
            stretches[-1].append(r)
        else:
            stretches.append([r])
    return stretches


def _site(topology: Topology, stretch: list[int]) -> Site:
    """A stretch in the author's numbers.

    Raises:
        InputError: an end has an insertion code, which sites do not have.
    """
    first, last = topology.residues[stretch[0]].id, topology.residues[stretch[-1]].id
    if first.icode or last.icode:
        raise InputError(
            f"{first}-{last}: insertion codes at the ends of a site cannot be written in a suite"
        )
    return Site(chain=first.chain, first=first.number, last=last.number, numbering="author")


def suite_text(suite: Suite) -> str:
    """A suite as TOML."""
    values = suite.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return toml_text(values)
