"""One guided step against paper 1's equations 1 to 4, transcribed: matrices, sums over atoms and voxels.

Nothing of the package's density, likelihood, guidance or process is used in the transcription, only its
building of atoms from backbone and chi angles. All is in double precision.
"""

import math
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

import densemble
from densemble.atoms import Region
from densemble.forward.xray import XrayDensity
from densemble.grid import DensityMap, Grid
from densemble.guidance.guided import GuidedPrior
from densemble.guidance.stage import Stage
from densemble.io.models import read_model
from densemble.likelihood.density import DensityLikelihood
from densemble.priors.variance_preserving import VariancePreserving
from densemble.sidechains.completion import SideChainCompletion
from densemble.sidechains.packing import SideChains

START = Path(densemble.__file__).parent / "data" / "7rin" / "model.cif"
B_ISO, SCALE, CLIP = 22.0, 9.0, 32.5
MEMBERS, T, T_NEXT = 3, 0.35, 0.348


def backbone(model, text):
    (residues,) = Region.parse(text).resolve(model.topology)
    atoms = np.sort(model.topology.backbone(residues).ravel())
    return residues, model.topology.subset(atoms), torch.tensor(model.coords[atoms])


class Problem:
    """Two residues of the packaged example in a box of noise (e/Å^3), and a prior of their backbone."""

    def __init__(self, model, prior, residues, strength=12.0, mode="ensemble", members=MEMBERS):
        self.prior = prior
        chains = SideChains(model.topology, model.coords, residues, members=members, dtype=torch.float64)
        self.topology = chains.topology
        self.completion = SideChainCompletion(
            chains,
            prior.topology,
            resample_every=40,
            gradient_steps=25,
            step_size=0.001,
            high=math.inf,
            seed=4,
        )
        where = model.coords[model.topology.atoms_of(residues)]
        self.grid = Grid.around(where, margin=2.5, spacing=1.1)
        generator = torch.Generator().manual_seed(6)
        target = 0.5 + strength * torch.randn(self.grid.shape, generator=generator, dtype=torch.float64)
        self.target = DensityMap(self.grid, target)
        self.likelihood = DensityLikelihood(
            XrayDensity(self.grid, self.topology.elements, dtype=torch.float64, cutoff=1e-18),
            self.target,
            torch.ones(self.grid.shape, dtype=torch.float64),
            b_iso=torch.tensor(B_ISO, dtype=torch.float64),
            sigma=math.sqrt(0.5),
            mode=mode,
            fit_scale=False,
            fit_offset=False,
        )

    def term(self, atoms, sigma):
        return self.likelihood(atoms, atoms.new_full((len(atoms),), 1 / len(atoms)))

    def step(self, x, seed):
        stage = Stage("density", self.term, weight=SCALE, clip=CLIP, mode="score", through_network=True)
        guided = GuidedPrior(self.prior, [stage], self.completion)
        generator = torch.Generator().manual_seed(seed)
        return self.prior.process.step(guided.denoise, x, T, T_NEXT, generator)

    def log_p(self, x):
        """Eqs. 2 and 3 of x0_hat with the present chi angles, summed atom by atom over all voxels."""
        atoms = self.completion(self.prior.denoise(x, T))
        voxels = torch.as_tensor(self.grid.points().reshape(-1, 3))
        calculated = 0
        for member in atoms:
            for y, element in zip(member, self.topology.elements, strict=True):
                entry = gemmi.Element(element).it92
                distance = (y - voxels).square().sum(-1)
                for a, b in zip([*entry.a, entry.c], [*entry.b, 0.0], strict=True):
                    width = b + B_ISO
                    height = a * (4 * math.pi / width) ** 1.5
                    calculated = calculated + height * (-4 * math.pi**2 / width * distance).exp() / MEMBERS
        return -(self.target.values.flatten() - calculated).square().sum()


def transcribed(problem, x, seed, *, clip):
    """Eq. 4 with the gradient of each member clipped; and the norms of these gradients."""
    process = problem.prior.process
    P, c = process.factor.double(), process.center.double()
    alpha, sigma = process.schedule.alpha_sigma(T)
    beta = process.schedule.beta(T)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.log_p(leaf), leaf)
    norms = gradient.square().sum((1, 2)).sqrt()
    guidance = torch.stack([g if n <= clip else clip * g / n for g, n in zip(gradient, norms, strict=True)])
    with torch.no_grad():
        x0 = problem.prior.denoise(x, T)
    covariance = P @ P.T
    score = -torch.linalg.solve(covariance, x - c - alpha * (x0 - c)) / sigma**2
    n = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(seed), dtype=process.factor.dtype
    ).double()
    dt = T_NEXT - T
    dx = (-0.5 * (x - c) - covariance @ (score + SCALE * guidance)) * beta * dt
    return x + dx + math.sqrt(beta * -dt) * P @ n, norms


