"""Refinement of a small crystal whose truth, two states of a loop, is known."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from altloc_bonds import bonds_to_shared
from small_crystal import OCCUPANCY, write_crystal

from densemble.atoms import Ensemble
from densemble.crystal.scaling import r_factors, r_free_error
from densemble.crystal.sigmaa import error_variance, log_rice
from densemble.evaluation import backbone_atoms
from densemble.geometry.validation import validate
from densemble.inputs import load, problem_of
from densemble.io.models import alternates, read_model
from densemble.refinement.built import BuiltModel
from densemble.refinement.conformers import Sites, flat, site_restraints
from densemble.refinement.programs import write_model
from densemble.refinement.refine import compare, refine
from densemble.refinement.split import sources, split_where_different

ERROR = 0.15
CYCLES = 2


def crystal_case(folder, **changes):
    """The problem, its reflections, and the true states of its free atoms."""
    crystal = write_crystal(folder, waters=2, **changes)  # that both states leave room for
    settings = crystal.settings(region="A:176-191")  # all that differs
    inputs = load(settings)
    problem = problem_of(settings, inputs)
    states = alternates(crystal.reference, inputs.stretches.topology)
    truth = torch.tensor(np.stack([states[x].coords for x in "AB"])).float()
    return problem, inputs.reflections, truth


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return crystal_case(tmp_path_factory.mktemp("refine"))


def shaken(problem, truth, members):
    """States moved by 0.2 Å, equally occupied, with the start's B factors."""
    generator = torch.Generator().manual_seed(1)
    coords = truth + 0.2 / 3**0.5 * torch.randn(truth.shape, generator=generator)
    weights = torch.full((len(members),), 1 / len(members))
    b_iso = problem.b_start.expand(len(members), -1)
    return [Ensemble(problem.stretches.topology, coords[members], weights, b_iso)]


@pytest.fixture(scope="module")
def refined(case):
    problem, reflections, truth = case
    return compare(
        problem,
        shaken(problem, truth, [1]),
        shaken(problem, truth, [0, 1]),
        coordinate_error=ERROR,
        reflections=reflections,
        cycles=CYCLES,
    )


def test_held_out_reflections_tell_two_states_from_one(refined):
    start, _, record = refined
    assert record.cycles == CYCLES
    for one in (record.start, record.model):
        assert one.r_work[1] < one.r_work[0]
        assert one.rscc[1] > one.rscc[0]
    assert record.model.r_free[1] < record.model.r_free[0] - 0.005
    assert record.model.r_free[1] < record.start.r_free[1] - 0.01
    assert [len(part) for part in start.parts] == [1]


def test_the_record_has_the_log_likelihood_of_the_free_reflections(case, refined):
    """The model of states over the start, summed here by hand, with the errors of the start."""
    reflections, (start, model, record) = case[1], refined
    free, f = reflections.free, reflections.f
    variance = error_variance(reflections, f, start.amplitudes)
    logs = [
        log_rice(f[free], x.amplitudes[free], variance[free], reflections.centric[free])
        for x in (start, model)
    ]
    assert record.free_gain == pytest.approx(logs[1].sum() - logs[0].sum(), rel=1e-9)
    assert record.free_gain_error == pytest.approx(
        np.sqrt(free.sum()) * np.std(logs[1] - logs[0], ddof=1), rel=1e-9
    )
    assert record.free_gain > 2 * record.free_gain_error > 0


def test_occupancies_and_coordinates_come_near_the_truth(case, refined):
    problem, _, truth = case
    topology = problem.stretches.topology
    split = [part for part in refined[1].parts if len(part) > 1]
    assert len(split) == 1
    (part,) = split
    assert part.weights.tolist() == pytest.approx([OCCUPANCY["B"], OCCUPANCY["A"]], abs=0.04)
    assert sources(part, shaken(problem, truth, [0, 1])[0]) == [1, 0]
    own = topology.places_of(part.topology)
    main = backbone_atoms(part.topology)
    off = (part.coords - truth[[1, 0]][:, own]).square().sum(-1)[:, main].mean(1).sqrt()
    assert off.max() < 0.16  # from 0.2 Å
    assert off.min() < 0.09


