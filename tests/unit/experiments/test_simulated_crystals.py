"""Crystals that are simulated: amplitudes, errors and states, against the truth that is written with them."""

from dataclasses import asdict, replace

import gemmi
import numpy as np
import pytest
from small_crystal import OCCUPANCY, one_state, structure_factors, truth, write_crystal, write_data

from densemble.archives.cache import Cache
from densemble.archives.transfer import Client
from densemble.atoms import BACKBONE, Region
from densemble.crystal.scaling import r_factors
from densemble.errors import InputError
from densemble.experiments.crystals import ERROR, simulate_crystal
from densemble.experiments.files import Files
from densemble.experiments.jobs import Job
from densemble.experiments.preparation import prepare
from densemble.io.models import alternates, read_model
from densemble.io.reflections import read_reflections
from densemble.suites import Crystal, Variant

REGION = "A:179-186"
SCALE = 3.0  # of the small crystal's amplitudes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("small"))


@pytest.fixture
def simulate(small, tmp_path):
    def run(name="sim", *, data=small.data, **options):
        files = {"truth": tmp_path / f"{name}.cif", "data": tmp_path / f"{name}.mtz"}
        start = read_model(small.model)
        options.setdefault("occupancies", (0.6, 0.4))
        simulate_crystal(start, read_reflections(data), Region.parse(REGION), **options, **files)
        return files["truth"], read_reflections(files["data"])

    return run


def backbone(path):
    topology = read_model(path).topology
    residues = [r for s in Region.parse(REGION).resolve(topology) for r in s]
    own = topology.subset(topology.atoms_of(residues))
    return own.subset(np.flatnonzero(np.isin(own.names, BACKBONE)))


def apart(x, y):
    return np.sqrt(((x - y) ** 2).sum(axis=1).mean())


def test_amplitudes_are_those_of_all_states_in_their_solvent(small, simulate, tmp_path):
    """Against gemmi's sums over the file of the truth, in absolute units; the real data have 2 % noise."""
    write_data(one_state(truth()), tmp_path / "exact.mtz")
    occupancies = tuple(OCCUPANCY.values())
    file, data = simulate(
        data=tmp_path / "exact.mtz", states=small.reference, occupancies=occupancies, seed=3
    )
    hkl, f = structure_factors(gemmi.read_structure(str(file)))
    expected = dict(zip(map(tuple, hkl.tolist()), SCALE * np.abs(f), strict=True))
    calculated = np.array([expected[tuple(index)] for index in data.hkl.tolist()])
    assert np.abs(data.f - calculated).sum() / data.f.sum() < 0.05
    hkl, f = structure_factors(one_state(truth()))
    other = dict(zip(map(tuple, hkl.tolist()), SCALE * np.abs(f), strict=True))
    off = np.array([other[tuple(index)] for index in data.hkl.tolist()])
    assert np.abs(data.f - off).sum() / data.f.sum() > 0.1, "one state alone is something else"


def test_errors_are_as_large_as_those_against_the_real_data(small, simulate):
    """So R factors of the truth against what was simulated are those of the start against real data."""
    real = read_reflections(small.data)
    file, data = simulate(occupancies=(1.0,))
    start = r_factors(read_model(small.model).structure, real)
    found = r_factors(gemmi.read_structure(str(file)), data)
    assert start.r_work > 0.1
    assert found.r_work == pytest.approx(start.r_work, rel=0.1)
    assert np.array_equal(data.free, real.free)
    assert np.array_equal(data.hkl, real.hkl)
    assert data.sigma == pytest.approx(real.sigma, rel=1e-5)


def test_states_that_are_made_are_apart_and_the_start_is_none_of_them(small, simulate):
    file, _ = simulate(occupancies=(0.5, 0.3, 0.2), apart=1.2)
    topology = backbone(small.model)
    found = alternates(file, topology)
    assert {name: round(state.occupancy, 3) for name, state in found.items()} == {
        "A": 0.5,
        "B": 0.3,
        "C": 0.2,
    }
    (start,) = alternates(small.model, topology).values()
    coords = [state.coords for state in found.values()]
    distances = [apart(x, y) for i, x in enumerate(coords) for y in coords[:i]]
    assert min(distances) > 1.2
    assert 0.05 < apart(coords[0], start.coords) < 2 * ERROR
    waters = {r.id for r in read_model(small.model).topology.residues if r.kind == "water"}
    kept = {r.id for r in read_model(file).topology.residues if r.kind == "water"}
    assert kept < waters, "what stands where a state stands has made room, and nothing else has"


