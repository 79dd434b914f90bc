from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Align import PairwiseAligner, substitution_matrices
from numpy.testing import assert_allclose
from shared_data import SHARED, needs

import train
from corpus import Corpus, Told, cut, load, read_excluded
from densemble.errors import InputError
from densemble.priors.segment_geometry import UNKNOWN
from examples import SIGMA_MIN, random_batch, random_length, random_levels

CORPUS = SHARED / "corpus"


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
    assert corpus.chosen(validation=False, excluded=frozenset({"1abc_A"})).tolist() == []
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


def test_without_sequence_all_kinds_are_unknown_and_nothing_else_changes():
    atoms, types = small_corpus().chain(0)
    whole, truth = cut(atoms, types, 20, 7)
    item, same = cut(atoms, types, 20, 7, told=Told(sequence=False))
    assert set(item["kind"]) == set(item["context_type"]) == {UNKNOWN}
    assert set(whole["kind"]) != {UNKNOWN} != set(whole["context_type"])
    assert np.array_equal(truth, same)
    for name in set(item) - {"kind", "context_type"}:
        assert np.array_equal(item[name], whole[name]), name


def test_without_context_only_the_anchors_are_seen():
    atoms, types = small_corpus().chain(0)
    whole, truth = cut(atoms, types, 20, 7)
    item, same = cut(atoms, types, 20, 7, told=Told(context=False))
    assert set(item["context_place"][item["context_mask"]]) == {-1, 7}
    assert np.array_equal(truth, same)
    for name in ("kind", "anchors", "mean", "width"):
        assert np.array_equal(item[name], whole[name]), name
    # the rest of the chain reaches nothing of it
    far = atoms + 50.0
    far[19:28] = atoms[19:28]
    other, _ = cut(far, types, 20, 7, told=Told(context=False))
    assert all(np.array_equal(item[name], other[name]) for name in item)
    assert not np.array_equal(whole["surroundings"], cut(far, types, 20, 7)[0]["surroundings"])


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


@needs(CORPUS, "the chains of the training corpus")
def test_no_relative_of_the_holdout_is_trained_on():
    """The training chains that share most words with hold-out sequences are no homologs of them."""
    corpus = load(CORPUS / "backbones.npz")
    excluded = read_excluded(Path(train.__file__).with_name("excluded.txt"))
    training = corpus.chosen(validation=False, excluded=excluded)
    with (CORPUS / "holdout.fasta").open() as file:
        holdout = [str(record.seq) for record in SeqIO.parse(file, "fasta")]
    owners = {}
    for j, sequence in enumerate(holdout):
        for i in range(len(sequence) - 5):
            owners.setdefault(sequence[i : i + 6], set()).add(j)

    def closest(chain):
        sequence = corpus.sequence(int(chain))
        words = {sequence[i : i + 6] for i in range(len(sequence) - 5)}
        counts = Counter(j for word in words for j in owners.get(word, ()))
        return max(((n, sequence, j) for j, n in counts.items()), default=(0, "", 0))

    def significant(sequence, other):
        """Score of a local alignment in bits by the statistics of BLOSUM62 11/1 (Altschul 1997)."""
        return (0.267 * aligner.score(sequence, other) - np.log(0.041)) / np.log(2)

    aligner = PairwiseAligner(mode="local", open_gap_score=-12, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")

    def relatives(chains):
        """Those of the 15 nearest by words that have a significant match."""
        nearest = sorted((found[chain] for chain in chains), reverse=True)[:15]
        return [n for n, sequence, j in nearest if significant(sequence, holdout[j]) > 60]

    everything = corpus.chosen(validation=False)
    found = {chain: closest(chain) for chain in everything}
    assert relatives(training) == []
    # and the test can fail: without the list, all of these would be homologs
    assert len(relatives(everything)) == 15
