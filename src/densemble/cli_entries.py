"""Commands on whole entries: fetch them."""

from __future__ import annotations

from pathlib import Path

import click

from densemble.archives.layout import SERVERS
from densemble.cli_options import PATH, plain_errors


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
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
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
    from densemble.archives.layout import Servers, parse_entry
    from densemble.archives.transfer import Client
    from densemble.progress import Progress, TerminalProgress

    folder = Path(parse_entry(entry)) if out is None else out
    client = Client(progress=Progress() if quiet else TerminalProgress())
    servers = Servers(*(url.rstrip("/") for url in (pdb_server, redo_server, emdb_server)))
    record = have(entry, folder, Cache(cache or default_folder(), client), servers=servers, force=force)
    click.echo(summary(record, folder))
