"""Scores against data made here, whose answers are known; and agreement with what a run records."""

import gzip
import json
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from command_line import invoke, sentence
from scipy.spatial import cKDTree

import densemble
from densemble.atoms import Ensemble, Region
from densemble.crystal.omit import omit_map
from densemble.crystal.sampling import simulate
from densemble.crystal.scaling import r_factors
from densemble.evaluation import map_fits, reference_states, start_ensemble
from densemble.grid import DensityMap
from densemble.io.altlocs import build_structure
from densemble.io.maps import read_map, write_map
from densemble.io.models import read_model
from densemble.io.output import InputFile
from densemble.io.reflections import read_reflections
from densemble.io.results import write_ensemble
from densemble.problem import CrystalProblem, Stretches
from densemble.recipes import load_recipe

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
KEYS = ["schema", "inputs", "region", "voxels", "rscc", "cosine", "r_work", "r_free", "states"]
LOOP = "A:176-191"


run = partial(invoke, "score")


def scored(*arguments):
    """What --json prints, and nothing else on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found) == KEYS
    return found


def save(structure, path):
    structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture(scope="module")
def loop():
    """The loop in both states, 0.39 and 0.61, and its neighbours in the chain; in an orthorhombic cell."""
    structure = gemmi.read_structure(str(EXAMPLE / "deposited.cif"))
    for chain in reversed(list(structure[0])):
        if chain.name != "A":
            structure[0].remove_chain(chain.name)
    chain = structure[0]["A"]
    for i in reversed(range(len(chain))):
        if not 170 <= chain[i].seqid.num <= 197:
            del chain[i]
    structure.connections = gemmi.ConnectionList()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(40, 42, 46, 90, 90, 90), "P 21 21 21"
    structure.setup_cell_images()
    return structure


@pytest.fixture(scope="module")
def folder(loop, tmp_path_factory):
    """``loop.cif`` in its cell, ``free.cif`` without one, ``one.cif`` with altloc B alone, ``data.mtz``."""
    path = tmp_path_factory.mktemp("score")
    save(loop, path / "loop.cif")
    free = loop.clone()
    free.cell = gemmi.UnitCell()
    save(free, path / "free.cif")
    save(read_model(path / "loop.cif", altloc="B").structure, path / "one.cif")
    exact = simulate(loop, d_min=2.0)
    hkl, f = exact.hkl[:-1], np.abs(exact.values[:-1])
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = loop.find_spacegroup()
    mtz.set_cell_for_all(loop.cell)
    mtz.add_dataset("made")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FREE", "I")):
        mtz.add_column(label, kind)
    free_flag = np.arange(len(f)) % 15 != 7
    mtz.set_data(np.column_stack([hkl, 3 * f, 0.02 * f + 1, free_flag]).astype(np.float32))
    mtz.write_to_file(str(path / "data.mtz"))
    return path


def simulated(folder, model, name, resolution=2.0, spacing=0.6):
    arguments = [folder / model, "--resolution", resolution, "--spacing", spacing, "--out", folder / name]
    result = invoke("simulate", *arguments, "--force")
    assert result.exit_code == 0, result.stderr
    return folder / name


def test_agrees_with_the_record_of_a_run(tmp_path):
    """Fit and R factors as a run states them, and as found from the files: of the start and of an ensemble.

    The omit map of the start is the run's own, that of the ensemble only with ``--start``.
    """
    model, data = read_model(EXAMPLE / "model.cif"), read_reflections(EXAMPLE / "data.mtz")
    recipe = load_recipe("densemble")
    stretches = Stretches.of(model, Region.parse(LOOP), window=0)
    residues = [model.topology.residues[r].id for r in stretches.free]
    problem = CrystalProblem.of(stretches, omit_map(model.structure, residues, data), recipe.density)
    states = reference_states(EXAMPLE / "deposited.cif", stretches)
    start = start_ensemble(problem)
    moved = torch.stack([start.coords[0] + 0.3, torch.as_tensor(states["A"], dtype=torch.float32)])
    moved = torch.where(moved.isnan(), start.coords, moved)
    ensemble = Ensemble(start.topology, moved, torch.tensor([0.6049, 0.2951]), start.b_iso.repeat(2, 1) + 3)
    metrics, _ = map_fits(problem, {"start": start, "ensemble": ensemble}, states, "deposited.cif")
    structure = build_structure(model, ensemble, stretches.model_atoms)
    factors = r_factors(structure, data)
    path = write_ensemble(tmp_path, model, ensemble, stretches.model_atoms)
    options = ("--region", LOOP, "--reference", EXAMPLE / "deposited.cif")
    of_start = scored(EXAMPLE / "model.cif", EXAMPLE / "data.mtz", *options)
    assert of_start["rscc"] == pytest.approx(metrics.rscc["start"], abs=1e-5)
    assert of_start["cosine"] == pytest.approx(metrics.cosine["start"], abs=1e-5)
    found = scored(path, EXAMPLE / "data.mtz", *options, "--start", EXAMPLE / "model.cif")
    assert found["rscc"] == pytest.approx(metrics.rscc["ensemble"], abs=1e-3)
    assert found["cosine"] == pytest.approx(metrics.cosine["ensemble"], abs=1e-3)
    assert metrics.rscc["ensemble"] != pytest.approx(metrics.rscc["start"], abs=5e-3)
    assert found["r_work"] == pytest.approx(factors.r_work, abs=1e-5)
    assert found["r_free"] == pytest.approx(factors.r_free, abs=1e-5)
    assert found["voxels"] == metrics.voxels
    assert [round(state["occupancy"], 4) for state in found["states"]] == [0.67, 0.33]
    assert found["states"][0]["rmsd"]["B"] == pytest.approx(0.3 * 3**0.5, abs=2e-3)
    assert found["states"][1]["rmsd"]["A"] == pytest.approx(0.0, abs=2e-3)


def test_reflections_alone_know_the_whole_model(folder):
    """Error-free data of two states: perfect for the model that made them, and worse for one state."""
    true, one = (scored(folder / name, folder / "data.mtz") for name in ("loop.cif", "one.cif"))
    assert max(true["r_work"], true["r_free"]) < 0.01
    assert true["rscc"] > 0.97
    assert true["region"] is None
    assert true["states"] is None
    assert one["r_free"] > 0.05
    assert one["rscc"] < true["rscc"] - 0.01


def test_inputs_are_named_with_their_sums(folder):
    found = scored(folder / "one.cif", folder / "data.mtz", "--region", "A:178-182")
    assert found["schema"] == "densemble.score/1"
    expected = [InputFile.of(folder / name).model_dump() for name in ("one.cif", "data.mtz")]
    assert found["inputs"] == expected
    assert found["region"] == "A:178-182"


@pytest.mark.parametrize("model", ["loop.cif", "free.cif"])
def test_a_model_fits_its_own_density(folder, model):
    path = simulated(folder, model, "own.ccp4")
    for region in ((), ("--region", LOOP)):
        found = scored(folder / model, path, "--resolution", 2.0, *region)
        assert (found["rscc"], found["cosine"]) == pytest.approx((1.0, 1.0), abs=2e-5)
        assert found["r_work"] is found["r_free"] is None


def test_files_are_read_as_archives_have_them(folder):
    """Gzipped: a map is one also then, by its name or by its mark."""
    path = simulated(folder, "loop.cif", "plain.ccp4")
    for name in ("emd_1.map.gz", "unnamed.gz"):
        (folder / name).write_bytes(gzip.compress(path.read_bytes()))
        found = scored(folder / "loop.cif", folder / name, "--resolution", 2.0)
        assert found["rscc"] == pytest.approx(1.0, abs=2e-5)
    (folder / "cut.map.gz").write_bytes((folder / "emd_1.map.gz").read_bytes()[:40])
    assert "cut.map.gz: cannot be read" in sentence(run(folder / "loop.cif", folder / "cut.map.gz"))


def test_fit_to_a_map_over_the_region_alone(folder):
    """Correlations over the voxels within 2 Å of the region's atoms, calculated here."""
    path = simulated(folder, "loop.cif", "true.ccp4", resolution=2.5, spacing=0.7)
    calculated = read_map(simulated(folder, "one.cif", "calculated.ccp4", resolution=2.5, spacing=0.7))
    truth = read_map(path)
    noise = 0.2 * torch.randn(truth.grid.shape, generator=torch.Generator().manual_seed(0))
    noisy = DensityMap(truth.grid, 7 * (truth.values + noise) - 0.9)
    write_map(folder / "noisy.map", noisy)
    found = scored(folder / "one.cif", folder / "noisy.map", "--resolution", 2.5, "--region", "A:178-184")
    chain = gemmi.read_structure(str(folder / "one.cif"))[0]["A"]
    atoms = [a.pos.tolist() for residue in chain if 178 <= residue.seqid.num <= 184 for a in residue]
    points = truth.grid.points()
    near = np.isfinite(cKDTree(atoms).query(points, distance_upper_bound=2.0)[0])
    # the two boxes differ, but both lie at multiples of the spacing
    offset = np.rint(np.subtract(truth.grid.origin, calculated.grid.origin) / 0.7).astype(int)
    index = np.argwhere(near) + offset
    x = calculated.values.numpy()[tuple(index.T)].astype(float)
    y = noisy.values.numpy()[near].astype(float)
    assert found["rscc"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-4)
    assert found["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-4)
    assert found["rscc"] < 0.9


@pytest.mark.parametrize("group", ["P 21 21 21", "P 1"])
def test_a_map_of_the_crystal_with_its_symmetry(folder, loop, group):
    """The asymmetric unit anywhere: here the model lies across the edges of the map's cell."""
    coefficients = simulate(loop, d_min=2.0)
    data = gemmi.ComplexAsuData(
        loop.cell,
        coefficients.spacegroup,
        coefficients.hkl,
        coefficients.values.astype(np.complex64),
    )
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = data.transform_f_phi_to_map(sample_rate=4.0)
    ccp4.grid.spacegroup = gemmi.SpaceGroup(group)
    ccp4.update_ccp4_header(2)
    path = folder / "crystal.map"
    ccp4.write_ccp4_map(str(path))
    arguments = (folder / "loop.cif", path, "--resolution", 2.0, "--region", LOOP)
    if group == "P 1":  # nothing tells it from a box
        assert "does not hold" in sentence(run(*arguments))
    else:
        assert scored(*arguments)["rscc"] == pytest.approx(1.0, abs=1e-4)


def test_states_are_compared_with_those_of_the_reference(folder, loop):
    """Altloc A of the reference moved by 1.2 Å is 1.2 Å from A; B is B."""
    moved = loop.clone()
    for site in moved[0].all():
        if site.atom.altloc == "A":
            site.atom.pos = site.atom.pos + gemmi.Position(0, 0, 1.2)
    save(moved, folder / "moved.cif")
    path = simulated(folder, "loop.cif", "states.ccp4")
    options = ("--resolution", 2.0, "--region", LOOP, "--reference", folder / "loop.cif")
    found = scored(folder / "moved.cif", path, *options)
    a, b = found["states"]
    assert (a["altloc"], b["altloc"]) == ("A", "B")
    assert (a["occupancy"], b["occupancy"]) == pytest.approx((0.39, 0.61), abs=1e-6)
    assert a["rmsd"]["A"] == pytest.approx(1.2, abs=1e-3)
    assert b["rmsd"]["B"] == pytest.approx(0.0, abs=1e-6)
    assert b["bimodality"] == pytest.approx(1.0)
    assert a["bimodality"] == pytest.approx(1.2 / a["rmsd"]["B"] - 1, abs=1e-3)
    assert found["voxels"].endswith("in loop.cif, state A or B")
    one = scored(folder / "one.cif", path, *options)
    assert [state["altloc"] for state in one["states"]] == [""]


def test_tables(folder):
    path = simulated(folder, "loop.cif", "tables.ccp4")
    result = run(
        folder / "loop.cif", path, "--resolution", 2, "--region", LOOP, "--reference", folder / "one.cif"
    )
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == [LOOP, "RSCC", "cosine"]
    assert lines[2].split() == ["loop.cif", "1.000", "1.000"]
    altloc_b = next(line for line in lines if line.startswith("altloc B"))
    assert altloc_b.split() == ["altloc", "B", "0.61", "0.00", "-"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.cif", "data.mtz"), "no.cif: there is no such file"),
        (("loop.cif", "no.mtz"), "no.mtz does not exist"),
        (("loop.cif", "text.mtz"), "is not an MTZ or SF-mmCIF file"),
        (("loop.cif", "text.map", "--resolution", "2"), "is not a CCP4 or MRC map"),
        (("data.mtz", "data.mtz"), "data.mtz"),
        (("loop.cif", "data.mtz", "--region", "A:900-910"), "A:900 is not in the model"),
        (("loop.cif", "data.mtz", "--region", "loop"), "CHAIN:FIRST-LAST"),
        (("loop.cif", "data.mtz", "--resolution", "2"), "--resolution is for maps"),
        (("loop.cif", "data.mtz", "--reference", "one.cif"), "--reference needs --region"),
        (("loop.cif", "data.mtz", "--start", "one.cif"), "needs a --region"),
        (("loop.cif", "data.mtz", "--region", LOOP, "--reference", "no.cif"), "no.cif"),
        (("loop.cif", "data.mtz", "--region", LOOP, "--reference", "other.cif"), "none of the"),
        (("loop.cif", "data.mtz", "--region", LOOP, "--start", "no.cif"), "no.cif"),
        (("free.cif", "data.mtz"), "no unit cell"),
        (("wrong.cif", "data.mtz"), "cell"),
        (("wrong.cif", "crystal.ccp4", "--resolution", "2"), "has the cell"),
        (("free.cif", "crystal.ccp4", "--resolution", "2"), "no unit cell"),
        (("loop.cif", "box.ccp4"), "give --resolution"),
        (("loop.cif", "box.ccp4", "--resolution", "0"), "must be above zero"),
        (("loop.cif", "box.ccp4", "--resolution", "2", "--start", "one.cif"), "--start"),
        (("other.cif", "box.ccp4", "--resolution", "2"), "does not hold"),
        (("empty.cif", "box.ccp4", "--resolution", "2"), "cannot be compared"),
    ],
)
def test_bad_input(folder, loop, arguments, message):
    for name in ("text.mtz", "text.map"):
        (folder / name).write_text("nothing of the kind\n" * 100)
    if not (folder / "box.ccp4").exists():
        make_bad_models(folder, loop)
    assert message in sentence(run(*(folder / a if "." in a and a != LOOP else a for a in arguments)))


def make_bad_models(folder, loop):
    """Of another cell, in another place and chain, and with occupancies of zero; and two maps."""
    simulated(folder, "loop.cif", "box.ccp4", resolution=3.0, spacing=1.0)
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(np.random.default_rng(0).normal(size=(20, 24, 24)).astype(np.float32))
    ccp4.grid.set_unit_cell(loop.cell)
    ccp4.grid.spacegroup = loop.find_spacegroup()
    ccp4.grid.symmetrize_max()
    ccp4.update_ccp4_header(2)
    ccp4.write_ccp4_map(str(folder / "crystal.ccp4"))
    wrong = loop.clone()
    wrong.cell = gemmi.UnitCell(50, 42, 46, 90, 90, 90)
    save(wrong, folder / "wrong.cif")
    other, empty = loop.clone(), loop.clone()
    other[0]["A"].name = "B"
    for site in other[0].all():
        site.atom.pos = site.atom.pos + gemmi.Position(60, 0, 0)
    save(other, folder / "other.cif")
    for site in empty[0].all():
        site.atom.occ = 0.0
    save(empty, folder / "empty.cif")
