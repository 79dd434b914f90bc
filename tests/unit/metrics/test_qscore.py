"""Q-scores: closed forms, and a plain transcription of the published procedure."""

from importlib import resources

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from densemble.atoms import Residue, ResidueId, Topology
from densemble.forward.molmap import MolmapDensity
from densemble.grid import DensityMap, Grid
from densemble.io.models import read_model
from densemble.metrics import qscore
from densemble.metrics.qscore import RADII, atom_q, expected_q, q_scores

FINE = Grid((-3.0, -3.0, -3.0), (0.1, 0.1, 0.1), (61, 61, 61))


def gaussian(grid: Grid, centre: np.ndarray, sigma: float) -> DensityMap:
    square = ((grid.points() - centre) ** 2).sum(axis=-1)
    return DensityMap(grid, torch.as_tensor(np.exp(-square / (2 * sigma**2))))


@pytest.fixture(scope="module")
def fragment() -> tuple[Topology, np.ndarray, DensityMap]:
    """Twenty residues of 7RIN and their density at 3 Å."""
    model = read_model(str(resources.files("densemble") / "data/7rin/deposited.cif"), altloc="B")
    atoms = model.topology.atoms_of(range(100, 120))
    topology, coords = model.topology.subset(atoms), model.coords[atoms]
    grid = Grid.around(coords, margin=6.0, spacing=0.7)
    density = MolmapDensity(grid, topology.elements, resolution=3.0, dtype=torch.float64)
    values = density(torch.as_tensor(coords)[None], torch.ones(1, dtype=torch.float64))
    return topology, coords, DensityMap(grid, values)


def test_reference_gaussian_scores_one_and_its_negative_minus_one():
    at = np.array([0.03, -0.04, 0.01])  # between voxels
    density = gaussian(FINE, at, 0.6)
    assert atom_q(density, at[None])[0] == pytest.approx(1, abs=2e-4)
    assert atom_q(DensityMap(FINE, -density.values), at[None])[0] == pytest.approx(-1, abs=2e-4)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.5])
def test_other_widths_in_closed_form(sigma):
    q = atom_q(gaussian(FINE, np.zeros(3), sigma), np.zeros((1, 3)))
    expected = np.corrcoef(np.exp(-(RADII**2) / 2 / 0.6**2), np.exp(-(RADII**2) / 2 / sigma**2))[0, 1]
    assert q[0] == pytest.approx(expected, abs=5e-4)
    assert q[0] < 0.99


def test_scale_and_offset_of_the_map_do_not_matter(fragment):
    topology, coords, density = fragment
    changed = DensityMap(density.grid, 1e-3 * density.values - 40)
    np.testing.assert_allclose(
        q_scores(changed, topology, coords).atoms, q_scores(density, topology, coords).atoms, atol=1e-9
    )


def test_points_nearer_to_another_atom_do_not_count():
    coords = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    density = gaussian(FINE, coords[0], 0.6)
    density.values[FINE.points()[..., 0] > 0.75 + 0.11] = 50.0
    assert atom_q(density, coords)[0] == pytest.approx(1, abs=2e-3)
    assert atom_q(density, coords[:1])[0] < 0.2  # the same density, without the other atom


def test_free_points_are_those_of_the_nearest_atom(fragment):
    _, coords, _ = fragment
    tree, block = cKDTree(coords), np.arange(30, 60)
    reach = qscore._free_radius(coords, tree, block)
    for radius in (0.5, 1.0, 1.7, 2.0):
        points = coords[block, None] + radius * qscore._directions()
        _, nearest = tree.query(points)
        np.testing.assert_array_equal(reach > radius, nearest == block[:, None])
    assert 0.1 < (reach > 2.0).mean() < 0.9


def test_any_first_directions_are_spread_out():
    directions = qscore._directions()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert len(np.unique(directions.round(9), axis=0)) == len(directions)
    angles = np.degrees(np.arccos(np.triu(directions[:8] @ directions[:8].T, 1).max()))
    assert angles > 55  # the best arrangement of eight points has 74.9
    assert np.linalg.norm(directions[:8].mean(axis=0)) < 0.15


