"""The trunk and the confidence head of Boltz against the forward pass of Boltz's own classes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("boltz", reason="needs densemble[boltz]: make boltz")

from boltz_networks import boltz_files, example_input, reduced_model

from densemble.errors import InputError
from densemble.priors.boltz.confidence import confidence
from densemble.priors.boltz.inputs import read_input
from densemble.priors.boltz.memory import must_hold, too_little
from densemble.priors.boltz.trunk import Trunk, conditioning, trunk_of

RECYCLING = 2
SAMPLES = 3


class Forward:
    """A forward pass of Boltz: what it returned, and what its parts were given and gave."""

    def __init__(self, kind, cache, folder):
        self.kind = kind
        self.network = reduced_model(kind)
        self.given = read_input(example_input(folder, padded=True), boltz_files(kind, cache))
        sample = self.network.structure_module.sample
        self.calls = []

        def compact(**arguments):
            """Boltz's samples, shrunk to the size of a molecule: random weights give clouds of 1000 Å."""
            drawn = sample(**arguments)
            drawn["sample_atom_coords"] = drawn["sample_atom_coords"] / 60
            self.sampled = drawn
            return drawn

        self.network.structure_module.sample = compact
        hook = self.network.structure_module.score_model.register_forward_hook(
            lambda _module, _positional, named, _out: self.calls.append(named), with_kwargs=True
        )
        torch.manual_seed(1)
        self.out = self.network(
            self.given.feats,
            recycling_steps=RECYCLING,
            num_sampling_steps=4,
            diffusion_samples=SAMPLES,
            max_parallel_samples=SAMPLES,
            run_confidence_sequentially=True,
        )
        hook.remove()
        del self.network.structure_module.sample


