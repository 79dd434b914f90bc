"""Recipes: those shipped are sound, those of a user are checked and named when they are not."""

from importlib import resources
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from densemble.errors import InputError
from densemble.guidance.stage import Stage
from densemble.inputs import Settings
from densemble.priors.edm import EDM
from densemble.priors.variance_preserving import VariancePreserving
from densemble.recipes import ChainNoise, load_recipe
from densemble.recipes.writing import toml_text

SHIPPED = sorted(
    f.name.removesuffix(".toml")
    for f in resources.files("densemble.recipes").iterdir()
    if f.name.endswith(".toml")
)


@pytest.fixture
def values() -> dict:
    values = load_recipe("densemble").model_dump(exclude_none=True)
    return values | {"stages": list(values["stages"])}


def written(path: Path, values: dict) -> str:
    path.write_text(toml_text(values), encoding="utf-8")
    return str(path)


def test_the_default_is_shipped():
    assert "densemble" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_complete_and_usable(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.source
    for stage in recipe.stages:
        Stage(
            name=stage.term, term=lambda x, sigma: x.sum(), **stage.model_dump(exclude={"term"})
        )  # raises where its interval is not one
    noise = recipe.noise.model_dump(exclude={"steps"})
    if isinstance(recipe.noise, ChainNoise):
        process = VariancePreserving(10 * torch.eye(4), **noise)
    else:
        process = EDM(center=torch.zeros(1, 3), **noise)
    levels = [process.sigma(t) for t in process.times(recipe.noise.steps)]
    assert any(stage.low < level <= stage.high for stage in recipe.stages for level in levels)
    assert recipe.density.reach <= recipe.density.margin  # the mask lies within the box


def test_paper_1_has_the_numbers_of_its_appendix():
    """Section A.2; members and how many are kept are options, whose defaults are the paper's 16 and 5."""
    recipe = load_recipe("chroma-2024")
    (stage,) = recipe.stages
    assert (stage.term, stage.mode, stage.weight, stage.clip) == ("density", "score", 9.0, 32.5)
    assert stage.through_network
    chi = recipe.sidechains
    assert (chi.resample_every, chi.gradient_steps, chi.step_size, chi.window) == (40, 25, 0.001, 5)
    assert chi.packer == "chroma"
    assert not chi.final_update, "Algorithm A1 returns after its last step"
    assert recipe.density.b_iso == "mean"
    assert (2 * recipe.density.sigma**2, recipe.density.fit_scale) == (pytest.approx(1.0), False)
    assert (recipe.noise.inverse_temperature, recipe.noise.langevin_factor) == (1.0, 0.0)
    assert recipe.selection == "pursuit"
    assert recipe.finish.regularise_steps == recipe.finish.refine_steps == 0
    assert (Settings.members, Settings.keep) == (16, 5)


def test_the_thorough_recipe_is_the_default_with_more_passes():
    """What is found to be better for one is better for both: nothing but these keys may differ."""
    may_differ = {"name": True, "source": True, "starts": {"noise"}, "rounds": {"count"}}
    quick, thorough = (load_recipe(name) for name in ("embedded", "embedded-thorough"))
    assert quick.model_dump(exclude=may_differ) == thorough.model_dump(exclude=may_differ)
    assert quick.rounds.count < thorough.rounds.count
    assert len(quick.starts.noise) < len(thorough.starts.noise)


def test_noise_of_chroma_is_told_by_its_keys(tmp_path, values):
    values["noise"] = {"steps": 5, "inverse_temperature": 2.0, "langevin_factor": 0.5}
    with pytest.raises(InputError, match=r"own\.toml: noise\.langevin_isothermal: Field required"):
        load_recipe(written(tmp_path / "own.toml", values))
    values["noise"]["langevin_isothermal"] = True
    assert load_recipe(written(tmp_path / "own.toml", values)).noise == ChainNoise(**values["noise"])
    values["density"]["ensemble"] = "beside_start"
    found = load_recipe(written(tmp_path / "own.toml", values | {"rounds": ROUNDS}))
    assert isinstance(found.noise, ChainNoise)
    assert found.rounds is not None, "our rounds, by Chroma"


def test_file_of_the_user_gives_what_it_says(tmp_path, values):
    values["noise"]["steps"] = 7
    values["stages"][0]["weight"] = 0.125
    recipe = load_recipe(written(tmp_path / "own.toml", values))
    assert recipe.noise.steps == 7
    assert recipe.stages[0].weight == 0.125
    assert recipe.model_dump(exclude_none=True) == values | {"stages": tuple(values["stages"])}


def test_recipes_do_not_change():
    with pytest.raises(ValidationError):
        load_recipe("densemble").noise.steps = 3


@pytest.mark.parametrize("part", ["", "noise", "gaussian", "density", "sidechains", "finish"])
def test_unknown_key_is_refused(tmp_path, values, part):
    (values[part] if part else values)["colour"] = "blue"
    with pytest.raises(InputError, match=r"^recipe .*own\.toml: .*colour: Extra inputs"):
        load_recipe(written(tmp_path / "own.toml", values))


def test_unknown_key_of_a_stage_is_refused_with_its_place(tmp_path, values):
    values["stages"][1]["colour"] = "blue"
    with pytest.raises(InputError, match=r"own\.toml: stages\.1\.colour: "):
        load_recipe(written(tmp_path / "own.toml", values))


@pytest.mark.parametrize("part", ["noise", "density", "sidechains", "finish", "stages", "name"])
def test_missing_part_is_named(tmp_path, values, part):
    del values[part]
    with pytest.raises(InputError, match=rf"own\.toml: {part}: Field required"):
        load_recipe(written(tmp_path / "own.toml", values))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("noise", "steps", 0),
        ("noise", "steps", "many"),
        ("noise", "sigma_max", -1.0),
        ("noise", "sigma_min", 0.0),
        ("noise", "churn", -0.1),
        ("density", "spacing", 0.0),
        ("density", "blur_limit", -1.0),
        ("sidechains", "resample_every", 0),
        ("sidechains", "window", -1),
        ("finish", "refine_steps", 1.5),
    ],
)
def test_value_out_of_range_is_named(tmp_path, values, part, key, value):
    values[part][key] = value
    with pytest.raises(InputError, match=rf"own\.toml: {part}\.{key}: "):
        load_recipe(written(tmp_path / "own.toml", values))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"term": "magic"}, "stages.0.term"),
        ({"mode": "product"}, "stages.0.mode"),
        ({"weight": -1.0}, "stages.0.weight"),
        ({"clip": 0.0}, "stages.0.clip"),
        ({"low": 9.0, "high": 3.0}, "low 9 must be below high 3"),
        ({"low": 3.0, "high": 3.0}, "low 3 must be below high 3"),
        ({"low": 0.0, "weight_end": 0.1}, "weight_end needs low above zero"),
    ],
)
def test_stage_that_cannot_be_is_named(tmp_path, values, changes, words):
    values["stages"][0] |= changes
    with pytest.raises(InputError, match=r"own\.toml: stages\.0") as raised:
        load_recipe(written(tmp_path / "own.toml", values))
    assert words in str(raised.value)