@pytest.mark.parametrize("true", [{"A": 20.0, "B": 40.0}, {"A": 40.0, "B": 20.0}], ids=["A less", "B less"])
def test_each_state_gets_its_own_b_factor(tmp_path, true):
    """From 28 Å^2 to within 12 % of the truth, of the backbone's median.

    What is missing, 7 to 9 %, is half of it the restraint between states (``STATES_SD``), which draws them
    together.
    """
    problem, reflections, truth = crystal_case(tmp_path, b_iso=true)
    (part,) = shaken(problem, truth, [0, 1])
    alike = Ensemble(part.topology, part.coords, part.weights, torch.full(part.b_iso.shape, 28.0))
    built, _ = refine(problem, [alike], coordinate_error=ERROR, reflections=reflections)
    (several,) = (part for part in built.parts if len(part) > 1)
    assert sources(several, alike) == [1, 0]  # B, then A
    median = several.b_iso[:, backbone_atoms(several.topology)].median(dim=1).values
    assert median.tolist() == pytest.approx([true["B"], true["A"]], rel=0.12)
    assert several.weights.tolist() == pytest.approx([OCCUPANCY["B"], OCCUPANCY["A"]], abs=0.04)
    # and the file says so
    (cif, *_), _ = write_model(tmp_path, built.structure, built.displaced, built.parts)
    written = {letter: [] for letter in "AB"}
    for atom in (atom for residue in gemmi.read_structure(str(cif))[0]["A"] for atom in residue):
        if atom.name in ("N", "CA", "C", "O") and atom.has_altloc():
            written[atom.altloc].append(atom.b_iso)
    assert [np.median(values) for values in written.values()] == pytest.approx(median.tolist(), abs=0.5)


def test_the_file_has_the_r_factors_that_are_stated(case, refined, tmp_path):
    reflections, built = case[1], refined[1]
    (cif, pdb, *others), _ = write_model(tmp_path, built.structure, built.displaced, built.parts)
    assert len(others) == 2
    for path in (cif, pdb):
        r = r_factors(gemmi.read_structure(str(path)), reflections)
        assert (r.r_work, r.r_free) == pytest.approx(
            (refined[2].model.r_work[1], refined[2].model.r_free[1]), abs=1e-4
        )


def test_geometry_is_good(case, refined):
    problem = case[0]
    sites = Sites.of(problem.stretches.topology, refined[1].parts)
    coords = flat([part.coords for part in refined[1].parts])
    (row,) = validate(site_restraints(problem.restraints(), sites), coords[None]).rows()
    assert row["bond_rmsz"] < 1
    assert row["angle_rmsz"] < 1
    assert row["wrong_hand"] == row["twisted"] == 0


def turned(topology, coords, residue, angle):
    """A side chain turned about CA-CB, by radians."""
    place = topology.atom_index
    alpha, beta = coords[place[residue, "CA"]], coords[place[residue, "CB"]]
    fixed = ("N", "CA", "C", "O", "CB")
    own = [i for i in topology.atoms_of([residue]) if topology.names[i] not in fixed]
    axis, arm = (beta - alpha) / (beta - alpha).norm(), coords[own] - beta
    across = torch.linalg.cross(axis.expand_as(arm), arm)
    turned = coords.clone()
    turned[own] = beta + arm * np.cos(angle) + across * np.sin(angle)
    turned[own] += axis * (arm @ axis)[:, None] * (1 - np.cos(angle))
    return turned


def test_bonds_from_what_is_split_to_what_is_shared_are_mended(case):
    """Trp 179 in two rotamers, and residues around it that differ by too little to be split, off by 0.2 Å.

    Before, such a bond is off by up to 0.23 Å; after, by 0.016 Å at most.
    """
    problem, _, truth = case
    topology = problem.stretches.topology
    rotamers = torch.stack([truth[1], turned(topology, truth[1], 3, 2 * np.pi / 3)])
    clean = problem.forward(rotamers, torch.tensor([0.6, 0.4]), problem.b_start)
    problem = replace(problem, target=replace(problem.target, values=clean), sigma=0.2 * problem.sigma)
    parts = shaken(problem, rotamers, [0, 1])
    before = BuiltModel.of(problem, split_where_different(parts, 0.5)).structure
    built, _ = refine(problem, parts, coordinate_error=0.5, cycles=2)
    first, last = (bonds_to_shared(each[0]["A"]) for each in (before, built.structure))
    assert max(map(abs, first.values())) > 0.2
    assert {"179 CA-CB A", "179 CA-CB B"} < set(last)
    assert max(map(abs, last.values())) < 0.04


