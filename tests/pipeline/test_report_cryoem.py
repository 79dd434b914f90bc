"""The report of a fit to a cryo-EM map, from records made by hand beside real files."""

import json
import re
from pathlib import Path

import gemmi
import numpy as np
import pytest
from small_flexible import LOOP, write_flexible
from small_state import SmallState, write_state
from small_state_result import GEOMETRY, MAP
from test_report_files import Page

from densemble.io.maps import read_map, write_map
from densemble.io.model_results import (
    Evidence,
    FinalModel,
    Part,
    Refined,
    Refinement,
    State,
    States,
    Validation,
)
from densemble.io.models import read_model
from densemble.io.output import InputFile, write_text
from densemble.io.results import Member, Metrics
from densemble.io.state_results import (
    Distance,
    Fit,
    Mixture,
    Placement,
    RegionRecord,
    StateMember,
    StateResult,
    write_models,
    write_residues,
    write_state_result,
)
from densemble.report.command import command_of
from densemble.report.state_page import headline
from densemble.report.viewer import unpacked
from densemble.report.writing import write_report

pytest.importorskip("molstar_cli", reason="the 3D view of a report is drawn by the package molstar-cli")


def fit(value: float, held_out: float | None) -> Fit:
    return Fit(correlation=value, rscc=value + 0.1, held_out_rscc=held_out, q_score=value - 0.2, fsc_05=4.2)


def record(
    files: list[Path], settings: dict, *, held: tuple[float, float] | None, region=None
) -> StateResult:
    before, after = held or (None, None)
    members = [
        StateMember(model=1, sample=2, fit=fit(0.71, after), geometry=GEOMETRY),
        StateMember(model=2, sample=1, fit=fit(0.55, after), geometry=GEOMETRY),
    ]
    return StateResult(
        inputs=[InputFile.of(file) for file in files],
        settings=settings,
        seed=3,
        versions={"densemble": "0.1.0"},
        device="cpu, 1 threads",
        timings={"samples": 12.0},
        messages=["the map is masked"],
        map=MAP,
        placement=Placement(docked=False, rotation=np.eye(3).tolist(), translation=[0.0, 0.0, 0.0]),
        start=fit(0.3, before),
        ensemble=Mixture(members=[1, 2], weights=[0.7, 0.3], correlation=0.73, best_alone=0.71),
        region=region,
        members=members,
    )


def settings_of(state: SmallState) -> dict:
    return {
        "map": state.map.name,
        "model": state.placed.name,
        "resolution": 4.0,
        "placed": True,
        "fold": None,
        "half1": None,
        "region": None,
        "seed": 3,
        "recipe_values": {"name": "small"},
    }


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> SmallState:
    return write_state(tmp_path_factory.mktemp("state"))


@pytest.fixture
def folder(state, tmp_path) -> Path:
    """The truth and the start as the two models of a run."""
    start, truth = read_model(state.placed), read_model(state.truth)
    write_models(tmp_path / "models.cif", start, [truth.coords, start.coords])
    write_models(tmp_path / "start.cif", start, [start.coords])
    write_map(tmp_path / "map.ccp4", read_map(state.map))
    write_residues(
        tmp_path / "residues.csv",
        [
            {"residue": f"A:{n}", "name": "ALA", "rscc": 0.9 - n / 1000, "q_score": float("nan")}
            for n in range(60, 110)
        ],
    )
    write_text(tmp_path / "trace.csv", "sigma,density,batch\n9,1,1\n1,5,1\n9,2,2\n1,6,2\n")
    write_state_result(tmp_path, record([state.map, state.placed], settings_of(state), held=None))
    return tmp_path


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_best_model_is_shown_first_and_the_others_can_be(folder, state):
    write_report(folder)
    found = page(folder)
    assert found.open == []
    scene = json.loads(found.scripts["scene"])
    assert [(s["name"], s["shown"]) for s in scene["states"]] == [
        ("model 1", True),
        ("model 2", False),
        ("start", False),
    ]
    text = unpacked(found.scripts["data-state0"]).decode()
    drawn = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    assert len(drawn) == 1
    coords = np.array([s.atom.pos.tolist() for s in drawn[0].all()])
    np.testing.assert_allclose(coords, read_model(state.truth).coords, atol=2e-3)
    assert scene["around"] is None


