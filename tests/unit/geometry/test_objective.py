"""The objective: values in closed form, derivatives, speed of nothing but correctness."""

import math
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Region
from densemble.geometry.objective import (
    TERMS,
    GeometryObjective,
    angles,
    chiral_volumes,
    dihedrals,
    distances,
)
from densemble.geometry.ramachandran import CLASSES, torsion_table
from densemble.geometry.regularise import regularise
from densemble.geometry.restraints import Restraints, build_restraints
from densemble.geometry.targets import PLANE_SD
from densemble.geometry.validation import validate
from densemble.io.models import Model, read_model

DEPOSITED = Path(densemble.__file__).parent / "data" / "7rin" / "deposited.cif"


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(DEPOSITED, altloc="B")


def region(model: Model, text: str, names: tuple[str, ...] | None = None) -> tuple[Restraints, torch.Tensor]:
    """Restraints of a region (of some of its atoms) and its deposited coordinates, waters left out."""
    topology = model.topology
    residues = Region.parse(text).residues(topology)
    atoms = topology.atoms_of(residues)
    free = atoms if names is None else np.array([i for i in atoms if topology.names[i] in names])
    water = np.array([topology.residues[r].kind == "water" for r in topology.residue_index])
    absent = np.union1d(np.flatnonzero(water), np.setdiff1d(atoms, free))
    restraints = build_restraints(topology, model.coords, free, absent=absent)
    return restraints, torch.tensor(model.coords[free])[None]


def test_measures_agree_with_gemmi(generator: torch.Generator) -> None:
    points = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    for x in points:
        p = [gemmi.Position(*row) for row in x.tolist()]
        assert distances(x[None, None, :2]).item() == pytest.approx(p[0].dist(p[1]), abs=1e-9)
        assert angles(x[None, None, :3]).item() == pytest.approx(gemmi.calculate_angle(*p[:3]), abs=1e-9)
        assert dihedrals(x[None, None]).item() == pytest.approx(gemmi.calculate_dihedral(*p), abs=1e-9)
        arms = (x[1:] - x[0]).numpy()
        volume = np.linalg.det(arms / np.linalg.norm(arms, axis=1, keepdims=True))
        assert chiral_volumes(x[None, None]).item() == pytest.approx(volume, abs=1e-9)


def test_bonds_and_angles_in_closed_form(model: Model) -> None:
    restraints, x = region(model, "A:180-182")
    terms = GeometryObjective(restraints, dtype=torch.float64).terms(x)
    full = torch.cat([x[0], restraints.fixed]).numpy()
    z2 = 0.0
    for (i, j), mean, sd in zip(
        restraints.bonds.atoms.tolist(),
        restraints.bonds.mean.tolist(),
        restraints.bonds.sd.tolist(),
        strict=True,
    ):
        z2 += ((np.linalg.norm(full[i] - full[j]) - mean) / sd) ** 2
    assert terms["bonds"].item() == pytest.approx(-0.5 * z2, rel=1e-9)
    z2 = 0.0
    for group in restraints.planes.tolist():
        points = full[[i for i in group if i >= 0]]
        z2 += np.linalg.svd(points - points.mean(0))[1][-1] ** 2 / PLANE_SD**2
    assert terms["planes"].item() == pytest.approx(-0.5 * z2, rel=1e-8)


def test_contacts_in_closed_form(model: Model) -> None:
    restraints, x = region(model, "A:180-182")
    objective = GeometryObjective(
        restraints, dtype=torch.float64, weights={n: 0.0 for n in TERMS if n != "contacts"}
    )
    assert list(objective.terms(x)) == ["contacts"]
    squeezed = x.mean(1, keepdim=True) + 0.6 * (x - x.mean(1, keepdim=True))
    distance = torch.cdist(squeezed, torch.cat([squeezed, restraints.fixed[None]], dim=1))[0]
    gap = (restraints.contact_limit - distance).clamp(min=0)
    assert (gap > 0).sum() > 10
    assert objective(squeezed).item() == pytest.approx(-0.5 * float((gap / 0.2).square().sum()), rel=1e-6)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("names", [None, ("N", "CA", "C", "O"), ("N", "CA", "C", "O", "CB")])
