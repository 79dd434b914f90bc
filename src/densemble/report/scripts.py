"""Scripts that open a result in ChimeraX, PyMOL and Coot: model, map at a level, states in colour.

Each is to be run in the folder of the result.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from densemble.atoms import ResidueId
from densemble.io.state_results import START_FILE
from densemble.report.scene import GREY, MAP_COLOUR, Camera, Conformation, Scene
from densemble.report.volume import CARVED

_PLAIN = re.compile(r"[A-Za-z0-9_]+\Z")
MAP_ID, START_ID = 100, 50
"""Numbers of models in ChimeraX, above those that states get."""
PYMOL_FIELD = 20.0
"""Degrees, PyMOL's own field of view."""


@dataclass(frozen=True)
class Script:
    """A text file of a given name."""

    name: str
    text: str


def scripts_of(scene: Scene, level: float | None) -> list[Script]:
    """One for each program; without the map where there is no level.

    None where a chain or an altloc has a name that a program could take for a command.
    """
    names = [end.chain for c in scene.conformations for ends in c.stretches for end in ends]
    letters = [c.altloc for c in scene.conformations if c.altloc]
    if not all(_PLAIN.match(name) for name in names + letters):
        return []
    makers = {"view.cxc": chimerax, "view.pml": pymol, "view_coot.py": coot}
    return [Script(name, maker(scene, level)) for name, maker in makers.items()]


def chimerax(scene: Scene, level: float | None) -> str:
    """Every state is the same file once more, in one altloc and with the rest hidden.

    ChimeraX shows one altloc of a model at a time.
    """
    lines = ["# ChimeraX: chimerax view.cxc, in this folder", "set bgColor white", f"open {scene.file}"]
    if scene.around is None:
        lines += _chimerax_models(scene)
    else:
        lines += ["hide #1 atoms", "cartoon #1", f"color #1 {GREY} target acs"]
        for number, state in enumerate(scene.conformations, start=2):
            where = f"#{number}{_chimerax_residues(state)}"
            lines += [f"open {scene.file}", f'rename #{number} "{_title(state)}"']
            if state.altloc:
                lines.append(f"altlocs change {state.altloc} {where}")
            lines += [f"hide #{number} target acs", f"show {where} atoms", f"style {where} stick"]
            lines.append(f"color {where} {state.colour} target a")
        lines += [f"hide #1{where} target acs" for where in _places(scene, _chimerax_residues)]
    if scene.map_file is not None and level is not None:
        style = "mesh" if scene.around is not None else "surface"
        lines.append(f"open {scene.map_file} id {MAP_ID}")
        lines.append(f"volume #{MAP_ID} style {style} level {level:.6g} color {MAP_COLOUR}")
        if scene.around is None:
            lines.append(f"transparency #{MAP_ID} 70 target s")
        else:
            last = 1 + len(scene.conformations)
            lines.append(f"surface zone #{MAP_ID} nearAtoms #2-{last} distance {CARVED:g}")
    first = "#2" + _chimerax_residues(scene.conformations[0]) if scene.around is not None else "#1"
    return "\n".join([*lines, f"view {first}"]) + "\n"


def _places(scene: Scene, named: Callable[[Conformation], str]) -> list[str]:
    """Each part once, as a program names it."""
    return list(dict.fromkeys(named(c) for c in scene.conformations))


def _chimerax_models(scene: Scene) -> list[str]:
    lines = ["hide atoms", "cartoon"]
    several = sum(state.model > 0 for state in scene.conformations) > 1
    if several:
        lines.append("hide #1.1-999 models")
    for state in scene.conformations:
        if state.model == 0:
            lines += [f"open {START_FILE} id {START_ID}", f"hide #{START_ID} atoms", f"cartoon #{START_ID}"]
            lines += [f"color #{START_ID} {state.colour} target acs", f"hide #{START_ID} models"]
            continue
        name = f"#1.{state.model}" if several else "#1"
        lines.append(f"color {name} {state.colour} target acs")
        if several and state.shown:
            lines.append(f"show {name} models")
    return lines


def _chimerax_residues(state: Conformation) -> str:
    return "".join(f"/{first.chain}:{_number(first)}-{_number(last)}" for first, last in state.stretches)


