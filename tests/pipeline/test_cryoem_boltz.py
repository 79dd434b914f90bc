"""From a sequence and a map to files, with Boltz's own classes at small size and random weights."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

import boltz.model.modules.diffusion as boltz1_diffusion
import boltz.model.modules.diffusionv2 as boltz2_diffusion
import gemmi
import torch
from boltz_networks import compact_model, example_input, reduced_model, save_checkpoint
from click.testing import CliRunner
from small_crystal import StopAt, StoppedError, contents

import densemble.cryoem as cryoem
import densemble.em.problem as problem
import densemble.priors.boltz.model as opening
import densemble.priors.boltz.package as package
import densemble.priors.boltz.trunk as trunk
from densemble.cli import main
from densemble.cryoem import run_cryoem
from densemble.em.folding import fold_of, opened, unguided
from densemble.em.inputs import StateSettings
from densemble.errors import InputError
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import read_model
from densemble.io.output import InputFile
from densemble.io.state_results import write_models
from densemble.priors.boltz.confidence import confidence
from densemble.priors.fold import FoldSettings
from densemble.progress import Progress

STEPS = 24
RECIPE = """name = "test"
source = "the map guides to the end"
[sampling]
steps = 24
churn = 0.0
[trust]
domains = 6.0
local = 0.5
[target]
blur_per_sigma = 0.25
blur_limit = 5.0
[[stages]]
term = "density"
high = 5.0
low = 0.001
weight = {weight}
mode = "ratio"
[finish]
evaluations = 0
data_per_atom = 10.0
"""


@dataclass(frozen=True)
class Folding:
    kind: str
    cache: Path
    sequence: Path
    map: Path
    truth: Path
    recipe: Path

    def settings(self, **changes):
        fold = FoldSettings(prior=self.kind, sequence=self.sequence, recycling=1)
        values = {"map": self.map, "resolution": 5.0, "members": 3, "steps": STEPS, "fold": fold}
        return StateSettings(**(values | {"recipe": str(self.recipe), "forward": "molmap"} | changes))


@pytest.fixture(scope="module")
def cache(boltz_cache, tmp_path_factory):
    """Boltz's cache with reduced weights in it."""
    folder = tmp_path_factory.mktemp("cache") / "boltz"
    folder.mkdir()
    for part in boltz_cache.iterdir():
        (folder / part.name).symlink_to(part)
    for kind in ("boltz1", "boltz2"):
        save_checkpoint(compact_model(kind), folder / f"{kind}_conf.ckpt")
    return folder


def folding_of(kind, cache, sequence, folder):
    """A map of what the network folds, from other random numbers, turned and moved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOLTZ_CACHE", str(cache))
        fold = FoldSettings(prior=kind, sequence=sequence, recycling=1)
        settings = StateSettings(map=folder / "x", fold=fold, seed=5)
        network = opened(settings, None, tell=Progress())
        sample = unguided(network, steps=STEPS, seed=5, tell=Progress())
        model = fold_of(settings, network, sample).model
    coords = model.coords - model.coords.mean(0) + [25.0, 28.0, 22.0]
    low, high = coords.min(0) - 12, coords.max(0) + 12
    shape = tuple(int(n) for n in np.ceil((high - low) / 1.25))
    grid = Grid(tuple(map(float, low)), (1.25, 1.25, 1.25), shape)
    forward = MolmapDensity(grid, model.topology.elements, resolution=5.0)
    x = torch.from_numpy(coords).float()[None]
    write_map(folder / "map.ccp4", DensityMap(grid, forward(x, torch.ones(1))))
    write_models(folder / "truth.cif", model, [coords])
    (folder / "guided.toml").write_text(RECIPE.format(weight=1.0))
    return Folding(kind, cache, sequence, folder / "map.ccp4", folder / "truth.cif", folder / "guided.toml")


@pytest.fixture(params=["boltz1", "boltz2"], scope="module")
def folding(request, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folding_of(request.param, cache, example_input(folder), folder)


@pytest.fixture(scope="module")
def whole(folding, tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOLTZ_CACHE", str(folding.cache))
        return folder, run_cryoem(folding.settings(), folder)


@pytest.fixture(autouse=True)
def boltz_home(cache, monkeypatch):
    monkeypatch.setenv("BOLTZ_CACHE", str(cache))


def command(*arguments):
    done = CliRunner().invoke(main, ["cryoem", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.output


MODIFIED = """version: 1
sequences:
  - protein: {id: A, sequence: MKTAYIA, msa: empty, modifications: [{position: 3, ccd: QQQ}]}
