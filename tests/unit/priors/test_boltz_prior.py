"""The Boltz prior against the released package: same random numbers, same samples."""

import contextlib
import itertools
import logging

import numpy as np
import pytest
import torch

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

import boltz.model.modules.diffusion as boltz1_diffusion
import boltz.model.modules.diffusionv2 as boltz2_diffusion
from boltz.model.loss.diffusionv2 import weighted_rigid_align
from boltz.model.modules.utils import quaternion_to_matrix
from boltz_case import BoltzCase

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.guidance.guided import AllAtom
from densemble.priors.boltz import memory
from densemble.priors.boltz.memory import bytes_kept, members_that_fit, recompute_layers
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
def poses_from_the_map():
    """Boltz turns the sample that it turned before; each of our poses is counted from the map's frame.

    With rotations R_i from the same random numbers, Boltz is given R_(i-1)^T R_i.
    """
    last = torch.eye(3)

    def augmentation(members, device=None, dtype=torch.float32):
        nonlocal last
        rotation = quaternion_to_matrix(torch.randn(members, 4))
        turn, last = last.mT @ rotation, rotation
        return turn, torch.randn(members, 1, 3)

    with pytest.MonkeyPatch.context() as patch:
        for module in (boltz1_diffusion, boltz2_diffusion):
            patch.setattr(module, "compute_random_augmentation", augmentation)
        yield


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
    with recorded(case.diffusion) as calls, poses_from_the_map(), torch.no_grad():
        out = case.diffusion.sample(**given)
    return calls, out


def test_unguided_sampling_is_boltz_own(case):
    theirs, out = sampled_by_boltz(case)
    prior = case.prior(steering=Steering(case.feats, boltz2=case.kind == "boltz2", physical=False))
    sample(prior, steps=2, members=MEMBERS, generator=torch.Generator())
    with recorded(case.diffusion) as ours, torch.no_grad():
        x = sample(prior, steps=STEPS, members=MEMBERS, generator=torch.Generator().manual_seed(11))
    assert len(ours) == len(theirs) == STEPS
    for (noisy, sigma, estimate), (own_noisy, own_sigma, own_estimate) in zip(theirs, ours, strict=True):
        assert own_sigma == sigma
        # Thousands of Å are not known to 1e-4 Å in float32, and less so when turned to fit pure noise.
        torch.testing.assert_close(own_noisy, noisy, atol=max(1e-4, 5e-6 * float(noisy.abs().max())), rtol=0)
        torch.testing.assert_close(own_estimate, estimate, atol=1e-4, rtol=0)
    end = out["sample_atom_coords"]
    assert 5 < end.std() < 40  # the size of a protein
    torch.testing.assert_close(distances(x), distances(end), atol=2e-4, rtol=0)
    if case.kind == "boltz1":
        # (and the samples before have left nothing in it)
        torch.testing.assert_close(prior.tokens.so_far, out["diff_token_repr"], atol=5e-4, rtol=1e-4)


def distances(x):
    return torch.linalg.norm(x[:, :, None] - x[:, None], dim=-1)


def test_steering_is_boltz_own(case, monkeypatch):
    """Step by step from Boltz's own coordinates: its potentials have thresholds, where rounding decides."""
    guided, real = [], weighted_rigid_align

    def align(noisy, goal, *masks):
        guided.append((noisy.clone(), goal.clone()))
        return real(noisy, goal, *masks)

    for module in (boltz1_diffusion, boltz2_diffusion):
        monkeypatch.setattr(module, "weighted_rigid_align", align)
    calls, _ = sampled_by_boltz(case, physical=True)
    prior = case.prior(steering=Steering(case.feats, boltz2=case.kind == "boltz2", physical=True))
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
    assert max(changed) > 0.1
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


def test_gradients_are_those_of_finite_differences(case, generator):
    prior = case.prior()
    x = (10 * torch.randn(2, case.atoms, 3, generator=generator)).requires_grad_()
    weights = torch.randn(2, case.atoms, 3, generator=generator)
    (gradient,) = torch.autograd.grad((prior.denoise(x, 6.0) * weights).sum(), x)
    for direction in (gradient / gradient.norm(), torch.randn(x.shape, generator=generator)):
        direction = direction / direction.norm()
        h = 0.2
        with torch.no_grad():
            ends = [(prior.denoise(x + s * h * direction, 6.0).double() * weights).sum() for s in (1, -1)]
        difference = float(ends[0] - ends[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(
            difference, rel=0.02, abs=2e-3 * float(gradient.norm())
        )


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
    with pytest.raises(InputError, match="192 atoms do not fit into the memory"), torch.no_grad():
        case.prior().denoise(torch.zeros(2, case.atoms, 3), 5.0)


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