class Bent:
    """A denoiser that is no straight line: neighbours pull on each other."""

    def __init__(self, topology, start):
        self.topology = topology
        factor = 1.2 * torch.tril(torch.ones(len(start), len(start), dtype=torch.float64))
        self.process = VariancePreserving(factor, center=start + 0.4)
        self.start = start

    def denoise(self, x_t, t):
        away = x_t - self.process.center
        return self.start + 0.5 * torch.tanh(0.3 * away + 0.1 * away.roll(1, dims=1))


@pytest.fixture(scope="module")
def model():
    return read_model(START)


@pytest.fixture
def bent(model):
    residues, topology, start = backbone(model, "A:182-183")
    return Problem(model, Bent(topology, start), residues)


def state(problem, seed=1):
    process = problem.prior.process
    noise = torch.randn(
        MEMBERS, len(process.factor), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return process.center.double() + 0.6 * process.factor.double() @ noise / 3


def test_guided_step_is_equation_4(bent):
    x = state(bent)
    found = bent.step(x, seed=5)
    expected, norms = transcribed(bent, x, 5, clip=CLIP)
    assert float(norms.max()) > CLIP > float(norms.min()), "clipping must matter for some and not for others"
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    free, _ = transcribed(bent, x, 5, clip=math.inf)
    assert not torch.allclose(free, expected, atol=1e-4)


def test_members_guided_each_go_where_each_goes_alone(model):
    """Table A2's ablation: backbone and chi of K members are those of K runs of one, clipping and all."""
    residues, topology, start = backbone(model, "A:182-183")

    def two_steps(x, mode):
        problem = Problem(model, Bent(topology, start), residues, mode=mode, members=len(x))
        problem.completion = SideChainCompletion(
            problem.completion.side_chains,
            topology,
            resample_every=40,
            gradient_steps=3,
            step_size=1e-4,
            high=math.inf,
            seed=4,
            packer=lambda *_: None,
            log_likelihood=problem.term,
        )
        stage = Stage("density", problem.term, weight=SCALE, clip=CLIP, mode="score")
        guided = GuidedPrior(problem.prior, [stage], problem.completion)
        before = problem.completion.side_chains.chi
        found = [guided.denoise(x, T), guided.denoise(x, T)]  # chi is left alone at the first, and moved
        assert float((problem.completion.side_chains.chi - before).abs().max()) > 1e-3
        return *found, problem.completion.side_chains.chi

    x = state(Problem(model, Bent(topology, start), residues))
    alone = [two_steps(one[None], "ensemble") for one in x]
    for together, apart in zip(two_steps(x, "each"), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-10)


def test_guidance_climbs_the_likelihood(bent):
    """Algorithm A1 as printed would descend it."""
    x = state(bent)
    with torch.no_grad():
        leaf = bent.step(x, seed=5) - bent.prior.process.step(
            bent.prior.denoise, x, T, T_NEXT, torch.Generator().manual_seed(5)
        )
        assert float(bent.log_p(x + 1e-3 * leaf)) > float(bent.log_p(x))


def test_gradient_of_the_transcription_is_right(bent):
    bent.completion.update(bent.prior.denoise(state(bent), T), 1.0)
    assert torch.autograd.gradcheck(bent.log_p, state(bent).requires_grad_(), atol=1e-6)


def test_guided_step_of_chroma_is_equation_4(model):
    """The released network, untrained, in double precision, with all but two residues held."""
    pytest.importorskip("chroma", reason="generate-chroma is not installed; make chroma")
    from small_chroma import small_backbone

    from densemble.priors.chroma.prior import ChromaPrior
    from densemble.priors.held import Substructure

    (around,) = Region.parse("A:172-193").resolve(model.topology)
    atoms = model.topology.atoms_of(around)
    residues, _, _ = backbone(model, "A:182-183")
    chroma = ChromaPrior(
        model.topology.subset(atoms), model.coords[atoms], small_backbone(num_neighbors=30).double()
    )
    known = torch.tensor(model.coords[atoms][chroma.atoms])
    numbers = np.array([chroma.topology.residues[r].id.number for r in chroma.topology.residue_index])
    free = torch.as_tensor(np.isin(numbers, (182, 183)))
    problem = Problem(model, Substructure(chroma, known, free), residues, strength=2.0)
    x = known[free] + 0.5 * torch.randn(
        MEMBERS, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found = problem.step(x, seed=5)
    expected, norms = transcribed(problem, x, 5, clip=CLIP)
    assert float(norms.max()) > CLIP > float(norms.min()), "clipping must matter for some and not for others"
    plain = problem.prior.process.step(problem.prior.denoise, x, T, T_NEXT, torch.Generator().manual_seed(5))
    assert (
        float((found - expected).norm() / (expected - plain).norm()) < 1e-5
    )  # P and n are of single precision
    one = x[:1].clone().requires_grad_()
    whole = problem.prior.denoise
    assert torch.autograd.gradcheck(lambda one: whole(one, T), one, atol=1e-5, rtol=1e-3)
