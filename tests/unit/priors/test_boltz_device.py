"""Where a network is, its samples are, and what guides them; the result is that of the CPU."""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

from boltz_run import MEMBERS, STEPS, prepared, run_of
from elsewhere import ELSEWHERE, Away, Elsewhere, send

from densemble.guidance.guided import GuidedPrior
from densemble.sampler import SamplerState, sample

FIRST, LAST = 123, 127
"""Steps that are run of the recipe's, moved so that the cloud and the density guide one after the other."""


def sampled(run, *, mode=None):
    """The members after a few steps, where every term was asked, and what each step waited for."""
    places, waits = [], []

    def watched(stage):
        def term(atoms, sigma):
            places.append((stage.name, atoms.device, type(atoms)))
            return stage.term(atoms, sigma)

        return replace(stage, term=term)

    process = run.sampling.prior.process
    levels = process.levels(STEPS)
    cloud, density = run.sampling.stages
    stages = [
        replace(cloud, low=levels[126] * (1 + 1e-6)),
        replace(density, high=levels[126] * (1 + 1e-6)),
    ]
    prior = GuidedPrior(run.sampling.prior, [watched(stage) for stage in stages], run.sampling.completion)
    state = SamplerState(FIRST, run.state.x, run.state.generator)
    found = []

    class _DoneError(Exception):
        pass

    def on_step(new):
        found.append(new.x)
        if mode is not None:
            waits.append(dict(mode.waits))
            mode.waits.clear()
        if new.step > LAST:
            raise _DoneError

    with pytest.raises(_DoneError):
        sample(prior, steps=STEPS, members=MEMBERS, generator=torch.Generator(), state=state, on_step=on_step)
    return found, places, waits


def moved(ready, device):
    """What the trunk made of the input, and the input, on the device where the network is."""
    boltz = ready.boltz
    tensors = ("s_inputs", "s", "z", "relative_position_encoding", "pdistogram")
    trunk = replace(boltz.trunk, **{name: getattr(boltz.trunk, name).to(device) for name in tensors})
    return replace(ready, boltz=replace(boltz, given=boltz.given.to(device), trunk=trunk))


UNGUIDED = {"sampler.sample": 1, "diffusionv2.weighted_rigid_align": 2}
"""Whether the samples are finite; and two questions of Boltz's own superposition."""
OF_BOLTZ = {"boltz1": {"encoders.forward": 1}, "boltz2": {}}
"""Tables that a network of Boltz fetches at every call."""
DENSITY = {"plan._most": 1, "plan.of": 3}
"""See ``test_waits``."""


@pytest.mark.parametrize("kind", ["boltz1", "boltz2"])
def test_everything_of_a_guided_step_is_where_the_network_is(kind, boltz_cache, tmp_path):
    ready = prepared(kind, boltz_cache, tmp_path)
    expected, _, _ = sampled(run_of(ready))
    with Elsewhere() as mode:
        send(ready.boltz.network)
        run = run_of(moved(ready, ELSEWHERE))
        assert run.sampling.device == ELSEWHERE
        found, places, waits = sampled(run, mode=mode)
    assert [name for name, *_ in places] == ["cloud"] + 2 * ["density"]
    assert all(device == ELSEWHERE and kind is Away for _, device, kind in places)
    for x, y in zip(found, expected, strict=True):
        assert isinstance(x, Away)
        # (in single precision; the sums of the density are in another order there)
        torch.testing.assert_close(x.real_, y, atol=1e-2, rtol=0)
    # from the second step of each kind on: in the first what stays is made
    assert waits[1] == UNGUIDED | OF_BOLTZ[kind]
    assert waits[-1] == UNGUIDED | OF_BOLTZ[kind] | DENSITY


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: pytest -m gpu where there is one")
@pytest.mark.parametrize("kind", ["boltz1", "boltz2"])
def test_guided_steps_on_a_gpu_are_those_of_the_cpu(kind, boltz_cache, tmp_path, monkeypatch):
    """In single precision throughout; the command conditions Boltz-2 in bfloat16 there, as Boltz does."""
    monkeypatch.setattr("densemble.priors.boltz.trunk._mixed", lambda kind, device: False)
    with monkeypatch.context() as hidden:
        hidden.setattr(torch.cuda, "is_available", lambda: False)  # else the network is opened there
        ready = prepared(kind, boltz_cache, tmp_path)
        run = run_of(ready)
        assert run.sampling.device.type == "cpu"
        expected, _, _ = sampled(run)
    ready.boltz.network.cuda()
    found, places, _ = sampled(run_of(moved(ready, torch.device("cuda"))))
    assert [name for name, *_ in places] == ["cloud"] + 2 * ["density"]
    assert all(device.type == "cuda" for _, device, _ in places)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, atol=2e-2, rtol=0)  # steps are of some Å


def test_gpus_are_hidden_from_the_tests():
    """``open_boltz`` takes a GPU where there is one, and what the tests expect is of a CPU."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


def test_what_is_elsewhere_is_not_mixed():
    with Elsewhere():
        x = torch.ones(3).to(ELSEWHERE)
        assert float((x + 1).sum()) == 6.0
        assert torch.equal((2 * x).cpu(), 2 * torch.ones(3))
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf**2).sum(), leaf)
        assert torch.equal(gradient.cpu(), 2 * torch.ones(3))
