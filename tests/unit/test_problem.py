"""The free part of a model, its target density, and what surrounds it."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from small_crystal import CELL, one_state, truth, write_crystal, write_data

from densemble.atoms import BACKBONE, Region
from densemble.crystal.omit import omit_map, two_fofc_map
from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.io.reflections import read_reflections
from densemble.problem import CrystalProblem, Stretches, Surroundings
from densemble.recipes import load_recipe


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture(scope="module")
def model(crystal):
    return read_model(crystal.model)


@pytest.fixture(scope="module")
def stretches(model):
    return Stretches.of(model, Region.parse("A:179-186"), window=0)


def problem_of(stretches, data, kind=omit_map):
    maps = kind(
        stretches.model.structure,
        [stretches.model.topology.residues[r].id for r in stretches.free],
        read_reflections(data),
    )
    settings = load_recipe("densemble").density.model_copy(
        update={"margin": 5.0, "spacing": 0.8, "reach": 4.0}
    )
    return maps, CrystalProblem.of(stretches, maps, settings)


@pytest.fixture(scope="module")
def maps_and_problem(crystal, stretches):
    return problem_of(stretches, crystal.data)


@pytest.fixture(scope="module")
def problem(maps_and_problem):
    return maps_and_problem[1]


def numbers(topology, residues) -> list[int]:
    return [topology.residues[r].id.number for r in residues]


def test_stretches_are_the_region(model, stretches):
    assert [numbers(model.topology, s) for s in stretches.residues] == [list(range(179, 187))]
    assert stretches.free == stretches.residues[0]
    assert [r.id.number for r in stretches.topology.residues] == list(range(179, 187))
    assert stretches.moving == [list(range(8))]
    before, after = stretches.anchors[0].before, stretches.anchors[0].after
    assert numbers(model.topology, [before, after]) == [178, 187]
    assert len(stretches.backbone_atoms) == 4 * 8
    assert {stretches.topology.names[i] for i in stretches.backbone_atoms} == set(BACKBONE)


def test_start_of_a_complete_model_is_the_model(model, stretches):
    atoms = stretches.model_atoms
    assert torch.equal(stretches.start, torch.as_tensor(model.coords[atoms], dtype=torch.float32))
    assert torch.equal(stretches.b_start, torch.as_tensor(model.b_iso[atoms], dtype=torch.float32))
    assert stretches.topology.names == model.topology.subset(atoms).names


def test_window_frees_side_chains_and_no_backbone(model):
    wide = Stretches.of(model, Region.parse("A:180-182"), window=2)
    assert numbers(model.topology, wide.free) == list(range(178, 185))
    assert wide.moving == [[2, 3, 4]]
    inside = wide.topology.residue_index[wide.backbone_atoms]
    assert set(inside.tolist()) == {2, 3, 4}


def test_chain_ends_have_one_anchor(model):
    first = Stretches.of(model, Region.parse("A:172-175"), window=0).anchors[0]
    last = Stretches.of(model, Region.parse("A:190-194"), window=0).anchors[0]
    assert (first.before, last.after) == (None, None)
    assert numbers(model.topology, [first.after, last.before]) == [176, 189]


def test_missing_atoms_are_built_with_the_b_factor_of_their_residue(model, crystal, tmp_path):
    structure = model.structure.clone()
    residue = next(r for r in structure[0]["A"] if r.seqid.num == 182)  # PHE
    for i in reversed(range(len(residue))):
        if residue[i].name not in BACKBONE:
            del residue[i]
    structure.make_mmcif_document().write_file(str(tmp_path / "cut.cif"))
    cut = read_model(tmp_path / "cut.cif")
    found = Stretches.of(cut, Region.parse("A:179-186"), window=0)
    whole = Stretches.of(model, Region.parse("A:179-186"), window=0)
    index, reference = found.topology.atom_index, whole.topology.atom_index
    assert index.keys() == reference.keys()
    assert bool(found.start.isfinite().all())
    new = [index[3, name] for name in ("CB", "CG", "CD1", "CD2", "CE1", "CE2", "CZ")]
    mean = np.mean([found.b_start[index[3, name]] for name in BACKBONE])
    assert found.b_start[new].numpy() == pytest.approx(mean, rel=1e-5)
    place, right = found.start[index[3, "CB"]], whole.start[reference[3, "CB"]]
    assert float((place - right).norm()) < 0.2  # CB follows from the backbone alone
    assert len(found.model_atoms) == len(found.topology) - 7


def test_residue_without_backbone_is_refused(model, tmp_path):
    structure = model.structure.clone()
    residue = next(r for r in structure[0]["A"] if r.seqid.num == 182)
    del residue[[a.name for a in residue].index("O")]
    structure.make_mmcif_document().write_file(str(tmp_path / "cut.cif"))
    with pytest.raises(InputError, match=r"cut\.cif: residue A:182 of the region has no O;"):
        Stretches.of(read_model(tmp_path / "cut.cif"), Region.parse("A:179-186"), window=0)


def test_gap_within_a_stretch_is_refused(model, tmp_path):
    structure = model.structure.clone()
    chain = structure[0]["A"]
    del chain[next(i for i, residue in enumerate(chain) if residue.seqid.num == 183)]
    structure.make_mmcif_document().write_file(str(tmp_path / "gap.cif"))
    gapped = read_model(tmp_path / "gap.cif")
    with pytest.raises(InputError, match=r"gap\.cif: A:182 and A:184 .* not bonded"):
        Stretches.of(gapped, Region.parse("A:179-186"), window=0)
    two = Stretches.of(gapped, Region.parse("A:179-182,A:184-186"), window=0)
    assert [(a.before is None, a.after is None) for a in two.anchors] == [(False, True), (True, False)]


def test_target_is_the_fourier_sum_of_the_stretch(maps_and_problem):
    """Direct summation over all reflections and operators at some voxels, e/Å^3."""
    maps, problem = maps_and_problem
    stretch = maps.stretch
    rng = np.random.default_rng(0)
    shape = problem.target.grid.shape
    voxels = np.stack([rng.integers(0, n, 12) for n in shape], axis=1)
    points = problem.target.grid.points()[tuple(voxels.T)]
    fractional = points @ np.array(CELL.fractionalization_matrix.tolist()).T
    density = np.zeros(len(points))
    for op in gemmi.SpaceGroup("P 1 21 1").operations():
        R, t = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
        phase = 2 * np.pi * (fractional @ R.T + t) @ stretch.hkl.T
        zero = (stretch.hkl == 0).all(axis=1)
        twice = np.where(zero, 1.0, 2.0)  # Friedel mates
        multiplicity = twice / np.array([_orbit(hkl) for hkl in stretch.hkl])
        density += (np.exp(-1j * phase) * stretch.values * multiplicity).real.sum(axis=1)
    found = problem.target.values[tuple(torch.as_tensor(voxels.T))].numpy()
    spread = float(problem.target.values.std())
    assert found == pytest.approx(density / CELL.volume, abs=0.005 * spread)


def _orbit(hkl) -> int:
    """How many of the two operators, Friedel mates included, give the reflection itself again.

    In P 21 (h, k, l) becomes (-h, k, -l), whose Friedel mate is (h, -k, l).
    """
    h, k, m = hkl
    return 2 if (h == 0 and m == 0) or k == 0 else 1


@pytest.mark.parametrize(("region", "kind"), [("A:182-183", omit_map), ("A:179-186", two_fofc_map)])
def test_model_explains_its_own_density_on_absolute_scale(model, tmp_path, region, kind):
    """Data of the start itself: the fitted scale is near one. (Omitting a third of a model costs phases.)"""
    write_data(one_state(truth()), tmp_path / "one.mtz")
    few = Stretches.of(model, Region.parse(region), window=0)
    _, problem = problem_of(few, tmp_path / "one.mtz", kind)
    likelihood = problem.likelihood("ensemble", problem.b_start)
    start, alone = few.start[None], torch.ones(1)
    assert float(likelihood.fit(start, alone).scale) == pytest.approx(1.0, abs=0.1)
    spread = float(problem.target.values[problem.mask > 0.5].std())
    assert likelihood.rms(start, alone) < 0.5 * spread


def test_likelihood_prefers_the_start_to_a_shifted_one(problem, stretches):
    likelihood = problem.likelihood("ensemble", problem.b_start)
    here = likelihood(stretches.start[None], torch.ones(1))
    for axis in torch.eye(3):
        assert float(here) > float(likelihood(stretches.start[None] + 0.5 * axis, torch.ones(1)))


def test_mask_covers_the_start_and_spares_its_surroundings(problem, stretches):
    grid = problem.target.grid
    points = grid.points().reshape(-1, 3)
    mask = problem.mask.numpy().ravel()
    to_start = np.linalg.norm(points[:, None] - stretches.start.numpy(), axis=-1).min(axis=1)
    to_fixed = np.linalg.norm(points[:, None] - problem.around.coords, axis=-1).min(axis=1)
    assert (mask[to_fixed < 1.5] == 0).all()
    assert (mask[to_start > 4.5] == 0).all()
    assert (mask[(to_start < 4.0) & (to_fixed > 2.0)] == 1).all()


def test_surroundings_are_neighbours_and_their_copies_without_waters(problem, stretches, model):
    """Counted by brute force over the operators and the lattice."""
    topology, reach = model.topology, 8.0
    fixed = [
        i
        for i, r in enumerate(topology.residue_index)
        if r not in stretches.free and topology.residues[r].kind == "protein"
    ]
    start = stretches.start.double().numpy()
    to, back = (np.array(m.tolist()) for m in (CELL.fractionalization_matrix, CELL.orthogonalization_matrix))
    fractional = model.coords[fixed] @ to.T
    own = copies = 0
    for op in gemmi.SpaceGroup("P 1 21 1").operations():
        R, t = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
        for shift in np.ndindex(5, 5, 5):
            moved = (fractional @ R.T + t + np.array(shift) - 2) @ back.T
            near = (np.linalg.norm(moved[:, None] - start, axis=-1).min(axis=1) < reach).sum()
            if np.allclose(moved, model.coords[fixed]):
                own += near
            else:
                copies += near
    assert len(problem.around.copies) == len(problem.around.copy_elements) == copies
    assert len(problem.around.coords) == own + copies
    kinds = {topology.residues[topology.residue_index[i]].kind for i in problem.around.absent}
    assert kinds == {"water"}


def test_surroundings_count_what_a_tight_cell_brings_near(model, stretches, problem):
    """The brute force above would not notice if there were no copies in reach at all."""
    wide = Surroundings.of(stretches, reach=25.0)
    assert len(wide.copies) > 0
    assert len(wide.coords) > len(problem.around.coords)


def test_voxel_values_are_those_of_the_mask(problem, stretches):
    members = torch.stack([stretches.start, stretches.start + 0.3])
    densities, target = problem.voxel_values(members, problem.b_start)
    inside = problem.mask > 0.5
    assert densities.shape == (2, int(inside.sum()))
    assert np.array_equal(target, problem.target.values[inside].double().numpy())
    alone = problem.forward(members[1:], torch.ones(1), problem.b_start)[inside]
    assert densities[1] == pytest.approx(alone.double().numpy(), abs=1e-5)


def test_density_at_a_voxel_is_the_map_and_between_voxels_linear(problem):
    grid, values = problem.target.grid, problem.target.values
    at = problem.density_at(2.0)
    points = torch.as_tensor(grid.points(), dtype=torch.float32)
    assert at(points[3, 4, 5][None, None]).item() == pytest.approx(2 * float(values[3, 4, 5]), abs=1e-4)
    between = 0.25 * points[3, 4, 5] + 0.75 * points[3, 4, 6]
    expected = 2 * (0.25 * values[3, 4, 5] + 0.75 * values[3, 4, 6])
    assert at(between[None, None]).item() == pytest.approx(float(expected), abs=1e-4)
    assert at(points[0, 0, 0][None, None] - 50).item() == 0.0
    assert at(points[2:4, 5, :7]).numpy() == pytest.approx(2 * values[2:4, 5, :7].numpy(), abs=1e-4)


def test_density_beside_the_start_is_what_the_start_does_not_explain(problem):
    """Least squares by numpy of the start's density and a constant, over the voxels that count."""
    start = problem.stretches.start[None]
    known = problem.forward.members(start, problem.b_start)[0].double().numpy()
    weights, values = problem.mask.double().numpy(), problem.target.values.double().numpy()
    root = np.sqrt(weights).ravel()
    design = np.stack([np.ones_like(root), known.ravel()], 1)
    solution, *_ = np.linalg.lstsq(design * root[:, None], values.ravel() * root, rcond=None)
    expected = np.where(weights > 0, values - (design @ solution).reshape(values.shape), 0)
    points = torch.as_tensor(problem.target.grid.points(), dtype=torch.float32)
    found = problem.density_at(2.0, beside_start=True)(points[3:-3, 4:-4, 5:-5]).double().numpy()
    assert found == pytest.approx(2 * expected[3:-3, 4:-4, 5:-5], abs=1e-3 * np.abs(values).max())
    assert np.abs(expected).max() > 0.1 * np.abs(values).max()


