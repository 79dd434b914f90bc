"""Recipes for cryo-EM: those shipped are sound, and the paper's numbers mean its noise levels."""

import math
from importlib import resources

import pytest
import torch

from densemble.em.state import stages_of
from densemble.errors import InputError
from densemble.priors.edm import EDM
from densemble.recipes.state import StateRecipe, load_state_recipe
from densemble.recipes.writing import toml_text

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


def test_the_weight_of_the_cloud_falls_with_the_steps_as_in_the_paper():
    """lambda(t) = 0.05 + (0.25 - 0.05) (1 + cos(pi t / 25)) / 2 at the t-th of 25 steps (appendix A.5)."""
    recipe = load_state_recipe("cryoboltz-2025")
    terms = {stage.term: lambda x, sigma: x.sum() for stage in recipe.stages}
    own = [recipe.schedule.level(step) for step in range(200)]
    others = [1000.0 * 0.9**step for step in range(200)]  # a prior with levels of its own
    for levels, seen in ((None, own), (others, others)):
        cloud, density = stages_of(recipe, terms, 3.0, levels)
        for step in range(200):
            assert cloud.active(seen[step]) == (125 <= step < 150)
            assert density.active(seen[step]) == (150 <= step < 175)
        for t in range(25):
            expected = 0.05 + 0.2 * (1 + math.cos(math.pi * t / 25)) / 2
            assert cloud.weight_at(seen[125 + t]) == pytest.approx(expected, rel=1e-5)
            assert density.weight_at(seen[150 + t]) == 0.5
    with pytest.raises(ValueError, match="200 steps, and 20 levels"):
        stages_of(recipe, terms, 3.0, others[:20])


def test_a_changing_weight_may_go_on_to_the_last_step():
    values = load_state_recipe("cryoboltz-2025").model_dump(exclude_none=True)
    first = values["stages"][0] | {"steps": [190, 200]}
    recipe = StateRecipe.model_validate(values | {"stages": [first]})
    (stage,) = stages_of(recipe, {"cloud": lambda x, sigma: x.sum()}, 3.0)
    last = recipe.schedule.level(199)
    assert stage.active(last)
    assert stage.weight_at(last) == pytest.approx(0.05 + 0.1 * (1 + math.cos(math.pi * 0.9)))


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
    file.write_text(toml_text(values | {"stages": [stage]}), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load_state_recipe(str(file))


def test_steps_need_a_schedule_that_has_them(tmp_path):
    values = load_state_recipe("cryoboltz-2025").model_dump(exclude_none=True)
    values["stages"] = list(values["stages"])
    for changed, said in ((values | {"schedule": values["schedule"] | {"steps": 160}}, "beyond"),):
        file = tmp_path / "own.toml"
        file.write_text(toml_text(changed), encoding="utf-8")
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


def test_the_default_is_as_it_was_measured():
    """The map guides from 100 times its resolution on, blurred as the noise, B solved; then refinement."""
    recipe = load_state_recipe("densemble")
    assert recipe.target.blur_per_sigma > 0
    assert recipe.target.solve_b
    (stage,) = recipe.stages
    assert (stage.term, stage.high, stage.low) == ("density", 100.0, 0.03)
    assert recipe.finish.evaluations > 0
