"""The Gibbs scheme between backbone and side chains: when chi is drawn, when it climbs, when it rests."""

from pathlib import Path

import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Region
from densemble.guidance.guided import Completion
from densemble.io.models import read_model
from densemble.sidechains.completion import Packer, RotamerPacker, SideChainCompletion
from densemble.sidechains.packing import SideChains

START = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"
OPTIONS = {"resample_every": 3, "gradient_steps": 2, "step_size": 0.01, "high": 2.0, "seed": 11}


@pytest.fixture(scope="module")
def model():
    return read_model(START)


class Setting:
    """A stretch, its backbone for K members, and a likelihood that pulls atoms to a place."""

    def __init__(self, model, members=2, text="A:179-186"):
        (self.residues,) = Region.parse(text).resolve(model.topology)
        self.chains = SideChains(model.topology, model.coords, self.residues, members=members)
        atoms = np.sort(model.topology.backbone(self.residues).ravel())
        self.topology = model.topology.subset(atoms)
        start = torch.tensor(model.coords[atoms], dtype=torch.float32)
        self.backbone = start.repeat(members, 1, 1)
        self.calls: list[float] = []

    def likelihood(self, atoms, sigma):
        self.calls.append(sigma)
        return -0.5 * (atoms - atoms.detach().mean(dim=(0, 1)) - 1).square().sum()

    def completion(self, **changes) -> SideChainCompletion:
        options = OPTIONS | {"log_likelihood": self.likelihood} | changes
        return SideChainCompletion(self.chains, self.topology, **options)


@pytest.fixture
def setting(model) -> Setting:
    return Setting(model)


def test_it_is_a_completion(setting):
    assert isinstance(setting.completion(), Completion)


def test_atoms_have_the_backbone_given_and_all_side_chains(setting):
    completion = setting.completion()
    x = (
        setting.backbone
        + torch.randn(setting.backbone.shape, generator=torch.Generator().manual_seed(0)) / 50
    )
    atoms = completion(x)
    topology = setting.chains.topology
    assert atoms.shape == (2, len(topology), 3)
    rows = np.sort(topology.backbone(range(len(topology.residues))).ravel())
    assert torch.allclose(atoms[:, rows], x, atol=1e-5)


def test_side_chains_rest_while_the_noise_is_high(setting):
    completion = setting.completion()
    before = setting.chains.chi.clone()
    for _ in range(4):
        completion.update(setting.backbone, 2.01)
    assert torch.equal(setting.chains.chi, before)
    assert setting.calls == []
    assert int(completion.state_dict()["calls"]) == 0


def test_drawn_at_every_third_call_and_climbing_in_between(setting, monkeypatch):
    completion = setting.completion()
    done: list[str] = []
    for name in ("pack", "refine"):
        method = getattr(SideChains, name)

        def record(self, *args, name=name, method=method, **kwargs):
            done.append(name)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(SideChains, name, record)
    for _ in range(7):
        completion.update(setting.backbone, 1.5)
    assert done == ["pack", "refine", "refine", "pack", "refine", "refine", "pack"]
    assert setting.calls == [1.5] * 8  # two gradient steps in each of four calls


def test_gradient_steps_climb(setting):
    completion = setting.completion(step_size=1e-4, gradient_steps=5)
    completion.update(setting.backbone, 1.0)
    before = float(setting.likelihood(completion(setting.backbone), 1.0))
    completion.update(setting.backbone, 1.0)
    assert float(setting.likelihood(completion(setting.backbone), 1.0)) > before


def test_at_the_end_there_is_one_more_update_or_none_but_chi_is_drawn_once_at_least(setting):
    """Algorithm A1 returns after its last step; where nothing asked for side chains, they are drawn there."""
    packed = []

    def turn(side_chains, backbone, generator):
        packed.append(backbone)
        side_chains.chi = side_chains.chi + 0.25

    more = setting.completion(packer=turn)
    for _ in range(3):
        more.update(setting.backbone, 1.0)
    more.finish(setting.backbone)
    assert len(packed) == 2, "the fourth call of T = 3"
    exact = setting.completion(packer=turn, final_update=False)
    for _ in range(3):
        exact.update(setting.backbone, 1.0)
    chi, climbed = setting.chains.chi.clone(), len(setting.calls)
    exact.finish(setting.backbone)
    assert len(packed) == 3
    assert len(setting.calls) == climbed
    assert torch.equal(setting.chains.chi, chi)
    never = setting.completion(packer=turn, final_update=False)
    never.finish(setting.backbone + 1)
    assert len(packed) == 4
    rows = torch.as_tensor(setting.topology.backbone(range(8)))
    assert torch.equal(packed[-1], setting.backbone[:, rows] + 1)


