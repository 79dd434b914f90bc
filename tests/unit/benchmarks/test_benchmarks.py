"""The other benchmarks at the least size: all ways run alike, and the figures are in a file."""

import importlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import bench_geometry
import bench_guided_step
import bench_point_cloud
import bench_transport
import bench_whole_chain
import forward
import measuring

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch):
    monkeypatch.setattr(measuring, "SIZES", {"cpu": (64, 1000)})


def written(main, arguments, path):
    """What a benchmark writes, which names the machine."""
    main([*arguments, "--json", str(path)])
    found = json.loads(path.read_text())
    assert {"machine", "torch", "threads", "clock", "matrix_product_flops", "load_after"} <= set(found)
    return found


@pytest.mark.parametrize("script", [*SCRIPTS, "forward"])
def test_make_bench_gives_every_script_a_file(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main(["--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_make_bench_runs_every_case_and_script():
    run = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "for case in " + " ".join(forward.CASES) + ";" in run.stdout
    assert "for script in benchmarks/bench_*.py;" in run.stdout


def test_ways_to_the_transport_run_alike_often(monkeypatch):
    """Each as often as ours, and the least time counts."""
    runs = []

    def counted(name):
        def way(x):
            runs.append(name)
            return x.square().sum()

        return way

    monkeypatch.setattr(bench_transport, "ours", lambda cloud, scaling: counted("ours"))
    monkeypatch.setattr(bench_transport, "legacy", lambda cloud, backend, scaling: counted(backend))
    monkeypatch.setattr(bench_transport, "current", lambda cloud, iterations: counted("current"))
    rows = bench_transport.backends(60, 15)
    assert {name: runs.count(name) for name in runs} == dict.fromkeys(
        ("ours", "tensorized", "online", "multiscale", "current"), measuring.REPEATS
    )
    assert rows[0]["ratio"] == 1
    assert all(row["ratio"] == row["seconds"] / rows[0]["seconds"] for row in rows)


def test_transport(monkeypatch, tmp_path):
    sizes = dict.fromkeys((1000, 5000), (60, 15))
    backends, accuracy = bench_transport.backends, bench_transport.accuracy
    monkeypatch.setattr(bench_transport, "backends", lambda atoms, count: backends(*sizes[atoms]))
    monkeypatch.setattr(bench_transport, "accuracy", lambda atoms, count: accuracy(*sizes[atoms])[:1])
    samples = bench_transport.samples
    monkeypatch.setattr(bench_transport, "samples", lambda atoms, count, members: samples(60, 15, 2))
    found = written(bench_transport.main, [], tmp_path / "a.json")
    values = {row["way"]: row["value"] for row in found["backends"]}
    assert values["SinkhornDivergence"] == pytest.approx(values["SamplesLoss tensorized"], rel=1e-3)
    assert found["all_members"]["members"] == 2
    assert found["all_members"]["seconds"] > 0


def test_clouds_run_alike_often(monkeypatch):
    runs = []

    def noted(name, call):
        def way(*args, **kwargs):
            runs.append(name)
            return call(*args, **kwargs)

        return way

    for name in ("point_cloud", "loop_over_centroids"):
        monkeypatch.setattr(bench_point_cloud, name, noted(name, getattr(bench_point_cloud, name)))
    fit = bench_point_cloud.KMeans.fit
    monkeypatch.setattr(bench_point_cloud.KMeans, "fit", noted("fit", fit))
    points, weights = bench_point_cloud.molecule(400, 60)
    found = bench_point_cloud.compare("few", points, weights, 12, 2)
    often = 2 * measuring.REPEATS
    counts = {name: runs.count(name) for name in runs}
    assert counts == {"point_cloud": often, "loop_over_centroids": often, "fit": often}
    assert found["ratio_loop"] == pytest.approx(found["seconds_loop"] / found["seconds"])
    assert found["ratio_scikit_learn"] == pytest.approx(found["seconds_scikit_learn"] / found["seconds"])
    assert 0.9 < found["sum_over_best_of_scikit_learn"] < 1.2


def test_a_round_of_the_loop_is_lloyds():
    points, weights = bench_point_cloud.molecule(200, 30)
    start = points[:5]
    nearest = np.square(points[:, None] - start).sum(-1).argmin(1)
    expected = [np.average(points[nearest == j], axis=0, weights=weights[nearest == j]) for j in range(5)]
    np.testing.assert_allclose(bench_point_cloud.loop_over_centroids(points, weights, start), expected)


def test_cloud(monkeypatch, tmp_path):
    molecule = bench_point_cloud.molecule
    monkeypatch.setattr(bench_point_cloud, "molecule", lambda voxels, atoms: molecule(400, 60))
    monkeypatch.setattr(bench_point_cloud, "cloud_size", lambda atoms, spacing: 12)
    found = written(bench_point_cloud.main, ["--seeds", "1"], tmp_path / "a.json")
    assert [cloud["points"] for cloud in found["clouds"]] == [12]


def test_chains(tmp_path):
    found = written(bench_whole_chain.main, ["--sizes", "20", "40"], tmp_path / "a.json")
    assert [row["residues"] for row in found["sizes"]] == [20, 40]
    assert found["sizes"][0]["ratio_a_residue"] == 1


def test_geometry(monkeypatch, tmp_path):
    regularise = bench_geometry.regularise
    monkeypatch.setattr(
        bench_geometry, "regularise", lambda x, o, evaluations: regularise(x, o, evaluations=2)
    )
    found = written(bench_geometry.main, ["--only-atoms", "--copies"], tmp_path / "a.json")
    assert [row["atoms"] for row in found["atoms"]] == [150]
    assert found["atoms"][0]["evaluation_ms"] > 0


def test_guided_steps_have_as_many_members_as_unguided(monkeypatch, tmp_path):
    """All sampled, although in the demo the start takes the place of one; and as many steps."""
    seen = []
    sample = bench_guided_step.sample

    def noted(prior, *, steps, members, generator):
        x = sample(prior, steps=steps, members=members, generator=generator)
        seen.append((type(prior).__name__, steps, len(x)))
        return x

    monkeypatch.setattr(bench_guided_step, "sample", noted)
    arguments = ["--members", "2", "--steps", "2", "--repeats", "1"]
    found = written(bench_guided_step.main, arguments, tmp_path / "a.json")
    assert len(seen) == 3
    assert {what[1:] for what in seen} == {(2, 2)}
    assert [what[0] for what in seen].count("GuidedPrior") == 2
    steps = found["ms_a_step"]
    assert "density, value" in steps["guided"]
    assert "density, value" not in steps["unguided"]
    for step in steps.values():
        assert step["a member"] == pytest.approx(step["together"] / 2)
    ratio = steps["guided"]["together"] / steps["unguided"]["together"]
    assert found["ratio_guided_unguided"] == pytest.approx(ratio)
    assert found["steps_of_the_demo"] == {"unguided": [30], "guided": [20] * 3 + [15] * 4}
    assert torch.get_num_threads() == 1