@pytest.fixture(scope="module", params=["boltz1", "boltz2"])
def forward(request, boltz_cache, tmp_path_factory):
    return Forward(request.param, boltz_cache, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def trunk(forward, tmp_path):
    return trunk_of(forward.network, forward.given, weights="w", cache=tmp_path, recycling=RECYCLING)


def test_trunk_is_that_of_the_forward_pass(forward, trunk):
    assert float(trunk.z.std()) > 0.1
    for name in ("s", "z", "pdistogram"):
        assert torch.equal(getattr(trunk, name), forward.out[name]), name


def test_diffusion_is_given_what_the_forward_pass_gives_it(forward, trunk):
    own = conditioning(forward.network, trunk, forward.given.feats)
    theirs = forward.calls[0]
    assert set(own) == set(theirs) - {"r_noisy", "times", "multiplicity"}
    for name in set(own) - {"feats", "model_cache", "diffusion_conditioning"}:
        assert torch.equal(own[name], theirs[name]), name
    for name in own.get("diffusion_conditioning", {}):
        if name != "to_keys":
            values = (x["diffusion_conditioning"][name] for x in (own, theirs))
            assert torch.equal(*values), name


def test_denoising_with_it_is_that_of_the_forward_pass(forward, trunk):
    """Through the whole diffusion module; the second call uses the cache of Boltz-1."""
    module, first = forward.network.structure_module, forward.calls[0]
    own = conditioning(forward.network, trunk, forward.given.feats)
    kwargs = {name: value for name, value in first.items() if name not in ("r_noisy", "times")}
    for x, sigma in ((torch.randn(SAMPLES, 192, 3), 5.0), (100 * torch.randn(SAMPLES, 192, 3), 90.0)):
        with torch.no_grad():
            a = module.preconditioned_network_forward(x, sigma, own | {"multiplicity": SAMPLES})
            b = module.preconditioned_network_forward(x, sigma, kwargs)
        a, b = (a[0], b[0]) if forward.kind == "boltz1" else (a, b)
        assert torch.equal(a, b)


class Counter:
    def __init__(self, network):
        self.rounds = 0
        self._hook = network.pairformer_module.register_forward_hook(self._count)

    def _count(self, *_):
        self.rounds += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


def test_trunk_runs_once_per_input_and_weights(forward, tmp_path):
    def run(weights="w", recycling=1):
        return trunk_of(forward.network, forward.given, weights=weights, cache=tmp_path, recycling=recycling)

    with Counter(forward.network) as counter:
        first = run()
        assert counter.rounds == 2
        again = run()
        assert counter.rounds == 2
        for name in ("s_inputs", "s", "z", "relative_position_encoding", "pdistogram"):
            assert torch.equal(getattr(first, name), getattr(again, name)), name
        run(weights="others")
        assert counter.rounds == 4
        run(recycling=0)
        assert counter.rounds == 5
    assert len(list(tmp_path.glob("trunk-*"))) == 3


def test_of_two_runs_at_the_same_time_one_makes_the_trunk(forward, tmp_path):
    def run(_):
        return trunk_of(forward.network, forward.given, weights="w", cache=tmp_path, recycling=1)

    with Counter(forward.network) as counter, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert counter.rounds == 2
    assert torch.equal(first.z, second.z)


def test_trunk_of_another_input_is_another(forward, boltz_cache, tmp_path):
    other = read_input(example_input(tmp_path), boltz_files(forward.kind, boltz_cache))
    assert other.key != forward.given.key
    options = {"weights": "w", "cache": tmp_path / "trunks", "recycling": 0}
    sizes = [trunk_of(forward.network, given, **options).s.shape[1] for given in (forward.given, other)]
    assert sizes == [34, 35]


def test_a_file_cut_short_is_run_anew(forward, tmp_path):
    first = trunk_of(forward.network, forward.given, weights="w", cache=tmp_path, recycling=0)
    (file,) = tmp_path.glob("trunk-*")
    file.write_bytes(file.read_bytes()[:-100])
    again = trunk_of(forward.network, forward.given, weights="w", cache=tmp_path, recycling=0)
    assert torch.equal(first.z, again.z)
    assert not list(tmp_path.glob(".*")), "no lock is left"


def test_trunks_used_longest_ago_make_room(forward, tmp_path):
    """Reading one is using it; the one in use stays even where it alone is too much."""

    def run(weights, kept):
        before = set(tmp_path.glob("trunk-*"))
        trunk_of(forward.network, forward.given, weights=weights, cache=tmp_path, recycling=0, kept=kept)
        return next(iter(set(tmp_path.glob("trunk-*")) - before), None)

    (tmp_path / "other.safetensors").touch()
    first, second = run("a", 10**9), run("b", 10**9)
    size = first.stat().st_size
    for age, file in ((300, first), (200, second)):
        os.utime(file, (time.time() - age,) * 2)
    assert run("a", 2 * size) is None  # read, and now the last that was used
    third = run("c", 2 * size)
    assert set(tmp_path.glob("trunk-*")) == {first, third}
    last = run("d", 1)
    assert set(tmp_path.glob("trunk-*")) == {last}
    assert (tmp_path / "other.safetensors").exists()


def test_confidence_is_that_of_the_forward_pass(forward, trunk):
    sampled, out = forward.sampled, forward.out
    found = confidence(
        forward.network,
        forward.given,
        trunk,
        sampled["sample_atom_coords"][:, : forward.given.atoms],
        s_diffusion=sampled["diff_token_repr"],
    )
    for name in ("complex_plddt", "ptm", "iptm"):
        assert torch.equal(getattr(found, name), out[name]), name
    assert found.complex_plddt.std() > 1e-5, "samples must differ for the test to say something"
    weights = out["iptm"] if out["iptm"].abs().max() > 1e-6 else out["ptm"]
    torch.testing.assert_close(found.score, 0.8 * out["complex_plddt"] + 0.2 * weights)


def test_confidence_of_residues(forward, trunk):
    """One token a residue in chains A and B, one an atom in the ligand (11) and the ion."""
    sampled, plddt = forward.sampled, forward.out["plddt"]
    found = confidence(
        forward.network,
        forward.given,
        trunk,
        sampled["sample_atom_coords"],
        s_diffusion=sampled["diff_token_repr"],
    )
    assert [r.name for r in forward.given.topology.residues[-2:]] == ["LIG1", "ZN"]
    expected = torch.cat([plddt[:, :22], plddt[:, 22:33].mean(1, keepdim=True), plddt[:, 33:]], dim=1)
    torch.testing.assert_close(found.plddt, expected)


def test_the_head_of_boltz1_alone_needs_accumulated_tokens(forward, trunk):
    x = forward.sampled["sample_atom_coords"]
    if forward.kind == "boltz1":
        with pytest.raises(ValueError, match="s_diffusion"):
            confidence(forward.network, forward.given, trunk, x)
    else:
        found = confidence(forward.network, forward.given, trunk, x)
        assert torch.equal(found.complex_plddt, forward.out["complex_plddt"])


def test_no_head_no_confidence(forward, trunk, monkeypatch):
    monkeypatch.setattr(forward.network, "confidence_prediction", False)
    assert confidence(forward.network, forward.given, trunk, torch.zeros(1, 192, 3)) is None
    assert isinstance(trunk, Trunk)


def too_large(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("part", ["msa_module", "rel_pos"])
def test_a_trunk_that_memory_does_not_hold_is_said(forward, tmp_path, monkeypatch, part):
    """While it is run, and when it is completed from disk; the next run does not find a lock."""
    options = {"weights": "w", "cache": tmp_path, "recycling": 0}
    if part == "rel_pos":
        trunk_of(forward.network, forward.given, **options)
    monkeypatch.setattr(getattr(forward.network, part), "forward", too_large)
    with pytest.raises(InputError, match="out of memory: cpu does not hold the trunk of 34 tokens; take a"):
        trunk_of(forward.network, forward.given, **options)
    assert not list(tmp_path.glob(".*"))


def test_a_confidence_head_that_memory_does_not_hold_is_said(forward, trunk, monkeypatch):
    monkeypatch.setattr(forward.network.confidence_module, "forward", too_large)
    sampled = forward.sampled
    with pytest.raises(InputError, match="does not hold the confidence head on 34 tokens; take a"):
        confidence(
            forward.network,
            forward.given,
            trunk,
            sampled["sample_atom_coords"],
            s_diffusion=sampled["diff_token_repr"],
        )


def test_a_conditioning_that_memory_does_not_hold_is_said(forward, trunk, monkeypatch):
    if forward.kind == "boltz1":
        pytest.skip("Boltz-1 conditions in its denoiser")
    monkeypatch.setattr(forward.network.diffusion_conditioning, "forward", too_large)
    with pytest.raises(InputError, match="does not hold the conditioning on 34 tokens; take a"):
        conditioning(forward.network, trunk, forward.given.feats)


def test_of_a_gpu_it_is_said_how_to_leave_it_out():
    said = str(too_little("the trunk", torch.device("cuda", 0)))
    assert "cuda:0 does not hold the trunk" in said
    assert "CUDA_VISIBLE_DEVICES= before the command" in said
    with pytest.raises(RuntimeError, match="shapes"), must_hold("the trunk", torch.device("cpu")):
        raise RuntimeError("shapes do not agree")
