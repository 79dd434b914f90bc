"""The curvature of stereochemistry: second derivatives where these are known, and what it is for."""

from dataclasses import replace

import pytest
import torch
from tests.unit.geometry.test_objective import DEPOSITED, region

from densemble.geometry.contacts import CONTACT_SD
from densemble.geometry.curvature import LEAST, Blocks, evened, mean_curvature
from densemble.geometry.objective import (
    GeometryObjective,
    angles,
    chiral_volumes,
    dihedrals,
    distances,
)
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import Restraints, Terms
from densemble.geometry.validation import validate
from densemble.io.models import Model, read_model


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(DEPOSITED, altloc="B")


def at_rest(restraints: Restraints, x: torch.Tensor) -> Restraints:
    """The same restraints, with the values that are there for targets."""
    whole = torch.cat([x[0], restraints.fixed])
    measures = {"bonds": distances, "angles": angles, "chirals": chiral_volumes, "omegas": dihedrals}

    def shifted(name: str) -> Terms:
        terms = getattr(restraints, name)
        return replace(terms, mean=measures[name](whole[terms.atoms][None])[0])

    return replace(restraints, **{name: shifted(name) for name in measures})


@pytest.mark.parametrize("name", ["bonds", "angles", "chirals", "omegas"])
def test_it_is_the_second_derivative_where_nothing_deviates(model: Model, name: str) -> None:
    restraints, x = region(model, "A:180-182")
    weights = {
        other: 0.0 for other in ("bonds", "angles", "planes", "chirals", "omegas", "contacts", "torsions")
    }
    objective = GeometryObjective(at_rest(restraints, x), weights=weights | {name: 0.7}, dtype=torch.float64)
    expected = -torch.autograd.functional.hessian(lambda y: objective(y.view_as(x)), x.flatten())
    found = objective.curvature(x)[0]
    assert float(expected.abs().max()) > 10
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_planes_resist_along_their_normal_alone(model: Model) -> None:
    """Where all atoms are in the plane that is the second derivative too."""
    restraints, x = region(model, "A:191")
    group = next(row for row in restraints.planes.tolist() if sum(i >= 0 for i in row) > 6)
    atoms = [i for i in group if 0 <= i < x.shape[1]]
    assert len(atoms) == sum(i >= 0 for i in group)
    only = replace(restraints, planes=torch.tensor([group]))
    weights = {name: 0.0 for name in ("bonds", "angles", "chirals", "omegas", "contacts", "torsions")}
    flat = x.clone()
    centre = flat[0, atoms].mean(0)
    normal = torch.linalg.svd(flat[0, atoms] - centre)[2][-1]
    flat[0, atoms] -= ((flat[0, atoms] - centre) @ normal)[:, None] * normal
    objective = GeometryObjective(only, weights=weights, dtype=torch.float64)
    found = objective.curvature(flat)[0]
    shift = torch.zeros_like(flat)
    shift[0, atoms[0]] = normal * 1e-3
    rise = shift.flatten() @ found @ shift.flatten() / 2
    assert float(rise) == pytest.approx(-float(objective(flat + shift)), rel=1e-3)
    along = torch.zeros_like(flat)
    along[0, atoms[0]] = torch.linalg.cross(normal, normal.roll(1))
    assert float(along.flatten() @ found @ along.flatten()) == pytest.approx(0, abs=1e-6)
    together = torch.zeros_like(flat)
    together[0, atoms] = normal
    assert float(together.flatten() @ found @ together.flatten()) == pytest.approx(0, abs=1e-6)


def test_contacts_resist_along_the_line_between_two_atoms(model: Model) -> None:
    restraints, x = region(model, "A:180-182")
    x = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weights = {name: 0.0 for name in ("bonds", "angles", "planes", "chirals", "omegas", "torsions")}
    objective = GeometryObjective(restraints, weights=weights, dtype=torch.float64)
    k, i, j = objective._near(x)
    n = x.shape[1]
    whole = torch.cat([x[0], restraints.fixed])
    expected = torch.zeros(n + len(restraints.fixed), 3, n + len(restraints.fixed), 3, dtype=x.dtype)
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        u = (whole[a] - whole[b]) / (whole[a] - whole[b]).norm()
        for one, other, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            expected[one, :, other] += sign * torch.outer(u, u)
    found = objective.curvature(x)[0]
    expected = expected[:n, :, :n].reshape(3 * n, 3 * n)
    assert len(k) > 3
    torch.testing.assert_close(found, expected / CONTACT_SD**2)


def test_blocks_of_members_do_not_mix_and_atoms_that_are_not_free_are_left_out() -> None:
    blocks = Blocks(torch.zeros(2, 2, 3))
    block = torch.arange(9.0).view(1, 3, 3)
    blocks.add(torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), block)
    blocks.add(torch.tensor([0]), torch.tensor([0]), torch.tensor([7]), block)
    found = blocks.matrix()
    assert float(found[0].abs().max()) == 0
    assert torch.equal(found[1, :3, 3:], block[0])
    assert float(found[1, 3:].abs().max()) == 0


def test_evened_directions_are_alike(generator: torch.Generator) -> None:
    root = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64) * 100
    curvature, also = root @ root.mT, torch.tensor([3.0, 4000.0], dtype=torch.float64)
    one = torch.eye(9, dtype=torch.float64)
    for r, c, added in zip(evened(curvature, also), curvature, (LEAST, 4000.0), strict=True):
        torch.testing.assert_close(r.T @ (c + added * one) @ r, one)


def test_mean_curvature_is_that_of_what_is_given(generator: torch.Generator) -> None:
    """Of a sum of squares exactly; of one with couplings about, for there is one probe."""
    x = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    weights = torch.tensor([7.0, 90.0], dtype=torch.float64)
    found = mean_curvature(lambda y: -(weights[:, None, None] * y.square()).sum() / 2, x)
    torch.testing.assert_close(found, weights)
    root = torch.randn(150, 150, generator=generator, dtype=torch.float64)
    coupled = mean_curvature(lambda y: -(y.flatten(1) @ root).square().sum() / 2, x)
    exact = float((root @ root.T).trace()) / 150
    assert float(coupled[0]) == pytest.approx(exact, rel=0.3)


def test_noise_is_mended_in_fewer_evaluations(model: Model, generator: torch.Generator) -> None:
    """With a likelihood that holds atoms about where they were, which stiff bonds make slow."""
    restraints, x = region(model, "A:179-184")
    start = (x + 0.2 * torch.randn(2, *x.shape[1:], generator=generator, dtype=torch.float64)).float()
    objective = GeometryObjective(restraints)

    def likelihood(y: torch.Tensor) -> torch.Tensor:
        return -100 * (y - x.float()).square().sum()

    plain = regularise(start, objective, log_likelihood=likelihood, evaluations=40)
    told = regularise(
        start, objective, log_likelihood=likelihood, curvature=objective.curvature, evaluations=20
    )
    assert told.before == plain.before
    assert told.after > plain.after
    assert told.evaluations <= 21
    value = float(objective(told.coords) + likelihood(told.coords))
    assert value == pytest.approx(told.after, rel=1e-4)
    assert validate(restraints, told.coords).bond_rmsz.max() < 0.5