"""
DIVERGES = ["--prior", "boltz2", "--sequence", "SEQUENCE", "--steps", "8", "--step-scale", "20"]


def test_from_sequence_and_map_to_files(folding, tmp_path):
    out = tmp_path / "out"
    code, said = command(
        folding.map, "--sequence", folding.sequence, "--prior", folding.kind, "--resolution", 5,
        "--members", 2, "--steps", STEPS, "--recycling", 1, "--out", out,
    )  # fmt: skip
    assert code == 0, said
    best = read_model(out / "best.cif")
    names = {(r.id.chain, r.name) for r in best.topology.residues if r.kind != "protein"}
    assert names == {("L", "LIG1"), ("Z", "ZN")}
    assert [r.kind for r in best.topology.residues][-2:] == ["ligand", "ion"]
    assert best.topology.elements[-1].upper() == "ZN"
    assert {r.id.chain for r in best.topology.residues} == {"A", "B", "L", "Z"}
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["fold"]["prior"] == folding.kind
    assert result["versions"]["boltz"] == "2.2.1"
    assert result["settings"]["recipe"] == "cryoboltz-2025"
    assert any("without alignment" in message for message in result["messages"])
    correlations = [m["fit"]["correlation"] for m in result["members"]]
    assert correlations == sorted(correlations, reverse=True)
    for member in result["members"]:
        assert set(member["confidence"]) == {"score", "complex_plddt", "ptm", "iptm"}
        assert all(0 <= v <= 1 for v in member["confidence"].values())
    assert len({m["confidence"]["score"] for m in result["members"]}) == 2
    assert 0 <= best.b_iso.min() < best.b_iso.max() <= 100  # pLDDT
    trace = (out / "trace.csv").read_text().splitlines()
    assert {"cloud", "density"} <= set(trace[0].split(","))
    assert result["placement"]["docked"]


def test_the_map_pulls_the_sample(folding, whole, tmp_path):
    """With guidance the samples fit the map better than without, from the same random numbers."""
    recipe = tmp_path / "free.toml"
    recipe.write_text(RECIPE.format(weight=0.0))
    free = run_cryoem(folding.settings(recipe=str(recipe)), tmp_path / "free")
    found = [np.mean([m.fit.correlation for m in result.members]) for result in (free, whole[1])]
    assert found[1] > found[0] + 0.05


RNA = """version: 1
sequences:
  - protein: {id: A, sequence: MKTAYIAGLE, msa: empty}
  - rna: {id: R, sequence: GGCAUC}
