"""A suite of a folder: of crystals one region of all, or what a scan of each finds; and of maps."""

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
from densemble.suites import Crystal, Map, Site, Suite, Variant

MODELS = (".cif", ".pdb", ".ent", ".mmcif")
MAPS = (".map", ".mrc", ".ccp4")
REFLECTIONS = (".mtz", "-sf.cif")
"""How names end: amplitudes, as refinement programs write them and as the PDB has them."""
MARGIN = 2
"""Residues added on either side of a strong window, so that a conformation has room to leave the start."""


@dataclass(frozen=True)
class Found:
    """Data of the folder: names of the files below it, without which there are none."""

    model: Path
    data: Path

    @property
    def id(self) -> str:
        """Of a case: the place of the data, in letters that are allowed."""
        return _plain(str(self.data.parent / _stem(self.data)))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def _stem(path: Path) -> str:
    """The name without what tells its kind."""
    name = path.name.removesuffix(".gz")
    ending = next((e for e in REFLECTIONS if name.lower().endswith(e)), Path(name).suffix)
    return name[: len(name) - len(ending)]


def crystals_in(folder: Path) -> tuple[list[Found], list[str]]:
    """Amplitudes below a folder (MTZ, and SF-mmCIF called ``*-sf.cif``) with their model.

    The model is the file of the same name, or the only model beside the only amplitudes of a folder.

    Returns:
        Those that have one, and a sentence for each without.

    Raises:
        InputError: it is not a folder.
    """
    return _found(folder, REFLECTIONS, one_model_each=True)


def maps_in(folder: Path) -> tuple[list[Found], list[str]]:
    """Maps below a folder, gzipped or not, but for half maps, each with its start.

    The start is the model of the same name, or the only one beside them.

    Returns:
        As of ``crystals_in``.

    Raises:
        InputError: it is not a folder.
    """
    return _found(folder, tuple(e + z for e in MAPS for z in ("", ".gz")), one_model_each=False)


def _found(folder: Path, endings: tuple[str, ...], *, one_model_each: bool) -> tuple[list[Found], list[str]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found, missing = [], []
    for data in sorted(path for path in folder.rglob("*") if _ends(path, endings)):
        if not one_model_each and "half" in data.name.lower():
            missing.append(f"{data}: a half map, by its name")
            continue
        if ":" in str(data.relative_to(folder)):
            missing.append(f"{data}: a suite cannot name files with a colon; rename it")
            continue
        beside = sorted(data.parent.iterdir())
        models = [f for f in beside if _ends(f, MODELS) and not _ends(f, REFLECTIONS)]
        if one_model_each and sum(_ends(f, endings) for f in beside) > 1:
            chosen = [f for f in models if f.stem == _stem(data)]
        else:
            chosen = [f for f in models if f.stem == _stem(data)] or models
        if len(chosen) == 1:
            found.append(Found(chosen[0].relative_to(folder), data.relative_to(folder)))
        else:
            what = f"{len(chosen)} models" if chosen else "no model"
            missing.append(f"{data}: {what} of the same name; name the model as the data")
    return found, missing


def _ends(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def suite_of_folder(
    folder: Path,
    *,
    variants: Sequence[Variant],
    region: str | None = None,
    start_altloc: str | None = None,
    map_variants: Sequence[Variant] = (),
    resolution: float | None = None,
    progress: Progress | None = None,
) -> tuple[Suite, list[str]]:
    """A suite of all crystals of a folder, and of its maps if their resolution is given.

    Args:
        folder: see ``crystals_in`` and ``maps_in``; it is given as ``--data`` when the suite is run.
        variants: methods, all of them for each case of a crystal.
        region: of every crystal; None to scan each, and take its strong windows.
        start_altloc: conformation to start from, in models that have it.
        map_variants: methods for each map.
        resolution: Å, of the maps.
        progress: told of every crystal.

    Returns:
        The suite, and a sentence for each crystal and map that is not in it.

    Raises:
        InputError: it is not a folder, or nothing in it gives a case.
    """
    tell = progress or Progress()
    crystals, left_out = crystals_in(folder)
    maps, missing = ([], []) if resolution is None else _map_cases(folder, map_variants, resolution)
    if not crystals and not maps and not left_out and not missing:
        wanted = "no MTZ or *-sf.cif file" + ("" if resolution is None else ", and no map")
        raise InputError(f"{folder}: there is {wanted} in it")
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
    left_out += missing
    if not cases and not maps:
        raise InputError(f"{folder}: nothing in it gives a case: {'; '.join(left_out)}")
    told_apart = list(_told_apart([*cases, *maps]))
    suite = Suite(
        name=_plain(folder.resolve().name) or "folder",
        source=f"files of the folder {folder.resolve().name}",
        variants=(*(variants if cases else ()), *(map_variants if maps else ())),
        crystals=tuple(case for case in told_apart if isinstance(case, Crystal)),
        maps=tuple(case for case in told_apart if isinstance(case, Map)),
    )
    return suite, left_out


def _told_apart(cases: Sequence[Crystal | Map]) -> Iterator[Crystal | Map]:
    """The same with a number behind ids that files, or chains, have in common but for their case."""
    taken: set[str] = set()
    for case in cases:
        id, number = case.id, 1
        while id in taken:
            number += 1
            id = f"{case.id}-{number}"
        taken.add(id)
        yield case.model_copy(update={"id": id})


def _map_cases(folder: Path, variants: Sequence[Variant], resolution: float) -> tuple[list[Map], list[str]]:
    """One case for each map, and a sentence for each that has none."""
    found, missing = maps_in(folder)
    cases = [
        Map(
            id=one.id,
            printed=one.id,
            table="screen",
            map=f"data:{one.data.as_posix()}",
            model=f"data:{one.model.as_posix()}",
            resolution=resolution,
            variants=tuple(variant.id for variant in variants),
        )
        for one in found
    ]
    return cases, missing


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
