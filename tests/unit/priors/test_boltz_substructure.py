"""A few free atoms of a Boltz network's, all others in known places."""

import pytest
import torch

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

from boltz.model.modules.utils import quaternion_to_matrix
from boltz_case import BoltzCase
from boltz_networks import CONTACTS

from densemble.priors.boltz.steering import Steering
from densemble.priors.boltz.substructure import BoltzSubstructure
from densemble.priors.edm import EDM

FREE = 20


@pytest.fixture(scope="module", params=["boltz1", "boltz2"])
def case(request, tmp_path_factory):
    return BoltzCase(request.param, tmp_path_factory.mktemp(request.param))


def substructure(case, generator):
    """The last atoms are free; and where all are."""
    places = 12 * torch.randn(case.atoms, 3, generator=generator) + torch.tensor([50.0, -30.0, 20.0])
    free = torch.arange(case.atoms) >= case.atoms - FREE
    known = torch.where(free[:, None], float("nan"), places)
    process = EDM(center=places[free], sigma_max=20.0)
    return BoltzSubstructure(case.prior(), known, free, process, seed=4), places


def shown_and_told(case, monkeypatch, answer):
    """What the network is shown, and what it says instead of its own opinion."""
    shown = []

    def forward(x, sigma, **given):
        shown.append((x.detach().clone(), sigma))
        out = answer(x)
        return (out, torch.zeros(1)) if case.kind == "boltz1" else out

    monkeypatch.setattr(case.diffusion, "preconditioned_network_forward", forward, raising=False)
    return shown


def test_estimates_are_brought_to_the_held_atoms(case, generator, monkeypatch):
    """A network that knows the answer, but not where it stands."""
    prior, places = substructure(case, generator)
    turn = quaternion_to_matrix(torch.randn(2, 4, generator=generator))
    shift = 30 * torch.randn(2, 1, 3, generator=generator)
    truth = torch.stack([places, places])
    truth[1, -FREE:] += 3.0
    shown_and_told(case, monkeypatch, lambda x: truth @ turn + shift)
    x = places[-FREE:] + 5 * torch.randn(2, FREE, 3, generator=generator)
    torch.testing.assert_close(prior.denoise(x, 5.0), truth[:, -FREE:], atol=1e-3, rtol=0)


def test_the_network_sees_held_atoms_with_the_noise_of_the_level(case, generator, monkeypatch):
    prior, places = substructure(case, generator)
    shown = shown_and_told(case, monkeypatch, lambda x: x)
    x = places[-FREE:] + 5 * torch.randn(2, FREE, 3, generator=generator)
    found = {}
    for level in (0.5, 5.0, 5.0):
        prior.denoise(x, level)
        seen, sigma = shown[-1]
        assert sigma == level
        free = seen[:, -FREE:]
        torch.testing.assert_close(torch.cdist(free, free), torch.cdist(x, x), atol=1e-3, rtol=0)
        assert seen.mean(1).abs().max() < 5  # centred
        # moved back by what the free atoms tell, which are as they were given
        middle, centre = free.mean(1, keepdim=True), x.mean(1, keepdim=True)
        turn = torch.linalg.lstsq((free - middle).double(), (x - centre).double()).solution.float()
        noise = ((seen - middle) @ turn + centre)[:, :-FREE] - places[:-FREE]
        assert float(noise.std()) == pytest.approx(level, rel=0.05)
        found.setdefault(level, noise / level)
    torch.testing.assert_close(found[5.0], found[0.5], atol=0.01, rtol=0)  # the same at all levels
    assert torch.equal(shown[-1][0], shown[-2][0])  # and the same pose whenever a level is asked for
    assert not torch.equal(found[5.0][0], found[5.0][1])


def test_it_is_a_prior(case, generator):
    prior, _ = substructure(case, generator)
    assert len(prior.topology) == FREE
    x = prior.process.initial(2, generator).requires_grad_()
    x0 = prior.denoise(x, 20.0)
    assert x0.shape == (2, FREE, 3)
    (gradient,) = torch.autograd.grad(x0.square().sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


def test_contacts_that_are_demanded_act(tmp_path, generator, monkeypatch):
    """At each level as Boltz weighs them there; the network is played, and says that all are far apart."""
    case = BoltzCase("boltz2", tmp_path, more=CONTACTS)
    places = 30 * torch.randn(case.atoms, 3, generator=generator)
    token = case.feats["atom_to_token"][0, : case.atoms].argmax(-1)
    first, second = token == 1, token == 11 + 10  # the contact: second residue of A, eleventh of B
    free = (token >= 11) & (token < 23)  # chain B
    process = EDM(center=places[free], sigma_max=20.0)
    shown_and_told(case, monkeypatch, lambda x: places.expand(2, -1, -1))
    x = places[free] + 5 * torch.randn(2, int(free.sum()), 3, generator=generator)
    apart = {}
    for demanded in (False, True):
        steering = Steering(case.feats, boltz2=True, physical=False) if demanded else None
        prior = BoltzSubstructure(case.prior(steering=steering), places, free, process, seed=4)
        for level in (20.0, 0.1):
            whole = places.repeat(2, 1, 1)
            whole[:, free] = prior.denoise(x, level)
            apart[demanded, level] = torch.cdist(whole[:, first], whole[:, second]).amin((1, 2))
        assert prior._prior.process.left == 0.0  # nothing of it stays
    assert bool((apart[False, 20.0] > 10).all())
    assert bool((apart[True, 20.0] < apart[False, 20.0] - 1).all())
    # in the last quarter of the way Boltz lets go of them
    torch.testing.assert_close(apart[True, 0.1], apart[False, 0.1], atol=1e-4, rtol=0)


def test_there_must_be_atoms_of_both_kinds(case, generator):
    places = torch.zeros(case.atoms, 3)
    process = EDM(center=places, sigma_max=20.0)
    for held in (0, 2, case.atoms):
        free = torch.arange(case.atoms) >= held
        with pytest.raises(ValueError, match="BoltzSubstructure"):
            BoltzSubstructure(case.prior(), places, free, process, seed=0)