"""


def test_the_map_pulls_rna_too(folding, tmp_path):
    """It is folded beside a protein, and its nucleotides fit the map better where that guides."""
    (tmp_path / "rna.yaml").write_text(RNA)
    made = folding_of(folding.kind, folding.cache, tmp_path / "rna.yaml", tmp_path)
    found = {}
    for weight in (0.0, 1.0):
        recipe = tmp_path / f"{weight:g}.toml"
        recipe.write_text(RECIPE.format(weight=weight))
        out = tmp_path / f"out{weight:g}"
        run_cryoem(made.settings(recipe=str(recipe)), out)
        rows = csv.DictReader((out / "residues.csv").read_text().splitlines())
        found[weight] = np.mean([float(row["rscc"]) for row in rows if row["residue"].startswith("R:")])
    best = read_model(tmp_path / "out1" / "best.cif")
    rna = [r.name for r in best.topology.residues if r.kind == "nucleic"]
    assert rna == ["G", "G", "C", "A", "U", "C"]
    assert best.topology.elements.count("P") >= 5
    assert found[1.0] > found[0.0] + 0.05


def test_stopped_and_resumed_it_ends_the_same(folding, whole, tmp_path, monkeypatch):
    """The trunk is on disk, the fold and its place in the map are in the checkpoint: none is made again."""
    settings, out = folding.settings(), tmp_path / "out"
    with pytest.raises(StoppedError):
        run_cryoem(settings, out, progress=StopAt("samples", 21))
    assert (out / "checkpoint.pt").is_file()
    monkeypatch.setattr(trunk, "run_trunk", lambda *_, **__: pytest.fail("the trunk was run again"))
    monkeypatch.setattr(cryoem, "unguided", lambda *_, **__: pytest.fail("it was folded again"))
    monkeypatch.setattr(problem, "dock_model", lambda *_, **__: pytest.fail("it was docked again"))
    last = StopAt()
    result = run_cryoem(settings, out, resume=True, progress=last)
    assert ("samples", 21) in last.seen
    assert ("samples", 19) not in last.seen  # it went on from step 20
    assert contents(whole[0])["models.cif"] == contents(out)["models.cif"]
    assert contents(whole[0])["start.cif"] == contents(out)["start.cif"]
    assert result.model_dump(exclude={"timings"}) == whole[1].model_dump(exclude={"timings"})


KILLED = """
import os, signal
from densemble.cli import main
from densemble.run import Checkpoints
save, count = Checkpoints.save, 0
def save_and_die(self):
    global count
    save(self)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = save_and_die
