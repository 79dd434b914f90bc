import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from plots import plot_calibration, pooled_ranks


def evaluation():
    def row(scale):
        return {
            "segments": 3,
            "single_median": 2 * scale,
            "best4_median": scale,
            "rank_histogram": [4, 1, 1, 1, 3],
        }

    table = {kind: {str(n): row(0.1 * n) for n in (4, 8)} for kind in ("all", "loop")}
    errors = {"0.1": 0.05, "1.0": 0.4, "10.0": 2.0}
    return {
        "segments": table,
        "denoising_rmse": errors,
        "denoising_rmse_closed_form": errors,
        "sampling": {"members": 4},
    }


def test_ranks_of_all_lengths_are_pooled():
    assert pooled_ranks(evaluation(), "all") == pytest.approx(np.array([0.4, 0.1, 0.1, 0.1, 0.3]))


@pytest.mark.parametrize("without", [None, "denoising_rmse_closed_form"])
def test_calibration_is_drawn_with_and_without_the_closed_form(tmp_path, without):
    result = evaluation()
    result.pop(without, None)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    plot_calibration(tmp_path / "evaluation.json", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
