"""A region of a crystal with Boltz's own classes at small size and random weights: from files to files."""

import json
from dataclasses import replace

import gemmi
import pytest

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

from boltz_networks import compact_model, save_checkpoint
from click.testing import CliRunner
from small_crystal import STEPS, StopAt, StoppedError, outcome, write_recipe

from densemble.cli import main
from densemble.pipeline import run_xray
from densemble.priors.fold import FoldSettings

LOOP = range(179, 187)
NOISE = 1.0
"""Å; from more, a network that knows nothing leaves nothing of the loop."""


@pytest.fixture(scope="module", params=["boltz1", "boltz2"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def weights(kind, tmp_path_factory):
    return save_checkpoint(compact_model(kind), tmp_path_factory.mktemp("weights") / "w.ckpt")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    write_recipe(path, sidechains={"gradient_steps": 0})
    return path


@pytest.fixture(autouse=True)
def boltz_home(boltz_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("BOLTZ_CACHE", str(boltz_cache))
    monkeypatch.setattr("densemble.priors.boltz.model.OWN_CACHE", str(tmp_path / "own"))


def command(crystal, out, *options):
    words = ["xray", crystal.model, crystal.data, "--region", "A:179-186", "--out", out, *options]
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output


def atoms(path, *, inside):
    """Atoms of the loop, or all others."""
    return [
        (chain.name, str(residue.seqid), atom.name, atom.altloc, tuple(atom.pos.tolist()), atom.b_iso)
        for chain in gemmi.read_structure(str(path))[0]
        for residue in chain
        for atom in residue
        if inside == (chain.name == "A" and residue.seqid.num in LOOP)
    ]


def test_a_loop_on_the_command_line(crystal, kind, weights, tmp_path):
    """By the recipe that is made for it."""
    out = tmp_path / "out"
    code, said = command(
        crystal, out, "--prior", kind, "--weights", weights, "--recycling", 0, "--from-noise", NOISE,
        "--members", 3, "--keep", 2, "--steps", STEPS, "--reference", crystal.reference,
    )  # fmt: skip
    assert code == 0, said
    assert "R-free" in said
    assert atoms(out / "ensemble.cif", inside=False) == atoms(crystal.model, inside=False)
    members = sorted((out / "members").glob("*.cif"))
    assert len(members) == 3
    places = [atoms(path, inside=True) for path in members]
    assert {(a[1], a[2]) for a in places[0]} == {(a[1], a[2]) for a in atoms(crystal.model, inside=True)}
    assert places[0] != places[1] != places[2]
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["prior"] == kind
    assert result["settings"]["recipe"] == "boltz"
    assert result["settings"]["fold"]["from_noise"] == NOISE
    assert result["versions"]["boltz"] == "2.2.1"
    assert result["model"] is not None, result["model_failure"]
    assert atoms(out / "model.cif", inside=True)
    assert {file["name"] for file in result["inputs"]} >= {"start.cif", "data.mtz", "w.ckpt"}
    rows = (out / "trace.csv").read_text().splitlines()
    assert "density" in rows[0].split(",")


def test_stopped_and_resumed_it_ends_the_same(crystal, kind, weights, recipe, tmp_path):
    fold = FoldSettings(prior=kind, weights=weights, recycling=0, from_noise=NOISE)
    settings = crystal.settings(recipe=str(recipe), fold=fold, steps=STEPS, members=2)
    run_xray(settings, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_xray(settings, tmp_path / "out", progress=StopAt("ensemble", 11))
    with pytest.raises(Exception, match="other inputs or settings"):
        run_xray(replace(settings, fold=replace(fold, recycling=1)), tmp_path / "out", resume=True)
    last = StopAt()
    run_xray(settings, tmp_path / "out", resume=True, progress=last)
    assert ("ensemble", 9) not in last.seen
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "embedded"], ["recipe embedded", "no rounds", "--recipe boltz"]),
        (["--recipe", "chroma-2024"], ["recipe chroma-2024", "window = 0"]),
        (["--sequence", "no.fasta"], ["no.fasta", "does not exist"]),
        (["--sequence", "OTHER"], ["start.cif"]),
        (["--from-noise", "0.005"], ["--from-noise", "0.01"]),
        (["--region", "A:173-193"], ["A:173-193", "too few to hold"]),
        (["--prior", "embedded"], ["--weights", "--prior boltz1 or boltz2"]),
    ],
)
def test_bad_input_is_said(crystal, kind, weights, tmp_path, options, words):
    (tmp_path / "other.fasta").write_text(">A|protein|empty\nWWPWWGWWPWWDWW\n")
    options = [str(tmp_path / "other.fasta") if word == "OTHER" else word for word in options]
    code, said = command(
        crystal, tmp_path / "out", "--prior", kind, "--weights", weights, "--recycling", 0, *options
    )
    assert code == 2
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()
