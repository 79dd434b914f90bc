"""The page: one HTML file that needs nothing beside it and asks the network for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, StrictUndefined

from densemble.io.results import Result
from densemble.io.state_results import StateResult
from densemble.report.command import command_of
from densemble.report.figures import Drawing
from densemble.report.scene import Scene
from densemble.report.sections import Headline, Section
from densemble.report.viewer import View, molstar_licence
from densemble.report.volume import DrawnMap


def page_file(name: str) -> str:
    """Text of the template, the style or the script."""
    return (resources.files("densemble.report") / "page_files" / name).read_text(encoding="utf-8")


def image(svg: bytes) -> str:
    """A figure as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def as_script(value: object) -> str:
    """JSON that is safe within a script element: nothing in it can close the element or open a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rendered(
    result: Result | StateResult,
    headline: Headline,
    sections: Sequence[Section],
    scene: dict[str, object] | None,
    *,
    files: Sequence[str],
) -> str:
    """The page as text. All that comes from files is escaped.

    Args:
        result: of the run.
        headline: what the page begins with.
        sections: the parts below the 3D view.
        scene: the 3D view, from ``scene_part``; None without.
        files: names of what lies beside the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["image"] = image
    template = environment.from_string(page_file("report.html.j2"))
    seconds = sum(result.timings.values())
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return template.render(
        headline=headline,
        sections=sections,
        scene=scene,
        result=result,
        inputs=", ".join(file.name for file in result.inputs),
        command=command_of(result),
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False),
        made_with=f"Made with {versions}, on {result.device}, seed {result.seed}, in {seconds:.0f} s.",
        version=result.versions.get("densemble", ""),
        files=files,
        css=page_file("report.css"),
        js=page_file("viewer.js"),
    )


def scene_part(scene: Scene, view: View, density: DrawnMap | None, overview: Drawing) -> dict[str, object]:
    """The 3D view as the template wants it."""
    names = ", ".join(c.name for c in scene.conformations)
    states = [
        {
            "data": f"state{i}",
            "label": c.name if c.occupancy is None else f"{c.name}  {c.occupancy:.2f}",
            "colour": c.colour,
            "shown": c.shown,
        }
        for i, c in enumerate(scene.conformations)
    ]
    several = len({c.part for c in scene.conformations}) > 1
    if several:
        for state, c in zip(states, scene.conformations, strict=True):
            state["label"] = f"{c.part}  {state['label']}"
    caption = f"{scene.file}, every state in its colour."
    if density is not None:
        level = density.level
        caption += f" The map ({scene.map_file}) is contoured first at {level.value:.3g} {level.unit}, "
        caption += f"{level.rule}; {density.note}."
    return {
        "title": "The states in their map" if density is not None else "The states",
        "alt": f"States {names} in the density map.",
        "caption": caption,
        "states": states,
        "around": scene.around is not None,
        "map": view.scene["map"],
        "unit": "" if density is None else density.level.unit,
        "level": "" if density is None else f"{density.level.value:.3g}",
        "overview": image(overview.svg),
        "json": as_script(view.scene),
        "packed": view.packed,
        "licence": molstar_licence(),
    }
