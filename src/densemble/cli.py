"""The command line: thin, every word of it also in the Python API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from densemble import __version__
from densemble.cli_entries import fetch, run, scan, suite
from densemble.cli_models import dock, score, simulate, validate
from densemble.cli_options import PATH as _PATH
from densemble.cli_options import column_options as _column_options
from densemble.cli_options import plain_errors as _plain_errors
from densemble.errors import InputError


def _report(folder: Path) -> None:
    """The report of a run that has just ended, or why there is none: the run stands without it."""
    from densemble.report.writing import write_report

    try:
        click.echo(f"Report: {write_report(folder, force=True)}")
    except InputError as error:
        click.echo(f"No report was written: {error}", err=True)


def _with(options: list[Callable[..., Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options in the order in which help lists them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_session_options = _with(
    [
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            help="Diffusion steps of the first pass; further rounds keep the recipe's.  "
            "[default: the recipe's]",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
        click.option("--force", is_flag=True, help="Replace an earlier result in the output folder."),
        click.option("--resume", is_flag=True, help="Go on with a run that was stopped."),
        click.option("--quiet", is_flag=True, help="No progress on stderr, only warnings."),
    ]
)
"""Options of everything that samples."""


_REGION_PRIORS = ["embedded", "gaussian", "chroma"]

_chroma_options = _with(
    [
        click.option(
            "--weights-backbone",
            type=_PATH,
            help="Chroma's backbone network, if the prior is Chroma.  [default: fetched with your key]",
        ),
        click.option(
            "--weights-design",
            type=_PATH,
            help="Chroma's design network, which packs side chains.  [default: likewise]",
        ),
    ]
)
"""Options of everything that samples a region, by Chroma if so chosen."""


_model_options = _with(
    [
        click.option(
            "--states/--no-states",
            default=True,
            show_default=True,
            help="Make a region's members into a final model: as many states as the data support, refined.",
        ),
        click.option(
            "--cycles",
            type=click.IntRange(min=0),
            help="Of its refinement.  [default: 4]",
        ),
    ]
)
"""Options of what is made of a region's members."""


def _run_options(priors: list[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options of everything that samples a region of a crystal, with these priors to choose from."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--members", type=click.IntRange(min=1), default=16, show_default=True, help="Sampled together."
        ),
        click.option(
            "--keep",
            type=click.IntRange(1, 26),
            default=5,
            show_default=True,
            help="At most so many are kept.",
        ),
        _model_options,
        click.option(
            "--prior",
            type=click.Choice(priors),
            default="embedded",
            show_default=True,
            help="The diffusion model.",
        ),
        click.option(
            "--recipe", help="Method: a name, or a .toml file.  [default: the one made for the prior]"
        ),
    ]
    return lambda command: _with(options)(_session_options(command))


_FOLD = (
    "sequence", "weights", "use_msa_server", "msa_server_url", "step_scale", "potentials", "recycling",
    "from_noise",
)  # fmt: skip

_network_options = _with(
    [
        click.option("--weights", type=_PATH, help="Boltz checkpoint, in place of the one it downloads."),
        click.option(
            "--use-msa-server", is_flag=True, help="Send sequences to api.colabfold.com for alignments."
        ),
        click.option("--msa-server-url", help="Of another server of the kind, for example one of your own."),
        click.option(
            "--recycling", type=click.IntRange(min=0), default=3, show_default=True, help="Of Boltz's trunk."
        ),
        click.option(
            "--from-noise",
            type=click.FloatRange(min=0, min_open=True),
            help="Start from the model with so much noise in Å; otherwise from as much as there is.",
        ),
    ]
)
"""Options of networks that fold."""

_sampler_options = _with(
    [
        click.option(
            "--step-scale",
            type=click.FloatRange(min=0, min_open=True),
            help="Of Boltz's sampler; larger steps vary less.",
        ),
        click.option("--potentials", is_flag=True, help="Apply Boltz's potentials for stereochemistry."),
    ]
)
"""Options of their own samplers."""


