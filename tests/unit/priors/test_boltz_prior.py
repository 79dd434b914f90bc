"""The Boltz prior against the released package: same random numbers, same samples."""

import contextlib
import itertools
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

import boltz.model.modules.diffusion as boltz1_diffusion
import boltz.model.modules.diffusionv2 as boltz2_diffusion
from boltz.model.loss.diffusionv2 import weighted_rigid_align
from boltz.model.modules.utils import quaternion_to_matrix
from boltz_case import BoltzCase
from boltz_networks import CONTACTS

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.guidance.guided import AllAtom
from densemble.priors.boltz import memory
from densemble.priors.boltz.memory import bytes_kept, free_bytes, members_that_fit, recompute_layers
from densemble.priors.boltz.process import Anchor, Pose
from densemble.priors.boltz.steering import Steering
from densemble.priors.held import Held, Substructure
from densemble.sampler import SamplerState, sample

KINDS = ("boltz1", "boltz2")
MEMBERS, STEPS = 3, 30


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {kind: BoltzCase(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def case(request, cases):
    return cases[request.param]


@contextlib.contextmanager
def poses_from_the_map(atoms):
    """Boltz turns the sample that it turned before; each of our poses is counted from the map's frame.

    With rotations R_i from the same random numbers, Boltz is given R_(i-1)^T R_i. It centres its padding
    along with the atoms, of which there are so many: the shift makes up for it.
    """
    last = torch.eye(3)

    def augmentation(members, device=None, dtype=torch.float32):
        nonlocal last
        rotation = quaternion_to_matrix(torch.randn(members, 4))
        turn, last = last.mT @ rotation, rotation
        x = sys._getframe(1).f_locals["atom_coords"]  # of Boltz's sampler
        apart = x.mean(1, keepdim=True) - x[:, :atoms].mean(1, keepdim=True)
        return turn, torch.randn(members, 1, 3) + apart @ turn

    with pytest.MonkeyPatch.context() as patch:
        for module in (boltz1_diffusion, boltz2_diffusion):
            patch.setattr(module, "compute_random_augmentation", augmentation)
        yield


@pytest.mark.parametrize("module", [boltz1_diffusion, boltz2_diffusion])
def test_poses_are_boltz_own(module):
    """What Boltz draws is what it is given in its place here, and what our process draws."""
    atom_coords = torch.randn(4, 7, 3)
    torch.manual_seed(5)
    rotation, shift = module.compute_random_augmentation(4, device=atom_coords.device)
    with poses_from_the_map(7):
        torch.manual_seed(5)
        again = module.compute_random_augmentation(4, device=atom_coords.device)
    torch.testing.assert_close(again[0], rotation, atol=1e-6, rtol=0)
    assert torch.equal(again[1], shift)


@contextlib.contextmanager
def recorded(diffusion):
    """Every call of the network: noisy coordinates, noise level, estimate, in the network's frame."""
    calls, real = [], diffusion.preconditioned_network_forward

    def forward(x, sigma, **given):
        out = real(x, sigma, **given)
        calls.append((x.clone(), sigma, (out[0] if isinstance(out, tuple) else out).clone()))
        return out

    diffusion.preconditioned_network_forward = forward
    try:
        yield calls
    finally:
        del diffusion.preconditioned_network_forward


def sampled_by_boltz(case, *, physical=False, seed=11):
    steering = case.given["steering_args"] | {"physical_guidance_update": physical}
    given = case.given | {
        "num_sampling_steps": STEPS, "multiplicity": MEMBERS, "max_parallel_samples": MEMBERS,
        "steering_args": steering,
    }  # fmt: skip
    torch.manual_seed(seed)
    with recorded(case.diffusion) as calls, poses_from_the_map(case.atoms), torch.no_grad():
        out = case.diffusion.sample(**given)
    return calls, out


KNOWN = 250.0
"""Å; up to here positions agree to 1e-4 Å. Above 256, numbers in float32 are multiples of 3e-5 and more."""


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unguided_sampling_is_boltz_own(kind, padded, cases, tmp_path, monkeypatch):
    """In every step: noise level, what the network is shown, what it says; and where the sample ends.

    Estimates agree to 1e-4 Å at all levels (found: 2e-5), and so do the ends. Noisy positions do where no
    coordinate is above 250 Å, from 82 Å of noise on (found: 6e-5). Before that float32 does not hold them
    so well: they are in thousands of Å, and turning rounds them. There they agree to five millionths of the
    largest coordinate (found: two; 0.011 Å of 10,000 Å at most, where numbers are multiples of 0.001 Å).
    """
    case = BoltzCase(kind, tmp_path, padded=True) if padded else cases[kind]
    n, shown = case.atoms, case.feats["atom_pad_mask"].shape[1]
    assert (shown > n) == padded
    theirs, out = sampled_by_boltz(case)
    prior = case.prior(steering=Steering(case.feats, boltz2=kind == "boltz2", physical=False))
    sample(prior, steps=2, members=MEMBERS, generator=torch.Generator())
    normal, denoise, poses = prior.process._normal, prior.denoise, []

    def drawn(shape, generator):
        """Boltz draws noise for its padding too."""
        return normal((shape[0], shown, 3), generator)[:, :n] if shape[1] == n else normal(shape, generator)

    def posed(x, t):
        poses.append(prior.process.pose)
        return denoise(x, t)

    monkeypatch.setattr(prior.process, "_normal", drawn)
    monkeypatch.setattr(prior, "denoise", posed)
    with recorded(case.diffusion) as ours, torch.no_grad():
        x = sample(prior, steps=STEPS, members=MEMBERS, generator=torch.Generator().manual_seed(11))
    assert len(ours) == len(theirs) == STEPS
    strict = 0
    for (noisy, sigma, estimate), (own_noisy, own_sigma, own_estimate) in zip(theirs, ours, strict=True):
        assert own_sigma == sigma
        most = float(noisy[:, :n].abs().max())
        allowed = 1e-4 if most < KNOWN else 5e-6 * most
        torch.testing.assert_close(own_noisy[:, :n], noisy[:, :n], atol=allowed, rtol=0)
        torch.testing.assert_close(own_estimate[:, :n], estimate[:, :n], atol=1e-4, rtol=0)
        strict += most < KNOWN
    assert strict >= STEPS / 2
    end = out["sample_atom_coords"][:, :n]
    assert 5 < end.std() < 40  # the size of a protein
    torch.testing.assert_close(poses[-1].seen(x), end, atol=1e-4, rtol=0)
    if kind == "boltz1":
        # (and the samples before have left nothing in it)
        torch.testing.assert_close(prior.tokens.so_far, out["diff_token_repr"], atol=5e-4, rtol=1e-4)


def distances(x):
    return torch.linalg.norm(x[:, :, None] - x[:, None], dim=-1)


@pytest.mark.parametrize(
    ("kind", "physical", "demanded"),
    [
        ("boltz1", True, ""),
        ("boltz2", True, ""),
        ("boltz2", False, CONTACTS),
        ("boltz2", True, CONTACTS),
        ("boltz2", False, CONTACTS.replace("true", "false")),
    ],
)
def test_steering_is_boltz_own(kind, physical, demanded, tmp_path, monkeypatch):
    """Step by step from Boltz's own coordinates: its potentials have thresholds, where rounding decides.

    What is demanded by force acts, with the others and without them; what is not forced does not.
    """
    case = BoltzCase(kind, tmp_path, more=demanded)
    guided, real = [], weighted_rigid_align

    def align(noisy, goal, *masks):
        guided.append((noisy.clone(), goal.clone()))
        return real(noisy, goal, *masks)

    for module in (boltz1_diffusion, boltz2_diffusion):
        monkeypatch.setattr(module, "weighted_rigid_align", align)
    calls, _ = sampled_by_boltz(case, physical=physical)
    prior = case.prior(steering=Steering(case.feats, boltz2=kind == "boltz2", physical=physical))
    process = prior.process
    times = process.times(STEPS)
    as_given = Pose(
        torch.zeros(MEMBERS, 1, 3), torch.eye(3).expand(MEMBERS, 3, 3), torch.zeros(MEMBERS, 1, 3)
    )
    changed = []
    for i, ((noisy, goal), (_, t, unguided)) in enumerate(zip(guided, calls, strict=True)):
        process.pose, process.left = as_given, process._remaining(times[i]) if times[i + 1] > 0 else 0.0
        with torch.no_grad():
            found = prior.denoise(noisy, t)
        torch.testing.assert_close(found, goal, atol=1e-4, rtol=0)
        changed.append(float((goal - unguided).abs().max()))
    if physical or "true" in demanded:
        assert max(changed) > 0.1
    else:
        assert max(changed) == 0
    assert changed[-1] == 0


def test_schedule_is_boltz_own(case):
    process = case.prior().process
    assert process.times(STEPS) == case.diffusion.sample_schedule(STEPS).tolist()
    assert process.times(STEPS, 20.0)[0] == pytest.approx(20.0)
    with pytest.raises(ValueError, match="two steps"):
        process.times(1)


def test_noise_of_the_atoms_is_independent_and_not_of_some_alone(case, generator):
    prior = case.prior()
    process, held = prior.process, torch.arange(case.atoms) < 4
    noisy = process.diffuse(torch.zeros(4000, case.atoms, 3), 3.0, generator)
    z = noisy[:, :8] / 3.0
    covariance = torch.einsum("kid,kjd->ij", z, z) / 12000
    assert torch.allclose(covariance, torch.eye(8), atol=6 / 12000**0.5)
    known = torch.randn(2, case.atoms, 3, generator=generator)
    x = known + torch.randn(known.shape, generator=generator)
    found = Held(prior, known, held.expand(2, -1)).denoise(x, 5.0)
    expected = torch.where(held[:, None], known, prior.denoise(x, 5.0))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="BoltzProcess"):
        Substructure(prior, known[0], ~held)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_matter(kind, tmp_path, monkeypatch):
    case = BoltzCase(kind, tmp_path, padded=True)
    prior, x = case.prior(), 10 * torch.randn(2, case.atoms, 3)
    assert case.feats["atom_pad_mask"].shape[1] > case.atoms
    with torch.no_grad():
        first = prior.denoise(x, 5.0)
        real = prior._with_padding
        monkeypatch.setattr(prior, "_with_padding", lambda y: filled(real(y), case.atoms))
        second = prior.denoise(x, 5.0)
    assert first.shape == x.shape
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def filled(x, atoms):
    x = x.clone()
    x[:, atoms:] = 50.0
    return x


def test_a_moved_sample_in_a_moved_pose_gives_the_moved_estimate(case, generator):
    """The average over poses is equivariant: to each pose of a sample belongs one of the moved sample."""
    prior = case.prior()
    x = 10 * torch.randn(2, case.atoms, 3, generator=generator)
    turn = quaternion_to_matrix(torch.randn(2, 4, generator=generator))
    shift = 30 * torch.randn(2, 1, 3, generator=generator)
    pose = Pose(x.mean(1, keepdim=True), quaternion_to_matrix(torch.randn(2, 4, generator=generator)),
                torch.randn(2, 1, 3, generator=generator))  # fmt: skip
    with torch.no_grad():
        prior.process.pose = pose
        first = prior.denoise(x, 4.0)
        prior.process.pose = pose.moved(turn, shift)
        second = prior.denoise(x @ turn + shift, 4.0)
        prior.process.pose = None
        centred, away = prior.denoise(x, 4.0), prior.denoise(x + shift, 4.0)
    torch.testing.assert_close(second, first @ turn + shift, atol=1e-4, rtol=0)
    torch.testing.assert_close(away, centred + shift, atol=1e-4, rtol=0)
    assert (first - centred).abs().max() > 0.1  # the network alone is not equivariant


POSES, NOISE = 100, 16.0


def over_poses(prior, x, *, seed, change=None):
    """Estimates of one sample in the poses of so many steps: their mean, and the variance of that.

    Args:
        prior: of its process the poses are.
        x: the sample.
        seed: of the poses, and of the noise that the step adds.
        change: of the rotations that are drawn.
    """
    process, found = prior.process, []
    real = process._rotations

    def denoise(x, t):
        found.append(prior.denoise(x, t).double())
        return found[-1].float()

    if change is not None:
        process._rotations = lambda members, generator: change(real(members, generator))
    try:
        many = x.expand(POSES, -1, -1)
        with torch.no_grad():
            process.step(denoise, many, NOISE, 0.9 * NOISE, torch.Generator().manual_seed(seed))
    finally:
        process.__dict__.pop("_rotations", None)
    return found[0].mean(0), found[0].var(0) / POSES


def test_averaged_over_poses_the_estimate_is_equivariant(case, generator):
    """As the process draws and undoes them.

    To each pose R of a sample belongs the pose Q^T R of the sample turned by Q: over such sets the means are
    the same but turned, also with the noise that the step adds in the network's frame. Over sets that are
    drawn independently they are so within what they are uncertain by; which they are not if all are the same
    pose, for the network itself is not equivariant.
    """
    prior = case.prior(together=50)
    x = 10 * torch.randn(case.atoms, 3, generator=generator)
    x = x - x.mean(0)
    turn = quaternion_to_matrix(torch.randn(4, generator=generator))
    mean, _ = over_poses(prior, x, seed=1)
    again, _ = over_poses(prior, x @ turn, seed=1, change=lambda rotation: turn.mT @ rotation)
    torch.testing.assert_close(again, mean @ turn.double(), atol=1e-4, rtol=0)
    prior.process.noise = replace(prior.process.noise, noise_scale=0.0)  # poses alone make the difference

    def away(seed, change=None):
        """Root mean square of the difference in units of its standard deviation."""
        ours, uncertain = over_poses(prior, x, seed=seed, change=change)
        other, too = over_poses(prior, x @ turn, seed=seed + 1, change=change)
        return float(((ours @ turn.double() - other).square() / (uncertain + too)).mean().sqrt())

    assert away(2) < 2  # found: 0.5 to 1.5, of few independent numbers
    assert away(2, lambda rotation: torch.eye(3).expand_as(rotation)) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind, tmp_path, generator):
    """In the pose of a step; through the network, and not past it.

    At a level of sigma_data half of what the network is shown is in its estimate whatever it says. Its
    weights are as drawn, so that what it says is most of the gradient, and all of it in the second direction.
    """
    case, level = BoltzCase(kind, tmp_path), 16.0
    case.diffusion.score_model.atom_attention_decoder.atom_feat_to_atom_pos_update[-1].weight.mul_(20)
    prior = case.prior()
    x = (10 * torch.randn(2, case.atoms, 3, generator=generator)).requires_grad_()
    weights = torch.randn(2, case.atoms, 3, generator=generator)
    rotation = quaternion_to_matrix(torch.randn(2, 4, generator=generator))
    shift = torch.randn(2, 1, 3, generator=generator)
    prior.process.pose = Pose(x.detach().mean(1, keepdim=True), rotation, shift)
    (gradient,) = torch.autograd.grad((prior.denoise(x, level) * weights).sum(), x)
    past = case.diffusion.c_skip(torch.tensor(level)) * weights
    size, through = float(gradient.norm()), gradient - past
    assert float(through.norm()) > 0.5 * size
    for direction in (gradient, through - past * (through * past).sum() / past.square().sum()):
        direction = direction / direction.norm()
        h = 0.1
        with torch.no_grad():
            ends = [(prior.denoise(x + s * h * direction, level).double() * weights).sum() for s in (1, -1)]
        difference = float(ends[0] - ends[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(difference, abs=2e-3 * size)
        assert abs(float((past * direction).sum()) - difference) > 0.4 * size  # 200 times what is allowed


def test_chunks_change_nothing_but_memory(case, generator):
    x = 10 * torch.randn(3, case.atoms, 3, generator=generator)
    found = []
    for together in (3, 2, 1):
        prior, leaf = case.prior(together=together), x.clone().requires_grad_()
        value = prior.denoise(leaf, 5.0)
        found.append((value.detach(), torch.autograd.grad(value.square().sum(), leaf)[0]))
        if prior.tokens is not None:
            assert len(prior.tokens.latest) == 3
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-3, rtol=1e-3)


def test_running_out_of_memory_halves_the_chunk(case, generator, caplog):
    prior, x = case.prior(together=8), 10 * torch.randn(4, case.atoms, 3, generator=generator)
    with torch.no_grad():
        expected = case.prior(together=4).denoise(x, 5.0)
    real = case.diffusion.preconditioned_network_forward

    def small(x, sigma, **given):
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(x, sigma, **given)

    case.diffusion.preconditioned_network_forward = small
    try:
        with caplog.at_level(logging.WARNING), torch.no_grad():
            found = prior.denoise(x, 5.0)
    finally:
        del case.diffusion.preconditioned_network_forward
    assert prior.together == 1
    assert "2 members at a time" in caplog.text
    assert "1 members at a time" in caplog.text
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("together", [4, 2])
def test_running_out_of_memory_on_the_way_back_halves_the_chunk(case, generator, together, monkeypatch):
    """Of all members together the graph is kept; of chunks it is made again: both may not fit."""
    x = 10 * torch.randn(4, case.atoms, 3, generator=generator)
    prior, guided_x = case.prior(together=4), x.clone().requires_grad_()
    expected = torch.autograd.grad(prior.denoise(guided_x, 5.0).square().sum(), guided_x)[0]
    prior = case.prior(together=together)
    leaf = x.clone().requires_grad_()
    value = prior.denoise(leaf, 5.0).square().sum()
    real = torch.autograd.grad

    def small(outputs, inputs, *arguments, **options):
        if getattr(outputs, "ndim", 0) == 3 and len(outputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(outputs, inputs, *arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", small)
    (found,) = real(value, leaf)
    assert prior.together == 1
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_where_not_even_one_member_fits_it_says_so(kind, tmp_path):
    def nothing(x, sigma, **given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    case = BoltzCase(kind, tmp_path)
    case.diffusion.preconditioned_network_forward = nothing
    with pytest.raises(InputError, match="192 atoms, not even one at a time; take"), torch.no_grad():
        case.prior().denoise(torch.zeros(2, case.atoms, 3), 5.0)


def without_room_for_a_graph(diffusion, *, recomputed):
    """Gradients do not fit until layers are computed twice or, if these do not fit either, at all."""
    real = diffusion.preconditioned_network_forward

    def forward(x, sigma, **given):
        twice = any("forward" in vars(module) for module in diffusion.score_model.modules())
        if torch.is_grad_enabled() and not (recomputed and twice):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(x, sigma, **given)

    diffusion.preconditioned_network_forward = forward


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_graph_of_one_member_does_not_fit_the_measurement_keeps_less(
    kind, tmp_path, generator, caplog
):
    """The measurement is the first that takes a graph, and must not be the end of the run."""
    case = BoltzCase(kind, tmp_path)
    x = (10 * torch.randn(2, case.atoms, 3, generator=generator)).requires_grad_()
    expected = torch.autograd.grad(case.prior().denoise(x, 5.0).square().sum(), x)[0]
    without_room_for_a_graph(case.diffusion, recomputed=True)
    prior = case.prior()
    with caplog.at_level(logging.WARNING):
        prior.measure(10.0)
    assert caplog.text.count("computed twice") == 1
    assert prior.together > 2  # of what is kept now there is room for more
    found = torch.autograd.grad(prior.denoise(x, 5.0).square().sum(), x)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_graph_fits_at_all_what_needs_none_goes_on(kind, tmp_path, generator):
    case = BoltzCase(kind, tmp_path)
    x = 10 * torch.randn(2, case.atoms, 3, generator=generator)
    without_room_for_a_graph(case.diffusion, recomputed=False)
    prior = case.prior()
    prior.measure(10.0)
    assert prior.together == 1
    with torch.no_grad():
        assert bool(torch.isfinite(prior.denoise(x, 5.0)).all())
    value = prior.denoise(x.requires_grad_(), 5.0).square().sum()
    with pytest.raises(InputError, match="192 atoms"):
        torch.autograd.grad(value, x)


def test_potentials_are_taken_in_chunks_where_memory_runs_out(case, generator, caplog, monkeypatch):
    """Those of overlaps look at every pair of atoms of every member."""
    x = 4 * torch.randn(4, case.atoms, 3, generator=generator)
    steering = Steering(case.feats, boltz2=case.kind == "boltz2", physical=True)
    prior, real = case.prior(together=4, steering=steering), Steering.__call__
    prior.process.left = 0.5

    def small(self, x0, remaining):
        if len(x0) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(self, x0, remaining)

    with torch.no_grad(), caplog.at_level(logging.WARNING):
        expected = prior.denoise(x, 5.0)
        monkeypatch.setattr(Steering, "__call__", small)
        found = prior.denoise(x, 5.0)
    assert prior.together == 1
    assert "1 members at a time" in caplog.text
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_other_errors_of_the_network_are_not_taken_for_a_want_of_memory(case, monkeypatch):
    def wrong(x, sigma, **given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    prior = case.prior()
    monkeypatch.setattr(case.diffusion, "preconditioned_network_forward", wrong, raising=False)
    for call in (lambda: prior.measure(10.0), lambda: prior.denoise(torch.zeros(2, case.atoms, 3), 5.0)):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            call()


def test_what_pytorch_keeps_and_does_not_use_is_free(monkeypatch):
    """CUDA counts it as taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 << 30)
    assert free_bytes(torch.device("cuda")) == 53 << 30


@pytest.mark.parametrize("kind", KINDS)
def test_layers_computed_twice_keep_less_and_give_the_same(kind, tmp_path, generator, caplog):
    """The last resort where one member alone does not fit: then the gradient does."""
    case = BoltzCase(kind, tmp_path)
    x = 10 * torch.randn(1, case.atoms, 3, generator=generator)
    prior = case.prior(together=1)

    def gradient():
        leaf = x.clone().requires_grad_()
        value = prior.denoise(leaf, 5.0)
        return value.detach(), torch.autograd.grad(value.square().sum(), leaf)[0]

    expected = gradient()
    before = bytes_kept(lambda y: prior.in_chunks(y, 5.0), x)
    real, failed = case.diffusion.preconditioned_network_forward, []

    def once(x, sigma, **given):
        if torch.is_grad_enabled() and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(x, sigma, **given)

    case.diffusion.preconditioned_network_forward = once
    with caplog.at_level(logging.WARNING):
        found = gradient()
    assert "computed twice" in caplog.text
    assert bytes_kept(lambda y: prior.in_chunks(y, 5.0), x) < 0.6 * before
    for y, z in zip(found, expected, strict=True):
        torch.testing.assert_close(y, z, atol=1e-4, rtol=1e-4)
    assert not recompute_layers(case.diffusion)


def test_equal_chains_take_the_nearest_arrangement(generator):
    """A ring of three chains, the samples with two of them exchanged: each comes to its own place."""
    one = 5 * torch.randn(12, 3, generator=generator).double()
    turns = [
        quaternion_to_matrix(torch.tensor([1.0, 0.0, 0.0, w]).double()) for w in (0.0, 3**0.5, -(3**0.5))
    ]
    ring = [(one + torch.tensor([20.0, 0, 0])) @ turn for turn in turns]
    residues = tuple(Residue(ResidueId(c, n), "ALA") for c in "ABC" for n in range(1, 13))
    topology = Topology(("CA",) * 36, ("C",) * 36, np.arange(36), residues)
    docked = torch.cat(ring).float() + torch.tensor([50.0, 60.0, 70.0])
    sample = torch.cat([ring[0], ring[2], ring[1]]).float() @ turns[1].float()
    anchor = Anchor(1.0, topology, docked, torch.arange(36))
    rotation, shift = anchor.motion(torch.stack([sample, torch.cat(ring).float()]))
    placed = torch.stack([sample, torch.cat(ring).float()]) @ rotation + shift
    exchanged = docked.reshape(3, 12, 3)[[0, 2, 1]].reshape(36, 3)
    for x in placed:
        away = min(float((x - y).norm(dim=-1).max()) for y in arrangements(docked))
        assert away < 0.01
    assert min(float((placed[0] - y).norm(dim=-1).max()) for y in arrangements(exchanged)) < 0.01


def arrangements(x):
    return [x.reshape(3, 12, 3)[list(order)].reshape(36, 3) for order in itertools.permutations(range(3))]


def test_memory_is_counted_and_chunks_keep_it_small(case):
    one = 10 * torch.randn(1, case.atoms, 3)
    prior = case.prior(together=4)
    prior.denoise(one, 5.0)
    single = bytes_kept(lambda x: prior.in_chunks(x, 5.0), one)
    # Each layer keeps more than the coordinates, and members keep as much each.
    assert single > 100 * one.nbytes
    double = bytes_kept(lambda x: prior.in_chunks(x, 5.0), one.repeat(2, 1, 1))
    assert double == pytest.approx(2 * single, rel=0.3)
    prior.together = 1  # chunks keep nothing but coordinates until their gradient is taken
    assert bytes_kept(lambda x: prior.denoise(x, 5.0), one.repeat(4, 1, 1)) < single
    call = lambda x: prior.in_chunks(x, 5.0)  # noqa: E731
    assert members_that_fit(call, one, device=torch.device("cpu")) > 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda device: 3 * single if device.type == "cuda" else 1 << 50)
        # the network's device counts, not that of the coordinates; 0.6 of it are used
        assert members_that_fit(call, one, device=torch.device("cuda")) == 1


def test_a_sample_is_placed_where_it_belongs(case, generator):
    """At the anchor's level the sample comes to the docked model, and keeps its shape."""
    places = 15 * torch.randn(case.atoms, 3, generator=generator) + torch.tensor([40.0, -20.0, 60.0])
    prior = case.prior()
    times = prior.process.times(STEPS)
    level = times[18]
    every = torch.arange(case.atoms)
    anchored = case.prior(anchor=Anchor(level, prior.topology, places, every))
    seen = {}
    for name, this in (("free", prior), ("placed", anchored)):
        trace = []

        def denoise(x, t, this=this, trace=trace):
            trace.append((this.denoise(x, t), t))
            return trace[-1][0]

        this_generator, x = torch.Generator().manual_seed(3), None
        with torch.no_grad():
            x = this.process.initial(2, this_generator)
            for i in range(20):
                x = this.process.step(denoise, x, times[i], times[i + 1], this_generator)
        seen[name] = trace
    free, placed = seen["free"][18][0], seen["placed"][18][0]
    torch.testing.assert_close(distances(placed), distances(free), atol=2e-3, rtol=0)
    torch.testing.assert_close(placed, best_superposition(free, places), atol=2e-3, rtol=0)
    later = seen["placed"][19][0]
    assert (later.mean(1) - places.mean(0)).norm(dim=-1).max() < 3  # it stays there


def best_superposition(x, places):
    ones = torch.ones(x.shape[:2])
    return weighted_rigid_align(x, places.expand_as(x), ones, ones)


def test_a_stopped_run_goes_on_bit_for_bit(case):
    prior = case.prior()
    states = []

    def keep(state):
        states.append(
            (SamplerState(state.step, state.x.clone(), state.generator), AllAtom(prior.tokens).state_dict())
        )

    whole = sample(prior, steps=8, members=2, generator=torch.Generator().manual_seed(5), on_step=keep)
    memory = None if prior.tokens is None else prior.tokens.so_far
    again = case.prior()
    state, kept = states[4]
    AllAtom(again.tokens).load_state_dict(kept)
    resumed = sample(again, steps=8, members=2, generator=torch.Generator(), state=state)
    assert torch.equal(resumed, whole)
    if memory is not None:
        assert torch.equal(again.tokens.so_far, memory)


def test_partial_noise_begins_at_the_given_model(case, generator):
    start = 10 * torch.randn(case.atoms, 3, generator=generator)
    prior = case.prior(first=2.0, start=start)
    assert prior.process.times(10)[0] == pytest.approx(2.0)
    x = prior.process.initial(200, generator)
    assert (x - start).std() == pytest.approx(2.0, rel=0.02)
    assert (x - start).mean().abs() < 0.02
