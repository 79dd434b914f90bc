"""The 3D view as data for the page: models, map and the viewer itself, packed into text.

The viewer is Mol* (Sehnal et al. 2021, Nucleic Acids Res. 49, W431-W437), MIT licence, as the package
molstar-cli ships it. Everything is compressed by gzip and written in base64; the browser unpacks it.
"""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import gemmi

from densemble.errors import InputError
from densemble.report.scene import GREY, MAP_COLOUR, WATER, Camera, Conformation, Scene
from densemble.report.volume import DrawnMap


@dataclass(frozen=True)
class View:
    """What the page needs to draw.

    Attributes:
        scene: settings for the script of the page, plain values.
        packed: by name: models as mmCIF, the map, the viewer.
    """

    scene: dict[str, object]
    packed: dict[str, str]


def packed(data: bytes) -> str:
    """Bytes as text; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def unpacked(text: str) -> bytes:
    """What ``packed`` was given."""
    return gzip.decompress(base64.b64decode(text))


def molstar() -> bytes:
    """Mol* as one script.

    Raises:
        InputError: the package that ships it is not installed, or ships it in another place.
    """
    return _shipped("molstar.js")


def molstar_licence() -> str:
    """The licence that goes with every copy of it.

    Raises:
        InputError: as for ``molstar``.
    """
    return _shipped("LICENSE.molstar").decode("utf-8")


def _shipped(name: str) -> bytes:
    """A file of Mol* in molstar-cli, which need not be imported."""
    found = find_spec("molstar_cli")
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    file = None if folder is None else folder / "static" / "molstar" / name
    if file is None or not file.is_file():
        raise InputError(
            "the report's 3D view needs Mol* (MIT licence) as molstar-cli 0.0.1 ships it: "
            "pip install 'molstar-cli==0.0.1'"
        )
    return file.read_bytes()


def view_of(scene: Scene, density: DrawnMap | None) -> View:
    """Everything that the 3D view is made of."""
    data = {"viewer": packed(molstar())}
    states: list[object] = []
    for i, conformation in enumerate(scene.conformations):
        data[f"state{i}"] = packed(_mmcif(conformation.structure))
        states.append(_state(f"state{i}", conformation))
    around: object = None
    if scene.around is not None and scene.around[0].count_atom_sites() > 0:
        data["around"] = packed(_mmcif(scene.around))
        around = {"data": "around", "colour": GREY, "waters": WATER}
    drawn: object = None
    if density is not None:
        data["map"] = packed(density.data)
        drawn = {
            "data": "map",
            "colour": MAP_COLOUR,
            "step": density.step,
            "level": density.level.value,
            "lowest": density.lowest,
            "highest": density.highest,
            "wireframe": scene.around is not None,
        }
    return View({"states": states, "around": around, "map": drawn, "camera": _camera(Camera.of(scene))}, data)


def _camera(camera: Camera) -> dict[str, object]:
    return {
        "target": camera.target.round(3).tolist(),
        "up": camera.up.round(5).tolist(),
        "towards": camera.towards.round(5).tolist(),
        "reach": camera.reach.round(3).tolist(),
    }


def _state(name: str, conformation: Conformation) -> dict[str, object]:
    return {
        "data": name,
        "name": conformation.name,
        "colour": conformation.colour,
        "shown": conformation.shown,
        "sticks": bool(conformation.part),
    }


def _mmcif(structure: gemmi.Structure) -> bytes:
    """The atoms, and what says which of them are polymers."""
    groups = gemmi.MmcifOutputGroups(False)
    groups.atoms = groups.entity = groups.entity_poly = groups.entity_poly_seq = groups.struct_asym = True
    alone = structure.clone()
    alone.setup_entities()
    return alone.make_mmcif_document(groups).as_string().encode()
