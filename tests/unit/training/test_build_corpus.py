import struct

import numpy as np
import pytest

from build_corpus import HEADER, Chain, encode, read_database
from corpus import load
from densemble.errors import InputError


def chain(n, seed=0):
    """A zigzag with C-N bonds of 1.33 Å, units of 0.01 Å."""
    rng = np.random.default_rng(seed)
    start = rng.integers(2000, 4000, size=3)
    step = np.array([[0, 0, 0], [146, 0, 0], [250, 110, 0], [230, 230, 0]])
    return np.array([start + i * np.array([250 + 133, 110, 0]) + step for i in range(n)])


def write(path, chains, count=None):
    """A file in the layout of the database, with another array behind the coordinates."""
    body, first = struct.pack("<Q", len(chains)), 0
    for name, sequence, _ in chains:
        for word in name:
            body += struct.pack("<I", len(word)) + word.encode()
        body += struct.pack("<IHHfff", first, len(sequence), 1, 0.0, 0.0, 0.0)
        first += len(sequence)
    total = first if count is None else count
    body += struct.pack("<Q", total) + b"".join(s for _, s, _ in chains)
    body += struct.pack("<Q", total) + b"".join(a.astype("<u2").tobytes() for _, _, a in chains)
    body += struct.pack("<Q", total) + bytes(first)
    path.write_bytes(bytes(HEADER) + body)


def test_reads_the_database_and_writes_the_format(tmp_path):
    rows = [(("1ABC", "A"), b"ACDEF" * 10, chain(50)), (("2XYZ", "b"), b"GHIKL" * 9, chain(45, seed=1))]
    write(tmp_path / "structure_db.dat", rows)
    chains = read_database(tmp_path / "structure_db.dat")
    assert [c.name for c in chains] == ["1ABC_A", "2XYZ_b"]
    assert [c.sequence for c in chains] == [rows[0][1], rows[1][1]]
    assert all(c.usable() for c in chains)
    np.savez(tmp_path / "corpus.npz", validation=np.zeros(2, dtype=bool), **encode(chains))
    corpus = load(tmp_path / "corpus.npz")
    for i, (_, sequence, atoms) in enumerate(rows):
        assert corpus.sequence(i) == sequence.decode()
        found = corpus.chain(i)[0]
        assert np.abs(found.mean((0, 1))).max() < 0.01
        shift = found[0, 0] - 0.01 * atoms[0, 0]
        assert np.allclose(found, 0.01 * atoms + shift, atol=1e-3)


def test_short_and_broken_chains_are_not_usable():
    assert Chain("x", b"A" * 40, chain(40)).usable()
    assert not Chain("x", b"A" * 39, chain(39)).usable()
    assert not Chain("x", b"A" * 385, chain(385)).usable()
    broken = chain(40)
    broken[20:] += 100
    assert not Chain("x", b"A" * 40, broken).usable()


def test_another_layout_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"none\.dat: not a ProMod3"):
        read_database(tmp_path / "none.dat")
    write(tmp_path / "wrong.dat", [(("1ABC", "A"), b"ACDEF", chain(5))], count=6)
    with pytest.raises(InputError, match="array of 6 entries where 5 residues"):
        read_database(tmp_path / "wrong.dat")
