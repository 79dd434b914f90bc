import numpy as np
import pytest
import torch
from ideal import SMALL
from ideal import constant as build

from chemistry import chemistry, ramachandran_classes
from corpus import Corpus, cut
from densemble.priors.segment_geometry import stack
from densemble.priors.segment_network import SegmentNetwork
from evaluate import Sampling, bridge_denoiser, draw, evaluate, rank_histogram, sample, summary, table_text
from structure import coil, dihedral, hydrogen_bonds


@pytest.fixture(scope="module")
def corpus():
    chains = [build(-62, -42, 60), build(-120, 130, 60), build(-75, 145, 60)]
    n = 60 * len(chains)
    return Corpus(
        np.concatenate(chains).astype(np.float32),
        np.arange(n) % 20,
        np.arange(len(chains) + 1) * 60,
        np.array(["helix", "strand", "poly"]),
        np.ones(len(chains), dtype=bool),
    )


def test_dihedral_has_the_sign_of_iupac():
    x = build(-62, -42, 3)
    assert np.degrees(dihedral(x[0, 2], x[1, 0], x[1, 1], x[1, 2])) == pytest.approx(-62, abs=1e-6)
    assert np.degrees(dihedral(x[1, 0], x[1, 1], x[1, 2], x[2, 0])) == pytest.approx(-42, abs=1e-6)


def test_hydrogen_bonds_and_coil_of_a_helix():
    helix = build(-62, -42, 20)
    bonds = hydrogen_bonds(helix)
    assert np.diagonal(bonds, 4).all()
    assert not np.diagonal(bonds, 5).any()
    assert np.flatnonzero(coil(helix)).tolist() == [0, 19]


def test_coil_of_hairpin_and_of_single_strands():
    assert coil(build(-120, 130, 20)).all()
    # two strands 4.8 Å apart, antiparallel: a strand and its image by a twofold axis in the sheet
    strand = build(-139, 135, 8)
    centred = strand - strand[:, 1].mean(0)
    axis = np.linalg.svd(centred[:, 1])[2][0]
    towards = centred[3, 3] - centred[3, 2]
    towards -= (towards @ axis) * axis
    towards /= np.linalg.norm(towards)
    paired = 0
    for shift in np.arange(-4.0, 4.1, 0.25):
        normal = np.cross(axis, towards)
        turned = centred @ (2 * np.outer(normal, normal) - np.eye(3)) + 4.8 * towards + shift * axis
        together = np.concatenate([centred, turned + 0.0])
        paired = max(paired, int((~coil(together)).sum()))
    assert paired >= 4


def test_closed_form_chain_is_the_exact_gaussian(corpus):
    item, _ = cut(*corpus.chain(0), 20, 3)
    segment = stack([item])
    denoise = bridge_denoiser(segment)
    # brute force: a walk of independent steps N, CA, C conditioned on its end by linear algebra
    walk = 1.45**2 * np.minimum.outer(np.arange(1, 11), np.arange(1, 11)).astype(float)
    bridge = walk[:9, :9] - np.outer(walk[:9, 9], walk[9, :9]) / walk[9, 9]
    at = np.array([0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8])
    covariance = bridge[np.ix_(at, at)] + np.diag([0, 0, 0, 1.23**2 / 3] * 3)
    gain = np.linalg.solve(covariance + 0.7**2 * np.eye(12), covariance).T
    x = torch.randn(1, 2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    mean = segment.mean[0].reshape(12, 3).numpy()
    expected = mean + gain @ (x[0, 1].reshape(12, 3).numpy() - mean)
    assert np.allclose(denoise(x, 0.7)[0, 1].reshape(12, 3), expected, atol=1e-4)


def test_sampling_the_closed_form_gives_its_mean_and_variance(corpus):
    item, _ = cut(*corpus.chain(0), 20, 4)
    segment = stack([item])
    generator = torch.Generator().manual_seed(0)
    # Euler steps lose some variance: 3 % with 200 of them and no churn
    sampling = Sampling(members=3000, steps=200, churn=0.0)
    found = sample(bridge_denoiser(segment), segment.mean, 30.0, sampling, generator)[0]
    middle = found[:, 1, 2]  # C of the second residue: the sixth of twelve steps, of thirteen in all
    sd = 1.45 * np.sqrt(6 * 7 / 13)
    assert np.allclose(middle.mean(0), segment.mean[0, 1, 2], atol=5 * sd / np.sqrt(3000))
    assert np.allclose(middle.std(0), sd, rtol=0.06)


def test_summary_and_ranks():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 5, 4, 3))
    samples = np.repeat(truth[:, None], 4, axis=1)
    samples[:, 1:, ..., 0] += np.array([1.0, 2.0, 3.0])[:, None, None]
    row = summary(samples, truth)
    assert row["best4_median"] == 0.0
    assert row["single_median"] == pytest.approx(1.5)
    drawn = rng.normal(size=(300, 7, 5, 4, 3))
    counts = rank_histogram(drawn, truth)
    assert counts.shape == (8,)
    assert counts.sum() == 300 * 4
    assert counts.std() / counts.mean() < 0.25
    narrow = rank_histogram(drawn * 0.1, truth)
    assert narrow[-1] > 3 * counts.mean()


