"""A killed run goes on to the result that it would have had."""

import json

import numpy as np
import pytest
import torch
from small_crystal import StopAt, StoppedError, contents, outcome, write_recipe

from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.pipeline import run_xray


def stop(settings, folder, guide, step, **options) -> StopAt:
    """Run until a guide has done some steps."""
    progress = StopAt(guide, step)
    with pytest.raises(StoppedError):
        run_xray(settings, folder, progress=progress, **options)
    return progress


@pytest.fixture(scope="module")
def stopped(crystal, tmp_path_factory):
    """A run killed after its first checkpoint; to be copied, not touched."""
    folder = tmp_path_factory.mktemp("stopped") / "out"
    stop(crystal.settings(steps=12), folder, "ensemble", 11)
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    for name, data in contents(stopped).items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data)
    return tmp_path / "out"


def test_killed_in_every_guide_and_resumed_it_ends_the_same(finished, crystal, tmp_path):
    """Once before the first checkpoint, once in the middle with one, once at the last step."""
    out, settings = tmp_path / "out", finished.settings
    with_reference = {"reference": crystal.reference}
    stop(settings, out, "none", 5, **with_reference)
    second = stop(settings, out, "each", 11, **with_reference, resume=True)
    assert second.seen[0] == ("none", 1)  # nothing was saved before step 10
    third = stop(settings, out, "ensemble", 12, **with_reference, resume=True)
    assert third.seen[:2] == [("each", 10), ("each", 11)]  # none is done, each goes on from step 10
    last = StopAt()
    result = run_xray(settings, out, **with_reference, resume=True, progress=last)
    assert last.seen == [("ensemble", 10), ("ensemble", 11), ("ensemble", 12)]
    assert outcome(out) == outcome(finished.folder)
    assert result.model_dump(exclude={"timings"}) == finished.result.model_dump(exclude={"timings"})


def test_no_half_result_is_left_by_a_killed_run(stopped):
    assert contents(stopped).keys() == {"checkpoint.pt", "map.ccp4"}


def test_checkpoint_is_gone_when_the_run_is_done(finished):
    assert not (finished.folder / "checkpoint.pt").exists()


def test_resume_depends_on_the_state_saved(copy, crystal, tmp_path):
    """The counterpart of the test above: a checkpoint with other coordinates gives another result."""
    run_xray(crystal.settings(steps=12), tmp_path / "whole")
    saved = torch.load(copy / "checkpoint.pt", weights_only=True)
    saved["current"]["x"] += 0.3
    torch.save(saved, copy / "checkpoint.pt")
    run_xray(crystal.settings(steps=12), copy, resume=True)
    assert outcome(copy)["ensemble.cif"] != outcome(tmp_path / "whole")["ensemble.cif"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"members": 4},
        {"keep": 1},
        {"steps": 13},
        {"guides": ("each",)},
        {"map": "2fofc"},
        {"region": "A:179-185"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_resume_with_other_settings_is_refused(copy, crystal, changes):
    before = contents(copy)
    with pytest.raises(InputError, match=r"checkpoint\.pt: belongs to a run with other inputs or settings"):
        run_xray(crystal.settings(**({"steps": 12} | changes)), copy, resume=True)
    assert contents(copy) == before


def test_resume_with_other_data_or_recipe_is_refused(copy, crystal, tmp_path):
    before = contents(copy)
    data, recipe = tmp_path / crystal.data.name, tmp_path / crystal.recipe.name
    content = bytearray(crystal.data.read_bytes())
    content[100] ^= 1  # of an amplitude
    data.write_bytes(content)
    write_recipe(recipe, sidechains={"gradient_steps": 1})
    for changes in ({"data": data}, {"recipe": str(recipe)}):
        with pytest.raises(InputError, match="other inputs or settings"):
            run_xray(crystal.settings(**({"steps": 12} | changes)), copy, resume=True)
    assert contents(copy) == before


def test_stopped_run_is_neither_overwritten_nor_resumed_unasked(copy, crystal):
    before = contents(copy)
    with pytest.raises(InputError, match="exists and is not empty"):
        run_xray(crystal.settings(steps=12), copy)
    assert contents(copy) == before


def test_force_forgets_the_stopped_run(copy, crystal):
    progress = StopAt()
    run_xray(crystal.settings(steps=12, seed=2), copy, force=True, progress=progress)
    assert progress.seen[0] == ("ensemble", 1)
    assert "checkpoint.pt" not in contents(copy)


def test_resume_where_nothing_was_begun_starts_at_the_beginning(crystal, tmp_path):
    progress = StopAt()
    run_xray(crystal.settings(), tmp_path / "new", resume=True, progress=progress)
    assert [step for _, step in progress.seen] == list(range(1, 7))


def test_a_finished_run_is_not_resumed(finished):
    before = contents(finished.folder)
    with pytest.raises(InputError, match="its run is finished"):
        run_xray(finished.settings, finished.folder, resume=True)
    assert contents(finished.folder) == before


def test_a_broken_checkpoint_is_refused(copy, crystal):
    (copy / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        run_xray(crystal.settings(steps=12), copy, resume=True)


def test_rounds_beside_the_start_resumed_end_the_same(crystal, tmp_path):
    """Killed in the second round of windows: after its checkpoint, with parents and held atoms in it."""
    recipe = tmp_path / "rounds.toml"
    rounds = {"count": 2, "sigma": 3.0, "steps": 12, "share": 0.6, "window": [2, 5]}
    write_recipe(recipe, density={"ensemble": "beside_start"}, rounds=rounds)
    settings = crystal.settings(recipe=str(recipe), prior="embedded", members=4)
    whole = StopAt()
    run_xray(settings, tmp_path / "whole", progress=whole)
    assert [step for _, step in whole.seen] == list(range(1, 6 + 2 * 12 + 1))
    stop(settings, tmp_path / "out", "ensemble", 29)
    again = StopAt()
    run_xray(settings, tmp_path / "out", resume=True, progress=again)
    assert again.seen[0] == ("ensemble", 28)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    first = read_model(tmp_path / "whole" / "members" / "member_01.cif")
    start = read_model(crystal.model)
    kept = json.loads((tmp_path / "whole" / "result.json").read_text())["members"][0]["selected"]
    moved = np.abs(first.coords - start.coords).max()
    assert moved < 1e-3 or kept  # the first member is the start, refined where it is kept
