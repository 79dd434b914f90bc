"""Chroma from files to files, with its own classes at reduced size and random weights."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")

from click.testing import CliRunner
from small_chroma import write_quick_recipe, write_weights
from small_crystal import StopAt, StoppedError, outcome, write_recipe

from densemble.atoms import Region
from densemble.cli import main
from densemble.demo import example
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.pipeline import run_xray
from densemble.priors.chroma.networks import BACKBONE, DESIGN
from densemble.priors.held import Held
from densemble.progress import Progress
from densemble.sidechains.build import SideChainBuilder
from densemble.sidechains.chroma import ChromaPacker
from densemble.sidechains.packing import SideChains

STEPS = 14
"""Enough for an Euler step not to overshoot: beta times a step is below two."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_quick_recipe(tmp_path_factory.mktemp("recipe") / "quick.toml")


@pytest.fixture
def settings(crystal, weights, recipe):
    """Of the small crystal."""
    return crystal.settings(
        prior="chroma",
        recipe=str(recipe),
        steps=STEPS,
        weights_backbone=weights[BACKBONE],
        weights_design=weights[DESIGN],
    )


def atoms(path: Path, *, inside: bool) -> list[tuple]:
    """Atoms of the region A:179-186 with its window of 5, or all others."""
    return [
        (chain.name, str(residue.seqid), atom.name, atom.altloc, tuple(atom.pos.tolist()), atom.b_iso)
        for chain in gemmi.read_structure(str(path))[0]
        for residue in chain
        for atom in residue
        if inside == (chain.name == "A" and 174 <= residue.seqid.num <= 191)
    ]


