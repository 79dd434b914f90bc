"""The command: what it prints and writes, with and without data, and how it refuses."""

import json
from functools import partial
from pathlib import Path

import gemmi
import pytest
from command_line import invoke, sentence

import densemble
from densemble.validate import ValidatedModel, validate_files

EXAMPLE = Path(densemble.__file__).parent / "data" / "7rin"
LOOP = "A:176-191"


run = partial(invoke, "validate")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Twelve residues of 7RIN in a map that was calculated from them."""
    folder = tmp_path_factory.mktemp("validate")
    found = gemmi.read_structure(str(EXAMPLE / "model.cif"))
    chain = found[0]["A"]
    for i in reversed(range(len(chain))):
        if not 180 <= chain[i].seqid.num <= 191 or chain[i].name == "HOH":
            del chain[i]
    found.cell = gemmi.UnitCell()
    found.spacegroup_hm = ""
    found.setup_entities()
    model, density = folder / "model.pdb", folder / "map.mrc"
    found.write_pdb(str(model))
    done = invoke("simulate", model, "--resolution", 2.5, "--spacing", 0.8, "--out", density)
    assert done.exit_code == 0, done.stderr
    return model, density


def test_geometry_alone(small, tmp_path):
    out = tmp_path / "report.json"
    done = run(small[0], "--json", out)
    assert done.exit_code == 0, done.stderr
    for name in (
        "clash score",
        "Ramachandran favoured",
        "rotamer outliers",
        "bonds RMSZ",
        "chirality outliers",
    ):
        assert name in done.output
    assert "RSCC" not in done.output
    record = ValidatedModel.model_validate_json(out.read_text())
    assert record.schema_ == "densemble.validate/1"
    assert record.data is None
    assert [row.number for row in record.model.residues] == list(range(180, 192))
    assert record.inputs[0].name == "model.pdb"
    assert "--force" in sentence(run(small[0], "--json", out))
    assert run(small[0], "--json", out, "--force").exit_code == 0


def test_a_map_of_the_model_itself_fits_it(small):
    """RSCC 1 everywhere; the FSC holds beyond the 2.5 Å of the map, into which the mask carries a little."""
    found = validate_files(*small, resolution=2.5)
    assert found.data.rscc == pytest.approx(1, abs=1e-3)
    assert all(row.rscc == pytest.approx(1, abs=1e-2) for row in found.model.residues)
    assert all(0.5 < row.q_score < 1 for row in found.model.residues)
    assert found.data.q_score > 0.6
    assert 1.6 < found.data.fsc_05 < 2.5
    assert found.data.r_free is None


def test_a_map_is_read_once(small, monkeypatch):
    read, files = gemmi.read_ccp4_map, []
    monkeypatch.setattr(gemmi, "read_ccp4_map", lambda path: files.append(path) or read(path))
    validate_files(*small, resolution=2.5)
    assert files == [str(small[1])]


def test_a_residue_out_of_place_shows_in_its_rscc(small, tmp_path):
    wrong = gemmi.read_structure(str(small[0]))
    for atom in wrong[0]["A"][5]:
        if atom.name not in ("N", "CA", "C", "O"):
            atom.pos += gemmi.Position(1.5, 1.0, 0)
    path = tmp_path / "wrong.pdb"
    wrong.write_pdb(str(path))
    found = validate_files(path, small[1], resolution=2.5)
    worst = min(found.model.residues, key=lambda row: row.rscc)
    assert worst.number == wrong[0]["A"][5].seqid.num
    assert worst.rscc < 0.9


@pytest.mark.slow
def test_reflections_give_r_factors_and_the_omit_map_of_a_region():
    found = validate_files(EXAMPLE / "deposited.cif", EXAMPLE / "data.mtz", region=LOOP)
    assert found.region == LOOP
    assert found.data.r_work == pytest.approx(0.139, abs=0.05)
    assert found.data.fsc_05 is None
    assert {row.number for row in found.model.residues if row.rscc is not None} == set(range(176, 192))
    assert found.data.rscc > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.cif"], "no such file"),
        ([EXAMPLE / "model.cif", "--resolution", "3"], "there are none"),
        ([EXAMPLE / "model.cif", "--region", "A:900-910"], "not in the model"),
        ([EXAMPLE / "model.cif", "--region", "nonsense"], "CHAIN:FIRST-LAST"),
        ([EXAMPLE / "model.cif", EXAMPLE / "data.mtz", "--resolution", "3"], "bring their own"),
        ([EXAMPLE / "model.cif", EXAMPLE / "absent.mtz"], "does not exist"),
        ([EXAMPLE / "model.cif", "--json", "/absent/report.json"], "no folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    assert message in sentence(run(*arguments))


def test_a_map_needs_its_resolution(small):
    assert "--resolution" in sentence(run(*small))


def test_the_record_is_plain_json(small, tmp_path):
    out = tmp_path / "report.json"
    assert run(*small, "--resolution", "2.5", "--json", out).exit_code == 0
    record = json.loads(out.read_text())
    assert set(record) == {"schema", "inputs", "model", "data"}
    assert set(record["data"]) == {"rscc", "q_score", "fsc_05"}
