"""Commands on whole entries: fetch them, search them for what one conformation does not explain, run many."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from densemble.archives.servers import SERVERS, Servers
from densemble.cli_options import PATH, column_options, plain_errors
from densemble.errors import InputError, check_resolution


@click.command()
@click.argument("entry")
@click.option("--out", type=PATH, help="Folder for the files.  [default: the name of the entry]")
@click.option(
    "--cache",
    type=PATH,
    envvar="DENSEMBLE_CACHE",
    help="Folder in which fetched files are kept.  [default: ~/.cache/densemble]",
)
@click.option("--pdb-server", default=SERVERS.pdb, show_default=True, help="The PDB or a mirror.")
@click.option("--redo-server", default=SERVERS.redo, show_default=True, help="PDB-REDO.")
@click.option("--emdb-server", default=SERVERS.emdb, show_default=True, help="EMDB or a mirror.")
@click.option("--force", is_flag=True, help="Look for newer versions, and replace other files in the folder.")
@click.option("--quiet", is_flag=True, help="No progress on stderr, only warnings.")
@plain_errors
def fetch(
    *,
    entry: str,
    out: Path | None,
    cache: Path | None,
    pdb_server: str,
    redo_server: str,
    emdb_server: str,
    force: bool,
    quiet: bool,
) -> None:
    """Fetch the files of ENTRY: a PDB code, for example 7EC8, or an EMDB entry, EMD-40226.

    Of a PDB entry the model and its amplitudes, and PDB-REDO's model and data; of an EMDB entry the map, its
    half maps and the models fitted into it. Files are kept and fetched once; what was interrupted goes on.
    """
    from densemble.archives.cache import Cache, default_folder
    from densemble.archives.entries import fetch as have
    from densemble.archives.entries import summary
    from densemble.archives.layout import parse_entry
    from densemble.archives.transfer import Client
    from densemble.progress import TerminalProgress

    folder = Path(parse_entry(entry)) if out is None else out
    client = Client(progress=TerminalProgress(quiet=quiet))
    servers = Servers(*(url.rstrip("/") for url in (pdb_server, redo_server, emdb_server)))
    record = have(entry, folder, Cache(cache or default_folder(), client), servers=servers, force=force)
    click.echo(summary(record, folder))


@click.command()
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
@click.option("--start-altloc", help="Conformation to take, where the model has several.")
@click.option(
    "--window",
    type=click.IntRange(min=3),
    default=6,
    show_default=True,
    help="Residues of the longest window.",
)
@column_options
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    is_flag=False,
    flag_value=Path("-"),
    metavar="[FILE]",
    help="One JSON object, into a file or, as the last option without one, in place of the table.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@plain_errors
def scan(*, model: Path, data: Path, json_file: Path | None, force: bool, **options: Any) -> None:
    """Search MODEL for stretches whose density in DATA one conformation explains badly.

    MODEL is a refined model, taken as one conformation; DATA has amplitudes, their uncertainties and a free
    set. Lists windows that do not overlap, best first; a strong one is worth densemble xray --region.
    """
    from densemble.io.output import check_output_file, write_record
    from densemble.scan import scan as search
    from densemble.scan import summary

    to_file = json_file is not None and str(json_file) != "-"
    if json_file is not None and to_file:
        check_output_file(json_file, force=force)
    result = search(model, data, **options)
    if json_file is None:
        click.echo(summary(result))
    elif to_file:
        write_record(json_file, result)
        click.echo(f"{summary(result)}\nWritten to {json_file}")
    else:
        click.echo(result.model_dump_json(by_alias=True, indent=2))


@click.command()
@click.argument("suite")
@click.option("--out", type=PATH, required=True, help="Folder for runs and tables.")
@click.option("--data", type=PATH, help="Folder of the files that the suite calls data:...")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Some of the jobs: CASE, CASE/VARIANT or CASE/VARIANT/seed-N, with * and ?; can be repeated.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs at a time.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of each job.")
@click.option(
    "--engine",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Processes on this machine, or Dask's workers.",
)
@click.option("--scheduler", help="Address of a Dask scheduler.  [default: workers on this machine]")
@click.option(
    "--slurm",
    metavar="FILE",
    help="Workers of --engine dask are jobs of Slurm, asked for as FILE (.toml) says.",
)
@click.option(
    "--offline",
    is_flag=True,
    help="Fetch nothing that is not in the cache; jobs that lack files are not run.",
)
@click.option("--cache", type=PATH, envvar="DENSEMBLE_CACHE", help="As of densemble fetch.")
@click.option("--resume", is_flag=True, help="Go on in the folder: what is done there is not done again.")
@click.option("--quiet", is_flag=True, help="No progress on stderr, only warnings.")
@plain_errors
def run(
    *,
    suite: str,
    out: Path,
    data: Path | None,
    only: tuple[str, ...],
    workers: int,
    threads: int,
    engine: str,
    scheduler: str | None,
    slurm: str | None,
    offline: bool,
    cache: Path | None,
    resume: bool,
    quiet: bool,
) -> None:
    """Run SUITE, experiments as data: paper-1, paper-2, offline, or a .toml file.

    Every case with each of its methods and seeds is a job with a run directory of its own. The table of
    results, with printed figures beside ours, is written anew after each job; what cannot be run is said
    in it, and why.
    """
    from densemble.archives.cache import Cache, default_folder
    from densemble.archives.transfer import Client
    from densemble.experiments.clusters import Slurm
    from densemble.experiments.dask_engine import DaskEngine
    from densemble.experiments.engine import LocalEngine
    from densemble.experiments.files import Files
    from densemble.experiments.running import run_suite, summary
    from densemble.progress import TerminalProgress
    from densemble.suites import load_suite

    for option, value in (("--scheduler", scheduler), ("--slurm", slurm)):
        if value is not None and engine != "dask":
            raise InputError(f"{option} is Dask's; add --engine dask")
    if scheduler is not None and slurm is not None:
        raise InputError("--slurm makes a scheduler of its own; leave --scheduler or --slurm out")
    progress = TerminalProgress(quiet=quiet)
    kept = Cache(cache or default_folder(), Client(progress=progress, offline=offline))
    records = run_suite(
        load_suite(suite),
        out,
        Files(folder=out / "fetched", data=data, cache=kept),
        only=only,
        engine=(
            DaskEngine(
                address=scheduler,
                slurm=None if slurm is None else Slurm.read(slurm),
                workers=workers,
                threads=threads,
            )
            if engine == "dask"
            else LocalEngine(workers=workers, threads=threads)
        ),
        resume=resume,
        progress=progress,
    )
    click.echo(summary(records, out))
    states = {record.state for record in records.values()}
    if states == {"not run"}:
        click.echo("No job could be run; the table says why of each.", err=True)
    if "failed" in states or states == {"not run"}:
        raise click.exceptions.Exit(1)


@click.group()
def suite() -> None:
    """Make suites of experiments for densemble run."""


@suite.command("from-folder")
@click.argument("folder", type=PATH)
@click.option(
    "--region", help="Of every crystal, for example A:176-191.  [default: what a scan of each finds]"
)
@click.option("--start-altloc", help="Conformation to start from, in models that have it.")
@click.option(
    "--prior", type=click.Choice(["embedded", "gaussian", "chroma"]), default="embedded", show_default=True
)
@click.option("--resolution", type=float, help="Å, of the maps in FOLDER; without it they are left out.")
@click.option(
    "--members", type=click.IntRange(min=1), help="Of each run.  [default: 16 of a crystal, 4 of a map]"
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each case.")
@click.option("--out", type=PATH, required=True, help="Suite to write (.toml).")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--quiet", is_flag=True, help="No progress on stderr, only warnings.")
@plain_errors
def from_folder(
    *,
    folder: Path,
    region: str | None,
    start_altloc: str | None,
    prior: Literal["embedded", "gaussian", "chroma"],
    resolution: float | None,
    members: int | None,
    seeds: int,
    out: Path,
    force: bool,
    quiet: bool,
) -> None:
    """Write a suite of the crystals in FOLDER: every MTZ (or *-sf.cif) file with the model of the same name.

    Without --region every crystal is scanned, and each stretch of strong windows becomes a case. With
    --resolution every map becomes one, with the model of the same name or the only one beside it as start.
    """
    from densemble.experiments.folder import suite_of_folder, suite_text
    from densemble.inputs import RECIPES
    from densemble.io.output import check_output_file, write_text
    from densemble.progress import TerminalProgress
    from densemble.suites import Variant

    check_output_file(out, force=force)
    if resolution is not None:
        check_resolution(resolution)
    runs = tuple(range(seeds))
    variant = Variant(id=prior, prior=prior, recipe=RECIPES[prior], members=members or 16, seeds=runs)
    state = Variant(id="state", prior="embedded", recipe="densemble", members=members or 4, seeds=runs)
    progress = TerminalProgress(quiet=quiet)
    made, left_out = suite_of_folder(
        folder,
        variants=[variant],
        region=region,
        start_altloc=start_altloc,
        map_variants=[state],
        resolution=resolution,
        progress=progress,
    )
    write_text(out, suite_text(made))
    for sentence in left_out:
        click.echo(f"left out: {sentence}")
    cases = f"{len(made.cases)} case{'' if len(made.cases) == 1 else 's'}"
    click.echo(f"{cases} in {out}; next: densemble run {out} --data {folder} --out results")