def test_packaged_example_end_to_end(weights, recipe, tmp_path):
    """7RIN with all its residues, by the command line: every file, every metric."""
    out = tmp_path / "out"
    options = {
        "--region": "A:179-186",
        "--out": out,
        "--reference": example("deposited.cif"),
        "--prior": "chroma",
        "--recipe": recipe,
        "--weights-backbone": weights[BACKBONE],
        "--weights-design": weights[DESIGN],
        "--members": 2,
        "--steps": STEPS,
        "--seed": 3,
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    inputs = example("model.cif"), example("data.mtz")
    done = CliRunner().invoke(main, ["xray", *map(str, inputs), *arguments, "--quiet"])
    assert done.exit_code == 0, done.output
    assert "R-free" in done.output
    written = json.loads((out / "result.json").read_text())
    for name in ("ensemble.cif", "map.ccp4", "trace.csv", "members/member_01.cif", "members/member_02.cif"):
        assert (out / name).is_file()
    assert {(f["name"], f["sha256"]) for f in written["inputs"]} == {
        (f.name, hashlib.sha256(f.read_bytes()).hexdigest())
        for f in (*inputs, *weights.values(), example("deposited.cif"))
    }
    assert written["versions"]["generate-chroma"] == "1.0.0"
    assert written["settings"]["weights_backbone"] == "backbone.pt"
    assert written["settings"]["recipe_values"]["stages"][0]["clip"] == 32.5
    for metric in ("rscc", "cosine"):
        assert set(written["metrics"][metric]) == {"start", "ensemble"}
        assert all(-1 <= value <= 1 for value in written["metrics"][metric].values())
    assert all(0 < r["r_free"] < 1 for r in written["r_factors"].values())
    for member in written["members"]:
        assert set(member["rmsd"]) == {"A", "B"}
        assert -1 <= member["bimodality"] <= 1
    kept = [m["weight"] for m in written["members"] if m["selected"]]
    assert kept == pytest.approx([1 / len(kept)] * len(kept))
    assert atoms(out / "ensemble.cif", inside=False) == atoms(inputs[0], inside=False)
    protein = [
        a.b_iso
        for c in gemmi.read_structure(str(inputs[0]))[0]
        for r in c
        if r.name != "HOH"
        for a in r
        if not a.is_hydrogen() and gemmi.find_tabulated_residue(r.name).is_amino_acid()
    ]
    b_iso = {round(b, 2) for *_, b in atoms(out / "ensemble.cif", inside=True)}
    assert list(b_iso) == pytest.approx([np.mean(protein)], abs=0.01)
    lines = (out / "trace.csv").read_text().splitlines()
    assert lines[0] == "sigma,density"
    assert len(lines) == STEPS + 1
    for k in (1, 2):
        member = read_model(out / f"members/member_{k:02d}.cif")
        assert np.isfinite(member.coords).all()


def test_all_ways_of_guidance_and_the_same_seed_gives_the_same(settings, tmp_path):
    three = replace(settings, guides=("none", "each", "ensemble"))
    first = run_xray(three, tmp_path / "first")
    assert set(first.metrics.rscc) == {"start", "none", "each", "ensemble"}
    run_xray(replace(settings, guides=("ensemble",)), tmp_path / "second")
    run_xray(replace(settings, guides=("ensemble",)), tmp_path / "third")
    assert outcome(tmp_path / "second") == outcome(tmp_path / "third")
    ways = {guide: first.metrics.rscc[guide] for guide in ("none", "each", "ensemble")}
    assert len(set(ways.values())) == 3


class Events:
    """What happens to chi in a run: decoded by Chroma, drawn by rotamers, climbed; and chi after each."""

    def __init__(self, monkeypatch):
        from chroma.models.graph_design import GraphDesign

        self.decoded, self.chi, self.done = 0, [], []
        original, packer = GraphDesign.encode, ChromaPacker.__call__

        def encode(network, *args, **options):
            self.decoded += 1
            return original(network, *args, **options)

        def drawn(own, side_chains, backbone, generator):
            self.follows(side_chains)
            packer(own, side_chains, backbone, generator)
            self.after("chroma", side_chains)

        monkeypatch.setattr(GraphDesign, "encode", encode)
        monkeypatch.setattr(ChromaPacker, "__call__", drawn)
        for name in ("pack", "refine"):
            self.watch(monkeypatch, name)

    def watch(self, monkeypatch, name):
        method = getattr(SideChains, name)

        def watched(side_chains, *args, **options):
            self.follows(side_chains)
            method(side_chains, *args, **options)
            self.after((name, options.get("steps")), side_chains)

        monkeypatch.setattr(SideChains, name, watched)

    def follows(self, side_chains):
        """Nothing else has moved chi since."""
        assert not self.chi or torch.equal(side_chains.chi, self.chi[-1])

    def after(self, what, side_chains):
        self.done.append(what)
        self.chi.append(side_chains.chi.clone())


def test_the_packer_is_called_when_algorithm_a1_says(settings, monkeypatch, tmp_path):
    """Sixteen steps at T = 8: at the first and the ninth, for each member, and not again at the end."""
    events = Events(monkeypatch)
    run_xray(replace(settings, steps=16), tmp_path / "out")
    assert events.done == 2 * ["chroma", *[("refine", 2)] * 7]
    assert events.decoded == 2 * settings.members
    moved = [float((b - a).abs().max()) for a, b in zip(events.chi, events.chi[1:], strict=False)]
    assert min(moved) > 0
    for k in range(settings.members):
        member = read_model(tmp_path / "out" / f"members/member_{k + 1:02d}.cif")
        (residues,) = Region.parse("A:174-191").resolve(member.topology)
        atoms = member.topology.atoms_of(residues)
        builder = SideChainBuilder(member.topology.subset(atoms))
        chi = builder.chi_from_coords(torch.tensor(member.coords[atoms], dtype=torch.float32)[None])[0]
        off = (1 - (chi - events.chi[-1][k]).cos())[torch.as_tensor(builder.chi_mask)]
        assert float(off.max()) < 1e-4, "the members have the angles of the last step"


def test_unguided_members_get_their_side_chains_at_the_end(settings, monkeypatch, tmp_path):
    events = Events(monkeypatch)
    run_xray(replace(settings, guides=("none",)), tmp_path / "out")
    assert events.done == ["chroma"]
    assert events.decoded == settings.members


def test_resumed_run_ends_the_same(settings, tmp_path):
    """Stopped after the checkpoint of step 10, between two draws of side chains."""
    run_xray(settings, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_xray(settings, tmp_path / "out", progress=StopAt("ensemble", 12))
    again = StopAt()
    run_xray(settings, tmp_path / "out", resume=True, progress=again)
    assert again.seen[0] == ("ensemble", 10)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_side_chains_by_rotamers_need_no_design_network(settings, weights, tmp_path):
    """The packer belongs to the recipe: Chroma's backbone with our rotamer library."""
    recipe = write_quick_recipe(tmp_path / "own.toml", sidechains={"packer": "rotamers", "temperature": 1.0})
    run_xray(replace(settings, recipe=str(recipe), weights_design=None), tmp_path / "out")
    assert (tmp_path / "out" / "ensemble.cif").is_file()


def test_what_is_left_out_of_a_file_of_weights_is_said(settings, weights, tmp_path):
    saved = torch.load(weights[BACKBONE], weights_only=True)
    more = saved["model_state_dict"] | {"of_training": torch.zeros(1)}
    torch.save(saved | {"model_state_dict": more}, tmp_path / "more.pt")
    said = []

    class Heard(Progress):
        def message(self, text):
            said.append(text)

    changed = replace(settings, members=1, weights_backbone=tmp_path / "more.pt")
    run_xray(changed, tmp_path / "out", progress=Heard())
    assert any("more.pt: of_training left out" in text for text in said)


def test_our_rounds_by_chroma(settings, tmp_path, monkeypatch):
    """Nor is the condition a special case: windows of members are held, as by any prior of a region."""
    recipe = write_quick_recipe(
        tmp_path / "rounds.toml",
        density={"ensemble": "beside_start"},
        rounds={"count": 1, "sigma": 3.0, "steps": 6, "share": 0.5, "window": [2, 4]},
    )
    seen, original = [], Held.denoise

    def denoise(held, x_t, t):
        x0 = original(held, x_t, t)
        assert torch.equal(x0[held._held], held._known[held._held])
        seen.append(held.process.sigma(t))
        return x0

    monkeypatch.setattr(Held, "denoise", denoise)
    result = run_xray(replace(settings, recipe=str(recipe)), tmp_path / "out")
    assert seen[0] == pytest.approx(3.0, rel=1e-3)
    assert len(seen) == 6
    assert result.metrics.rscc["ensemble"] > -1
    lines = (tmp_path / "out" / "trace.csv").read_text().splitlines()
    assert len(lines) == 1 + STEPS + 6


def test_rounds_from_more_noise_than_chroma_has_are_refused(settings, tmp_path):
    rounds = {"count": 1, "sigma": 3e4, "steps": 6, "share": 0.5}
    recipe = write_quick_recipe(tmp_path / "rounds.toml", density={"ensemble": "beside_start"}, rounds=rounds)
    with pytest.raises(InputError, match=r"rounds\.sigma: VariancePreserving: noise between"):
        run_xray(replace(settings, recipe=str(recipe)), tmp_path / "out")


def test_chroma_packs_on_other_priors(crystal, weights, monkeypatch, tmp_path):
    """And the other way round: the embedded prior with Chroma's packer."""
    recipe = tmp_path / "own.toml"
    write_recipe(recipe, sidechains={"packer": "chroma", "temperature": 0.001, "window": 2})
    settings = crystal.settings(prior="embedded", recipe=str(recipe), weights_design=weights[DESIGN])
    events = Events(monkeypatch)
    result = run_xray(settings, tmp_path / "out")
    assert result.versions["generate-chroma"] == "1.0.0"
    assert "chroma" in events.done
    assert {what for what in events.done if what != "chroma"} <= {("refine", 3)}, "no rotamers"