def pymol(scene: Scene, level: float | None) -> str:
    """Every state is an object of its own, to be switched in the panel.

    ``model`` is a word of PyMOL's selections, so that no object can have this name.
    """
    lines = ["# PyMOL: pymol view.pml, in this folder", "bg_color white", f"load {scene.file}, whole"]
    objects = []
    if scene.around is None:
        lines += ["split_states whole, prefix=fit_", "delete whole", "disable fit_*"]
        for state in scene.conformations:
            name = f"fit_{state.model:04d}" if state.model else "start"
            objects.append(name)
            if not state.model:
                lines.append(f"load {START_FILE}, start")
            lines += [f"as cartoon, {name}", f"color {_pymol_colour(state)}, {name}"]
            lines.append(f"{'enable' if state.shown else 'disable'} {name}")
    else:
        lines += ["as cartoon, whole", f"color {GREY.replace('#', '0x')}, whole"]
        for i, state in enumerate(scene.conformations, start=1):
            name = f"state_{i}" + (f"_{state.altloc}" if state.altloc else "")
            objects.append(name)
            letter = f" and alt ''+{state.altloc}" if state.altloc else ""
            lines.append(f"create {name}, whole and ({_pymol_residues(state)}){letter}")
            lines += [f"as sticks, {name}", f"color {_pymol_colour(state)}, {name}"]
        lines += [f"hide everything, whole and ({where})" for where in _places(scene, _pymol_residues)]
    if scene.map_file is not None and level is not None:
        # levels are in the map's own unit, not in multiples of its deviation
        lines += ["set normalize_ccp4_maps, 0", f"load {scene.map_file}, density"]
        near = f", ({' or '.join(objects)}), carve={CARVED:g}" if scene.around is not None else ""
        lines += [f"isomesh mesh, density, {level:.6g}{near}", f"color {MAP_COLOUR.replace('#', '0x')}, mesh"]
    return "\n".join([*lines, _pymol_view(Camera.of(scene))]) + "\n"


def _pymol_view(camera: Camera) -> str:
    """The place that the page looks from: rotation by columns, distance, origin, clipping, field of view."""
    rotation = [axis[i] for i in range(3) for axis in (camera.right, camera.up, camera.towards)]
    half = max(camera.reach[1], 0.75 * camera.reach[0]) + 2.0
    distance = half / math.tan(math.radians(PYMOL_FIELD / 2)) + camera.reach[2]
    near, far = distance - camera.reach[2] - 4.0, distance + camera.reach[2] + 30.0
    numbers = [*rotation, 0.0, 0.0, -distance, *camera.target, near, far, -PYMOL_FIELD]
    return f"set_view ({', '.join(f'{x:.5f}' for x in numbers)})"


def _pymol_residues(state: Conformation) -> str:
    return " or ".join(
        f"(chain {first.chain} and resi {_number(first)}-{_number(last)})" for first, last in state.stretches
    )


def _pymol_colour(state: Conformation) -> str:
    return state.colour.replace("#", "0x")


def coot(scene: Scene, level: float | None) -> str:
    """Every state is a molecule of its own beside the whole model, with its carbons in another hue."""
    lines = [
        "# Coot: coot --script view_coot.py, in this folder",
        "try:",
        "    from coot import *  # Coot 1; in Coot 0.9 the functions are there already",
        "except ImportError:",
        "    pass",
        "",
        f"model = handle_read_draw_molecule({scene.file!r})",
    ]
    for i, state in enumerate(scene.conformations, start=1):
        made = [f"new_molecule_by_atom_selection(model, {chosen!r})" for chosen in _coot_selections(state)]
        if state.model == 0:
            made = [f"handle_read_draw_molecule({START_FILE!r})"]
        lines += ["", f"state_{i} = [{', '.join(made)}]  # {_title(state) or state.name}"]
        lines.append(f"for molecule in state_{i}:")
        lines.append(f"    set_molecule_bonds_colour_map_rotation(molecule, {_hue(state.colour):.0f})")
        if not state.shown:
            lines.append("    set_mol_displayed(molecule, 0)")
    lines.append("")
    if scene.around is None:
        lines.append("set_mol_displayed(model, 0)")
    if scene.map_file is not None and level is not None:
        lines += [f"density = handle_read_ccp4_map({scene.map_file!r}, 0)"]
        lines.append(f"set_contour_level_absolute(density, {level:.6g})")
    x, y, z = scene.conformations[0].coords.mean(axis=0)
    return "\n".join([*lines, f"set_rotation_centre({x:.2f}, {y:.2f}, {z:.2f})", "graphics_draw()"]) + "\n"


def _coot_selections(state: Conformation) -> list[str]:
    """In the syntax of MMDB: /model/chain/residues/atoms:altlocs; shared atoms have a blank altloc."""
    if not state.stretches:
        return [f"/{state.model}"]
    letters = f"/*:,{state.altloc}" if state.altloc else ""
    return [f"//{a.chain}/{_mmdb(a)}-{_mmdb(b)}{letters}" for a, b in state.stretches]


def _hue(colour: str) -> float:
    """Degrees on the circle of colours, from Coot's own yellow for carbon."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (360 * colorsys.rgb_to_hsv(red, green, blue)[0] - 60) % 360


def _number(residue: ResidueId) -> str:
    return f"{residue.number}{residue.icode}"


def _mmdb(residue: ResidueId) -> str:
    return f"{residue.number}.{residue.icode}" if residue.icode else str(residue.number)


def _title(state: Conformation) -> str:
    weight = "" if state.occupancy is None else f" {state.occupancy:.2f}"
    return f"{state.part} {state.altloc}".strip() + weight
