"""What is read from FASTA and Boltz YAML, and what is said of what is wrong in them."""

import pytest

pytest.importorskip("boltz", reason="needs densemble[boltz]: make boltz")

from densemble.errors import InputError
from densemble.priors.boltz.sequences import chain_names, read_contents


def save(folder, text, name="input.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def entry(text):
    return f"sequences:\n  - {text}\n"


def test_plain_fasta_is_proteins(tmp_path):
    text = ">sp|P00698|LYSC_CHICK Lysozyme C\nKVFGR\nCELA*\n\n>second one\nmkt\n"
    found = read_contents(save(tmp_path, text, "x.fasta"))
    assert found.schema["sequences"] == [
        {"protein": {"id": "A", "sequence": "KVFGRCELA"}},
        {"protein": {"id": "B", "sequence": "MKT"}},
    ]


def test_fasta_as_boltz_has_it(tmp_path):
    (tmp_path / "a.a3m").write_text(">q\nMKT\n")
    proteins = ">A|protein|a.a3m\nMKT\n>B|PROTEIN|empty\nMK\n"
    text = proteins + ">C|rna\nACGU\n>D|dna\nACGT\n>E|ccd\nZN\n>F|smiles\nCCO\n"
    found = read_contents(save(tmp_path, text, "x.fa"))
    assert [(kind, names) for kind, _, names in found.entities()] == [
        ("protein", ["A"]),
        ("protein", ["B"]),
        ("rna", ["C"]),
        ("dna", ["D"]),
        ("ligand", ["E"]),
        ("ligand", ["F"]),
    ]
    entities = [entity for _, entity, _ in found.entities()]
    assert entities[0]["msa"] == str(tmp_path / "a.a3m")
    assert entities[1]["msa"] == "empty"
    assert entities[4]["ccd"] == "ZN"
    assert entities[5]["smiles"] == "CCO"


def test_yaml_keeps_what_boltz_reads(tmp_path):
    (tmp_path / "t.cif").touch()
    text = (
        "version: 1\nsequences:\n  - Protein: {id: [A, B], sequence: MKT, msa: empty}\n"
        "constraints:\n  - contact: {token1: [A, 1], token2: [B, 2]}\ntemplates:\n  - cif: t.cif\n"
        "properties:\n  - affinity: {binder: A}\n"
    )
    found = read_contents(save(tmp_path, text))
    assert [names for _, _, names in found.entities()] == [["A", "B"]]
    assert found.schema["constraints"] == [{"contact": {"token1": ["A", 1], "token2": ["B", 2]}}]
    assert found.schema["templates"] == [{"cif": str(tmp_path / "t.cif")}]
    assert "properties" not in found.schema
    assert found.messages == ("input.yaml: properties (affinities) are not predicted here",)


def test_files_are_found_from_the_folder_of_the_file_first(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "a.a3m").write_text(">q\nMKT\n")
    monkeypatch.chdir(here)
    path = save(there, entry("protein: {id: A, sequence: MKT, msa: a.a3m}"))
    ((_, entity, _),) = read_contents(path).entities()
    assert entity["msa"] == str(there / "a.a3m")
    (there / "a.a3m").unlink()
    ((_, entity, _),) = read_contents(path).entities()
    assert entity["msa"] == str(here / "a.a3m")


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "x.fasta", "the file is empty"),
        ("  \n", "x.yaml", "the file is empty"),
        (">A\nMKT\n", "x.txt", "name it .fa"),
        ("MKT\n", "x.fasta", "not FASTA"),
        (">A|protein\nMKT\n>B\nMKT\n", "x.fasta", "write all alike"),
        (">A\nACGTACGTACGT\n", "x.fasta", "'>A' looks like a nucleic acid"),
        (">A\n\n>B\nMK\n", "x.fasta", "chain A has no sequence"),
        (">A\nMK1T\n", "x.fasta", "chain A: residue 3 is '1', which is no protein residue"),
        (">A|rna\nACGT\n", "x.fasta", "chain A: residue 4 is 'T', which is no rna residue; write N"),
        (">A|ccd|file\nZN\n", "x.fasta", "only proteins have alignments"),
        ("sequences: [\n", "x.yaml", "not YAML"),
        ("protein: MKT\n", "x.yaml", "no list 'sequences'"),
        ("sequences: []\n", "x.yaml", "no list 'sequences'"),
        (entry("sugar: {id: A}"), "x.yaml", "entry 1 of 'sequences' is not one of protein"),
        (entry("protein: MKT"), "x.yaml", "entry 1 of 'sequences' is not one of protein"),
        (entry("protein: {sequence: MKT}"), "x.yaml", "entry 1 of 'sequences' has no id"),
        (
            entry("protein: {id: 1, sequence: MKT}"),
            "x.yaml",
            "chain name 1: write 1 to 5 characters, in quotes",
        ),
        (
            entry("protein: {id: no, sequence: MKT}"),
            "x.yaml",
            "chain name False: write 1 to 5 characters, in quotes",
        ),
        (entry("protein: {id: Chain1, sequence: MKT}"), "x.yaml", "chain name 'Chain1'"),
        (entry("protein: {id: [A, A], sequence: MKT}"), "x.yaml", "two chains are named A"),
        (entry("protein: {id: A}"), "x.yaml", "chain A has no sequence"),
        (entry("ligand: {id: L}"), "x.yaml", "ligand L: give it one of ccd and smiles"),
        (entry("ligand: {id: L, ccd: ZN, smiles: C}"), "x.yaml", "ligand L: give it one of ccd and smiles"),
        (
            entry("protein: {id: A, sequence: MKT, modifications: [{position: 4, ccd: SEP}]}"),
            "x.yaml",
            "with P from 1 to 3",
        ),
        (entry("protein: {id: A, sequence: MKT, msa: no.a3m}"), "x.yaml", "chain A: there is no file no.a3m"),
        (
            entry("protein: {id: A, sequence: MKT, msa: x.yaml}"),
            "x.yaml",
            "alignment x.yaml: Boltz reads .a3m",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, name, said):
    with pytest.raises(InputError) as caught:
        read_contents(save(tmp_path, text, name))
    assert said in str(caught.value)
    assert f"sequence file {tmp_path / name}: " in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: there is no such file"):
        read_contents(tmp_path / "none.yaml")


def test_chain_names():
    names = chain_names({"B", "Z"})
    found = [next(names) for _ in range(26)]
    assert found[:3] == ["A", "C", "D"]
    assert found[22:] == ["X", "Y", "AA", "AB"]