def plain_q(density: DensityMap, coords: np.ndarray, i: int) -> float:
    """The procedure as published, one point after another; more points on a spiral until eight are free."""
    axes = [axis.numpy() for axis in density.grid.axes(torch.float64)]
    value = RegularGridInterpolator(axes, density.values.numpy())
    values, reference = [], []
    for radius in RADII:
        for tried in range(8, 108, 2):
            k = np.arange(tried) + 0.5
            z, turn = 1 - 2 * k / tried, np.pi * (1 + 5**0.5) * k
            sphere = np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1)
            points = coords[i] + radius * sphere
            distance = np.linalg.norm(points[:, None] - np.delete(coords, i, axis=0), axis=-1).min(axis=1)
            points = points[distance > radius]
            if len(points) >= 8:
                break
        values += value(points).tolist()
        reference += [np.exp(-(radius**2) / 2 / 0.6**2)] * len(points)
    return np.corrcoef(values, reference)[0, 1]


def test_agrees_with_a_plain_transcription(fragment):
    topology, coords, density = fragment
    noisy = density.values + 5 * torch.randn(
        density.values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    density = DensityMap(density.grid, noisy)
    chosen = np.arange(0, len(topology), 4)
    ours = q_scores(density, topology, coords).atoms[chosen]
    plain = np.array([plain_q(density, coords, i) for i in chosen])
    assert np.abs(ours - plain).mean() < 0.05  # other points of the same spheres
    assert ours.mean() == pytest.approx(plain.mean(), abs=0.02)
    assert np.corrcoef(ours, plain)[0, 1] > 0.85
    assert plain.std() > 0.05


def test_falls_as_the_model_is_shifted(fragment):
    topology, coords, density = fragment
    overall = [
        q_scores(density, topology, coords + np.array([d, 0, 0])).overall for d in (0.0, 0.5, 1.0, 2.0)
    ]
    assert all(np.diff(overall) < -0.05)
    assert overall[0] > 0.8


def test_means_of_residues_and_of_all(fragment):
    topology, coords, density = fragment
    scores = q_scores(density, topology, coords)
    for r in (0, 7, 19):
        assert scores.residues[r] == pytest.approx(scores.atoms[topology.residue_index == r].mean())
    assert scores.overall == pytest.approx(scores.atoms.mean())


def test_blocks_of_atoms_do_not_show(fragment, monkeypatch):
    topology, coords, density = fragment
    whole = q_scores(density, topology, coords).atoms
    monkeypatch.setattr(qscore, "_BLOCK", 13)
    np.testing.assert_allclose(q_scores(density, topology, coords).atoms, whole, atol=1e-12)


def test_the_map_is_not_copied_for_any_block(fragment, monkeypatch):
    topology, coords, density = fragment
    single = DensityMap(density.grid, density.values.float())
    read = []

    def recorded(values, *args, **options):
        read.append(values)
        return map_coordinates(values, *args, **options)

    monkeypatch.setattr(qscore, "map_coordinates", recorded)
    monkeypatch.setattr(qscore, "_BLOCK", 40)
    found = q_scores(single, topology, coords).atoms
    assert len(read) > 2
    assert all(np.shares_memory(values, single.values.numpy()) for values in read)
    double = DensityMap(density.grid, single.values.double())
    np.testing.assert_array_equal(found, q_scores(double, topology, coords).atoms)


def test_what_is_undefined_is_nan():
    topology = Topology(
        ("CA", "CB", "CA"),
        ("C",) * 3,
        np.array([0, 0, 1]),
        (Residue(ResidueId("A", 1), "ALA"), Residue(ResidueId("A", 2), "GLY")),
    )
    coords = np.array([[0.0, 0, 0], [np.nan] * 3, [90.0, 0, 0]])  # known, unknown, outside
    scores = q_scores(gaussian(FINE, np.zeros(3), 0.6), topology, coords)
    np.testing.assert_array_equal(np.isfinite(scores.atoms), [True, False, False])
    np.testing.assert_array_equal(np.isfinite(scores.residues), [True, False])
    assert scores.overall == scores.atoms[0]
    constant = DensityMap(FINE, torch.full(FINE.shape, 0.3))
    assert np.isnan(q_scores(constant, topology, coords).overall)
    with pytest.raises(ValueError, match="3 atoms and 2"):
        q_scores(constant, topology, coords[:2])


def test_points_outside_the_map_do_not_count():
    corner = Grid((0.0, 0.0, 0.0), (0.1, 0.1, 0.1), (31, 31, 31))
    assert atom_q(gaussian(corner, np.full(3, 0.05), 0.6), np.full((1, 3), 0.05))[0] == pytest.approx(
        1, abs=1e-3
    )


def test_published_trend():
    assert expected_q(3.2) == pytest.approx(0.549, abs=1e-3)