def test_states_of_a_file_are_near_those_of_the_file(small, simulate):
    """State A has copies of the start for neighbours in the small cell, and makes room."""
    file, _ = simulate(states=small.reference)
    topology = backbone(small.model)
    for name, state in alternates(small.reference, topology).items():
        moved = apart(alternates(file, topology)[name].coords, state.coords)
        assert 0.05 < moved < {"A": 0.8, "B": 2 * ERROR}[name]


def test_the_same_seed_gives_the_same_crystal(simulate, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(name, seed=seed, d_min=3.0)
    first, same, other = ((tmp_path / f"{name}.cif").read_text() for name in "abc")
    assert first.replace("a.cif", "") == same.replace("b.cif", "")
    assert first != other
    f = {name: read_reflections(tmp_path / f"{name}.mtz") for name in "abc"}
    assert np.array_equal(f["a"].f, f["b"].f)
    assert not np.array_equal(f["a"].f, f["c"].f)
    assert f["a"].d_min == pytest.approx(3.0, abs=0.02)
    assert f["a"].d_min >= 3.0


def test_what_cannot_be_made_is_said(small, simulate, monkeypatch):
    with pytest.raises(InputError, match=r"truth\.cif: 2 altlocs in A:179-186, and 3 occupancies"):
        simulate(states=small.reference, occupancies=(0.5, 0.3, 0.2))
    monkeypatch.setattr("densemble.experiments.crystals.TRIALS", 2)
    with pytest.raises(InputError, match="no 3 states 30 Å apart"):
        simulate(occupancies=(0.5, 0.3, 0.2), apart=30.0)


def crystal_job(**changes) -> Job:
    data = {"like": "data:data.mtz", "occupancies": (0.6, 0.4), "resolution": 3.0} | changes
    case = Crystal(
        id="c",
        printed="c",
        table="1",
        variants=("v",),
        model="data:start.cif",
        data=data,
        site={"chain": "A", "first": 179, "last": 186, "numbering": "author"},
    )
    return Job(case, Variant(id="v", prior="gaussian", recipe="densemble", members=2), seed=7)


def test_a_case_is_made_once_and_anew_when_it_has_changed(small, tmp_path):
    files = Files(tmp_path / "f", small.model.parent, Cache(tmp_path / "c", Client(offline=True)))
    job, out = crystal_job(), tmp_path / "out"
    task = prepare(job, files, out)
    assert task.settings.data == out / "inputs/c/data.mtz"
    assert task.settings.model == small.model
    assert task.reference == out / "inputs/c/truth.cif"
    assert task.reference not in asdict(task.settings).values(), "the truth only judges"
    made = task.settings.data.stat().st_mtime_ns
    renamed = replace(job, case=job.case.model_copy(update={"printed": "another name"}))
    for same in (job, renamed):
        assert prepare(same, files, out).settings.data.stat().st_mtime_ns == made
    other = crystal_job(occupancies=(0.7, 0.3))
    assert other.key != job.key
    changed = prepare(other, files, out)
    assert changed.settings.data.stat().st_mtime_ns > made
    (most, _) = alternates(changed.reference, backbone(small.model)).values()
    assert most.occupancy == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"like": "data:d.mtz", "occupancies": (0.5, 0.4)}}, "add up to 0.9"),
        (
            {"data": {"like": "data:d.mtz", "occupancies": (1.0,)}, "reference": "data:r.cif"},
            "leave reference",
        ),
        ({"data": {"like": "data:d.mtz", "occupancies": (1.0,)}, "map": "as-phased"}, "have no phases"),
    ],
)
def test_what_is_wrong_with_a_simulated_case_is_said(changes, said):
    values = crystal_job().case.model_dump() | changes
    with pytest.raises(ValueError, match=said):
        Crystal.model_validate(values)