def test_without_a_half_map_nothing_is_called_held_out(folder):
    write_report(folder)
    text = page(folder).text
    assert "nothing was held out of the fit" in text
    assert "no independent check" in text
    assert "half map 2" not in text
    assert "agreement with it is no validation" in text
    assert "fits the map better than the start" in text
    assert "The map is masked" in text


@pytest.mark.parametrize(("after", "words"), [(0.8, "agrees better than"), (0.35, "agrees no better than")])
def test_verdict_is_that_of_the_half_map_held_out(folder, state, after, words):
    write_state_result(folder, record([state.map], settings_of(state), held=(0.4, after)))
    write_report(folder)
    text = page(folder).text
    assert f"{words} the start with the half map that the fit never saw" in text
    assert f"0.400 to {after:.3f}" in text


def test_command_does_the_same_again(state):
    result = record([state.map, state.placed], settings_of(state), held=None)
    assert command_of(result) == (
        f"densemble cryoem {state.map.name} --model {state.placed.name} --resolution 4.0 --placed --seed 3 "
        "--out again"
    )


def test_distances_from_the_known_structure_name_the_selection(folder, state):
    known = Distance(ca_rmsd=4.1, ca_rmsd_in_place=4.2, all_atom_rmsd=4.3, tm_score=0.44, local_rmsd=7.89)
    result = record([state.map], settings_of(state), held=None).model_copy(update={"start_reference": known})
    for selection in (None, "A:95-100"):
        write_state_result(folder, result.model_copy(update={"selection": selection}))
        write_report(folder, force=True)
        text = page(folder).text
        assert "0.440" in text
        assert ("7.89" in text) == (selection is not None)
        assert ("the backbone of A:95-100" in text) == (selection is not None)
        assert ("--selection A:95-100 --reference" in text) == (selection is not None)


def test_scripts_show_the_best_alone(folder):
    write_report(folder)
    chimerax, pymol, coot = ((folder / f"view{end}").read_text() for end in (".cxc", ".pml", "_coot.py"))
    assert "show #1.1 models" in chimerax
    assert "show #1.2 models" not in chimerax
    assert "enable fit_0001" in pymol
    assert "disable fit_0002" in pymol
    compile(coot, "view_coot.py", "exec")
    for text in (chimerax, pymol, coot):
        assert set(re.findall(r"[\w.]+\.(?:cif|ccp4)", text)) == {"models.cif", "start.cif", "map.ccp4"}


def test_a_region_s_conformations_are_shown_in_what_is_held(tmp_path):
    files = write_flexible(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "ensemble.cif").write_bytes(files.truth.read_bytes())
    write_map(out / "map.ccp4", read_map(files.both))
    fits = {"start": 0.7, "ensemble": 0.9}
    region = RegionRecord(
        region=LOOP,
        metrics=Metrics(voxels="somewhere", rscc=fits, cosine=fits),
        held_out={"start": 0.6, "ensemble": 0.85},
        b_around=20.0,
        b_iso=25.0,
        members=[
            Member(id=1, selected=True, weight=0.6, rscc=0.8),
            Member(id=2, selected=True, weight=0.4, rscc=0.7),
            Member(id=3, selected=False, weight=0.0, rscc=0.2),
        ],
    )
    settings = {
        "map": "both.ccp4",
        "half1": "half1.ccp4",
        "half2": "half2.ccp4",
        "region": LOOP,
        "ensemble": True,
    }
    write_state_result(out, record([files.both], settings, held=(0.6, 0.7), region=region))
    write_report(out)
    found = page(out)
    scene = json.loads(found.scripts["scene"])
    assert [s["name"] for s in scene["states"]] == ["A", "B"]
    assert "data-around" in found.ids()
    assert f"Two conformations of {LOOP} together explain the map there." in found.text
    assert "0.600 to 0.850, one state and ensemble" in found.text
    assert "0.900 correlation with the map that was fitted, over the region; one state 0.700" in found.text
    assert "member 3" not in found.text