ROUNDS = {"count": 2, "sigma": 3.0, "steps": 5, "share": 0.5, "window": [2, 4]}


def test_rounds_of_the_user_are_what_the_file_says(tmp_path, values):
    values["density"]["ensemble"] = "beside_start"
    recipe = load_recipe(written(tmp_path / "own.toml", values | {"rounds": ROUNDS}))
    assert recipe.rounds.model_dump() == ROUNDS | {"window": (2, 4), "temperature": 1.0, "alike": None}
    assert load_recipe(written(tmp_path / "own.toml", values)).rounds is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.0}, "rounds.share"),
        ({"share": 1.5}, "rounds.share"),
        ({"sigma": 0.0}, "rounds.sigma"),
        ({"steps": 0}, "rounds.steps"),
        ({"window": [0, 4]}, "rounds.window"),
        ({"window": [5, 4]}, "the least length must not be above the largest"),
    ],
)
def test_rounds_that_cannot_be_are_named(tmp_path, values, changes, words):
    values["density"]["ensemble"] = "beside_start"
    with pytest.raises(InputError, match=r"own\.toml: rounds") as raised:
        load_recipe(written(tmp_path / "own.toml", values | {"rounds": ROUNDS | changes}))
    assert words in str(raised.value)


def test_rounds_need_members_that_can_be_compared(tmp_path, values):
    with pytest.raises(InputError, match="rounds compare members"):
        load_recipe(written(tmp_path / "own.toml", values | {"rounds": ROUNDS}))


def test_starts_are_of_a_recipe_with_rounds(tmp_path, values):
    values["density"]["ensemble"] = "beside_start"
    starts = {"noise": [1.5, 10.0], "steps": 20}
    with pytest.raises(InputError, match=r"own\.toml: .*starts need rounds"):
        load_recipe(written(tmp_path / "own.toml", values | {"starts": starts}))
    with pytest.raises(InputError, match=r"own\.toml: starts\.noise"):
        load_recipe(
            written(tmp_path / "own.toml", values | {"rounds": ROUNDS, "starts": starts | {"noise": []}})
        )
    recipe = load_recipe(written(tmp_path / "own.toml", values | {"rounds": ROUNDS, "starts": starts}))
    assert recipe.starts.noise == (1.5, 10.0)


def test_noise_that_does_not_fall_is_named(tmp_path, values):
    values["noise"] |= {"sigma_min": 5.0, "sigma_max": 5.0}
    with pytest.raises(InputError, match=r"own\.toml: noise: .*sigma_min 5 must be below sigma_max 5"):
        load_recipe(written(tmp_path / "own.toml", values))


def test_text_that_is_not_toml(tmp_path):
    (tmp_path / "own.toml").write_text("steps = = 3")
    with pytest.raises(InputError, match=r"own\.toml: not valid TOML"):
        load_recipe(str(tmp_path / "own.toml"))


def test_unknown_name_lists_those_known():
    with pytest.raises(InputError, match=r"^recipe guesswork: not known; choose .*densemble"):
        load_recipe("guesswork")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml: no such file"):
        load_recipe(str(tmp_path / "absent.toml"))
