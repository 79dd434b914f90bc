"""The whole flow on a small crystal whose truth is known: files in, files out."""

import hashlib
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from command_line import invoke
from small_crystal import LOOP, outcome, read_columns, truth, write_mtz

from densemble.crystal.scaling import bulk_solvent, fit_scale, model_factors, r_factors
from densemble.io.finished import read_run
from densemble.io.maps import read_map
from densemble.io.models import read_model
from densemble.io.reflections import read_reflections
from densemble.pipeline import run_xray

NUMBERS = range(179, 187)


def atoms(path: Path, *, inside: bool | None = None) -> list[tuple]:
    """Everything that a file says of its atoms, of the region or of the rest."""
    return [
        (
            chain.name,
            str(residue.seqid),
            residue.name,
            atom.name,
            atom.altloc,
            atom.occ,
            tuple(atom.pos.tolist()),
            atom.b_iso,
            tuple(atom.aniso.elements_pdb()),
        )
        for chain in gemmi.read_structure(str(path))[0]
        for residue in chain
        for atom in residue
        if inside is None or inside == (chain.name == "A" and residue.seqid.num in NUMBERS)
    ]


def test_the_crystal_is_what_it_is_said_to_be(crystal):
    """Amplitudes summed by gemmi come back from the package's own scaling: the solvent and 2 % noise."""
    data = read_reflections(crystal.data)
    found = r_factors(truth(), data)
    assert found.r_work < 0.03
    assert found.r_free < 0.03
    solvent = bulk_solvent(data, fit_scale(data, *model_factors(truth(), data)))
    assert (solvent.density, solvent.b) == pytest.approx((0.35, 50.0), rel=0.05)
    assert r_factors(read_model(crystal.model).structure, data).r_free > 0.15


def test_result_json_follows_the_schema(finished, crystal):
    written = json.loads((finished.folder / "result.json").read_text())
    assert written.keys() == {
        *("schema", "inputs", "settings", "seed", "versions", "device", "timings", "region"),
        *("metrics", "r_factors", "members"),
    }
    assert written["schema"] == "densemble.result/1"
    assert {(f["name"], f["sha256"]) for f in written["inputs"]} == {
        (f.name, hashlib.sha256(f.read_bytes()).hexdigest())
        for f in (crystal.model, crystal.data, crystal.reference)
    }
    assert written["region"] == LOOP
    assert (written["seed"], written["settings"]["members"]) == (1, 3)
    assert written["versions"].keys() == {"densemble", "torch", "gemmi", "numpy", "scipy"}
    for metric in ("rscc", "cosine"):
        values = written["metrics"][metric]
        assert values.keys() == {"start", "none", "each", "ensemble"}
        assert all(-1 <= value <= 1 for value in values.values())
    assert set(written["r_factors"]) >= {"start", "ensemble", "none", "each"}
    assert all(0 < r["r_work"] < 1 and 0 < r["r_free"] < 1 for r in written["r_factors"].values())
    assert [m["id"] for m in written["members"]] == [1, 2, 3]
    for member in written["members"]:
        assert member["selected"] == (member["weight"] > 0)
        assert -1 <= member["bimodality"] <= 1
        assert member["rmsd"].keys() == {"A", "B"}
    assert sum(m["weight"] for m in written["members"]) == pytest.approx(1, abs=1e-6)
    assert read_run(finished.folder) == finished.result