main()
"""
"""The command, killed when it has written its checkpoint of step 20."""


def test_killed_and_resumed_on_the_command_line_it_ends_the_same(folding, tmp_path):
    """Two chains, a ligand and an ion; the process is gone from one moment to the next."""
    options = [
        folding.map, "--sequence", folding.sequence, "--prior", folding.kind, "--resolution", 5,
        "--members", 2, "--steps", STEPS, "--recycling", 1, "--recipe", folding.recipe,
    ]  # fmt: skip
    code, said = command(*options, "--out", tmp_path / "whole")
    assert code == 0, said
    out = tmp_path / "out"
    arguments = ["cryoem", *options, "--out", out]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1"},  # as the tests: sums of two threads differ in their last bits
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (out / "result.json").exists()
    code, said = command(*options, "--out", out)
    assert code == 2
    assert "--resume" in said
    code, said = command(*options, "--resume", "--out", out)
    assert code == 0, said
    assert contents(out).keys() == contents(tmp_path / "whole").keys()
    for name in ("best.cif", "models.cif", "start.cif", "residues.csv", "trace.csv", "map.ccp4"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def short_of_memory(folding, tmp_path, monkeypatch, runs_out):
    """A run into ``out`` in which memory runs out whenever it is said of network and samples."""
    module = boltz2_diffusion if folding.kind == "boltz2" else boltz1_diffusion
    real = module.AtomDiffusion.preconditioned_network_forward

    def small(self, x, *arguments, **named):
        if runs_out(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(self, x, *arguments, **named)

    monkeypatch.setattr(module.AtomDiffusion, "preconditioned_network_forward", small)
    code, said = command(
        folding.map, "--sequence", folding.sequence, "--prior", folding.kind, "--resolution", 5,
        "--members", 2, "--steps", 12, "--recycling", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, said


def test_out_of_memory_it_goes_on_with_fewer_at_a_time(folding, tmp_path, monkeypatch, caplog):
    short_of_memory(folding, tmp_path, monkeypatch, lambda network, x: len(x) > 1)
    assert caplog.text.count("out of memory: going on with 1 members at a time") == 1
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["members"]) == 2


def test_where_one_graph_does_not_fit_layers_are_computed_twice(folding, tmp_path, monkeypatch, caplog):
    """From the measurement of memory on, which is the first to want a graph."""

    def keeps_all(network, x):
        twice = any("forward" in vars(part) for part in network.score_model.modules())
        return torch.is_grad_enabled() and not twice

    short_of_memory(folding, tmp_path, monkeypatch, keeps_all)
    assert caplog.text.count("out of memory: going on with layers that are computed twice") == 1
    rows = list(csv.DictReader((tmp_path / "out" / "trace.csv").read_text().splitlines()))
    assert any(row["density"] for row in rows)  # there were gradients


@pytest.mark.parametrize("part", ["pairformer_module", "confidence_module"])
def test_what_memory_does_not_hold_is_said(folding, tmp_path, monkeypatch, part):
    """Trunk and confidence head, which cannot be done in parts."""

    def small(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    load = opening.load_network

    def loaded(*arguments, **named):
        network = load(*arguments, **named)
        monkeypatch.setattr(type(getattr(network, part)), "forward", small)
        return network

    monkeypatch.setattr(opening, "load_network", loaded)
    monkeypatch.setattr(opening, "OWN_CACHE", str(tmp_path / "own"))
    code, said = command(
        folding.map, "--sequence", folding.sequence, "--prior", folding.kind, "--resolution", 5,
        "--members", 1, "--steps", 12, "--recycling", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "out of memory: cpu does not hold the " in said
    assert "tokens; take a machine with more memory, or fold fewer or shorter chains" in said


@pytest.mark.parametrize("given", [False, True])
def test_weights_that_are_not_there_and_cannot_be_fetched(folding, tmp_path, monkeypatch, given):
    """The dictionary alone is in the cache, or not even that."""
    cache = tmp_path / "cache"
    cache.mkdir()
    name = "mols" if folding.kind == "boltz2" else "ccd.pkl"
    if not given:
        (cache / name).symlink_to(folding.cache / name)
    monkeypatch.setenv("BOLTZ_CACHE", str(cache))

    def fails(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(f"boltz.main.download_{folding.kind}", fails)
    weights = ["--weights", folding.cache / f"{folding.kind}_conf.ckpt"] if given else []
    code, said = command(
        folding.map, "--sequence", folding.sequence, "--prior", folding.kind, "--resolution", 5,
        "--out", tmp_path / "out", *weights,
    )  # fmt: skip
    assert code == 2
    assert "no route to host" in said
    assert "MIT licence" in said
    assert "GB" in said
    missing = "mols.tar" if given and folding.kind == "boltz2" else name if given else "_conf.ckpt"
    assert missing in said
    assert ("--weights FILE" in said) == (not given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["weights", "alignment"])
def test_other_weights_or_alignments_are_not_resumed(folding, tmp_path, other):
    """Of files of the same names."""
    weights = tmp_path / "w.ckpt"
    weights.write_bytes((folding.cache / f"{folding.kind}_conf.ckpt").read_bytes())
    sequence, alignment = tmp_path / "s.fasta", tmp_path / "a.a3m"
    sequence.write_text(">A|protein|a.a3m\nMKTAYIAGLE\n")
    alignment.write_text(">query\nMKTAYIAGLE\n>hit\nMKTAYIAGLW\n")
    fold = FoldSettings(prior=folding.kind, sequence=sequence, weights=weights, recycling=0)
    settings, out = folding.settings(fold=fold, members=1), tmp_path / "out"
    with pytest.raises(StoppedError):
        run_cryoem(settings, out, progress=StopAt("samples", 11))
    if other == "weights":
        changed = reduced_model(folding.kind)
        changed.structure_module.score_model.single_conditioner.fourier_embed.proj.weight.mul_(1.01)
        save_checkpoint(changed, weights)
    else:
        alignment.write_text(">query\nMKTAYIAGLE\n>hit\nMKTAYIAGLK\n")
    with pytest.raises(InputError, match="belongs to a run with other inputs or settings"):
        run_cryoem(settings, out, resume=True)


def test_the_record_names_network_weights_and_input(folding, whole):
    result = whole[1]
    file = folding.cache / f"{folding.kind}_conf.ckpt"
    assert result.settings["prior"] == result.fold.prior == folding.kind
    assert result.fold.weights == InputFile.of(file)
    assert re.fullmatch("[0-9a-f]{64}", result.fold.input)
    assert result.fold.recycling == 1
    assert result.fold.step_scale == {"boltz1": 1.638, "boltz2": 1.5}[folding.kind]
    assert result.fold.potentials is False
    assert "fold" in json.loads((whole[0] / "result.json").read_text())


def test_confidence_is_that_of_the_model_beside_which_it_stands(folding, whole):
    """From the coordinates as they are written, by the head alone; that of Boltz-1 reads more than these."""
    if folding.kind == "boltz1":
        pytest.skip("the head of Boltz-1 reads what was kept while sampling")
    network = opened(folding.settings(), None, tell=Progress())
    place = {(r.id.chain, r.id.number, n): i for i, (r, n, _) in enumerate(_atoms(read_model(folding.truth)))}
    written = gemmi.read_structure(str(whole[0] / "models.cif"))
    found = []
    for model in written:
        x = torch.zeros(1, len(place), 3)
        for site in model.all():
            where = site.chain.name, site.residue.seqid.num, site.atom.name
            x[0, place[where]] = torch.tensor(site.atom.pos.tolist())
        found.append(float(confidence(network.network, network.given, network.trunk, x).score[0]))
    stated = [member.confidence["score"] for member in whole[1].members]
    assert np.ptp(stated) > 5e-4
    assert found == pytest.approx(stated, abs=1e-4)


def test_a_model_is_docked_and_names_the_atoms(folding, tmp_path):
    """The model lacks residues and the ligand, has other numbers and another order of chains."""
    given = gemmi.read_structure(str(folding.truth))
    for name in ("L", "Z"):
        given[0].remove_chain(name)
    del given[0]["A"][3:5]
    for chain, name, first in ((given[0]["A"], "X", 101), (given[0]["B"], "A", 7)):
        chain.name = name
        for residue in chain:
            residue.seqid = gemmi.SeqId(residue.seqid.num + first - 1, " ")
    turn = gemmi.Transform(gemmi.Mat33([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), gemmi.Vec3(50, -30, 10))
    given[0].transform_pos_and_adp(turn)
    given.remove_empty_chains()
    given.make_mmcif_document().write_file(str(tmp_path / "given.cif"))
    result = run_cryoem(folding.settings(model=tmp_path / "given.cif", members=1), tmp_path / "out")
    start = read_model(tmp_path / "out" / "start.cif")
    truth = read_model(folding.truth)
    ids = [str(r.id) for r in start.topology.residues if r.kind == "protein"]
    assert sorted(i for i in ids if i.startswith("X")) == [f"X:{n}" for n in range(101, 112)]
    assert sorted(i for i in ids if i.startswith("A")) == sorted(f"A:{n}" for n in range(7, 19))
    assert len(start.topology) == len(truth.topology)
    # Docked into a map of itself, what the model has stands within an Å or two of where it was.
    own = {(r.id.chain, r.id.number, n): x for r, n, x in _atoms(start)}
    away = [
        np.linalg.norm(own["X", r.id.number + 100, n] - x)
        for r, n, x in _atoms(truth)
        if r.id.chain == "A" and r.id.number not in (4, 5)
    ]
    assert np.median(away) < 2.0
    assert result.placement.docked


def _atoms(model):
    residues = (model.topology.residues[i] for i in model.topology.residue_index)
    return zip(residues, model.topology.names, model.coords, strict=True)


def test_a_little_noise_keeps_the_model(folding, tmp_path):
    fold = FoldSettings(prior=folding.kind, sequence=folding.sequence, from_noise=0.05, recycling=1)
    settings = folding.settings(model=folding.truth, placed=True, fold=fold, members=1, steps=4)
    run_cryoem(settings, tmp_path / "out")
    best, truth = read_model(tmp_path / "out" / "best.cif"), read_model(folding.truth)
    assert np.sqrt(np.mean(np.sum((best.coords - truth.coords) ** 2, axis=1))) < 1.0


def test_the_map_guides_also_from_little_noise(folding, tmp_path):
    """The recipe's stages go by noise level: what begins at 8 Å is guided by cloud and density."""
    fold = FoldSettings(prior=folding.kind, sequence=folding.sequence, from_noise=8.0, recycling=1)
    settings = folding.settings(
        model=folding.truth, placed=True, fold=fold, members=1, recipe="cryoboltz-2025"
    )
    run_cryoem(replace(settings, steps=None), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "trace.csv").read_text().splitlines()))
    levels = {name: [float(r["sigma"]) for r in rows if r[name]] for name in ("cloud", "density")}
    assert max(levels["cloud"]) > 5 > 2.8 > min(levels["density"])
    assert max(levels["density"]) < 3
    assert len(levels["density"]) == 25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior", "boltz2"], ["--sequence", "--model"]),
        (["--prior", "boltz2", "--sequence", "nothing.fasta"], ["nothing.fasta", "does not exist"]),
        (["--sequence", "SEQUENCE"], ["--sequence", "--prior boltz1 or boltz2"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--placed"], ["--placed", "--model"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--from-noise", "2"], ["--from-noise", "--model"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--weights", "no.ckpt"], ["no.ckpt", "no such"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--weights", "BOLTZ1"], ["Boltz-1", "boltz1"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--steps", "1"], ["--steps 1", "at least 2"]),
        (["--prior", "boltz2", "--model", "TRUTH", "--from-noise", "-5"], ["--from-noise", "-5", "x>0"]),
        (["--prior", "boltz2", "--model", "TRUTH", "--from-noise", "0"], ["--from-noise", "x>0"]),
        (["--prior", "boltz2", "--model", "TRUTH", "--from-noise", "0.001"], ["-noise 0.001 Å", "0.01"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--step-scale", "0"], ["--step-scale", "x>0"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--step-scale", "nan"], ["-scale nan", "zero"]),
        (DIVERGES, ["the fold diverged", "Å apart", "--step-scale"]),
        ([*DIVERGES, "--step-scale", "1e30"], ["the fold", "diverged at step", "--step-scale"]),
        (["--prior", "boltz2", "--sequence", "ODD"], ["odd.fasta", "residue 3", "'?'"]),
        (["--prior", "boltz2", "--sequence", "OTHER", "--model", "TRUTH"], ["identical", "truth.cif"]),
        (["--prior", "boltz1", "--sequence", "MODIFIED"], ["modified.yaml", "chain A", "component QQQ"]),
        (["--prior", "boltz2", "--sequence", "MODIFIED"], ["modified.yaml", "chain A", "component QQQ"]),
        (["--prior", "boltz2", "--sequence", "SEQUENCE", "--weights", "ODD"], ["odd.fasta", "checkpoint"]),
        (["--prior", "boltz2", "--model", "TRUTH"], ["truth.cif", "component LIG1", "--sequence", "smiles"]),
    ],
)  # fmt: skip
def test_bad_input_is_said_and_nothing_is_written(folding, tmp_path, options, words):
    (tmp_path / "odd.fasta").write_text(">A|protein|empty\nMK?TAYIA\n")
    (tmp_path / "other.fasta").write_text(">A|protein|empty\nWWPWWGWWPWWDWW\n")
    (tmp_path / "modified.yaml").write_text(MODIFIED)
    files = {
        "MODIFIED": tmp_path / "modified.yaml",
        "SEQUENCE": folding.sequence, "BOLTZ1": folding.cache / "boltz1_conf.ckpt", "TRUTH": folding.truth,
        "ODD": tmp_path / "odd.fasta", "OTHER": tmp_path / "other.fasta",
    }  # fmt: skip
    out = tmp_path / "out"
    code, said = command(
        folding.map, "--resolution", 5, "--out", out, *(files.get(option, option) for option in options)
    )
    assert code == 2
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert not out.exists()


