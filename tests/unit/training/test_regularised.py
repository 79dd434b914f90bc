import json

import numpy as np
import pytest
from ideal import ideal_corpus

from hidden import Hidden
from regularised import chemistry_regularised, regularised

START, LENGTH = 20, 6


@pytest.fixture(scope="module")
def corpus():
    return ideal_corpus()


def local(corpus, chain):
    """The true segment in its canonical frame, shape=(1, 1, l, 4, 3)."""
    axes, origin = Hidden.of(corpus, chain, START, LENGTH).frame
    truth = corpus.chain(chain)[0][START : START + LENGTH].astype(float)
    return ((truth - origin) @ axes)[None, None]


def test_what_is_ideal_hardly_moves(corpus):
    found = regularised(corpus, [(0, START)], local(corpus, 0), evaluations=30)
    assert found["before"]["bond_rmsz"][0] < 1
    assert found["before"]["rmsd"][0] < 1e-4
    assert found["after"]["rmsd"][0] == pytest.approx(found["moved"]["rms"][0], abs=1e-4)
    assert found["after"]["outliers"][0] == found["after"]["clashes"][0] == 0
    assert found["moved"]["rms"][0] < 0.3


def test_noise_is_mended_and_said_to_have_moved(corpus, monkeypatch):
    monkeypatch.setattr("regularised.EVALUATIONS", 60)
    rng = np.random.default_rng(0)
    sets = {}
    for name, chain in (("strand", 1), ("poly", 2)):
        x = local(corpus, chain)
        x = x + rng.normal(scale=0.15, size=(2, 3, *x.shape[2:]))
        sets[name] = ([(chain, START)] * 2, x)
    result = chemistry_regularised(corpus, sets, segments=1, members=2)
    assert result["members"] == 4
    assert result["before"]["bond_rmsz_median"] > 3
    assert result["before"]["within_bar"] == 0
    assert result["after"]["bond_rmsz_median"] < 1.5
    assert result["after"]["angle_rmsz_median"] < 1.5
    assert result["after"]["within_bar"] == 1
    assert 0.05 < result["moved"]["rms_median"] < 1
    assert set(result["by_set"]) == {"strand", "poly"}
    assert json.loads(json.dumps(result)) == result
