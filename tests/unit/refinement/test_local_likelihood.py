"""The local likelihood against direct summation of structure factors, without FFT or grid."""

import gemmi
import numpy as np
import pytest
import torch

from densemble.crystal.sigmaa import log_rice, model_error
from densemble.io.reflections import Reflections
from densemble.refinement.amplitudes import ModelAndData, local_likelihood

CRYSTALS = {
    "P 1 21 1": gemmi.UnitCell(24, 21, 26, 90, 104, 90),
    "C 1 2 1": gemmi.UnitCell(33, 26, 24, 90, 98, 90),
    "P 21 21 21": gemmi.UnitCell(24, 28, 31, 90, 90, 90),
    "P 31 2 1": gemmi.UnitCell(27, 27, 33, 90, 90, 120),
}
D_MIN = 2.2
ELEMENTS = ("C", "N", "O", "S", "C", "O")


def direct(hkl, group, cell, coords, occupancy, b_iso):
    """Structure factors in electrons, by summation over atoms and operators."""
    s2 = np.asarray(cell.calculate_1_d2_array(hkl))
    frac = coords @ np.array(cell.frac.mat.tolist()).T
    f = np.zeros(len(hkl), dtype=complex)
    for element, x, occ, b in zip(ELEMENTS, frac, occupancy, b_iso, strict=True):
        it92 = gemmi.Element(element).it92
        form = np.array([it92.calculate_sf(float(v) / 4) for v in s2])
        for op in group.operations():
            place = np.array(op.rot) @ x / op.DEN + np.array(op.tran) / op.DEN
            f += occ * form * np.exp(-b * s2 / 4) * np.exp(2j * np.pi * (hkl @ place))
    return f


class Case:
    """A few atoms among unknown others: the rest is a fixed structure factor of the right size."""

    def __init__(self, name, seed=3):
        rng = np.random.default_rng(seed)
        self.cell, self.group = CRYSTALS[name], gemmi.SpaceGroup(name)
        self.hkl = gemmi.make_miller_array(self.cell, self.group, D_MIN).astype(np.int32)
        middle = np.array(self.cell.orthogonalize(gemmi.Fractional(0.31, 0.27, 0.22)).tolist())
        self.coords = middle + rng.normal(size=(2, 6, 3)) * 1.5
        self.occupancy = np.array([[0.6] * 6, [0.4, 0.4, 0.4, 0.4, 0.0, 0.0]])
        self.b_iso = rng.uniform(12, 30, size=(2, 6))
        own = self.factors(self.coords, self.occupancy, self.b_iso)
        size = 3 * np.sqrt(np.mean(np.abs(own) ** 2))
        phase = np.where(self.reflections().centric, 0.0, 1.0) * rng.uniform(0, 2 * np.pi, len(own))
        # of centric reflections the rest gets the region's phase, which symmetry allows
        self.rest = np.where(
            self.reflections().centric, own, size * np.exp(1j * phase) * rng.rayleigh(0.7, len(own))
        )
        self.f = self.rest + own
        self.f_obs = np.abs(self.f + 0.2 * size * rng.normal(size=len(own)))
        self.error = model_error(self.reflections(), self.f_obs, self.f)

    def reflections(self):
        free = np.arange(len(self.hkl)) % 20 == 0
        n = len(self.hkl)
        return Reflections(self.hkl, np.ones(n), np.ones(n), free, self.cell, self.group)

    def factors(self, coords, occupancy, b_iso):
        return sum(
            direct(self.hkl, self.group, self.cell, x, q, b)
            for x, q, b in zip(coords, occupancy, b_iso, strict=True)
        )

    def exact(self, coords, occupancy, b_iso):
        f = self.rest + self.factors(coords, occupancy, b_iso)
        data, error = self.reflections(), self.error
        each = log_rice(self.f_obs, error.d * np.abs(f), error.variance * data.epsilon, data.centric)
        return float(each[~data.free].sum())

    def local(self):
        state = ModelAndData(self.f_obs, self.f, self.error)
        return local_likelihood(state, self.reflections(), ELEMENTS, *self.tensors())

    def tensors(self):
        return tuple(torch.tensor(v) for v in (self.coords, self.occupancy, self.b_iso))


