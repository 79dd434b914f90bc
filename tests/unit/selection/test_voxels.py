import numpy as np
import pytest
import torch

from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.selection.judge import fit_shares
from densemble.selection.voxels import MapJudge

GRID = Grid((0.0, 0.0, 0.0), (0.8, 0.8, 0.8), (24, 22, 20))
ATOMS = np.arange(6)


def judge(noise, *, seed=0, other=True):
    """Two states of six atoms, a third of the density is the first, on another scale and with an offset."""
    rng = np.random.default_rng(seed)
    forward = XrayDensity(GRID, ("C", "N", "O") * 2, d_min=2.5)
    states, b_iso = rng.uniform(4, 12, size=(2, 6, 3)), np.full((2, 6), 30.0)
    with torch.no_grad():
        x = torch.as_tensor(states).float()
        density = forward(x, torch.tensor([1 / 3, 2 / 3]), torch.as_tensor(b_iso).float()) * 4.0 - 2.0

    def measured():
        return DensityMap(GRID, density + noise * torch.as_tensor(rng.normal(size=GRID.shape)).float())

    inside = torch.ones(GRID.shape, dtype=torch.bool)
    found = MapJudge(
        forward, measured(), measured() if other else None, inside, sigma=max(noise, 0.01), edge=2.4
    )
    return found, found.signals(ATOMS, states, b_iso)


def test_occupancies_whatever_the_scale_of_the_map():
    found, signals = judge(0.0)
    w = fit_shares(found, signals, np.array([0.5, 0.5]), np.zeros(2, dtype=int))
    assert w == pytest.approx([1 / 3, 2 / 3], abs=1e-3)


def test_the_other_map_tells_what_is_there_from_what_was_fitted():
    gains = []
    for seed in range(6):
        found, signals = judge(1.0, seed=seed)
        both, one = np.array([1 / 3, 2 / 3]), np.array([0.0, 1.0])
        gains.append((found.held_out(signals, both) - found.held_out(signals, one)).sum())
        assert found.fitted(signals, both) > found.fitted(signals, one)
    assert np.mean(gains) > 3
    blocks = found.held_out(signals, both)
    assert len(blocks) == 8 * 8 * 7  # of 3 x 3 x 3 voxels
    assert len(found.blocks(signals, both).gram) == len(blocks)


def test_without_another_map_nothing_is_held_out():
    found, signals = judge(1.0, other=False)
    assert not found.holds_out
    assert "AIC" in found.rule
    with pytest.raises(ValueError, match="held out"):
        found.held_out(signals, np.array([0.5, 0.5]))