def _with_fold(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a fold put together.

    Raises:
        InputError: something is asked of a fold, and the prior does not fold.
    """
    from densemble.priors.fold import FoldSettings

    fold = {name: settings.pop(name) for name in _FOLD if name in settings}
    prior = settings["prior"]
    if prior not in ("boltz1", "boltz2"):
        asked = next((n for n, v in fold.items() if v not in (None, False) and n != "recycling"), None)
        if asked is not None:
            option = "--" + asked.replace("_", "-")
            raise InputError(f"{option} needs a prior that folds: --prior boltz1 or boltz2")
        return settings
    del settings["prior"]
    return settings | {"fold": FoldSettings(prior=prior, **fold)}


def _with_cycles(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the number of cycles where none is asked for.

    Raises:
        InputError: cycles are asked for, and there is no final model to refine.
    """
    if settings["cycles"] is None:
        return {name: value for name, value in settings.items() if name != "cycles"}
    if not settings["states"]:
        raise InputError("--cycles is of the final model, which --no-states leaves out; drop one of the two")
    return settings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="densemble")
def main() -> None:
    """From a density map to the conformations that made it."""


@main.command()
@click.argument("model", type=_PATH)
@click.argument("data", type=_PATH)
@click.option(
    "--region",
    required=True,
    help="Stretches to sample, for example A:176-191,A:238-243; A:#2-5 counts from the first residue.",
)
@click.option("--start-altloc", help="Conformation to start from, where the model has several.")
@click.option(
    "--guide",
    type=click.Choice(["ensemble", "each", "none"]),
    default="ensemble",
    show_default=True,
    help="The members together, each alone, or not at all.",
)
@click.option(
    "--map",
    "map_kind",
    type=click.Choice(["omit", "2fofc", "as-phased"]),
    default="omit",
    show_default=True,
    help="The target density.",
)
@_column_options
@click.option("--reference", type=_PATH, help="Model to compare the result with; evaluation only.")
@click.option("--out", type=_PATH, required=True, help="Output folder.")
@_run_options([*_REGION_PRIORS, "boltz1", "boltz2"])
@click.option("--sequence", type=_PATH, help="FASTA or Boltz YAML of what MODEL shows, for Boltz.")
@_network_options
@_chroma_options
@_plain_errors
def xray(
    *,
    guide: str,
    map_kind: str,
    out: Path,
    reference: Path | None,
    force: bool,
    resume: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Sample an ensemble of a region of MODEL guided by the density from DATA.

    MODEL is a refined model (mmCIF or PDB), taken as one conformation; DATA has amplitudes, their
    uncertainties and a free set (MTZ or SF-mmCIF).
    """
    from densemble.pipeline import Settings, run_xray
    from densemble.progress import TerminalProgress
    from densemble.report import summary

    chosen = Settings(guides=(guide,), map=map_kind, **_with_fold(_with_cycles(settings)))  # type: ignore[arg-type]
    progress = TerminalProgress(quiet=quiet)
    result = run_xray(chosen, out, reference=reference, force=force, resume=resume, progress=progress)
    click.echo(summary(result, out))
    _report(out)


@main.command()
@click.argument("map", type=_PATH)
@click.option("--model", type=_PATH, help="Starting model, in any pose.")
@click.option("--sequence", type=_PATH, help="FASTA or Boltz YAML to fold, with or without --model.")
@click.option("--resolution", type=float, help="Å.  [default: of the half maps, where their FSC is 0.143]")
@click.option("--half1", type=_PATH, help="Half map that is fitted, in place of MAP.")
@click.option("--half2", type=_PATH, help="Half map that is not used in the fit, and judges it.")
@click.option("--level", type=float, help="Contour level.  [default: chosen from the map]")
@click.option("--placed", is_flag=True, help="The model stands in the map already: no docking.")
@click.option(
    "--members", type=click.IntRange(min=1), default=4, show_default=True, help="Independent samples."
)
@click.option(
    "--prior",
    type=click.Choice(["embedded", "elastic", "boltz1", "boltz2"]),
    default="embedded",
    show_default=True,
    help="How the model may move: the packaged network, an elastic network, or Boltz, which folds.",
)
@_network_options
@_sampler_options
@click.option("--recipe", help="Method: a name, or a .toml file.  [default: the one made for the prior]")
@click.option(
    "--forward",
    type=click.Choice(["electron", "molmap"]),
    default="electron",
    show_default=True,
    help="How atoms look in the map: electron form factors and B, or Gaussians as ChimeraX draws.",
)
@click.option("--ensemble", is_flag=True, help="Conformations that together explain the map; see --region.")
@click.option(
    "--region",
    help="Stretches that the ensemble is of, the rest being held, for example A:176-191.  [default: all]",
)
@click.option(
    "--region-members", type=click.IntRange(min=1), default=16, show_default=True, help="Sampled of it."
)
@click.option(
    "--region-prior",
    type=click.Choice(_REGION_PRIORS),
    default="embedded",
    show_default=True,
    help="The diffusion model of its backbone, as xray's --prior.",
)
@click.option(
    "--region-recipe",
    help="Method for it: a name of xray's, or a .toml file.  [default: the one made for its prior]",
)
@_model_options
@_chroma_options
@click.option(
    "--keep",
    type=click.IntRange(1, 26),
    default=5,
    show_default=True,
    help="Of an ensemble, at most so many.",
)
@click.option("--fit-in-b", is_flag=True, help="Write 100 times each residue's RSCC into the B column.")
@click.option("--reference", type=_PATH, help="Model to compare the result with; evaluation only.")
@click.option("--selection", help="Residues over which that is stated too, for example H:100-112.")
@click.option("--out", type=_PATH, required=True, help="Output folder.")
@_session_options
@_plain_errors
def cryoem(
    *,
    out: Path,
    reference: Path | None,
    selection: str | None,
    force: bool,
    resume: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Bring a model to the state that a cryo-EM MAP shows: dock it, sample, refine, and rank by map fit.

    With --prior boltz1 or boltz2 the model is folded from --sequence, or from the sequences of --model.

    Each member is a sample of its own (one map, one state). The best is written alone, and all of them as
    the models of one file. With --ensemble and --region, conformations of the region that together explain
    the map are then sought, the rest of the best being held, and made into a model of as many states as the
    map supports, by the half map held out if there is one: altlocs with occupancies.
    """
    from densemble.cryoem import run_cryoem
    from densemble.em.inputs import STATE_RECIPES, StateSettings
    from densemble.progress import TerminalProgress
    from densemble.report import state_summary

    settings["recipe"] = settings["recipe"] or STATE_RECIPES.get(settings["prior"], "densemble")
    chosen = StateSettings(**_with_fold(_with_cycles(settings)))
    progress = TerminalProgress(quiet=quiet)
    result = run_cryoem(
        chosen,
        out,
        reference=reference,
        selection=selection,
        force=force,
        resume=resume,
        progress=progress,
    )
    click.echo(state_summary(result, out))
    _report(out)


@main.command()
@click.option("--out", type=_PATH, default=Path("densemble-demo"), show_default=True, help="Output folder.")
@_run_options(["embedded", "gaussian"])
@_plain_errors
def demo(*, out: Path, force: bool, resume: bool, quiet: bool, **settings: Any) -> None:
    """Recover the two states of a loop from real data, starting from one: PTP1B, PDB entry 7RIN.

    Runs unguided, guided each member alone, and guided as an ensemble, and compares. Takes a few minutes
    on two cores, and no network.
    """
    from densemble.demo import run_demo
    from densemble.progress import TerminalProgress

    progress = TerminalProgress(quiet=quiet)
    said = run_demo(out, force=force, resume=resume, progress=progress, **_with_cycles(settings))
    click.echo(said)
    _report(out)


@main.command()
@click.argument("folder", type=_PATH, metavar="DIR")
@click.option("--force", is_flag=True, help="Replace an earlier report.")
@_plain_errors
def report(*, folder: Path, force: bool) -> None:
    """Write the report of a finished run into its folder DIR: report.html, figures, and view scripts.

    Made from result.json and the files beside it alone; nothing is sampled or fitted again.
    """
    from densemble.report.writing import write_report

    click.echo(f"Written to {write_report(folder, force=force)}")


for command in (simulate, score, validate, dock, fetch, scan, run, suite):
    main.add_command(command)
