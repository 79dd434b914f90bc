"""What a job is made of: drawn and cut maps, pairs of backbones, recipes with some stages, fetched files."""

import gzip
from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from archive_server import Archive, serving
from shared_data import SHARED, needs

from densemble.archives.cache import Cache
from densemble.archives.servers import Servers
from densemble.archives.transfer import Client, Manners
from densemble.demo import example
from densemble.em.inputs import StateSettings
from densemble.errors import InputError
from densemble.experiments.drawing import cut_zone, draw_map
from densemble.experiments.files import Files
from densemble.experiments.jobs import Job
from densemble.experiments.preparation import prepare, recipe_with
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.maps import read_map
from densemble.io.models import read_model
from densemble.recipes.state import load_state_recipe
from densemble.suites import Map, Variant, load_suite


@pytest.fixture(scope="module")
def peptide(tmp_path_factory):
    """Residues 176-191 of the packaged example."""
    structure = gemmi.read_structure(str(example("model.cif")))
    chain = structure[0]["A"]
    for i in reversed(range(len(chain))):
        if not 176 <= chain[i].seqid.num <= 191 or chain[i].name == "HOH":
            del chain[i]
    structure.setup_entities()
    path = tmp_path_factory.mktemp("peptide") / "peptide.cif"
    structure.make_mmcif_document().write_file(str(path))
    return read_model(path)


@pytest.fixture
def files(tmp_path):
    return Files(
        folder=tmp_path / "fetched", data=tmp_path, cache=Cache(tmp_path / "c", Client(offline=True))
    )


def test_a_drawn_map_is_molmaps_in_a_box_with_the_molecule_in_its_middle(peptide, tmp_path):
    draw_map(peptide, tmp_path / "map.ccp4", resolution=2.0, voxel=1.0, box=60)
    found = read_map(tmp_path / "map.ccp4")
    assert found.grid.shape == (60, 60, 60)
    assert found.grid.spacing == (1.0, 1.0, 1.0)
    middle = np.array(found.grid.origin) + 29.5
    assert np.abs(middle - (peptide.coords.min(0) + peptide.coords.max(0)) / 2).max() <= 0.5
    # one atom, summed as paper 2's A.2 writes it, at the voxel next to it
    sigma = 2.0 / (np.pi * np.sqrt(2))
    voxel = np.rint(peptide.coords[0] - found.grid.origin).astype(int)
    square = ((peptide.coords - (found.grid.origin + voxel)) ** 2).sum(axis=1)
    numbers = np.array([gemmi.Element(name).atomic_number for name in peptide.topology.elements])
    expected = (numbers * np.exp(-square / (2 * sigma**2))).sum()
    assert float(found.values[tuple(voxel)]) == pytest.approx(expected, rel=1e-3)


def test_noise_has_the_size_that_is_asked_for(peptide, tmp_path):
    draw_map(peptide, tmp_path / "clean.ccp4", resolution=4.0)
    draw_map(peptide, tmp_path / "noisy.ccp4", resolution=4.0, noise=0.1, seed=3)
    clean, noisy = (read_map(tmp_path / f"{name}.ccp4").values for name in ("clean", "noisy"))
    spread = clean[clean > 0.1 * clean.max()].std()
    assert float((noisy - clean).std() / spread) == pytest.approx(0.1, rel=0.01)


def test_a_molecule_too_long_for_its_box_is_refused(peptide, tmp_path):
    with pytest.raises(InputError, match="does not fit into 10 voxels of 1 Å"):
        draw_map(peptide, tmp_path / "map.ccp4", resolution=2.0, box=10)


def test_a_zone_keeps_positions_and_has_the_padding(peptide):
    grid = Grid.around(peptide.coords, margin=20.0, spacing=1.0)
    density = MolmapDensity(grid, peptide.topology.elements, resolution=3.0).members(
        torch.from_numpy(peptide.coords).float()[None]
    )[0]
    cut = cut_zone(DensityMap(grid, density + 1.0), peptide, radius=3.0, padding=5)
    values = cut.values.numpy()
    distance = np.linalg.norm(cut.grid.points()[..., None, :] - peptide.coords, axis=-1).min(axis=-1)
    assert (values[distance > 3.0] == 0).all()
    assert (values[distance <= 3.0] >= 1.0).all()
    edge = values.copy()
    edge[5:-5, 5:-5, 5:-5] = 0
    assert not edge.any()
    for axis in range(3):
        assert values.take(5, axis=axis).any()
        assert values.take(-6, axis=axis).any()
    offset = np.rint((np.array(cut.grid.origin) - grid.origin) / grid.spacing).astype(int)
    inside = np.argwhere(distance <= 3.0)[0]
    assert values[tuple(inside)] == pytest.approx(float(density[tuple(inside + offset)]) + 1.0, rel=1e-6)


def test_a_zone_around_nothing_is_refused(peptide):
    grid = Grid((500.0, 500.0, 500.0), (1.0, 1.0, 1.0), (4, 4, 4))
    with pytest.raises(InputError, match="nowhere near the map"):
        cut_zone(DensityMap(grid, torch.ones(4, 4, 4)), peptide, radius=3.0, padding=1)


