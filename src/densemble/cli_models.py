"""Commands on one model: its density, its agreement with data, its geometry, its place in a map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from densemble.cli_options import PATH, column_options, plain_errors


@click.command()
@click.argument("model", type=PATH)
@click.option("--resolution", type=float, required=True, help="Å.")
@click.option("--spacing", type=float, required=True, help="Å between voxels, at most half the resolution.")
@click.option(
    "--kind",
    type=click.Choice(["xray", "molmap"]),
    default="xray",
    show_default=True,
    help="Electron density in e/Å^3, or a Gaussian for each atom as in ChimeraX.",
)
@click.option("--out", type=PATH, required=True, help="Map file to write (CCP4/MRC).")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@plain_errors
def simulate(*, model: Path, out: Path, **options: Any) -> None:
    """Write the density of MODEL, as a map of the given resolution shows it.

    Altlocs count with their occupancies. With a unit cell, kind xray includes symmetry copies.
    """
    from densemble.simulate import simulate as write

    density = write(model, out, **options)
    click.echo(f"{' × '.join(map(str, density.grid.shape))} voxels written to {out}")


@click.command()
@click.argument("model", type=PATH)
@click.argument("data", type=PATH, metavar="MAP-or-MTZ")
@click.option("--region", help="Where map fit is stated, for example A:176-191.  [default: all atoms]")
@click.option("--reference", type=PATH, help="Model whose altlocs are the states to compare with.")
@click.option("--resolution", type=float, help="Å, of a map; reflections bring their own.")
@click.option("--start", type=PATH, help="Model that a run started from, for its omit map.  [default: MODEL]")
@column_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@plain_errors
def score(*, model: Path, data: Path, as_json: bool, **options: Any) -> None:
    """Say how well MODEL, with all its altlocs, agrees with a map or with reflections.

    With reflections: R-work and R-free, and fit to the omit map of the region (without a region, to
    2mFo-DFc). With a map: fit to the map at --resolution.
    """
    from densemble.score import score as evaluate
    from densemble.score import summary

    result = evaluate(model, data, **options)
    click.echo(result.model_dump_json(by_alias=True, indent=2) if as_json else summary(result))


@click.command()
@click.argument("model", type=PATH)
@click.argument("data", type=PATH, metavar="[MAP-or-MTZ]", required=False)
@click.option("--region", help="Residues to judge, for example A:176-191.  [default: all]")
@click.option("--resolution", type=float, help="Å, of a map; reflections bring their own.")
@column_options
@click.option("--json", "json_file", type=PATH, help="Write everything, residue by residue, to this file.")
@click.option("--force", is_flag=True, help="Replace that file if it exists.")
@plain_errors
def validate(*, model: Path, data: Path | None, json_file: Path | None, force: bool, **options: Any) -> None:
    """Judge the geometry of MODEL, with all its altlocs, and its fit to a map or to reflections.

    Clash score, Ramachandran, rotamers, bonds, angles and chirality by the definitions of MolProbity and the
    wwPDB; RSCC of each residue where there are data; Q-score and map-model FSC for cryo-EM maps.
    """
    from densemble.io.output import check_output_file, write_record
    from densemble.validate import summary, validate_files

    if json_file is not None:
        check_output_file(json_file, force=force)
    result = validate_files(model, data, **options)
    if json_file is not None:
        write_record(json_file, result)
    click.echo(summary(result))


@click.command()
@click.argument("model", type=PATH)
@click.argument("map_path", type=PATH, metavar="MAP")
@click.option("--resolution", type=float, required=True, help="Å, of the map.")
@click.option("--level", type=float, help="Contour of the map, for checks.  [default: estimated]")
@click.option("--out", type=PATH, help="Placed model to write, .cif or .pdb; a record goes beside it, .json.")
@click.option("--force", is_flag=True, help="Replace the files if they exist.")
@click.option("--quiet", is_flag=True, help="No progress on stderr, only warnings.")
@plain_errors
def dock(*, model: Path, map_path: Path, quiet: bool, **options: Any) -> None:
    """Place MODEL, from wherever it is, in a cryo-EM map.

    The model moves as one rigid body, with everything in it. Its conformation may differ from the map's;
    the map may hold more than the model. Prints the best poses, and warns when the best is not clearly
    best or the map seems to have the wrong hand.
    """
    from densemble.docking import dock_files, summary
    from densemble.progress import TerminalProgress

    progress = TerminalProgress(quiet=quiet)
    record = dock_files(model, map_path, progress=progress, **options)
    click.echo(summary(record))
    if options["out"] is not None:
        click.echo(f"Written to {options['out']} and {options['out'].with_suffix('.json').name}")
