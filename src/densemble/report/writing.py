"""From the folder of a finished run to its report: page, figures for papers, scripts for other programs."""

from __future__ import annotations

from pathlib import Path

from densemble.errors import InputError
from densemble.grid import DensityMap
from densemble.io.maps import read_map
from densemble.io.output import OVERVIEW, OWN_REPORT_FILES, REPORT_FILE, write_bytes, write_text
from densemble.io.results import Result
from densemble.report import crystal_headline, crystal_page, figures, state_page
from densemble.report.figures import Drawing
from densemble.report.folder import RunFolder
from densemble.report.page import rendered, scene_part
from densemble.report.scene import Scene, scene_of
from densemble.report.scripts import scripts_of
from densemble.report.sections import Headline, Section
from densemble.report.viewer import view_of
from densemble.report.volume import DrawnMap, drawn


def write_report(folder: Path, *, force: bool = False) -> Path:
    """Write ``report.html``, its figures as PNG, and scripts that open the result in other programs.

    Everything is made from ``result.json`` and the files beside it; a part is there only if its data are.

    Args:
        folder: of a finished run.
        force: replace an earlier report.

    Returns:
        The page.

    Raises:
        InputError: it is no folder of a finished run, or has a report already and ``force`` is not given; a
            file in it cannot be read; a package that draws is not installed.
    """
    present = [name for name in OWN_REPORT_FILES if (folder / name).exists()]
    run = RunFolder.read(folder)
    if present and not force:
        raise InputError(f"{folder / present[0]} exists; --force to replace the report")
    with figures.style():
        scene = scene_of(run)
        target = None if scene is None or scene.map_file is None else read_map(folder / scene.map_file)
        density = None if scene is None or target is None else drawn(target, run.result, scene)
        overview = _overview(scene, target, density)
        headline, sections = _content(run, scene)
    pictures = {f.name: f.drawing for section in sections for f in section.figures}
    if overview is not None:
        pictures = {OVERVIEW: overview, **pictures}
    level = None if density is None else density.level.value
    scripts = [] if scene is None else scripts_of(scene, level)
    part = None
    if scene is not None and overview is not None:
        part = scene_part(scene, view_of(scene, density), density, overview)
    names = [script.name for script in scripts] + [f"{name}.png" for name in pictures]
    text = rendered(run.result, headline, sections, part, files=names)
    for name in present:
        (folder / name).unlink()
    for script in scripts:
        write_text(folder / script.name, script.text)
    for name, drawing in pictures.items():
        write_bytes(folder / f"{name}.png", drawing.png)
    return write_text(folder / REPORT_FILE, text)


def _overview(scene: Scene | None, target: DensityMap | None, density: DrawnMap | None) -> Drawing | None:
    if scene is None:
        return None
    level = 0.0 if density is None else density.level.value
    return figures.finished(figures.overview(scene, target, level))


def _content(run: RunFolder, scene: Scene | None) -> tuple[Headline, list[Section]]:
    if isinstance(run.result, Result):
        return crystal_headline.headline(run.result), crystal_page.sections(run, scene)
    return state_page.headline(run.result), state_page.sections(run, scene)