@pytest.mark.parametrize("stages", [(), ("cloud",), ("density",)])
def test_a_recipe_with_some_stages_is_otherwise_the_same(tmp_path, stages):
    path = recipe_with("cryoboltz-2025", stages, tmp_path)
    some, whole = load_state_recipe(path), load_state_recipe("cryoboltz-2025")
    assert tuple(stage.term for stage in some.stages) == stages
    kept = tuple(stage for stage in whole.stages if stage.term in stages)
    assert some == whole.model_copy(update={"stages": kept})
    assert recipe_with("cryoboltz-2025", None, tmp_path) == "cryoboltz-2025"


def map_job(prior: str, **changes) -> Job:
    case = Map(
        id="c",
        printed="c",
        table="1",
        variants=("v",),
        entry="7AAQ",
        map={"model": "data:peptide.cif", "resolution": 4.0, "voxel": 1.0},
        resolution=4.0,
        reference="data:peptide.cif",
        model="data:peptide.cif",
        **changes,
    )
    return Job(case, Variant(id="v", prior=prior, recipe="densemble", members=2), seed=7)


def test_a_case_of_a_map_becomes_settings(peptide, files, tmp_path):
    (tmp_path / "peptide.cif").write_bytes(peptide.path.read_bytes())
    task = prepare(map_job("elastic", forward="molmap"), files, tmp_path / "out")
    assert isinstance(task.settings, StateSettings)
    assert (task.settings.prior, task.settings.forward, task.settings.seed) == ("elastic", "molmap", 7)
    assert task.settings.fold is None
    assert task.folder == tmp_path / "out/jobs/c/v/seed-7"
    assert read_map(task.settings.map).values.max() > 0
    drawn = task.settings.map.stat().st_mtime_ns
    prepare(map_job("elastic", forward="molmap"), files, tmp_path / "out")
    assert task.settings.map.stat().st_mtime_ns == drawn  # once a case


def test_a_case_that_folds_gets_the_deposited_sequence(peptide, files, tmp_path):
    (tmp_path / "peptide.cif").write_bytes(peptide.path.read_bytes())
    job = map_job("boltz1", sequence="data:peptide.cif", step_scale=3.0)
    task = prepare(job, files, tmp_path / "out")
    fold = task.settings.fold
    assert (fold.prior, fold.step_scale) == ("boltz1", 3.0)
    header, sequence = fold.sequence.read_text().splitlines()
    assert header == ">A|protein|empty"
    whole = gemmi.read_structure(str(peptide.path)).entities[0].full_sequence
    assert len(sequence) == len(whole)
    assert "TWPDFG" in sequence


@pytest.mark.parametrize(
    ("prior", "said"),
    [("chroma", "prior chroma is not for this kind of case"), ("boltz1", "the case has no sequence")],
)
def test_what_cannot_be_run_is_said(peptide, files, tmp_path, prior, said):
    (tmp_path / "peptide.cif").write_bytes(peptide.path.read_bytes())
    with pytest.raises(InputError, match=said):
        prepare(map_job(prior), files, tmp_path / "out")


def test_files_of_entries_are_fetched_once_and_failures_remembered(tmp_path):
    quick = Manners(pause=0.0, attempts=1, backoff=0.0, timeout=0.5)
    with serving(Archive()) as archive:
        servers = Servers(*(f"{archive.address}/{name}" for name in ("pdb", "redo", "emdb")))
        files = Files(tmp_path / "f", None, Cache(tmp_path / "c", Client(manners=quick)), servers)
        archive.files["/pdb/mmCIF/ec/7ec8.cif.gz"] = gzip.compress(example("model.cif").read_bytes())
        assert files.find("fetch:7EC8/7ec8.cif.gz").is_file()
        with pytest.raises(InputError, match=r"7EC8 came without 7ec8_final.mtz \(.*redo data: .*404"):
            files.find("fetch:7EC8/7ec8_final.mtz")
        for _ in range(2):
            with pytest.raises(InputError, match="1LU4 is a released entry"):
                files.find("fetch:1LU4/1lu4_final.mtz")
        assert len(archive.requests("/pdb/mmCIF/lu/1lu4.cif.gz")) == 1
    with pytest.raises(InputError, match=r"was not given \(--data\)"):
        files.find("data:x.mtz")


@needs(SHARED / "data", "the conformation pairs")
def test_a_pair_of_backbones_becomes_a_start_and_an_answer_with_side_chains(files, tmp_path):
    suite = load_suite("offline")
    case = next(case for case in suite.maps if case.id == "p71447")
    variant = next(v for v in suite.variants if v.id == case.variants[0])
    files = replace(files, data=SHARED / "data")
    task = prepare(Job(case, variant, 0), files, tmp_path / "out")
    start, answer = read_model(task.settings.model), read_model(task.reference)
    assert start.topology.names == answer.topology.names
    assert "CB" in start.topology.names
    assert np.linalg.norm(start.coords.mean(0) - answer.coords.mean(0)) > 5
    assert read_map(task.settings.map).values.max() > 0