def test_refinement_repeats_and_sees_no_free_reflection(case):
    problem, reflections, truth = case
    parts = shaken(problem, truth, [0, 1])
    other = replace(reflections, f=np.where(reflections.free, 3 * reflections.f, reflections.f))
    runs = [
        refine(problem, parts, coordinate_error=ERROR, reflections=data, cycles=1, evaluations=5)
        for data in (reflections, reflections, other)
    ]
    for again in runs[1:]:
        for a, b in zip(runs[0][0].parts, again[0].parts, strict=True):
            assert torch.equal(a.coords, b.coords)
            assert torch.equal(a.weights, b.weights)
            assert torch.equal(a.b_iso, b.b_iso)
    assert runs[0][1] == runs[1][1]
    assert runs[0][1].r_free != runs[2][1].r_free


def test_waters_make_room_in_what_is_refined_and_stated(case, tmp_path):
    problem, reflections, truth = case
    stretches = problem.stretches
    place = stretches.topology.atom_index
    at = truth[0, place[6, "CZ"]]  # of Phe 182, 7 Å from where it is in the start
    path = tmp_path / "start.cif"
    structure = stretches.model.structure.clone()
    water = structure[0]["W"][0].clone()
    water.seqid, water[0].pos = gemmi.SeqId("900"), gemmi.Position(*at.tolist())
    structure[0]["W"].add_residue(water)
    structure.make_mmcif_document().write_file(str(path))
    model = read_model(path)
    wet = replace(problem, stretches=replace(stretches, model=model))
    few = {"coordinate_error": ERROR, "reflections": reflections, "cycles": 1, "evaluations": 5}
    dry_model, dry = refine(problem, shaken(problem, truth, [1]), **few)
    built, record = refine(wet, shaken(problem, truth, [0, 1]), **few)
    (cif, *_), _ = write_model(tmp_path, built.structure, built.displaced, built.parts)
    back = gemmi.read_structure(str(cif))
    found = [(a.altloc, round(a.occ, 2)) for r in back[0]["W"] if r.seqid.num == 900 for a in r]
    (several,) = (part for part in built.parts if len(part) > 1)
    assert found == [("A", round(float(several.weights[0]), 2))]  # the state of the start is the heavier
    r = r_factors(back, reflections)
    assert (r.r_work, r.r_free) == pytest.approx((record.r_work[1], record.r_free[1]), abs=1e-4)
    # a water on the only state is removed: what is refined and stated is as if there had never been one
    own, again = refine(wet, shaken(problem, truth[[0, 0]], [1]), **few)
    _, never = refine(problem, shaken(problem, truth[[0, 0]], [1]), **few)
    assert again == never
    assert again.r_work[1] != dry.r_work[1]
    assert len(own.parts) == len(dry_model.parts) == 1
    # and so is the error of the difference between two such models
    both = shaken(problem, truth[[0, 0]], [0]), shaken(problem, truth[[0, 0]], [1])
    found = [
        [BuiltModel.of(where, each, reflections).amplitudes for each in both] for where in (wet, problem)
    ]
    errors = [r_free_error(*pair, reflections) for pair in found]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert errors[0] > 0


def test_a_map_alone_will_do(case):
    problem, _, truth = case
    weights = torch.tensor([OCCUPANCY["A"], OCCUPANCY["B"]])
    clean = problem.forward(truth, weights, problem.b_start)
    problem = replace(problem, target=replace(problem.target, values=clean), sigma=0.2 * problem.sigma)
    built, record = refine(problem, shaken(problem, truth, [0, 1]), coordinate_error=ERROR, cycles=2)
    assert built.amplitudes is None
    assert record.r_work is None
    assert record.r_free is None
    assert record.rscc[0] < 0.99 < 0.995 < record.rscc[1]
    (part,) = (part for part in built.parts if len(part) > 1)
    assert part.weights.tolist() == pytest.approx([OCCUPANCY["B"], OCCUPANCY["A"]], abs=0.03)
    assert float(part.b_iso.min()) >= problem.forward.b_min
