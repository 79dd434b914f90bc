"""The report of a finished run: what is in it, what it is made of, and that it needs nothing else."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import gemmi
import numpy as np
import pytest
from click.testing import CliRunner
from small_crystal import LOOP
from small_report import OCCUPANCY, final_model, write_finished

from densemble.atoms import Region
from densemble.cli import main
from densemble.errors import InputError
from densemble.io.finished import read_run
from densemble.io.maps import read_map
from densemble.io.model_results import MODEL_FILE
from densemble.io.models import alternates, read_model
from densemble.io.output import write_record
from densemble.io.results import Member, member_file
from densemble.report.crystal_page import _between_found
from densemble.report.folder import RunFolder
from densemble.report.scene import scene_of
from densemble.report.viewer import unpacked
from densemble.report.volume import CARVED, STEPS
from densemble.report.writing import OWN_REPORT_FILES, write_report

pytest.importorskip("molstar_cli", reason="the 3D view of a report is drawn by the package molstar-cli")

RESIDUES = [f"A:{number}" for number in range(179, 187)]
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """What is in a page: its elements, its text, and what scripts hold by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[self.elements[-1][1].get("id") or ""] = data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]


@pytest.fixture(scope="module")
def bare(finished, tmp_path_factory) -> Path:
    """A run of today, without a final model."""
    folder = tmp_path_factory.mktemp("bare") / "out"
    shutil.copytree(finished.folder, folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def full(finished, crystal, tmp_path_factory) -> Path:
    """A run with everything that a report can show; its model is the truth."""
    folder = tmp_path_factory.mktemp("full") / "out"
    write_finished(finished.folder, crystal.reference, LOOP, folder, residues=RESIDUES)
    write_report(folder)
    return folder


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("which", ["bare", "full"])
def test_page_is_whole_and_asks_the_network_for_nothing(which, request):
    found = page(request.getfixturevalue(which))
    assert found.open == []
    assert len(found.ids()) == len(set(found.ids()))
    for tag, attrs in found.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attrs.get(name)
            if value is None:
                continue
            local = re.fullmatch(
                r"[a-z_]+\.(png|cxc|pml|py)|data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", value
            )
            assert local, f"{tag} {name}={value[:60]}"
        assert tag not in ("link", "iframe", "object", "base")
    (policy,) = [a["content"] for t, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = re.search(
        r"<style>(.*?)</style>", (request.getfixturevalue(which) / "report.html").read_text(), re.S
    )
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_page_can_be_read_without_seeing_it(full):
    found = page(full)
    assert next(a for t, a in found.elements if t == "html")["lang"] == "en"
    assert all(a.get("alt") for t, a in found.elements if t == "img")
    tables = [a for t, a in found.elements if t == "table"]
    assert tables
    assert all(a["aria-labelledby"] in found.ids() for a in tables)
    assert {a.get("scope") for t, a in found.elements if t == "th"} == {"col", "row"}
    ranges = [a for t, a in found.elements if t == "input" and a["type"] == "range"]
    assert len(ranges) == 1
    assert "e/Å³" in ranges[0]["aria-label"]


def test_headline_says_how_many_how_sure_and_whether_held_out_data_agree(full, bare):
    text = page(full).text
    assert f"The data support two states of {LOOP}." in text
    assert "agrees better than the start with data that the fit never saw" in text
    assert "0.55–0.66" in text
    assert "R-free −0.0078: 0.1919 to 0.1841" in text
    kept = sum(m.selected for m in read_run(bare).members)
    text = page(bare).text
    assert kept == 2
    assert f"Two conformations of {LOOP} together explain the map." in text
    assert "How many states the data support was not tested" in text
    assert "not tested weights" in text


def test_a_result_that_is_no_better_is_said_to_be_none(bare, tmp_path):
    """The small run is too short to be better; the page must not hide that."""
    factors = read_run(bare).r_factors
    assert factors.ensemble.r_free > factors.start.r_free
    assert "do not prefer it" in page(bare).text


def test_parts_are_there_only_if_their_data_are(full, bare, tmp_path):
    everything = {"structure", "states", "agreement", "residues", "members", "bimodality", "validation"}
    everything |= {"traces", "record"}
    assert everything <= set(page(full).ids())
    assert {"states", "residues", "validation"}.isdisjoint(page(bare).ids())
    poor = tmp_path / "poor"
    poor.mkdir()
    result = read_run(bare)
    plain = [Member(id=m.id, selected=m.selected, weight=m.weight, rscc=m.rscc) for m in result.members]
    write_record(poor / "result.json", result.model_copy(update={"members": plain, "r_factors": None}))
    write_report(poor)
    found = page(poor)
    assert {"structure", "traces", "bimodality", "residues"}.isdisjoint(found.ids())
    assert found.scripts == {}
    assert "R-free" not in found.text
    assert "No data were held out" in found.text
    assert sorted(f.name for f in poor.iterdir()) == ["report.html", "result.json"]


def test_where_no_state_is_known_members_are_shown_between_those_found(full, tmp_path):
    """Of the files alone: the score of paper 1 against the two altlocs of the model."""
    folder = tmp_path / "run"
    shutil.copytree(full, folder)
    result = read_run(full)
    unknown = [Member(id=m.id, selected=m.selected, weight=m.weight, rscc=m.rscc) for m in result.members]
    write_record(folder / "result.json", result.model_copy(update={"members": unknown}))
    write_report(folder, force=True)
    found = page(folder)
    assert "Between the states found" in found.text
    assert "Between the known states" in page(full).text
    assert (folder / "bimodality.png").read_bytes() != (full / "bimodality.png").read_bytes()
    names, scores = _between_found(RunFolder.read(folder), unknown, result.model)
    part = next(p for p in result.model.states.parts if len(p.states) > 1)
    assert names == [state.label for state in part.states[:2]]
    members = [read_model(folder / "members" / member_file(m.id)) for m in unknown]
    atoms = members[0].topology.backbone(Region.parse(part.region).residues(members[0].topology)).ravel()
    ends = alternates(folder / MODEL_FILE, members[0].topology.subset(np.sort(atoms)))
    for member, score in zip(members, scores, strict=True):
        to = [np.sqrt(((member.coords[np.sort(atoms)] - ends[n].coords) ** 2).sum(1).mean()) for n in names]
        assert score == pytest.approx((1 - min(to) / max(to)) * np.sign(to[0] - to[1]), abs=1e-6)
    (folder / "members" / member_file(1)).unlink()
    assert _between_found(RunFolder.read(folder), unknown, result.model) is None


def test_licence_of_the_viewer_goes_with_every_copy(full):
    text = page(full).text
    assert "Mol* contributors" in text
    assert "Permission is hereby granted, free of charge" in text


def test_figures_are_in_the_page_and_beside_it(full):
    for name in ("overview", "occupancies", "residue_fit", "bimodality", "traces"):
        assert (full / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sum(t == "img" for t, _ in page(full).elements) == 5
    assert {f.name for f in full.iterdir()} >= set(OWN_REPORT_FILES)


def test_map_in_the_page_is_the_file_s_near_the_states(full, tmp_path):
    found = page(full)
    scene = json.loads(found.scripts["scene"])
    path = tmp_path / "map.ccp4"
    path.write_bytes(unpacked(found.scripts["data-map"]))
    drawn, file = read_map(path), read_map(full / "map.ccp4")
    assert drawn.grid.shape == file.grid.shape
    np.testing.assert_allclose(drawn.grid.origin, file.grid.origin, atol=1e-4)
    np.testing.assert_allclose(drawn.grid.spacing, file.grid.spacing, rtol=1e-5)
    step = scene["map"]["step"]
    limit = STEPS * step
    values, exact = drawn.values.numpy() * step, np.clip(file.values.numpy(), -limit, limit)
    points = scene_of(RunFolder.read(full)).points
    distance = np.linalg.norm(file.grid.points().reshape(-1, 1, 3) - points, axis=-1).min(axis=1)
    near = (distance < CARVED).reshape(exact.shape)
    assert np.abs(values - exact)[near].max() <= step / 2 + 1e-6
    assert (values[~near] == 0).all()
    assert 0 < scene["map"]["lowest"] < scene["map"]["level"] < scene["map"]["highest"]
    assert (exact[near] > scene["map"]["level"]).any()


def test_states_in_the_page_are_those_of_the_model_file(full, crystal):
    """Every state has its atoms in its own place, and the rest of the model is there once."""
    found = page(full)
    scene = json.loads(found.scripts["scene"])
    assert [state["name"] for state in scene["states"]] == list(OCCUPANCY)
    whole = gemmi.read_structure(str(crystal.reference))
    for state in scene["states"]:
        text = unpacked(found.scripts[f"data-{state['data']}"]).decode()
        drawn = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
        places = {(s.residue.seqid.num, s.atom.name): s.atom.pos.tolist() for s in drawn[0].all()}
        expected = {
            (s.residue.seqid.num, s.atom.name): s.atom.pos.tolist()
            for s in whole[0].all()
            if s.chain.name == "A" and 178 <= s.residue.seqid.num <= 187
            if s.atom.altloc in ("\0", state["name"])
        }
        assert places.keys() == expected.keys()
        for key, place in expected.items():
            assert places[key] == pytest.approx(place, abs=1e-3)
    rest = gemmi.cif.read_string(unpacked(found.scripts["data-around"]).decode()).sole_block()
    numbers = {int(n) for n in rest.find_values("_atom_site.auth_seq_id")}
    assert numbers.isdisjoint(range(179, 187))
    assert {172, 178, 187, 194} <= numbers


def test_a_region_of_one_state_is_drawn_too(full, tmp_path):
    """Where all members agree no part has states, and there is a model all the same."""
    folder = tmp_path / "one"
    shutil.copytree(full, folder)
    record = read_run(folder)
    states = record.model.states.model_copy(update={"parts": []})
    model = record.model.model_copy(update={"states": states})
    write_record(folder / "result.json", record.model_copy(update={"model": model}))
    shutil.copyfile(folder / "members" / "member_01.cif", folder / "model.cif")
    write_report(folder, force=True)
    found = page(folder)
    scene = json.loads(found.scripts["scene"])
    assert [state["name"] for state in scene["states"]] == ["one state"]
    assert "all of the region has one state" in found.text
    assert (folder / "view.cxc").exists()


def test_occupancies_are_the_record_s_and_switches_carry_them(full):
    text = page(full).text
    for label, occupancy in OCCUPANCY.items():
        assert f"{label} {occupancy:.2f}" in text


def test_waters_that_gave_way_are_named(full, bare):
    text = page(full).text
    assert "were removed: W:502." in text
    assert "in some states only: W:504 altloc B." in text
    assert "Waters" not in page(bare).text


def test_report_is_made_of_the_folder_alone(full, tmp_path):
    """Moved elsewhere and rebuilt without the inputs: the same bytes, and nothing else changes."""
    moved = tmp_path / "moved"
    shutil.copytree(full, moved)
    before = {f: f.read_bytes() for f in moved.rglob("*") if f.is_file()}
    for name in OWN_REPORT_FILES:
        (moved / name).unlink(missing_ok=True)
    done = CliRunner().invoke(main, ["report", str(moved)], catch_exceptions=False)
    assert done.exit_code == 0
    assert {f: f.read_bytes() for f in moved.rglob("*") if f.is_file()} == before


def test_an_earlier_report_is_replaced_only_when_asked(full, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(full, folder)
    (folder / "report.html").write_text("mine")
    done = CliRunner().invoke(main, ["report", str(folder)])
    assert done.exit_code == 2
    assert "--force" in done.output
    assert (folder / "report.html").read_text() == "mine"
    write_report(folder, force=True)
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_what_comes_from_files_is_escaped(full, tmp_path):
    """Names and words that are markup in a page are shown as they are, and close no script."""
    hostile = "</script><img src=x onerror=alert(1)><b>&amp;"
    folder = tmp_path / "hostile"
    shutil.copytree(full, folder)
    result = read_run(folder)
    model = final_model(LOOP)
    states = model.states.model_copy(update={"rule": hostile})
    changed = result.model_copy(
        update={
            "model": model.model_copy(update={"states": states}),
            "device": hostile,
            "settings": result.settings | {"model": hostile},
            "inputs": [f.model_copy(update={"name": hostile}) for f in result.inputs],
            "metrics": result.metrics.model_copy(update={"voxels": hostile}),
        }
    )
    write_record(folder / "result.json", changed)
    lines = (folder / "residues.csv").read_text().splitlines()
    (folder / "residues.csv").write_text("\n".join([*lines, f"A:187,{hostile},0.1,0.1,0.1"]) + "\n")
    write_report(folder, force=True)
    found, clean = page(folder), page(full)
    assert sorted(t for t, _ in found.elements if t != "li") == sorted(
        t for t, _ in clean.elements if t != "li"
    )
    assert found.text.count(hostile) >= 5
    assert json.loads(found.scripts["scene"])["states"]


def test_a_chain_s_name_is_no_command(full, tmp_path):
    """No script is written where a name could be taken for one."""
    folder = tmp_path / "chain"
    shutil.copytree(full, folder)
    structure = gemmi.read_structure(str(folder / "model.cif"))
    structure[0]["A"].name = "A;quit"
    structure.make_mmcif_document().write_file(str(folder / "model.cif"))
    result = read_run(folder)
    region = LOOP.replace("A:", "A;quit:")
    write_record(folder / "result.json", result.model_copy(update={"model": final_model(region)}))
    write_report(folder, force=True)
    assert not list(folder.glob("view*"))
    assert "A;quit:179-186" in page(folder).text


def test_scripts_open_what_is_there(full):
    """Files and altlocs that scripts name are in the folder and the model; the map is at the page's level."""
    level = json.loads(page(full).scripts["scene"])["map"]["level"]
    for name in ("view.cxc", "view.pml", "view_coot.py"):
        text = (full / name).read_text()
        assert set(re.findall(r"[\w.]+\.(?:cif|ccp4)", text)) == {"model.cif", "map.ccp4"}
        assert f"{level:.6g}" in text
        assert "179-186" in text
    compile((full / "view_coot.py").read_text(), "view_coot.py", "exec")
    for letter in OCCUPANCY:
        assert f"altlocs change {letter} #" in (full / "view.cxc").read_text()
        assert f"alt ''+{letter}" in (full / "view.pml").read_text()
        assert f"//A/179-186/*:,{letter}" in (full / "view_coot.py").read_text()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("result.json", None, "finished run"),
        ("result.json", "{", "not a record"),
        ("result.json", '{"schema": "other/1"}', "other/1"),
        ("result.json", '{"schema": "densemble.result/1"}', "does not follow"),
        ("residues.csv", "a,b\n1,2\n", "no columns residue and name"),
        ("residues.csv", "residue,name,rscc\nA:1,GLY,high\n", "rscc"),
        ("trace.csv", "sigma,density\n1,big\n", "density"),
        ("model.cif", "not a model", "model.cif"),
        ("map.ccp4", "not a map", "map.ccp4"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_and_nothing_is_written(full, tmp_path, name, content, words):
    folder = tmp_path / "wrong"
    shutil.copytree(full, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with pytest.raises(InputError, match=words):
        write_report(folder, force=True)
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before


def test_packages_that_are_missing_are_named(full, tmp_path, monkeypatch):
    """The run stands without its report; what was there before stays."""
    folder = tmp_path / "lacking"
    shutil.copytree(full, folder)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with monkeypatch.context() as absent:
        absent.setattr("densemble.report.viewer.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"MIT licence.*pip install 'molstar-cli"):
            write_report(folder, force=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib.*pip install 'densemble\[report\]'"):
        write_report(folder, force=True)
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