ALIGNED = "version: 1\nsequences:\n  - protein: {id: A, sequence: MKTAYIAGLE, msa: %s}\n"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("version: 1\nsequences: []\n", [], ["no list 'sequences'"]),
        (ALIGNED % "null", [], ["chain A has no alignment", "--use-msa-server"]),
        (ALIGNED % "none.a3m", [], ["there is no file none.a3m"]),
        (ALIGNED % "other.a3m", [], ["other.a3m is not of chain A: its rows have 4 residues"]),
        (ALIGNED % "odd.a3m", [], ["odd.a3m: '1' is no amino acid"]),
        (ALIGNED % "empty" + "  - ligand: {id: L, smiles: C(C}\n", [], ["ligand L: 'C(C' cannot be read"]),
        (ALIGNED % "empty", ["--weights", "OTHER"], ["these are weights of Boltz-"]),
        (ALIGNED % "empty", ["--msa-server-url", "http://x"], ["--msa-server-url", "--use-msa-server"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_downloaded(
    folding, tmp_path, monkeypatch, text, options, words
):
    """Gigabytes, on a first run."""
    monkeypatch.setenv("BOLTZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        f"boltz.main.download_{folding.kind}", lambda *_: pytest.fail("it was downloaded before")
    )
    (tmp_path / "input.yaml").write_text(text)
    (tmp_path / "other.a3m").write_text(">q\nMKTA\n")
    (tmp_path / "odd.a3m").write_text(">q\nMKTAY1AGLE\n")
    other = folding.cache / f"{'boltz1' if folding.kind == 'boltz2' else 'boltz2'}_conf.ckpt"
    code, said = command(
        folding.map, "--sequence", tmp_path / "input.yaml", "--prior", folding.kind, "--resolution", 5,
        "--out", tmp_path / "out", *(other if option == "OTHER" else option for option in options),
    )  # fmt: skip
    assert code == 2
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_alignments_are_asked_for_without_a_sequence_file(folding, tmp_path, monkeypatch):
    def fails(data, **_):
        raise ConnectionError(f"asked for {sorted(data.values())}")

    monkeypatch.setattr("boltz.main.compute_msa", fails)
    model = gemmi.read_structure(str(folding.truth))
    for name in ("L", "Z"):
        model[0].remove_chain(name)
    model.make_mmcif_document().write_file(str(tmp_path / "proteins.cif"))
    code, said = command(
        folding.map, "--model", tmp_path / "proteins.cif", "--prior", folding.kind, "--use-msa-server",
        "--resolution", 5, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "waiting for https://api.colabfold.com to align 2 sequences" in said
    assert "proteins.cif: no alignments from https://api.colabfold.com (asked for ['" in said
    code, said = command(
        folding.map, "--model", tmp_path / "proteins.cif", "--prior", folding.kind, "--use-msa-server",
        "--msa-server-url", "http://own", "--resolution", 5, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "no alignments from http://own (" in said


def test_without_the_package_it_says_how_to_install_it(folding, tmp_path, monkeypatch):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'densemble\[boltz\]'.*") as caught:
        package.require_boltz()
    assert "MIT" in str(caught.value)
