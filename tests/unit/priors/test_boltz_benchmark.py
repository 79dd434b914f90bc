"""The benchmark of a step of Boltz runs, at small size, and says of each ratio whether it is small enough."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "boltz_step.py"


@pytest.mark.parametrize("kind", ["boltz1", "boltz2"])
def test_the_benchmark_runs(kind, tmp_path):
    file = tmp_path / "step.json"
    options = ["--small", "--kind", kind, "--residues", "30", "--members", "2", "--json", str(file)]
    subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    result = json.loads(file.read_text())
    assert result["versions"]["boltz"] == "2.2.1"
    (row,) = result["rows"]
    assert (row["residues"], row["members"]) == (30, 2)
    assert row["inside"] > 0.9
    for name in ("unguided", "autograd", "density", "cloud"):
        assert row[f"{name}_s"] > 0
        assert row[f"{name}_together"] == 2
    for other, most in (("unguided", 2.5), ("autograd", 1.15)):
        ratio = row["density_s"] / row[f"{other}_s"]
        assert row[f"density_over_{other}"] == pytest.approx(ratio)
        assert row[f"density_over_{other}_passed"] == (ratio <= most)