@pytest.mark.parametrize("name", CRYSTALS)
def test_slope_is_that_of_rices_likelihood_by_direct_summation(name):
    case = Case(name)
    x, q, b = (v.requires_grad_(True) for v in case.tensors())
    value = case.local()(x, q, b)
    assert abs(float(value.detach())) < 1e-9
    value.backward()
    rng = np.random.default_rng(7)
    for variable, which, step in ((x, 0, 1e-4), (q, 1, 1e-4), (b, 2, 1e-2)):
        there = case.occupancy > 0  # an atom that is not there has no slope, not even by its occupancy
        way = rng.normal(size=variable.shape) * there.reshape(2, 6, *[1] * (variable.dim() - 2))
        ends = []
        for sign in (1, -1):
            values = [case.coords, case.occupancy, case.b_iso]
            values[which] = values[which] + sign * step * way
            ends.append(case.exact(*values))
        expected = (ends[0] - ends[1]) / (2 * step)
        slope = variable.grad.numpy()
        typical = np.linalg.norm(slope) * np.linalg.norm(way) / np.sqrt(slope.size)
        assert (slope * way).sum() == pytest.approx(expected, abs=0.01 * typical)


@pytest.mark.parametrize("name", CRYSTALS)
def test_curvature_is_that_of_independent_copies(name):
    """Mean over phases: every lattice point, D^2 / sigma^2 of the change's power, half of it if acentric."""
    case = Case(name)
    local, reflections = case.local(), case.reflections()
    moved = case.coords + 0.1 * np.random.default_rng(1).normal(size=case.coords.shape)
    _, q, b = case.tensors()
    forth = float(local(torch.tensor(moved), q, b))
    change = local.density(torch.tensor(moved), q, b, blur=local.blur) - local.reference
    curvature = float((local.slope * change).sum()) - forth
    one = gemmi.SpaceGroup("P 1")
    expected = 0.0
    for op in case.group.operations().sym_ops:
        hkl = np.rint(case.hkl @ np.array(op.rot) / op.DEN).astype(np.int32)
        change = sum(
            direct(hkl, one, case.cell, x1, o, t) - direct(hkl, one, case.cell, x0, o, t)
            for x0, x1, o, t in zip(case.coords, moved, case.occupancy, case.b_iso, strict=True)
        )
        # a unique reflection stands for 2 n / epsilon (centric: n / epsilon) points, the operators give n
        points = np.where(reflections.centric, 1.0, 2.0) / reflections.epsilon
        weight = np.where(reflections.centric, 1.0, 0.5) * case.error.d**2 / case.error.variance
        weight = np.where(reflections.free, 0.0, weight)
        centrings = len(list(case.group.operations().cen_ops))
        # centred copies scatter together, into one of so many points
        expected += 0.5 * centrings**2 * (points * weight * np.abs(change) ** 2).sum()
    assert curvature == pytest.approx(expected, rel=0.08)


def test_free_amplitudes_have_no_part():
    case = Case("P 1 21 1")
    before = case.local()
    free = case.reflections().free
    case.f_obs = np.where(free, 5 * case.f_obs, case.f_obs)
    assert torch.equal(case.local().slope, before.slope)
    assert torch.equal(case.local().filter, before.filter)
    case.f_obs = np.where(free, case.f_obs, 1.01 * case.f_obs)
    assert not torch.equal(case.local().slope, before.slope)


def test_gradient_in_all_three(generator):
    case = Case("P 1 21 1")
    local = case.local()
    x, q, b = case.tensors()
    x = x + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    q = q.clamp(min=0.1)

    def value(x, q, b):
        return local(x.reshape(2, 6, 3), q, b)

    inputs = tuple(v.clone().requires_grad_(True) for v in (x, q, b))
    assert torch.autograd.gradcheck(value, inputs, eps=1e-5, atol=1e-4, rtol=1e-3)
