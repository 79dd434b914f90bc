from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from corpus import Corpus, cut, load
from densemble.errors import InputError
from examples import SIGMA_MIN, random_batch, random_length, random_levels

SHARED = Path(__file__).parents[4] / "shared" / "corpus"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the training corpus is not on this machine")


def small_corpus(chains=6, residues=60):
    rng = np.random.default_rng(0)
    atoms = np.cumsum(rng.normal(size=(chains * residues, 1, 3)), axis=0) + rng.normal(
        size=(chains * residues, 4, 3)
    )
    offset = np.arange(chains + 1) * residues
    validation = np.arange(chains) == chains - 1
    types = rng.integers(0, 20, chains * residues)
    return Corpus(
        atoms.astype(np.float32), types, offset, np.array([f"{i}" for i in range(chains)]), validation
    )


def test_reads_the_format(tmp_path):
    rng = np.random.default_rng(0)
    atoms = [np.round(rng.normal(size=(n, 4, 3)) * 20, 2) for n in (5, 3)]
    deltas = [np.diff(np.rint(100 * x).astype(int).reshape(-1, 3), axis=0, prepend=0) for x in atoms]
    path = tmp_path / "chains.npz"
    arrays = {
        "offset": np.array([0, 5, 8]),
        "seq": np.frombuffer(b"ACDEFGHX", dtype=np.uint8),
        "chain": np.array(["1abc_A", "2xyz_B"]),
        "validation": np.array([False, True]),
        "delta": np.concatenate(deltas).astype(np.int16),
    }
    np.savez(path, **arrays)
    corpus = load(path)
    assert len(corpus) == 2
    for i in range(2):
        assert_allclose(corpus.chain(i)[0], atoms[i], atol=1e-4)
    assert [corpus.sequence(i) for i in range(2)] == ["ACDEF", "GHX"]
    assert corpus.chosen(validation=True).tolist() == [1]
    del arrays["delta"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"chains\.npz: not a corpus"):
        load(path)
    with pytest.raises(InputError, match=r"none\.npz: not a corpus"):
        load(tmp_path / "none.npz")


def test_cut_returns_the_truth_in_the_frame_of_the_anchors():
    corpus = small_corpus()
    atoms, types = corpus.chain(2)
    item, truth = cut(atoms, types, 20, 7)
    assert item["kind"].tolist() == types[20:27].tolist()
    # distances between segment and anchors are those of the chain
    for side, residue in ((0, 19), (1, 27)):
        found = np.linalg.norm(truth[3] - item["anchors"][side], axis=-1)
        assert_allclose(found, np.linalg.norm(atoms[23] - atoms[residue], axis=-1), atol=1e-4)
    assert not np.isin(item["context_place"][item["context_mask"]], np.arange(7)).any()


def test_conditioning_does_not_depend_on_the_answer():
    atoms, types = small_corpus().chain(0)
    moved = atoms.copy()
    moved[20:27] += 30.0
    item, _ = cut(atoms, types, 20, 7)
    other, _ = cut(moved, types, 20, 7)
    for name in item:
        assert np.array_equal(item[name], other[name])


def test_hidden_residues_are_not_shown_but_anchors_are():
    atoms, types = small_corpus().chain(0)
    hidden = np.zeros(60, dtype=bool)
    hidden[10:35] = True
    item, _ = cut(atoms, types, 20, 7, hidden)
    places = item["context_place"][item["context_mask"]] + 20
    assert set(places) & set(range(10, 35)) == {19, 27}


def test_levels_cover_all_noise():
    width = np.full(500, 4.0)
    sigma = random_levels(width, 8, np.random.default_rng(0))
    assert sigma.shape == (500, 8)
    assert sigma.min() >= SIGMA_MIN
    assert sigma.max() <= 16.0
    assert 0.15 < (sigma < 0.3).mean() < 0.35
    assert 0.1 < (sigma > 4.0).mean() < 0.2
    assert (sigma.min(1) < 0.7).all()  # stratified: every segment has a fine level
    assert (sigma[:, 3:6].max(1) > 1.0).all()


def test_lengths():
    rng = np.random.default_rng(0)
    drawn = np.array([random_length(rng) for _ in range(4000)])
    assert drawn.min() == 1
    assert drawn.max() == 24
    assert 0.7 < ((drawn >= 4) & (drawn <= 16)).mean() < 0.9


def test_batches_follow_their_seed_and_keep_to_the_chains_given():
    corpus = small_corpus()
    options = {"tokens": 400, "copies": 4, "terminal": 0.3, "hide": 0.3}
    train = corpus.chosen(validation=False)
    one, two = (random_batch(corpus, train, rng=np.random.default_rng(7), **options) for _ in range(2))
    assert (one.noisy == two.noisy).all()
    poisoned = Corpus(
        np.where((corpus.offset[-2] <= np.arange(360))[:, None, None], np.nan, corpus.atoms),
        corpus.types,
        corpus.offset,
        corpus.names,
        corpus.validation,
    )
    for seed in range(30):
        batch = random_batch(poisoned, train, rng=np.random.default_rng(seed), **options)
        assert batch.truth.isfinite().all()  # the validation chain, here NaN, is never touched


@shared
def test_no_close_relative_of_the_holdout_in_a_sample():
    """Of 1,500 chains and all hold-out sequences, the pairs that share most 4-mers are aligned."""
    from Bio import SeqIO
    from Bio.Align import PairwiseAligner, substitution_matrices

    corpus = load(SHARED / "backbones.npz")
    holdout = [str(r.seq) for r in SeqIO.parse(SHARED / "holdout.fasta", "fasta")]
    chosen = np.random.default_rng(1).choice(len(corpus), 1500, replace=False)
    sequences = [corpus.sequence(int(i)) for i in chosen]

    def words(sequence):
        return {sequence[i : i + 4] for i in range(len(sequence) - 3)}

    held = [words(h) for h in holdout]
    shared_words = [(len(words(s) & w), s, h) for s in sequences for h, w in zip(holdout, held, strict=True)]
    closest = sorted(shared_words, reverse=True)[:20]
    aligner = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    for _, sequence, other in closest:
        alignment = aligner.align(sequence, other)[0]
        counts = alignment.counts()
        aligned = counts.identities + counts.mismatches
        if aligned >= 0.5 * min(len(sequence), len(other)):
            assert counts.identities / aligned < 0.4, (sequence, other)