def test_restraints_and_side_chains_are_of_the_free_atoms(problem, stretches):
    chains = problem.side_chains(3)
    assert chains.topology.names == stretches.topology.names
    assert chains.chi.shape[:2] == (3, 8)
    backbone = stretches.start[torch.as_tensor(stretches.topology.backbone(range(8)))]
    built = chains.complete(backbone.repeat(3, 1, 1, 1))
    assert float((built - stretches.start).norm(dim=-1).max()) < 0.6  # ideal lengths and angles
    assert problem.restraints().contact_limit.shape[0] == len(stretches.topology)


def test_sigma_is_the_noise_left_by_the_start(problem, stretches, crystal):
    """log p is minus half the number of independent data where the fit leaves just the noise."""
    likelihood = problem.likelihood("ensemble", problem.b_start)
    value = float(likelihood(stretches.start[None], torch.ones(1)))
    volume = float(problem.mask.sum()) * problem.target.grid.voxel_volume
    d_min = read_reflections(crystal.data).d_min
    data = volume * 4 * np.pi / (3 * d_min**3)
    assert value == pytest.approx(-data / 2, rel=1e-3)


def test_modes_of_the_likelihood_agree_for_one_member(problem, stretches):
    x, weights = stretches.start[None] + 0.2, torch.ones(1)
    joint, each = (problem.likelihood(mode, problem.b_start)(x, weights) for mode in ("ensemble", "each"))
    assert float(joint) == pytest.approx(float(each), rel=1e-5)
    two = torch.cat([x, stretches.start[None]])
    joint, each = (
        problem.likelihood(mode, problem.b_start)(two, torch.full((2,), 0.5)) for mode in ("ensemble", "each")
    )
    assert float(joint) != pytest.approx(float(each), rel=1e-3)


