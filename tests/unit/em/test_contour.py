"""The sample of a map's voxels that its solvent is estimated from."""

import numpy as np
import pytest

from densemble.em import contour
from densemble.em.contour import Solvent, first_solvent, solvent_beside


@pytest.mark.parametrize("shape", [(32, 32, 64), (30, 36, 64), (64, 32, 35)])
def test_every_plane_is_sampled_alike(shape, monkeypatch):
    monkeypatch.setattr(contour, "_SAMPLE", 2**10)
    for axis, place in enumerate(np.indices(shape)):
        counts = np.bincount(contour._sampled(place, shape).astype(int), minlength=shape[axis])
        assert counts.min() > 0.5 * 2**10 / shape[axis]
        assert counts.max() < 1.5 * 2**10 / shape[axis]


def test_solvent_of_a_map_whose_planes_differ(monkeypatch):
    """Noise that grows along z, from none in the plane that a step of 64 voxels would keep to."""
    monkeypatch.setattr(contour, "_SAMPLE", 2**12)
    noise = np.random.default_rng(0).normal(size=(64, 64, 64))
    values = noise * np.linspace(0, 2, 64)
    values[20:30, 20:30, 20:30] = 50.0
    whole = 1.4826 * np.median(np.abs(values))
    first = first_solvent(values)
    assert first.noise == pytest.approx(whole, rel=0.15)
    found = solvent_beside(values, values > 10, Solvent(0.0, 1.0, None, beside=False))
    assert found.beside
    assert found.noise == pytest.approx(whole, rel=0.08)
