import numpy as np
import pytest

from densemble.atoms import Region
from densemble.demo import example
from densemble.io.models import read_model
from densemble.io.reflections import read_reflections
from noise import LENGTH, LEVEL, MOBILE, ordered_stretches, residual


@pytest.fixture(scope="module")
def model():
    return read_model(example("model.cif"))


def test_ordered_stretches_keep_away_from_what_is_mobile(model):
    found = ordered_stretches(model, LENGTH, 16)
    assert len(set(found)) == 16
    mobile = {r for text in MOBILE for r in Region.parse(text).residues(model.topology)}
    b = model.b_iso[model.topology.backbone(range(2, 280))].mean(1)
    for text in found:
        (stretch,) = Region.parse(text).resolve(model.topology)
        assert len(stretch) == LENGTH
        assert min(abs(r - m) for r in stretch for m in mobile) > 3
        assert model.b_iso[model.topology.backbone(stretch)].mean() < 1.05 * np.median(b)


def test_a_refined_stretch_leaves_noise_of_about_the_level_used(model):
    row = residual(model, read_reflections(example("data.mtz")), "A:94-101")
    assert row["ratio"] == pytest.approx(row["noise"] / row["density_sd"])
    assert LEVEL / 2 < row["ratio"] < LEVEL * 1.5
