"""Chroma: what is said where package, weights, recipe or region are not as they should."""

import sys
from dataclasses import replace

import pytest

from densemble.errors import InputError
from densemble.pipeline import run_xray

NO_CHROMA = "generate-chroma is not installed; make chroma"


@pytest.fixture
def complaint(crystal, tmp_path):
    """Run with changed settings; what it says, after checking that it left nothing."""

    def run(**changes) -> str:
        settings = replace(crystal.settings(), **changes)
        with pytest.raises(InputError) as raised:
            run_xray(settings, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    return run


@pytest.fixture
def chroma(tmp_path):
    """Settings of Chroma with weights in files."""
    pytest.importorskip("chroma", reason=NO_CHROMA)
    from small_chroma import write_weights

    from densemble.priors.chroma.networks import BACKBONE, DESIGN

    paths = write_weights(tmp_path)
    return {
        "prior": "chroma",
        "recipe": "chroma-2024",
        "weights_backbone": paths[BACKBONE],
        "weights_design": paths[DESIGN],
    }


def test_package_that_is_not_installed(complaint, monkeypatch):
    for name in [m for m in sys.modules if m.startswith("chroma.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "chroma", None)
    said = complaint(prior="chroma", recipe=None)
    assert "make chroma" in said
    assert "generate-chroma==1.0.0" in said


def test_weights_that_are_not_there(complaint, chroma, tmp_path):
    said = complaint(**chroma | {"weights_backbone": tmp_path / "absent.pt"})
    assert "--weights-backbone" in said
    assert "absent.pt: no such file" in said


def test_design_network_that_is_missing(complaint, chroma, monkeypatch, tmp_path):
    from chroma.utility import api

    monkeypatch.setattr(api.download_from_generate, "__defaults__", (False, False, str(tmp_path)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = complaint(**chroma | {"weights_design": None})
    assert "design network needs weights, and no access key is registered" in said
    assert "--weights-design" in said


def test_weights_of_the_wrong_network(complaint, chroma):
    said = complaint(**chroma | {"weights_design": chroma["weights_backbone"]})
    assert "not weights of Chroma's GraphDesign" in said


def test_recipe_of_other_noise(complaint, chroma):
    assert "its noise is not Chroma's" in complaint(
        **chroma | {"recipe": "densemble", "weights_design": None}
    )


@pytest.mark.parametrize("prior", ["gaussian", "embedded"])
def test_recipe_of_chroma_with_another_prior(complaint, prior):
    said = complaint(prior=prior, recipe="chroma-2024")
    assert "chroma-2024" in said
    assert "--prior" in said


def test_region_that_leaves_nothing_to_hold(complaint, chroma):
    said = complaint(**chroma, region="A:172-194")
    assert "leave out some of the chain" in said


def test_weights_that_are_of_no_use(complaint, tmp_path):
    assert "take the prior chroma (--prior" in complaint(weights_backbone=tmp_path / "any.pt")
    said = complaint(weights_design=tmp_path / "any.pt")
    assert "--weights-design: of no use to the recipe" in said