def region_of(model: FinalModel | None, failure: str | None = None) -> RegionRecord:
    fits = {"start": 0.7, "ensemble": 0.9}
    return RegionRecord(
        region=LOOP,
        metrics=Metrics(voxels="somewhere", rscc=fits, cosine=fits),
        b_around=20.0,
        b_iso=25.0,
        members=[Member(id=1, selected=True, weight=1.0, rscc=0.8)],
        model=model,
        model_failure=failure,
    )


def model_of(occupancies: list[float], held: tuple[float, float] | None, error: float | None) -> FinalModel:
    letters = "AB" if len(occupancies) > 1 else ("",)
    evidence = [
        Evidence(
            states=n, fit=50.0 * n, held_out=None if held is None else 30.0 * n, chosen=n == len(letters)
        )
        for n in (1, 2)
    ]
    states = [
        State(label=x, occupancy=o, members=[i])
        for i, (x, o) in enumerate(zip(letters, occupancies, strict=True))
    ]
    refined = Refinement(
        cycles=4,
        start=Refined(rscc=(0.7, 0.8)),
        model=Refined(rscc=(0.85, 0.9)),
        held_out_rscc=held,
        held_out_error=error,
    )
    part = Part(region=LOOP, states=states, evidence=evidence)
    validation = {name: Validation(atoms=100, clashscore=c) for name, c in (("start", 1.0), ("model", 31.0))}
    return FinalModel(
        states=States(rule="by the other half map", coordinate_error=0.6, parts=[part]),
        refinement=refined,
        validation=validation,
    )


@pytest.mark.parametrize(
    ("occupancies", "held", "error", "said", "tile"),
    [
        ([0.6, 0.4], (0.80, 0.85), 0.01, f"The data support two states of {LOOP}.", "yes"),
        (
            [0.6, 0.4],
            (0.80, 0.81),
            0.01,
            "do not clearly support the second: keep to one state",
            "not clearly",
        ),
        ([0.6, 0.4], (0.80, 0.79), 0.01, "do not support the second: keep to one state", "no"),
        ([0.6, 0.4], None, None, f"The data that were fitted support two states of {LOOP}.", "unknown"),
        ([1.0], (0.80, 0.81), 0.01, f"One state of {LOOP} is enough", "unchanged: one state"),
    ],
)
def test_the_headline_says_how_many_states_and_whether_the_other_half_map_agrees(
    occupancies, held, error, said, tile
):
    region = region_of(model_of(occupancies, held, error))
    found = headline(record([], {}, held=None, region=region))
    assert said in found.answer[0]
    number, _, agreement = found.tiles
    assert number.value == ("2" if "support two states" in said else "1")
    assert ("2 in alternative.cif" in number.note) == ("keep to one state" in said)
    assert ("had to explain the other half map better" in number.note) == (held is not None)
    assert "veto" not in number.note, "that is what free reflections have"
    assert agreement.value == tile
    assert ("0.800 to" in agreement.note) == (held is not None)
    text = " ".join(found.answer)
    assert "clash score 31.0, start 1.0" in text
    assert ("no independent check" in text) == (held is None)


def test_why_there_is_no_model_is_in_the_headline():
    found = headline(record([], {}, held=None, region=region_of(None, "LinAlgError: Singular matrix")))
    assert "could not be told: LinAlgError: Singular matrix" in " ".join(found.answer)


def test_the_model_is_what_is_shown_where_there_is_one(tmp_path):
    files = write_flexible(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.cif").write_bytes(files.truth.read_bytes())
    (out / "ensemble.cif").write_bytes(files.start.read_bytes())
    region = region_of(model_of([0.61, 0.39], (0.80, 0.85), 0.01))
    write_state_result(out, record([files.both], {"map": "both.ccp4"}, held=None, region=region))
    write_report(out)
    found = page(out)
    assert [s["name"] for s in json.loads(found.scripts["scene"])["states"]] == ["A", "B"]
    assert "by the other half map" in found.text
    assert "0.850 → 0.900" in found.text
    assert "Clashes are per 1000 atoms" in found.text
