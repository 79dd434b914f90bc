"""The recipe cryoboltz-2025 on a Boltz network, against paper 2 written down once more.

What the command line runs (recipe, stages, point cloud, divergence, density, placement, process) is compared
with a transcription in Boltz's own frame and loop: plain autograd, GeomLoss as it is, a sum over all pairs of
voxels and atoms for the density, Kabsch by a singular value decomposition. The map, its mask and the points
of its cloud are taken as given. All but the network is in double precision (also the alignment of each step,
which Boltz rounds): with the paper's blur of 0.05 Å the gradient of the divergence is so sharp that rounding
alone would move samples by more than is asked for.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("boltz", reason="needs boltz 2.2.1: pip install 'densemble[boltz]'")

import gemmi
from boltz.model.modules.utils import quaternion_to_matrix
from boltz_networks import RNA
from boltz_run import BEGIN, MEMBERS, RESOLUTION, SPACING, STEPS, prepared, run_of
from geomloss import SamplesLoss

import densemble.priors.boltz.process as process
from densemble.em.folding import opened
from densemble.guidance.guided import GuidedPrior
from densemble.likelihood.cloud import cloud_of_map
from densemble.priors.boltz.trunk import conditioning, run_trunk
from densemble.progress import Progress
from densemble.sampler import sample

WARM, CLOUD, DENSITY = 125, 150, 175


@pytest.fixture(params=["boltz1", "boltz2"], scope="module")
def ready(request, boltz_cache, tmp_path_factory):
    """Two protein chains, a ligand, an ion and RNA."""
    return prepared(request.param, boltz_cache, tmp_path_factory.mktemp(request.param), more=RNA)


@pytest.fixture(scope="module")
def run(ready):
    in_double(ready.boltz.network.structure_module)
    found = run_of(ready, dtype=torch.float64)
    prior = found.sampling.prior
    prior._mask = prior._mask.double()
    prior.process.centre = prior.process.centre.double()
    return found


def in_double(diffusion):
    """The network as a function of coordinates in double precision."""
    real = diffusion.preconditioned_network_forward

    def forward(x, sigma, **given):
        out = real(x.float(), sigma, **given)
        return (out[0].double(), *out[1:]) if isinstance(out, tuple) else out.double()

    diffusion.preconditioned_network_forward = forward


def aligned(x, goal, *_):
    """x moved as a whole to be nearest to its goal."""
    q, shift = kabsch(x, goal)
    return x @ q + shift


def test_the_recipe_follows_paper_2(run, monkeypatch):
    monkeypatch.setattr(process, "weighted_rigid_align", aligned)
    assert run.sampling.steps == STEPS
    prior = GuidedPrior(run.sampling.prior, run.sampling.stages, run.sampling.completion)
    ours = {}
    sample(
        prior,
        steps=STEPS,
        members=MEMBERS,
        generator=torch.Generator(),
        state=run.state,
        on_step=lambda state: ours.setdefault(state.step - 1, state.x.clone()),
    )
    theirs, levels = Transcription(run).sampled()
    seen = [(tuple(row.keys() - {"sigma"}), row["sigma"]) for row in prior.trace]
    expected = [(("cloud",), levels[i]) for i in range(WARM, CLOUD)]
    expected += [(("density",), levels[i]) for i in range(CLOUD, DENSITY)]
    assert [name for name, _ in seen] == [name for name, _ in expected]
    assert [t for _, t in seen] == pytest.approx([t for _, t in expected], rel=1e-6)
    away = [float((ours[i] - theirs[i]).abs().max()) for i in range(WARM, STEPS)]
    assert max(away) < 1e-3
    free, _ = Transcription(run, guides=False).sampled()
    assert float((free[CLOUD - 1] - theirs[CLOUD - 1]).abs().max()) > 1
    assert float((free[STEPS - 1] - theirs[STEPS - 1]).abs().max()) > 1


class Transcription:
    """Paper 2: sections 3.1 to 3.3, appendix A; ratios of norms as its code takes them."""

    def __init__(self, run, *, guides=True):
        self.d, self.guides, self.state = run.boltz.network.structure_module, guides, run.state
        self.condition = conditioning(run.boltz.network, run.boltz.trunk, run.boltz.given.feats)
        self.condition["multiplicity"] = MEMBERS
        self.second = run.boltz.settings.prior == "boltz2"
        self.atoms = len(run.boltz.topology)
        padded = run.boltz.given.feats["atom_pad_mask"].shape[1]
        assert padded == self.atoms
        topology, problem = run.boltz.topology, run.problem
        self.placed = torch.from_numpy(problem.model.coords)
        kinds = [topology.residues[r].kind for r in topology.residue_index]
        named = set(zip(topology.names, kinds, strict=True))
        assert {("P", "nucleic"), ("ZN", "ion")} < named  # they take part in cloud and density
        central = [("CA", "protein"), ("C1'", "nucleic")]
        self.alpha = torch.tensor([atom in central for atom in zip(topology.names, kinds, strict=True)])
        target, inside = problem.likelihood.target, problem.prepared.inside
        count = math.floor(self.atoms / (4 * SPACING**3))
        self.cloud = cloud_of_map(target, inside, atoms=self.atoms).points
        assert len(self.cloud) == count > 10
        self.loss = SamplesLoss("sinkhorn", p=2, blur=0.05, reach=10)
        self.y, self.mask = target.values.flatten().double(), problem.likelihood.mask.flatten().double()
        self.voxels = torch.from_numpy(np.ascontiguousarray(target.grid.points())).reshape(-1, 3)
        self.charge = torch.tensor([gemmi.Element(e).atomic_number for e in topology.elements]).double()

    def divergence(self, x):
        """Sinkhorn divergence of each member from the cloud, equal shares on both sides."""
        return torch.stack([self.loss(member, self.cloud) for member in x])

    def misfit(self, x):
        """|y - s rho(x) - o|^2 with the scale and offset that make it least, over the voxels of the mask."""
        width = RESOLUTION / (math.pi * math.sqrt(2))
        used = self.mask > 0
        y, w, places = self.y[used], self.mask[used], self.voxels[used]
        found = []
        for member in x.double():
            squares = places.square().sum(1)[:, None] - 2 * places @ member.T + member.square().sum(1)[None]
            rho = torch.exp(-squares / (2 * width**2)) @ self.charge
            with torch.no_grad():
                columns = torch.stack([rho, torch.ones_like(rho)], dim=1) * w.sqrt()[:, None]
                scale, offset = torch.linalg.lstsq(columns, (y * w.sqrt())[:, None]).solution[:, 0]
            found.append((w * (y - scale * rho - offset).square()).sum())
        return torch.stack(found)

    def guidance(self, i):
        """What is made small at a step, and how strongly."""
        if not self.guides or not WARM <= i < DENSITY:
            return None
        if i < CLOUD:
            t = i - WARM
            return self.divergence, 0.05 + 0.5 * (0.25 - 0.05) * (1 + math.cos(math.pi * t / 25))
        return self.misfit, 0.5

    def network(self, seen, t):
        out = self.d.preconditioned_network_forward(seen, t, network_condition_kwargs=self.condition)
        return out if self.second else out[0]

    def sampled(self):
        """Positions in the map after every step, and the noise level that the network saw at it."""
        d, schedule = self.d, self.d.sample_schedule(STEPS)
        gammas = torch.where(schedule > d.gamma_min, d.gamma_0, 0.0)
        before = torch.get_rng_state()
        torch.set_rng_state(self.state.generator)
        x, found, levels = self.state.x, {}, {}
        for i in range(BEGIN, STEPS):
            now, after, gamma = schedule[i].item(), schedule[i + 1].item(), gammas[i + 1].item()
            turn = quaternion_to_matrix(torch.randn(MEMBERS, 4).double())
            move = torch.randn(MEMBERS, 1, 3)
            t = now * (1 + gamma)
            noise = d.noise_scale * (t**2 - now**2) ** 0.5 * torch.randn(MEMBERS, self.atoms, 3).double()
            middle = x.mean(1, keepdim=True)
            seen = (x - middle) @ turn + move + noise  # as the network sees it
            with torch.no_grad():
                estimate = (self.network(seen, t) - move) @ turn.mT + middle  # fills Boltz-1's cache
            if i == WARM:
                q, shift = kabsch(estimate[:, self.alpha], self.placed[self.alpha])
                middle, turn = middle @ q + shift, q.mT @ turn
            noisy = ((seen - move) @ turn.mT + middle).detach().requires_grad_()
            estimate = (self.network((noisy - middle) @ turn + move, t) - move) @ turn.mT + middle
            update = torch.zeros_like(estimate)
            if (guidance := self.guidance(i)) is not None:
                (g,) = torch.autograd.grad(-guidance[0](estimate).sum(), noisy)
                free = (estimate - noisy).detach().flatten(1).norm(dim=1)
                update = guidance[1] * g * (free / g.flatten(1).norm(dim=1))[:, None, None]
            with torch.no_grad():
                goal = estimate + update
                near = aligned(noisy, goal)
                x = near + d.step_scale * (after - t) * (near - goal) / t
            found[i], levels[i] = x.clone(), t
        torch.set_rng_state(before)
        return found, levels


def kabsch(x, places):
    """Rotation q and shift b for row vectors, so that x q + b is nearest to the places."""
    middle, centre = x.mean(1, keepdim=True), places.mean(-2, keepdim=True)
    u, _, vt = torch.linalg.svd((x - middle).mT @ (places - centre))
    sign = torch.det(u @ vt).sign()
    u = torch.cat([u[..., :2], u[..., 2:] * sign[:, None, None]], dim=-1)
    q = u @ vt
    return q, centre - middle @ q


@pytest.mark.parametrize(
    ("steps", "idle"),
    [(3, {"cloud", "density"}), (4, {"density"}), (5, {"cloud"}), (6, set()), (9, {"cloud"})],
)
def test_a_stage_in_which_no_step_lies_is_said(ready, steps, idle):
    """Few steps are taken, with what they have of the stages."""
    fewer = replace(ready, settings=replace(ready.settings, steps=steps))
    sampling = run_of(fewer).sampling
    assert {message.split()[1] for message in sampling.messages} == idle
    assert all(f"none of the {steps} steps" in message for message in sampling.messages)
    levels = sampling.prior.process.levels(steps)
    active = {stage.name for stage in sampling.stages if any(map(stage.active, levels))}
    assert active == {"cloud", "density"} - idle


def test_nothing_guides_from_less_noise_than_the_stages_have(ready):
    settings = replace(ready.boltz.settings, from_noise=0.05)
    sampling = run_of(replace(ready, boltz=replace(ready.boltz, settings=settings))).sampling
    assert not sampling.stages
    assert len(sampling.messages) == 2


def test_potentials_go_with_the_map(ready):
    """What the settings switch on steers the estimate, and the shift by the map comes on top of it."""
    switched = replace(ready.boltz, settings=replace(ready.boltz.settings, potentials=True))
    estimates = []
    for boltz in (ready.boltz, switched):
        run = run_of(replace(ready, boltz=boltz))
        prior, x = run.sampling.prior, run.state.x
        prior.process.times(STEPS)
        density = run.sampling.stages[1]
        prior.process.left = 0.3
        alone, both = (
            GuidedPrior(prior, stages).denoise(x, 0.9 * density.high) for stages in ([], [density])
        )
        shift, update = (both - alone).flatten(1).norm(dim=1), (alone - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(shift, 0.5 * update, rtol=1e-3, atol=0)
        estimates.append(alone)
    assert float((estimates[1] - estimates[0]).abs().max()) > 0.1


def test_the_trunk_is_recycled_as_often_as_is_asked_for(ready, boltz_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BOLTZ_CACHE", str(boltz_cache))
    monkeypatch.setattr("densemble.priors.boltz.model.OWN_CACHE", str(tmp_path))
    fold = replace(ready.settings.fold, recycling=1)
    again = opened(replace(ready.settings, fold=fold), None, tell=Progress())
    torch.testing.assert_close(again.trunk.z, run_trunk(again.network, again.given, recycling=1)["z"])
    assert float((again.trunk.z - ready.boltz.trunk.z).abs().max()) > 0.1
