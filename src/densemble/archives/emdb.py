"""What an EMDB entry says of itself: the header file, data model 3 (ebi.ac.uk/emdb/documentation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from densemble.errors import InputError


@dataclass(frozen=True)
class EmdbHeader:
    """Of one entry.

    Attributes:
        map_file: name of the map.
        half_maps: names of the half maps, none or two.
        resolution: Å, as stated by the authors; None where they state none.
        contour: the level recommended, in units of the map.
        models: PDB entries fitted into the map, in lower case.
    """

    map_file: str
    half_maps: tuple[str, ...]
    resolution: float | None
    contour: float | None
    models: tuple[str, ...]


def read_header(path: Path) -> EmdbHeader:
    """Read a header file.

    Raises:
        InputError: it names no map, more than two half maps or a file outside its folder, or what should be
            a number is none.
    """
    root = ElementTree.parse(path).getroot()
    half_maps = tuple(_texts(root, "interpretation/half_map_list/half_map/file"))
    maps = _texts(root, "map/file")
    if len(maps) != 1 or len(half_maps) not in (0, 2):
        raise InputError(
            f"{path}: names {len(maps)} maps and {len(half_maps)} half maps, where one and none or two were "
            "expected; fetch the files by hand"
        )
    for name in (*maps, *half_maps):
        if Path(name).name != name:
            raise InputError(f"{path}: '{name}' is not the name of a file")
    return EmdbHeader(
        map_file=maps[0],
        half_maps=half_maps,
        resolution=_number(
            path,
            _texts(
                root, "structure_determination_list/structure_determination/*/final_reconstruction/resolution"
            ),
        ),
        contour=_number(path, _contours(root)),
        models=tuple(code.lower() for code in _texts(root, "crossreferences/pdb_list/pdb_reference/pdb_id")),
    )


def _contours(root: ElementTree.Element) -> list[str]:
    """Levels, the primary one first."""
    contours = root.findall("map/contour_list/contour")
    contours.sort(key=lambda contour: contour.get("primary") != "true")
    return [text for contour in contours for text in _texts(contour, "level")]


def _texts(element: ElementTree.Element, place: str) -> list[str]:
    return [found.text.strip() for found in element.findall(place) if found.text and found.text.strip()]


def _number(path: Path, texts: list[str]) -> float | None:
    try:
        return float(texts[0]) if texts else None
    except ValueError as error:
        raise InputError(f"{path}: '{texts[0]}' should be a number; correct it") from error
