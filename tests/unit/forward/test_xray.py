import gemmi
import numpy as np
import pytest
import torch

import densemble.forward.xray
from densemble.errors import InputError
from densemble.forward.kernel import gaussian_density
from densemble.forward.scattering import FormFactors
from densemble.forward.truncation import truncated_profile
from densemble.forward.xray import SymmetryImages, XrayDensity
from densemble.grid import Grid
from densemble.metrics.maps import voxels_near

ELEMENTS = ["C", "N", "O", "S", "C", "Zn", "C", "O"]


def crystal_of(coords, elements, b_iso, occupancy, cell, name):
    out = gemmi.Structure()
    out.cell, out.spacegroup_hm = cell, name
    model, chain, residue = gemmi.Model("1"), gemmi.Chain("A"), gemmi.Residue()
    residue.name = "LIG"
    for x, b, q, e in zip(coords, b_iso, occupancy, elements, strict=True):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = e, gemmi.Element(e), gemmi.Position(*x)
        atom.b_iso, atom.occ = float(b), float(q)
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    out.add_model(model)
    out.setup_cell_images()
    return out


def structure(cell, name, seed=0):
    """Eight atoms near the origin, with B factors and occupancies, in a crystal."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(-2.5, 2.5, (len(ELEMENTS), 3)) + np.array([1.0, 2.0, 3.0])
    b_iso, occupancy = rng.uniform(8, 40, len(ELEMENTS)), rng.uniform(0.3, 1.0, len(ELEMENTS))
    return crystal_of(coords, ELEMENTS, b_iso, occupancy, cell, name), coords, b_iso, occupancy


def gemmi_density(crystal):
    """gemmi's own density on its grid over the whole cell."""
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min, calculator.rate, calculator.cutoff = 1.0, 2.0, 1e-8
    calculator.set_grid_cell_and_spacegroup(crystal)
    calculator.put_model_density_on_grid(crystal[0])
    return calculator.grid


CRYSTALS = [
    ("P 1", (17.0, 19.0, 21.0, 78.0, 101.0, 112.0)),
    ("P 1 21 1", (16.0, 22.0, 18.0, 90.0, 109.0, 90.0)),
    ("C 1 2 1", (28.0, 16.0, 19.0, 90.0, 117.0, 90.0)),
    ("P 21 21 21", (15.0, 18.0, 22.0, 90.0, 90.0, 90.0)),
    ("P 31 2 1", (18.0, 18.0, 20.0, 90.0, 90.0, 120.0)),
    ("P 61", (19.0, 19.0, 21.0, 90.0, 90.0, 120.0)),
    ("R 3 :H", (26.0, 26.0, 18.0, 90.0, 90.0, 120.0)),
    ("I 41", (22.0, 22.0, 17.0, 90.0, 90.0, 90.0)),
]


@pytest.mark.parametrize(("name", "parameters"), CRYSTALS, ids=[c[0] for c in CRYSTALS])
def test_is_gemmis_density_in_a_crystal(name, parameters):
    """At gemmi's own grid nodes, symmetry copies included, in e/Å^3."""
    cell = gemmi.UnitCell(*parameters)
    crystal, coords, b_iso, occupancy = structure(cell, name)
    reference = gemmi_density(crystal)
    values = np.array(reference, copy=False)
    # Nodes of a crystal grid are not those of an orthonormal box: one box of a single voxel each.
    rng = np.random.default_rng(1)
    nodes = [tuple(int(v) for v in node) for node in rng.integers(0, values.shape, (12, 3))]
    nodes += [tuple(int(v) for v in node) for node in np.argwhere(values > 0.3 * values.max())[::40]]
    largest = 0.0
    for node in nodes:
        centre = cell.orthogonalize(gemmi.Fractional(*np.array(node) / values.shape)).tolist()
        grid = Grid(origin=(centre[0], centre[1], centre[2]), spacing=(1.0, 1.0, 1.0), shape=(1, 1, 1))
        images = SymmetryImages.reaching(grid, coords, cell, gemmi.SpaceGroup(name))
        model = XrayDensity(
            grid, ELEMENTS, occupancy=torch.tensor(occupancy), images=images, cutoff=1e-9, dtype=torch.float64
        )
        density = model(torch.tensor(coords)[None], torch.ones(1).double(), torch.tensor(b_iso)).item()
        largest = max(largest, abs(density - values[node]))
    assert values.max() > 5.0
    assert largest < 5e-5


