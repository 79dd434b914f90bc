import json
import math

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere

import forward
import measuring
from densemble.forward.electron import ElectronDensity
from densemble.forward.kernel import CUTOFF, count_operations
from densemble.forward.plan import Plan
from densemble.forward.xray import XrayDensity
from forward import AllPairs, Case, Ours, Problem, ScatterAdd

TINY = Case(40, 2, 20, 0.8, (15, 40), XrayDensity)
ELECTRONS = Case(30, 1, 24, 0.9, (40, 60), ElectronDensity)


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch):
    monkeypatch.setattr(measuring, "SIZES", {"cpu": (64, 1000), "cuda": (512, 100_000)})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(forward.CASES, "loop", TINY)


@pytest.mark.parametrize("case", [TINY, ELECTRONS])
def test_all_ways_give_one_density(case):
    problem = Problem.of(case)
    density, gradient = Ours(problem)()
    scatter = ScatterAdd(problem)
    assert scatter.fraction == 1
    assert float((scatter() - density).abs().max() / density.max()) < 2e-5
    found = forward.errors(problem, Ours(problem), 500)
    assert found["max_error"] < 1e-5
    assert found["max_gradient_error"] < 1e-4
    assert float(gradient.abs().max()) > 0


def test_nothing_is_left_on_the_cpu():
    """Every way but gemmi's, where the problem is on another device, gives there what it gives here."""
    found = []
    for device in (torch.device("cpu"), ELSEWHERE):
        with Elsewhere():
            problem = Problem.of(TINY, device=device)
            tensors = [v for v in vars(problem).values() if isinstance(v, torch.Tensor)]
            assert {v.device.type for v in tensors} == {device.type}
            density, gradient = Ours(problem)()
            pairs, slope = AllPairs(problem, torch.float32, 100)()
            scatter = ScatterAdd(problem)()
            outputs = [density, gradient, pairs, slope, scatter]
            assert {v.device.type for v in outputs} == {device.type}
            found.append([v.cpu() for v in outputs])
            found[-1].append(torch.tensor(list(forward.errors(problem, Ours(problem), 100).values())))
            given = problem.gaussians()
            found[-1].append(torch.tensor(forward.product_flops_needed(problem.grid, *given)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-5)


def voxels_of_window(problem, x, reach):
    """Those of the box around what the atoms of a leaf reach, axis by axis."""
    extents = []
    for axis in range(3):
        places = problem.grid.spacing[axis] * np.arange(problem.grid.shape[axis])
        near = np.abs(places[:, None] - x[:, axis]) <= reach
        (hit,) = near.any(1).nonzero()
        extents.append(hit[-1] - hit[0] + 1)
    return math.prod(extents)


@pytest.mark.parametrize("case", [TINY, ELECTRONS])
def test_operations_that_must_be_done_have_no_padding(case):
    problem = Problem.of(case)
    x, height, alpha = problem.gaussians()
    needed = forward.product_flops_needed(problem.grid, x, height, alpha)
    plan = Plan.of(problem.grid, x[None], height[None], alpha[None], CUTOFF)
    least = CUTOFF * float(height.abs().max())
    reach = np.sqrt((np.log(np.maximum(height.abs().numpy() / least, 1)) / alpha.numpy()).max(1))
    expected = 0
    for leaf in plan.atoms.numpy():
        atoms = leaf[leaf < len(x)]
        window = voxels_of_window(problem, x.numpy()[atoms], reach[atoms])
        expected += 6 * height.shape[1] * len(atoms) * window
    assert any((leaf == len(x)).any() for leaf in plan.atoms.numpy())  # places to spare there are
    assert needed == expected
    assert needed < count_operations(problem.grid, x, height, alpha)["product_flops"]


def test_where_there_is_no_padding_both_counts_agree():
    """As many atoms as one leaf takes: 16 of five Gaussians."""
    problem = Problem.of(Case(16, 1, 20, 0.8, (15, 40), XrayDensity))
    given = problem.gaussians()
    counts = count_operations(problem.grid, *given)
    assert counts["leaves"] == 1
    assert forward.product_flops_needed(problem.grid, *given) == counts["product_flops"]


def test_atoms_out_of_the_box_are_no_operations():
    problem = Problem.of(TINY)
    x, height, alpha = problem.gaussians()
    beside = [torch.cat([v, v]) for v in (height, alpha)]
    both = forward.product_flops_needed(problem.grid, torch.cat([x, x + 1000]), *beside)
    assert both == forward.product_flops_needed(problem.grid, x, height, alpha)


def test_figures_of_a_case(tiny, tmp_path, capsys):
    path = tmp_path / "loop.json"
    forward.main(["--case", "loop", "--threads", "1", "--repeats", "1", "--json", str(path)])
    found = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert printed.index("matrix_product_flops") < printed.index("ratio_all_pairs")
    assert found["device"] == "cpu"
    assert found["clock"] == "processor"
    assert "one thread of the CPU" in found["gemmi"]
    for way in ("all_pairs", "scatter"):
        assert found[f"ratio_{way}"] == pytest.approx(found[f"seconds_{way}"] / found["seconds"])
    assert found["ratio_gemmi"] == pytest.approx(found["seconds_gemmi"] / found["seconds_forward"])
    rate = found["seconds"] * found["matrix_product_flops"]
    assert found["roofline_fraction"] == pytest.approx(found["product_flops_needed"] / rate)
    done = found["roofline_fraction_of_operations_done"]
    assert done == pytest.approx(found["product_flops"] / rate)
    assert done > found["roofline_fraction"]
    assert found["max_error"] < 1e-5
    assert 0 < found["fraction_of_voxels_all_pairs"] < 1
    assert found["peak_memory_bytes"] > 50 << 20
    assert {"ratio_box_of_twice_the_volume", "ratio_box_of_twice_the_edge", "load_before"} <= set(found)


def test_a_gpu_that_there_is_not_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        forward.main(["--device", "cuda"])
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_figures_of_a_case_on_an_accelerator(tiny, tmp_path):
    path = tmp_path / "loop.json"
    forward.main(
        ["--case", "loop", "--device", "cuda", "--threads", "1", "--repeats", "2", "--json", str(path)]
    )
    found = json.loads(path.read_text())
    assert found["device"] == torch.cuda.get_device_name()
    assert found["clock"] == "wall"
    assert found["max_error"] < 1e-5
    assert found["max_gradient_error"] < 1e-4
    assert found["difference_scatter"] < 2e-5
    assert 0 < found["peak_memory_bytes"] < 1 << 30
