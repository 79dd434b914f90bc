"""Recipes for cryo-EM: those shipped are sound, and the paper's numbers mean its noise levels."""

from importlib import resources

import pytest
import torch
from small_crystal import toml

from densemble.em.state import stages_of
from densemble.errors import InputError
from densemble.priors.edm import EDM
from densemble.recipes.state import StateRecipe, load_state_recipe

SHIPPED = sorted(
    f.name.removesuffix(".toml")
    for f in resources.files("densemble.recipes.state").iterdir()
    if f.name.endswith(".toml")
)


def test_both_are_shipped():
    assert {"densemble", "cryoboltz-2025"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_usable(name):
    recipe = load_state_recipe(name)
    assert recipe.name == name
    for stage in recipe.stages:
        high, low = recipe.interval(stage, 3.0)
        assert 0 <= low < high


def test_the_paper_s_steps_are_these_noise_levels():
    """Boltz-1: sigma_max 160, sigma_min 0.0004, sigma_data 16, rho 8; gamma_0 0.605 above 1.107 Å."""
    recipe = load_state_recipe("cryoboltz-2025")
    cloud, density = recipe.stages

    def level(step: int) -> float:
        high, low = (16 * s for s in (160, 0.0004))
        ramp = step / 199
        sigma = (high ** (1 / 8) + ramp * (low ** (1 / 8) - high ** (1 / 8))) ** 8
        return 1.605 * sigma if sigma > 1.107 else sigma

    assert recipe.interval(cloud, 3.0) == pytest.approx((level(125), level(150)), rel=1e-5)
    assert recipe.interval(density, 3.0) == pytest.approx((level(150), level(175)), rel=1e-5)
    assert level(125) == pytest.approx(15, abs=1)  # what the method's reading says
    assert level(150) == pytest.approx(2.7, abs=0.3)
    assert level(175) == pytest.approx(0.17, abs=0.03)


def test_intervals_scale_with_the_resolution():
    recipe = load_state_recipe("densemble")
    (stage,) = recipe.stages
    high, low = recipe.interval(stage, 2.0)
    assert recipe.interval(stage, 4.0) == pytest.approx((2 * high, 2 * low))


def possible(recipe, steps):
    """Whether there are stages of guidance for a prior with so many levels of its own."""
    terms = {stage.term: lambda x, sigma: x.sum() for stage in recipe.stages}
    try:
        stages_of(recipe, terms, 3.0, [float(steps - i) for i in range(steps)])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 7),  # of 5 and 6 steps one stage has none, of 4 both happen to have one
        ({"steps = [150, 175]": "steps = [198, 200]"}, 51),  # 0.99 of 50 is rounded to 50
        ({"steps = [125, 150]": "steps = [125, 199]"}, 101),  # a changing weight cannot go down to no noise
    ],
)
def test_least_steps_are_from_where_on_every_stage_has_one(tmp_path, changes, least):
    text = resources.files("densemble.recipes.state").joinpath("cryoboltz-2025.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "recipe.toml").write_text(text)
    recipe = load_state_recipe(str(tmp_path / "recipe.toml"))
    assert recipe.least_steps() == least
    assert not possible(recipe, least - 1)
    assert all(possible(recipe, steps) for steps in range(least, 420))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": [5, 9]}, "either high"),
        ({"high": 1.0, "low": 2.0}, "below high"),
        ({"weight_end": 1.0, "low": 0.0}, "low above zero"),
        ({"term": "geometry"}, "term"),
        ({"wait": 3}, "wait"),
    ],
)
def test_a_stage_that_makes_no_sense_is_named(tmp_path, changes, said):
    values = load_state_recipe("densemble").model_dump(exclude_none=True)
    stage = values["stages"][0] | changes
    file = tmp_path / "own.toml"
    file.write_text(toml(values | {"stages": [stage]}), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load_state_recipe(str(file))


def test_steps_need_a_schedule_that_has_them(tmp_path):
    values = load_state_recipe("cryoboltz-2025").model_dump(exclude_none=True)
    values["stages"] = list(values["stages"])
    for changed, said in ((values | {"schedule": values["schedule"] | {"steps": 160}}, "beyond"),):
        file = tmp_path / "own.toml"
        file.write_text(toml(changed), encoding="utf-8")
        with pytest.raises(InputError, match=said):
            load_state_recipe(str(file))
    del values["schedule"]
    with pytest.raises(ValueError, match="schedule"):
        StateRecipe.model_validate(values)


def test_unknown_name_says_which_there_are():
    with pytest.raises(InputError, match=r"choose cryoboltz-2025, densemble"):
        load_state_recipe("embedded")


def test_a_prior_takes_the_levels_of_the_schedule_that_it_knows():
    recipe = load_state_recipe("cryoboltz-2025")
    process, steps = recipe.schedule.below(EDM(center=torch.zeros(2, 3), sigma_max=150.0))
    whole = EDM(center=torch.zeros(2, 3), sigma_max=2560.0, sigma_min=0.0064, rho=8.0).times(200)
    assert process.times(steps) == pytest.approx(whole[200 - steps :])
    assert whole[200 - steps] <= 150.0 < whole[199 - steps]
    for stage in recipe.stages:
        high, low = recipe.interval(stage, 3.0)
        seen = [t * 1.605 if t > 1.107 else t for t in process.times(steps)]
        assert sum(low < t <= high for t in seen) == 25