def test_a_guide_run_alone_stands_under_its_own_name_and_as_the_ensemble(crystal, tmp_path):
    run_xray(crystal.settings(guides=("each",)), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    for values in (*written["metrics"].values(), written["r_factors"]):
        if isinstance(values, dict):
            assert values.keys() == {"start", "each", "ensemble"}
            assert values["each"] == values["ensemble"] != values["start"]
    assert all("rmsd" not in member and "bimodality" not in member for member in written["members"])
    assert written["settings"]["recipe_values"]["noise"]["steps"] > 0


def test_start_is_judged_as_its_files_say(finished, crystal):
    """R factors of the start do not come from any run."""
    found = r_factors(read_model(crystal.model).structure, read_reflections(crystal.data))
    recorded = finished.result.r_factors.start
    assert (recorded.r_work, recorded.r_free) == (found.r_work, found.r_free)


def test_r_factors_are_those_of_the_file_written(finished, crystal):
    found = r_factors(
        gemmi.read_structure(str(finished.folder / "ensemble.cif")), read_reflections(crystal.data)
    )
    recorded = finished.result.r_factors.ensemble
    assert (recorded.r_work, recorded.r_free) == pytest.approx((found.r_work, found.r_free), abs=1e-5)


def test_ensemble_has_altlocs_in_the_region_and_nothing_else_changed(finished, crystal):
    written = finished.folder / "ensemble.cif"
    assert atoms(written, inside=False) == atoms(crystal.model, inside=False)
    kept = [m for m in finished.result.members if m.selected]
    assert len(kept) == 2, "one member alone has no altlocs: choose another seed"
    sites: dict[tuple, dict[str, float]] = {}
    for _, number, residue, name, altloc, occupancy, *_ in atoms(written, inside=True):
        sites.setdefault((number, residue, name), {})[altloc] = occupancy
    start = {(number, residue, name) for _, number, residue, name, *_ in atoms(crystal.model, inside=True)}
    assert sites.keys() == start
    for by_letter in sites.values():
        assert sorted(by_letter) == ["A", "B"]
        assert sum(by_letter.values()) == pytest.approx(
            1, abs=1e-6
        )  # gemmi keeps occupancies in single precision
    first = next(iter(sites.values()))
    assert sorted(first.values()) == pytest.approx(sorted(m.weight for m in kept), abs=0.006)


def test_altlocs_are_the_members_kept(finished):
    ensemble = finished.folder / "ensemble.cif"
    kept = [m.id for m in finished.result.members if m.selected]
    alone = {}
    for i in kept:
        member = finished.folder / "members" / f"member_{i:02d}.cif"
        assert {a[4:6] for a in atoms(member)} == {("\0", 1.0)}
        alone[i] = read_model(member).coords
    found = [read_model(ensemble, altloc=letter).coords for letter in "AB"]
    for coords in found:
        assert sum(np.array_equal(coords, other) for other in alone.values()) == 1
    assert not np.array_equal(*found)


def test_region_moved_and_its_anchors_hold(finished, crystal):
    """Members leave the start; bonds to the residues on either side stay bonds."""
    start = read_model(crystal.model)
    index = start.topology.atom_index
    number = {r.id.number: i for i, r in enumerate(start.topology.residues) if r.id.chain == "A"}
    for file in sorted((finished.folder / "members").iterdir()):
        member = read_model(file)
        assert member.topology.names == start.topology.names
        assert np.abs(member.coords - start.coords).max() > 0.5
        for left, right in ((178, 179), (186, 187)):
            bond = member.coords[index[number[left], "C"]] - member.coords[index[number[right], "N"]]
            assert np.linalg.norm(bond) == pytest.approx(1.33, abs=0.35)


def test_map_is_readable_and_where_the_atoms_are(finished):
    """By gemmi's own reading of the header, the truth's atoms fit best when they are not shifted."""
    ccp4 = gemmi.read_ccp4_map(str(finished.folder / "map.ccp4"))
    values = np.array(ccp4.grid, copy=False)
    origin = np.array([ccp4.header_float(w) for w in (50, 51, 52)])
    spacing = np.array([ccp4.header_float(w) for w in (11, 12, 13)]) / values.shape
    axes = [o + h * np.arange(n) for o, h, n in zip(origin, spacing, values.shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    loop = [atom for residue in truth()[0]["A"] if residue.seqid.num in NUMBERS for atom in residue]
    places = np.array([a.pos.tolist() for a in loop])
    near = np.linalg.norm(points - places, axis=-1).min(axis=-1) < 3.0
    heights = np.array([a.occ * a.element.atomic_number for a in loop])

    def fit(shift) -> float:
        squares = ((points[near] - places - np.asarray(shift)) ** 2).sum(axis=-1)
        return np.corrcoef((heights * np.exp(-squares / 1.2)).sum(axis=-1), values.ravel()[near])[0, 1]

    here = fit((0, 0, 0))
    assert here > 0.55
    for axis in np.eye(3):
        assert here > max(fit(0.4 * axis), fit(-0.4 * axis))
    assert np.array_equal(read_map(finished.folder / "map.ccp4").values.numpy(), values)


def test_guidance_explains_the_map_better_than_none(finished):
    rscc = finished.result.metrics.rscc
    assert rscc["ensemble"] > rscc["none"] + 0.1
    assert rscc["each"] > rscc["none"] + 0.1


def test_same_seed_same_result_whatever_else_was_run(finished, crystal, tmp_path):
    """The last guide alone, in another folder and without a reference, gives the same bits."""
    settings = crystal.settings(guides=("ensemble",), steps=finished.settings.steps)
    again = run_xray(settings, tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(finished.folder)
    assert again.r_factors.ensemble == finished.result.r_factors.ensemble
    assert [m.weight for m in again.members] == [m.weight for m in finished.result.members]
    assert [m.bimodality for m in again.members] == [None] * 3


def test_all_numbers_repeat(finished, crystal, tmp_path):
    again = run_xray(finished.settings, tmp_path / "again", reference=crystal.reference)
    assert outcome(tmp_path / "again") == outcome(finished.folder)
    assert again.model_dump(exclude={"timings"}) == finished.result.model_dump(exclude={"timings"})


def test_another_seed_gives_other_members(finished, crystal, tmp_path):
    settings = crystal.settings(guides=("ensemble",), steps=finished.settings.steps, seed=2)
    run_xray(settings, tmp_path / "other")
    for name, data in outcome(tmp_path / "other").items():
        assert (data == outcome(finished.folder)[name]) == (name == "map.ccp4"), name


def scrambled(source: Path, path: Path, *, free: bool) -> Path:
    """The data with the amplitudes of one set, free or working, in another order."""
    hkl, columns = read_columns(source)
    amplitude = columns["FP"][1]
    chosen = np.flatnonzero((columns["FREE"][1] == 0) == free)
    amplitude[chosen] = np.random.default_rng(3).permutation(amplitude[chosen])
    write_mtz(path, hkl, columns)
    return path


@pytest.mark.parametrize("kind", ["omit", "2fofc"])
def test_free_amplitudes_influence_r_free_and_nothing_else(crystal, tmp_path, kind):
    other = scrambled(crystal.data, tmp_path / "other.mtz", free=True)
    results = [
        run_xray(crystal.settings(data=data, map=kind), tmp_path / data.stem)
        for data in (crystal.data, other)
    ]
    assert outcome(tmp_path / "data") == outcome(tmp_path / "other")
    assert results[0].metrics == results[1].metrics
    assert results[0].members == results[1].members
    for subject in ("start", "ensemble"):
        before, after = (getattr(r.r_factors, subject) for r in results)
        assert before.r_work == after.r_work
        assert after.r_free > before.r_free + 0.1


def test_working_amplitudes_do_influence_the_result(crystal, tmp_path):
    """The counterpart of the test above: it can tell."""
    other = scrambled(crystal.data, tmp_path / "other.mtz", free=False)
    run_xray(crystal.settings(data=other), tmp_path / "other")
    run_xray(crystal.settings(), tmp_path / "data")
    assert outcome(tmp_path / "other")["map.ccp4"] != outcome(tmp_path / "data")["map.ccp4"]


def test_map_of_another_program_gives_an_ensemble(crystal, tmp_path):
    """With the truth's phases in the file the map is that of the truth, not of the start."""
    result = run_xray(crystal.settings(map="as-phased"), tmp_path / "out", reference=crystal.reference)
    assert (tmp_path / "out" / "ensemble.cif").is_file()
    omit = run_xray(crystal.settings(map="omit"), tmp_path / "omit", reference=crystal.reference)
    assert result.metrics.rscc["start"] != omit.metrics.rscc["start"]


def test_force_replaces_its_own_files_and_no_others(crystal, tmp_path):
    out = tmp_path / "out"
    run_xray(crystal.settings(), out)
    (out / "notes.txt").write_text("mine")
    (out / "members" / "picture.png").write_bytes(b"mine too")
    run_xray(crystal.settings(members=2, seed=4), out, force=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "members" / "picture.png").read_bytes() == b"mine too"
    assert sorted(f.name for f in (out / "members").glob("*.cif")) == ["member_01.cif", "member_02.cif"]
    run_xray(crystal.settings(members=2, seed=4), tmp_path / "fresh")
    for name, data in outcome(tmp_path / "fresh").items():
        assert (out / name).read_bytes() == data
    assert sorted(outcome(out).keys() - outcome(tmp_path / "fresh").keys()) == [
        "members/picture.png",
        "notes.txt",
    ]


def test_command_line_does_what_the_api_does(finished, crystal, tmp_path):
    arguments = [
        *("xray", crystal.model, crystal.data, "--region", LOOP, "--members", 3, "--keep", 2, "--quiet"),
        *("--prior", "gaussian", "--steps", 12, "--seed", 1, "--recipe", crystal.recipe, "--no-states"),
        *("--out", tmp_path / "out"),
    ]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.exception
    assert outcome(tmp_path / "out") == outcome(finished.folder)
    r_free = f"{finished.result.r_factors.ensemble.r_free:.4f}"
    assert r_free in done.output
    assert str(tmp_path / "out") in done.output


def test_quiet_run_says_its_warnings_and_no_more(crystal, tmp_path):
    """The start has both states; that one was chosen is for the user to know, how the run goes on is not."""
    words = [crystal.reference, crystal.data, "--region", LOOP, "--recipe", crystal.recipe, "--no-states"]
    words += ["--prior", "gaussian", "--members", 1, "--steps", 2, "--out", tmp_path / "out"]
    quiet = invoke("xray", *words, "--quiet")
    assert quiet.exit_code == 0, quiet.stderr
    (warning,) = quiet.stderr.splitlines()
    assert warning.startswith("truth.cif: residues with altlocs keep one conformer: ")
    aloud = invoke("xray", *words, "--force")
    assert warning in aloud.stderr.splitlines()
    assert "calculating the omit map" in aloud.stderr