@pytest.mark.parametrize("changes", [{"log_likelihood": None}, {"gradient_steps": 0}])
def test_without_likelihood_or_steps_chi_changes_at_draws_only(setting, changes):
    completion = setting.completion(**changes)
    completion.update(setting.backbone, 1.0)
    drawn = setting.chains.chi.clone()
    for _ in range(2):
        completion.update(setting.backbone, 1.0)
        assert torch.equal(setting.chains.chi, drawn)
    completion.update(setting.backbone, 1.0)
    assert not torch.equal(setting.chains.chi, drawn)


def test_chi_is_drawn_by_whatever_packer_is_given(setting):
    """With the backbone of the step and the completion's own generator."""
    seen = []

    def turn(side_chains, backbone, generator):
        seen.append((backbone, torch.rand(1, generator=generator)))
        side_chains.chi = side_chains.chi + 0.25

    assert isinstance(turn, Packer)
    before = setting.chains.chi.clone()
    completion = setting.completion(packer=turn, gradient_steps=0)
    for i in range(4):
        completion.update(setting.backbone + i, 1.0)
    assert torch.allclose(setting.chains.chi, before + 0.5)
    rows = torch.as_tensor(setting.topology.backbone(range(8)))
    assert all(torch.equal(b, setting.backbone[:, rows] + i) for (b, _), i in zip(seen, (0, 3), strict=True))
    assert torch.equal(seen[0][1], torch.rand(1, generator=torch.Generator().manual_seed(11)))


def test_draws_see_the_density(setting, model):
    """A map of the deposited side chains pulls them there, another one does not."""
    atoms = torch.tensor(model.coords[model.topology.atoms_of(setting.residues)], dtype=torch.float32)

    def density(points):
        squares = torch.cdist(points.flatten(0, -2), atoms).square()
        return 5.0 * (-squares / 0.72).exp().sum(-1).reshape(points.shape[:-1])

    def error(**changes) -> float:
        completion = Setting.completion(setting, **changes)
        completion.update(setting.backbone, 0.5)
        return float((completion(setting.backbone) - atoms).square().sum(-1).mean().sqrt())

    assert error(packer=RotamerPacker(density)) < 1.0 < error(packer=None)


def test_gradient_of_the_backbone_is_right_and_chi_is_constant(model):
    """Against differences; all atoms of a residue follow its backbone."""
    few = Setting(model, members=1, text="A:182-183")
    few.chains = SideChains(model.topology, model.coords, few.residues, members=1, dtype=torch.float64)
    completion = few.completion()
    x = few.backbone.double().requires_grad_()
    assert torch.autograd.gradcheck(completion, (x,), atol=1e-6)
    assert not few.chains.chi.requires_grad


def test_same_seed_same_draws(model):
    first, second, other = (Setting(model) for _ in range(3))
    for setting, seed in ((first, 1), (second, 1), (other, 2)):
        setting.completion(seed=seed).update(setting.backbone, 1.0)
    assert torch.equal(first.chains.chi, second.chains.chi)
    assert not torch.equal(first.chains.chi, other.chains.chi)


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
def test_goes_on_from_a_saved_state_to_the_same_bits(model, calls, tmp_path):
    whole, second = Setting(model), Setting(model)
    completion = whole.completion()
    for _ in range(calls):
        completion.update(whole.backbone, 1.0)
    torch.save(completion.state_dict(), tmp_path / "state.pt")
    resumed = second.completion(seed=99)  # replaced by the state
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(4):
        completion.update(whole.backbone, 1.0)
        resumed.update(second.backbone, 1.0)
        assert torch.equal(whole.chains.chi, second.chains.chi)


def test_state_of_other_members_is_refused(model):
    state = Setting(model, members=3).completion().state_dict()
    with pytest.raises(ValueError, match="chi"):
        Setting(model, members=2).completion().load_state_dict(state)
