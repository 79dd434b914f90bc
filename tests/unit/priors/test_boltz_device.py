"""Where a network is, its samples are, and what guides them; the result is that of the CPU."""

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
    boltz = ready.boltz
    with Elsewhere() as mode:
        send(boltz.network)
        tensors = ("s_inputs", "s", "z", "relative_position_encoding", "pdistogram")
        trunk = replace(boltz.trunk, **{name: getattr(boltz.trunk, name).to(ELSEWHERE) for name in tensors})
        moved = replace(boltz, given=boltz.given.to(ELSEWHERE), trunk=trunk)
        run = run_of(replace(ready, boltz=moved))
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