def test_b_factors_below_what_the_resolution_allows_are_raised(problem):
    low = replace(problem, stretches=replace(problem.stretches, b_start=problem.stretches.b_start * 0))
    assert float(low.b_start.min()) == pytest.approx(max(problem.forward.b_min, 0.0))


def test_paper_1_s_likelihood_is_the_plain_sum_of_squares(crystal, stretches):
    """Eq. 2: absolute densities, one B factor for all atoms, the mean of the model's protein."""
    maps, _ = problem_of(stretches, crystal.data)
    paper = load_recipe("chroma-2024").density
    recipe = paper.model_copy(update={"margin": 5.0, "spacing": 0.8, "reach": 4.0})
    problem = CrystalProblem.of(stretches, maps, recipe)
    protein = [atom.b_iso for residue in gemmi.read_structure(str(crystal.model))[0]["A"] for atom in residue]
    assert problem.b_start.tolist() == pytest.approx([np.mean(protein)] * len(stretches.topology), rel=1e-5)
    x = torch.stack([stretches.start, stretches.start + 0.3])
    half = torch.full((2,), 0.5)
    likelihood = problem.likelihood("ensemble", problem.b_start)
    calculated = problem.forward(x, half, problem.b_start)
    difference = problem.mask * (problem.target.values - calculated).square()
    assert float(likelihood(x, half)) == pytest.approx(-float(difference.sum()), rel=1e-4)
    fit = likelihood.fit(x, half)
    assert (float(fit.scale), float(fit.offset)) == (1.0, 0.0)
