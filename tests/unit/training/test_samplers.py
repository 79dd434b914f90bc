import json
from itertools import pairwise

import pytest
import torch
from ideal import ideal_corpus, small_network

from densemble.priors.edm import EDM
from densemble.priors.embedded import WIDTHS
from evaluate import Sampling
from samplers import PROCESSES, SAMPLERS, SHIPPED, calls, compare, text


def test_every_row_differs_from_the_shipped_sampler_and_begins_with_the_most_noise_trained():
    assert SAMPLERS["shipped"] == SHIPPED == Sampling()
    assert len(set(SAMPLERS.values())) == len(SAMPLERS)
    assert {round(s.widths * (1 + s.churn), 9) for s in SAMPLERS.values()} == {WIDTHS}


def test_processes_are_compared_from_the_same_noise_at_equal_numbers_of_calls():
    assert len(set(PROCESSES.values())) == len(PROCESSES)
    assert {round(s.widths * (1 + s.churn), 9) for s in PROCESSES.values()} == {WIDTHS}
    assert {s.sigma_min for s in PROCESSES.values()} == {SHIPPED.sigma_min}
    for name, sampling in PROCESSES.items():
        assert name.endswith(f", {calls(sampling)} steps")
        assert name.startswith("EDM" if sampling.vp_unit is None else "VP")
        assert sampling.posterior == ("posterior" in name or "SDE" in name)


def test_calls_are_what_the_network_is_asked():
    asked = []

    def count(sampling):
        process = EDM(torch.zeros(1, 3), sigma_max=9.0, heun=sampling.heun)
        x, times = torch.zeros(1, 1, 3), process.times(sampling.steps)
        for t, t_next in pairwise(times):
            x = process.step(lambda x, s: asked.append(s) or x, x, t, t_next, torch.Generator())
        return len(asked)

    for sampling in (Sampling(steps=7), Sampling(steps=7, heun=True)):
        asked.clear()
        assert count(sampling) == calls(sampling)


def test_comparison_writes_one_row_a_sampler_and_set_of_the_same_segments():
    few = {"a": Sampling(members=3, steps=2), "again": Sampling(members=3, steps=2), "b": Sampling(3, 4)}
    seen = []
    result = compare(
        small_network(),
        ideal_corpus(),
        few,
        sets=[("all", 4), ("loop", 5)],
        segments=2,
        seed=0,
        on_row=lambda r: seen.append(len(r["rows"])),
    )
    assert seen == [1, 2, 3, 4, 5, 6]
    first, again, other = result["rows"][:3]
    assert first["single_median"] == again["single_median"] != other["single_median"]
    assert first["best3_median"] <= first["single_median"]
    assert [row["set"] for row in result["rows"]] == ["all 4"] * 3 + ["loop 5"] * 3
    assert "all 4" in text(first)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("steps", [15, 100])
def test_a_row_says_how_it_was_drawn(steps):
    assert SAMPLERS[f"{steps} steps"].steps == steps