def test_chemistry_of_the_truth_and_of_noise(corpus):
    cuts = [cut(*corpus.chain(i), 20, 8) for i in (0, 1, 2)]
    items, truth = [c[0] for c in cuts], np.stack([c[1] for c in cuts])[:, None]
    good = chemistry(truth.astype(np.float64), items)
    assert good["peptide_bonds_within"] == 1.0
    assert good["n_ca_c_sd"] < 0.05
    assert good["ramachandran_outliers"] < 0.1  # glycine's torsions, say, on a proline
    assert good["trans"] == 1.0
    assert good["clashes"] == 0.0
    noise = truth + np.random.default_rng(0).normal(scale=0.5, size=truth.shape)
    bad = chemistry(noise, items)
    assert bad["peptide_bonds_within"] < 0.2
    assert bad["n_ca_c_sd"] > 10
    assert bad["ramachandran_outliers"] > 0.05
    # moved rigidly onto a residue far along the chain, the fourth residue at least clashes
    onto = np.stack([item["context"][-1, 1] for item in items])[:, None, None, None]
    assert chemistry(truth - truth[:, :, 3:4, 1:2] + onto, items)["clashes"] >= 1 / 8


def test_ramachandran_classes():
    kind, following = np.array([5, 12, 0, 0, 5]), np.array([0, 0, 12, 3, 12])  # G P A A G before A A P E P
    assert ramachandran_classes(kind, following).tolist() == [1, 2, 3, 0, 1]


def test_loops_are_drawn_from_coil(corpus):
    assert all(chain != 0 for chain, _ in draw(corpus, 8, 20, loop=True, seed=0))
    assert draw(corpus, 8, 20, loop=False, seed=0) == draw(corpus, 8, 20, loop=False, seed=0)
    assert draw(corpus, 8, 20, loop=False, seed=0) != draw(corpus, 8, 20, loop=False, seed=1)


def test_evaluation_has_the_keys_promised(corpus, monkeypatch):
    monkeypatch.setattr("evaluate.REGULARISED", (1, 2))
    monkeypatch.setattr("regularised.EVALUATIONS", 10)
    torch.manual_seed(0)
    network = SegmentNetwork(SMALL).eval()
    result = evaluate(network, corpus, segments=2, sampling=Sampling(members=16, steps=3), seed=0)
    for kind in ("all", "loop"):
        for length in ("4", "8", "12", "16"):
            row = result["segments"][kind][length]
            assert row["best16_median"] <= row["single_median"]
            assert row["closed_form"]["best16_median"] <= row["closed_form"]["single_median"]
    assert result["seconds"] > 0
    assert 0 <= result["chemistry"]["peptide_bonds_within"] <= 1
    assert result["chemistry_regularised"]["members"] == 8 * 2
    assert set(result["chemistry_regularised"]["by_set"]) == set(result["chemistry"]["by_set"])
    levels = result["denoising_rmse"].keys()
    assert result["denoising_rmse_closed_form"].keys() == levels
    assert "all   8" in table_text(result)