def test_symmetry_images_contain_the_identity_first_and_nothing_far():
    cell, grid = gemmi.UnitCell(30, 40, 50, 90, 100, 90), Grid((0.0,) * 3, (1.0,) * 3, (10, 10, 10))
    images = SymmetryImages.reaching(
        grid, np.array([[5.0, 5.0, 5.0]]), cell, gemmi.SpaceGroup("P 1 21 1"), margin=5.0
    )
    np.testing.assert_allclose(images.rotation[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(images.translation[0], 0, atol=1e-12)
    assert len(images) == 1


def test_copies_that_reach_no_voxel_that_counts_are_left_out(monkeypatch):
    """P 2, voxels count within 3 Å of an atom: its copy is seen where it comes near these, and not else."""
    cell = gemmi.UnitCell(40, 40, 40, 90, 90, 90)
    grid = Grid((-14.0, -3.0, -4.0), (0.5,) * 3, (53, 13, 17))
    images = SymmetryImages.reaching(grid, np.array([[2.0, 0.0, 0.0]]), cell, gemmi.SpaceGroup("P 1 2 1"))
    whole = XrayDensity(grid, ["C", "N"], images=images, cutoff=1e-6)
    assert len(whole) == 2
    axes = [torch.arange(n) * 0.5 + low for n, low in zip(grid.shape, grid.origin, strict=True)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    mask = (x - torch.tensor([10.0, 0.0, 0.0])).norm(dim=-1).lt(3.0).float()
    given, terms = [], []
    real = densemble.forward.xray.gaussian_density
    monkeypatch.setattr(
        densemble.forward.xray,
        "gaussian_density",
        lambda grid, coords, *rest, **k: given.append(coords.shape[1]) or real(grid, coords, *rest, **k),
    )
    for place in (10.0, 6.0, 3.0, 0.0, -3.0, -6.0, -10.0):
        atoms = torch.tensor([[[place, 0.0, 0.0], [place - 1.0, 0.5, 0.0]]])
        full, some = (model.members(atoms, torch.tensor(20.0))[0] for model in (whole, whole.counting(mask)))
        torch.testing.assert_close(some * mask, full * mask, atol=2e-5, rtol=0)
        terms.append(given[-1])
        assert given[-2] == 4
    # the atoms alone, whose copy is 17 Å away; neither, half-way; the copy alone, where it is nearer
    assert (terms[0], terms[3], terms[-1]) == (2, 0, 2)


def test_copies_of_a_box_across_a_two_fold_axis():
    """P 2: the atom at (2, 0, 3) has a copy at (-2, 0, -3); densities are equal there."""
    cell = gemmi.UnitCell(40, 40, 40, 90, 90, 90)
    grid = Grid((-4.0, -2.0, -4.0), (0.5,) * 3, (17, 9, 17))
    atoms = np.array([[2.0, 0.0, 3.0]])
    images = SymmetryImages.reaching(grid, atoms, cell, gemmi.SpaceGroup("P 1 2 1"))
    model = XrayDensity(grid, ["C"], images=images)
    density = model(torch.tensor(atoms)[None].float(), torch.ones(1), torch.tensor(20.0))
    torch.testing.assert_close(density, density.flip(0, 2), atol=1e-5, rtol=0)
    assert float(density[12, 4, 14]) > 1.0
    assert float(density[4, 4, 2]) > 1.0


@pytest.fixture
def ensemble():
    g = torch.Generator().manual_seed(3)
    coords = 4 + 1.5 * torch.randn(3, 4, 3, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    b_iso = 12 + 20 * torch.rand(3, 4, generator=g, dtype=torch.float64)
    return coords, weights, b_iso


GRID = Grid((0.0, 0.0, 0.0), (0.8, 0.7, 0.9), (10, 11, 9))


@pytest.mark.parametrize("d_min", [None, 1.9])
def test_ensemble_is_the_weighted_sum_of_members(ensemble, d_min):
    coords, weights, b_iso = ensemble
    model = XrayDensity(GRID, ["C", "N", "O", "S"], d_min=d_min, dtype=torch.float64, cutoff=1e-14)
    total = model(coords, weights, b_iso, blur=0.3)
    members = model.members(coords, b_iso, blur=0.3)
    torch.testing.assert_close(total, torch.einsum("k,kxyz->xyz", weights, members), atol=1e-12, rtol=0)


@pytest.mark.parametrize("d_min", [None, 1.9])
def test_gradients(ensemble, d_min):
    cell = gemmi.UnitCell(9, 11, 10, 90, 105, 90)
    coords, weights, b_iso = (v.requires_grad_() for v in ensemble)
    images = SymmetryImages.reaching(
        GRID, coords[0].detach().numpy(), cell, gemmi.SpaceGroup("P 1 21 1"), margin=1.0
    )
    assert len(images) == 3
    model = XrayDensity(
        GRID, ["C", "N", "O", "S"], d_min=d_min, images=images, dtype=torch.float64, cutoff=1e-15
    )
    voxels = torch.randn(3, *GRID.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def projections(x, w, b):
        return torch.einsum("axyz,xyz->a", voxels, model(x, w, b, blur=0.2))

    assert torch.autograd.gradcheck(projections, (coords, weights, b_iso))
    uniform = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: projections(coords, weights, b), (uniform,))


def test_blur_is_a_convolution():
    """exp(-2 pi^2 blur^2 s^2) in reciprocal space: the B factor 8 pi^2 blur^2, for 0.5 Å 19.7 Å^2."""
    coords, weights = torch.tensor([[[4.0, 4.0, 4.0]]]), torch.ones(1)
    model = XrayDensity(GRID, ["O"])
    torch.testing.assert_close(
        model(coords, weights, torch.tensor(15.0), blur=0.5),
        model(coords, weights, torch.tensor(15.0 + 8 * np.pi**2 * 0.25)),
    )


def test_truncated_atom_on_a_box():
    """With d_min, the height of an isolated atom is that of the truncated profile."""
    grid = Grid((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (9, 1, 1))
    density = XrayDensity(grid, ["C"], d_min=1.85)(torch.zeros(1, 1, 3), torch.ones(1), torch.tensor(25.0))
    exact = truncated_profile(["C"], 1.85, 25.0, np.arange(9) * 0.5)[0]
    assert np.abs(density[:, 0, 0].numpy() - exact).max() < 0.02 * exact[0]


def test_truncated_structure_is_that_of_a_gemmi_map_cut_at_d_min():
    """Atoms as dense as in a protein: gemmi's density, transformed, cut at 1/d_min, transformed back."""
    edge, d_min, rng = 18.0, 1.85, np.random.default_rng(7)
    lattice = np.stack(np.meshgrid(*[np.arange(4) * 2.6 + 5.0] * 3, indexing="ij"), -1).reshape(-1, 3)
    coords = lattice + rng.normal(0, 0.4, lattice.shape)
    elements = [str(e) for e in rng.choice(["C", "N", "O", "S"], len(coords), p=[0.6, 0.18, 0.2, 0.02])]
    b_iso = rng.uniform(20, 45, len(coords))
    cell = gemmi.UnitCell(edge, edge, edge, 90, 90, 90)
    crystal = crystal_of(coords, elements, b_iso, np.ones(len(coords)), cell, "P 1")
    full = np.array(gemmi_density(crystal), copy=False).astype(float)
    n = full.shape[0]
    s = np.linalg.norm(np.stack(np.meshgrid(*[np.fft.fftfreq(n, edge / n)] * 3, indexing="ij")), axis=0)
    exact = np.fft.ifftn(np.fft.fftn(full) * (s < 1 / d_min)).real

    grid = Grid((0.0,) * 3, (edge / n,) * 3, (n,) * 3)
    x, b = torch.tensor(coords)[None].float(), torch.tensor(b_iso).float()
    near = voxels_near(grid, x, 2.0).numpy()

    def error(**options):
        model = XrayDensity(grid, elements, **options)(x, torch.ones(1), b).numpy()
        return np.linalg.norm((model - exact)[near]) / np.linalg.norm(exact[near])

    untruncated = error()
    assert error(d_min=d_min) < min(0.06, 0.65 * untruncated)
    assert error(d_min=d_min, terms=4) < 0.05


def test_further_gaussians_are_added(ensemble):
    coords, weights, b_iso = ensemble
    elements = ["C", "N", "O", "S"]
    further = FormFactors(a=np.full((4, 1), -3.0), b=np.array([[80.0], [70.0], [60.0], [50.0]]))
    plain = XrayDensity(GRID, elements, d_min=1.9, dtype=torch.float64, cutoff=1e-14)
    both = XrayDensity(GRID, elements, d_min=1.9, extra=further, dtype=torch.float64, cutoff=1e-14)
    width = torch.tensor(further.b) + b_iso[..., None]
    expected = gaussian_density(
        GRID, coords, -3.0 * (4 * torch.pi / width) ** 1.5, 4 * torch.pi**2 / width, cutoff=1e-14
    )
    difference = both(coords, weights, b_iso) - plain(coords, weights, b_iso)
    torch.testing.assert_close(difference, torch.einsum("k,kxyz->xyz", weights, expected), atol=1e-10, rtol=0)


def test_b_factors_below_what_the_form_factors_allow_are_refused():
    coords, weights = torch.zeros(1, 1, 3), torch.ones(1)
    with pytest.raises(ValueError, match="10 or more"):
        XrayDensity(GRID, ["C"], d_min=1.85)(coords, weights, torch.tensor(9.0))
    with pytest.raises(ValueError, match="more than 0"):
        XrayDensity(GRID, ["C"])(coords, weights, torch.tensor(0.0))


def test_unknown_element():
    with pytest.raises(InputError, match="'Xx'"):
        XrayDensity(GRID, ["C", "Xx"])


@pytest.mark.parametrize("copies", [False, True])
def test_atoms_may_have_occupancies_of_their_own(generator, copies):
    cell, group = gemmi.UnitCell(9, 9, 9, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")
    grid = Grid((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (16, 16, 16))
    coords = 4 + 2 * torch.randn(2, len(ELEMENTS), 3, generator=generator, dtype=torch.float64)
    near = coords.reshape(-1, 3).numpy()
    images = SymmetryImages.reaching(grid, near, cell, group) if copies else None
    density = XrayDensity(grid, ELEMENTS, images=images, dtype=torch.float64)
    assert (len(density) > 1) == copies
    b_iso = 15 + 10 * torch.rand(2, len(ELEMENTS), generator=generator, dtype=torch.float64)
    occupancy = torch.rand(2, len(ELEMENTS), generator=generator, dtype=torch.float64)
    found = density(coords, occupancy, b_iso)
    expected = sum(
        XrayDensity(grid, ELEMENTS, images=images, occupancy=q, dtype=torch.float64).members(x[None], b)[0]
        for x, q, b in zip(coords, occupancy, b_iso, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    same = density(coords, torch.tensor([0.3, 0.7], dtype=torch.float64), b_iso)
    alike = torch.tensor([[0.3], [0.7]], dtype=torch.float64).expand(2, len(ELEMENTS))
    torch.testing.assert_close(density(coords, alike, b_iso), same, rtol=0, atol=1e-12)
