"""Pieces of a report: commands, packed data, the map made smaller, what can stand in a script."""

import ast
import json

import numpy as np
import pytest
import torch
from small_report import bare_result

from densemble.grid import Grid
from densemble.io.maps import read_map
from densemble.io.output import InputFile
from densemble.io.results import Member, Metrics, Result
from densemble.report.command import command_of
from densemble.report.page import as_script
from densemble.report.sections import Table, counted, optional, signed
from densemble.report.viewer import packed, unpacked
from densemble.report.volume import _around, _coarser, ccp4_bytes

FILES = [InputFile(name=name, sha256="0" * 64) for name in ("my model.cif", "data.mtz", "known.cif")]


def result(*, guides: list[str], known: bool) -> Result:
    fits = {"start": 0.8, "ensemble": 0.9}
    return bare_result(
        inputs=FILES,
        settings={
            "model": "my model.cif",
            "data": "data.mtz",
            "region": "A:1-9,B:2-3",
            "start_altloc": None,
            "guides": guides,
            "seed": 7,
            "labels": ["F", "SIGF"],
            "recipe_values": {"noise": {"steps": 3}},
        },
        seed=7,
        region="A:1-9,B:2-3",
        metrics=Metrics(voxels="", rscc=fits, cosine=fits),
        members=[Member(id=1, selected=True, weight=1.0, rscc=0.9, rmsd={"A": 1.0} if known else None)],
    )


def test_command_states_every_option_and_quotes_names():
    assert command_of(result(guides=["each"], known=True)) == (
        "densemble xray 'my model.cif' data.mtz --region A:1-9,B:2-3 --seed 7 --labels F,SIGF --guide each "
        "--reference known.cif --out again"
    )
    assert "--reference" not in command_of(result(guides=["ensemble"], known=False))


def test_a_command_without_a_final_model_names_no_cycles():
    found = result(guides=["each"], known=False)
    with_none = found.model_copy(update={"settings": found.settings | {"states": False, "cycles": 4}})
    assert "--no-states" in command_of(with_none)
    assert "--cycles" not in command_of(with_none)


def test_commands_are_those_of_the_command_line():
    """Every option that a record may turn into exists."""
    from densemble.cli import main

    options = {option for p in main.commands["xray"].params for option in p.opts}
    words = command_of(result(guides=["each"], known=True)).split()
    assert {word for word in words if word.startswith("--")} <= options


def test_several_guides_are_python_that_says_the_same():
    code = command_of(result(guides=["none", "ensemble"], known=True))
    call = next(n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and n.func.id == "Settings")
    arguments = {k.arg: ast.unparse(k.value) for k in call.keywords}
    assert arguments == {
        "model": "Path('my model.cif')",
        "data": "Path('data.mtz')",
        "region": "'A:1-9,B:2-3'",
        "seed": "7",
        "labels": "('F', 'SIGF')",
        "guides": "('none', 'ensemble')",
    }
    assert "reference=Path('known.cif')" in code


def test_packed_data_come_back_and_are_the_same_every_time():
    data = bytes(range(256)) * 40
    assert unpacked(packed(data)) == data
    assert packed(data) == packed(data)
    assert len(packed(data)) < len(data)


def test_json_cannot_leave_its_script():
    value = {"name": "</script><!--&"}
    text = as_script(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_coarser_map_keeps_what_is_where():
    """Means over cubes of a linear function are its values at the cubes' centres."""
    grid = Grid((1.0, -2.0, 3.0), (0.5, 0.6, 0.7), (9, 8, 7))
    slope = np.array([0.3, -0.2, 0.5])
    values = grid.points() @ slope
    coarse, means = _coarser(grid, values, 2)
    assert coarse.shape == means.shape == (4, 4, 3)
    np.testing.assert_allclose(means, coarse.points() @ slope, atol=1e-5)


def test_part_of_a_map_is_where_it_was():
    grid = Grid((1.0, -2.0, 3.0), (0.5, 0.6, 0.7), (80, 70, 60))
    values = grid.points().sum(axis=-1)
    part, cut = _around(grid, values, np.array([[21.0, 18.0, 24.0]]))
    assert cut.size < values.size / 2
    np.testing.assert_allclose(cut, part.points().sum(axis=-1), atol=1e-4)
    edges = np.array(part.origin), np.array(part.origin) + (np.array(cut.shape) - 1) * part.spacing
    assert (edges[0] <= np.array([13.0, 10.0, 16.0])).all()
    assert (edges[1] >= np.array([29.0, 26.0, 32.0]) - 0.7).all()


def test_map_of_bytes_is_read_as_any_other(tmp_path):
    grid = Grid((1.25, -2.5, 3.0), (0.5, 0.75, 0.6), (5, 6, 7))
    values = np.random.default_rng(0).integers(-127, 128, size=grid.shape).astype(np.int8)
    path = tmp_path / "small.ccp4"
    path.write_bytes(ccp4_bytes(grid, values))
    found = read_map(path)
    assert torch.equal(found.values, torch.from_numpy(values).float())
    np.testing.assert_allclose(found.grid.origin, grid.origin, atol=1e-6)
    np.testing.assert_allclose(found.grid.spacing, grid.spacing, rtol=1e-6)


def test_words_and_figures():
    assert (counted(1, "state"), counted(2, "state"), counted(12, "state")) == (
        "one state",
        "two states",
        "12 states",
    )
    assert (signed(-0.0035, 4), signed(0.01, 2)) == ("−0.0035", "+0.01")
    assert (optional(None), optional(-0.5), optional(3, "d")) == ("–", "−0.50", "3")
    with pytest.raises(ValueError, match="header"):
        Table("", ("a", "b"), (("1",),))