def test_gradcheck(
    model: Model, generator: torch.Generator, cap: float | None, names: tuple[str, ...] | None
) -> None:
    """Every term, distorted so that contacts and tails take part; a proline, an acid and a ring inside."""
    restraints, x = region(model, "A:180-182", names)
    assert [r.name for r in restraints.topology.residues] == ["PRO", "ASP", "PHE"]
    x = (x + 0.7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    objective = GeometryObjective(restraints, cap=cap, dtype=torch.float64)
    values = objective.terms(x)
    assert {name for name, value in values.items() if value.abs() > 0} >= set(TERMS) - {"chirals"}
    assert torch.autograd.gradcheck(objective.per_member, (x,), eps=1e-6, atol=1e-3, rtol=1e-4)


def test_members_are_independent_and_invariant(model: Model, generator: torch.Generator) -> None:
    restraints, x = region(model, "A:176-191")
    x = x + 0.1 * torch.randn(3, *x.shape[1:], generator=generator, dtype=torch.float64)
    objective = GeometryObjective(restraints, dtype=torch.float64)
    together = objective.per_member(x)
    assert torch.allclose(together, torch.cat([objective.per_member(m[None]) for m in x]))
    assert objective(x).item() == pytest.approx(together.sum().item())
    single = GeometryObjective(restraints).per_member(x.float())
    assert torch.allclose(single.double(), together, rtol=1e-3)


def test_capped_gradient_is_bounded(model: Model, generator: torch.Generator) -> None:
    restraints, x = region(model, "A:176-191")
    x = (x + 5 * torch.randn(4, *x.shape[1:], generator=generator, dtype=torch.float64)).requires_grad_()
    (capped,) = torch.autograd.grad(GeometryObjective(restraints, cap=4.0, dtype=torch.float64)(x), x)
    (harmonic,) = torch.autograd.grad(GeometryObjective(restraints, dtype=torch.float64)(x), x)
    assert capped.norm(dim=-1).max() < 2e4
    assert capped.norm(dim=-1).median() < harmonic.norm(dim=-1).median() / 10


def test_mirror_image_is_refused(model: Model) -> None:
    restraints, x = region(model, "A:150-170")
    alone = GeometryObjective(
        restraints, dtype=torch.float64, weights={n: 0.0 for n in TERMS if n != "chirals"}
    )
    assert alone(x).item() > -20
    assert alone(x * torch.tensor([-1.0, 1, 1])).item() < -20 * 2 * 2.4**2 / 0.2**2
    report = validate(restraints, x * torch.tensor([-1.0, 1, 1]))
    assert report.wrong_hand.item() == len(restraints.chirals)


def test_deposited_loop_is_plausible(model: Model) -> None:
    restraints, x = region(model, "A:176-191")
    terms = GeometryObjective(restraints, dtype=torch.float64).terms(x)
    expected = 0.5 * (len(restraints.bonds) + len(restraints.angles))
    assert -(terms["bonds"] + terms["angles"]).item() < expected
    report = validate(restraints, x).rows()[0]
    assert report["bond_rmsz"] < 1
    assert report["angle_rmsz"] < 1
    assert report["favoured"] >= len(restraints.phipsi) - 1
    assert [report[k] for k in ("outliers", "cis", "twisted", "wrong_hand", "clashes")] == [0] * 5


def test_unknown_term_is_refused(model: Model) -> None:
    restraints, _ = region(model, "A:181")
    with pytest.raises(ValueError, match="unknown terms"):
        GeometryObjective(restraints, weights={"bond": 1.0})


def test_torsion_density_is_normalised_periodic_and_interpolates() -> None:
    table = torsion_table()
    grid = torch.deg2rad(torch.arange(-180.0, 180.0, 2.5, dtype=torch.float64))
    phi, psi = (t.reshape(-1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    for kind in range(len(CLASSES)):
        value = table.log_density(phi, psi, torch.full(phi.shape, kind))
        assert float(value.exp().sum()) * math.radians(2.5) ** 2 == pytest.approx(1, abs=0.01)
        turned = table.log_density(phi + 2 * math.pi, psi - 2 * math.pi, torch.full(phi.shape, kind))
        assert torch.allclose(value, turned)
    at = torch.tensor([-63.0, -120.0, 60.0, 75.0, -63.0], dtype=torch.float64).deg2rad()
    to = torch.tensor([-43.0, 130.0, 45.0, -120.0, -43.0], dtype=torch.float64).deg2rad()
    general = table.log_density(at, to, torch.zeros(5, dtype=torch.long))
    assert general[0] > general[1] > general[2] > general[3]
    assert general[3] < table.allowed[0]
    glycine = table.log_density(at, to, torch.ones(5, dtype=torch.long))
    assert glycine[2] > general[2]


def test_regularise_mends_noise(model: Model, generator: torch.Generator) -> None:
    restraints, x = region(model, "A:179-184")
    start = (x + 0.3 * torch.randn(2, *x.shape[1:], generator=generator, dtype=torch.float64)).float()
    before = validate(restraints, start)
    assert before.bond_rmsz.min() > 5
    result = regularise(start, GeometryObjective(restraints), evaluations=100)
    after = validate(restraints, result.coords)
    assert result.evaluations <= 101
    assert result.after > result.before
    assert after.bond_rmsz.max() < 0.5
    assert after.angle_rmsz.max() < 1.0
    assert after.clashes.sum() == 0
    assert (result.coords - x).norm(dim=-1).square().mean().sqrt() < 0.7  # no further away than it was put


def test_regularise_weighs_a_joint_likelihood(model: Model) -> None:
    """A likelihood of the members' mean position moves the ensemble, but breaks no bond."""
    restraints, x = region(model, "A:179-184")
    wanted = x.float().mean(0) + torch.tensor([0.15, 0.0, 0.0])
    objective = GeometryObjective(restraints)

    def likelihood(coords: torch.Tensor) -> torch.Tensor:
        return -200 * (coords.mean(0) - wanted).square().sum()

    start = x.float().repeat(2, 1, 1)
    result = regularise(start, objective, log_likelihood=likelihood, evaluations=60)
    assert likelihood(result.coords) > likelihood(start) / 2
    assert validate(restraints, result.coords).bond_rmsz.max() < 1


def test_regularise_refuses_nonsense(model: Model) -> None:
    restraints, x = region(model, "A:181")
    with pytest.raises(ValueError, match="not finite"):
        regularise(x.float() * float("nan"), GeometryObjective(restraints))
