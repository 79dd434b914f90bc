"""Features of sequence files against those that Boltz's command line makes, and what is said of bad input."""

import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gemmi
import numpy as np
import pytest
import torch

pytest.importorskip("boltz", reason="needs densemble[boltz]: make boltz")

from boltz import main
from boltz.data.module.inference import PredictionDataset, collate
from boltz.data.module.inferencev2 import PredictionDataset as PredictionDataset2
from boltz.data.module.inferencev2 import collate as collate2
from boltz_models import Chain, protein, write_model
from boltz_networks import EXAMPLE_ATOMS, boltz_files, example_input

from densemble.errors import InputError
from densemble.io.models import read_model
from densemble.priors.boltz.alignments import MsaServer
from densemble.priors.boltz.inputs import input_of_model, read_input

A3M = ">query\nMKTAYSIAGL\n>one\nMRT-YSLAGL\n>two\nMKTaaAYSIA--\n"
RICH = """version: 1
sequences:
  - protein:
      id: [A, B]
      sequence: MKTAYSIAGL
      msa: a.a3m
      modifications: [{position: 6, ccd: SEP}]
  - rna: {id: R, sequence: GACU}
  - dna: {id: D, sequence: GATC}
  - ligand: {id: G, ccd: GOL}
  - ligand: {id: [L, M], smiles: "C[C@H](N)C(=O)N[C@@H](CO)C(=O)O"}
  - ligand: {id: Z, ccd: ZN}
constraints:
  - bond: {atom1: [A, 1, SD], atom2: [G, 1, O1]}
  - pocket: {binder: L, contacts: [[A, 2], [B, 3]]}
"""


@pytest.fixture(params=["boltz1", "boltz2"])
def kind(request):
    return request.param


@pytest.fixture
def files(kind, boltz_cache):
    return boltz_files(kind, boltz_cache)


@pytest.fixture
def rich(tmp_path):
    (tmp_path / "a.a3m").write_text(A3M)
    path = tmp_path / "rich.yaml"
    path.write_text(RICH)
    return path


def of_command_line(path, kind, cache, folder, monkeypatch):
    """What Boltz's own preparation and data module make of a file."""
    monkeypatch.chdir(path.parent)  # Boltz looks for alignments from there
    main.process_inputs(
        data=[path],
        out_dir=folder,
        ccd_path=cache / "ccd.pkl",
        mol_dir=cache / "mols",
        msa_server_url="",
        msa_pairing_strategy="greedy",
        boltz2=kind == "boltz2",
    )
    made = folder / "processed"
    options = {
        "manifest": main.Manifest.load(made / "manifest.json"),
        "target_dir": made / "structures",
        "msa_dir": made / "msa",
        "constraints_dir": made / "constraints",
    }
    if kind == "boltz1":
        return collate([PredictionDataset(**options)[0]])
    more = {"template_dir": made / "templates", "extra_mols_dir": made / "mols"}
    return collate2([PredictionDataset2(**options, **more, mol_dir=cache / "mols")[0]])


@pytest.mark.parametrize("name", ["example", "rich"])
def test_features_are_those_of_the_command_line(name, kind, files, boltz_cache, rich, tmp_path, monkeypatch):
    path = rich if name == "rich" else example_input(tmp_path)
    own = read_input(path, files)
    theirs = of_command_line(path, kind, boltz_cache, tmp_path / "boltz", monkeypatch)
    assert set(own.feats) == set(theirs) - {"record", "disto_target"}
    for feature, value in own.feats.items():
        assert value.dtype == theirs[feature].dtype
        if feature != "ref_pos":
            assert torch.equal(value, theirs[feature]), feature
    compare_conformers(own, theirs["ref_pos"][0, : own.atoms])


def test_templates_are_those_of_the_command_line(boltz_cache, tmp_path, monkeypatch):
    """Boltz-2 alone has them."""
    chain = Chain("T", protein("AMKTAYSIAG"), [str(n) for n in range(1, 11)])
    write_model(tmp_path / "template.cif", [chain])
    path = tmp_path / "templated.yaml"
    path.write_text(
        "sequences:\n  - protein: {id: A, sequence: MKTAYSIAGL, msa: empty}\n"
        "templates:\n  - cif: template.cif\n"
    )
    own = read_input(path, boltz_files("boltz2", boltz_cache))
    theirs = of_command_line(path, "boltz2", boltz_cache, tmp_path / "boltz", monkeypatch)
    assert own.feats["template_mask"].sum() == 9
    for feature in own.feats.keys() - {"ref_pos"}:
        assert torch.equal(own.feats[feature], theirs[feature]), feature
    with pytest.raises(InputError, match=r"Templates are not supported in Boltz 1\.0"):
        read_input(path, boltz_files("boltz1", boltz_cache))


def compare_conformers(own, theirs):
    """Conformers are turned at random; those of SMILES are drawn anew each time: bonds alone are the same."""
    mine, smiles = own.feats["ref_pos"][0, : own.atoms], 0
    for r, residue in enumerate(own.topology.residues):
        atoms = own.topology.atoms_of([r])
        a, b = (torch.cdist(x[atoms].double(), x[atoms].double()) for x in (mine, theirs))
        if residue.name.startswith("LIG"):
            smiles += 1
            bonded = b < 1.7
            assert bonded.sum() > len(atoms)
            torch.testing.assert_close(a[bonded], b[bonded], atol=0.05, rtol=0)
        else:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert smiles > 0


def test_features_are_the_same_in_every_run(files, rich):
    before = torch.random.get_rng_state()
    first = read_input(rich, files)
    assert torch.equal(before, torch.random.get_rng_state()), "the user's random numbers must not change"
    torch.manual_seed(5)
    second = read_input(rich, files)
    assert first.key == second.key
    assert all(torch.equal(first.feats[name], second.feats[name]) for name in first.feats)


def test_key_tells_inputs_apart(files, rich):
    keys = {read_input(rich, files).key}
    (rich.parent / "a.a3m").write_text(A3M.replace("MRT", "MHT"))
    keys.add(read_input(rich, files).key)
    rich.write_text(RICH.replace("GACU", "GACA"))
    keys.add(read_input(rich, files).key)
    rich.write_text(RICH.replace("contacts: [[A, 2]", "contacts: [[A, 3]"))
    keys.add(read_input(rich, files).key)
    assert len(keys) == 4


def test_the_two_models_have_different_keys(boltz_cache, tmp_path):
    path = example_input(tmp_path)
    keys = {read_input(path, boltz_files(kind, boltz_cache)).key for kind in ("boltz1", "boltz2")}
    assert len(keys) == 2


@pytest.mark.parametrize("padded", [False, True])
def test_topology_is_of_the_atoms_without_padding(files, tmp_path, padded):
    found = read_input(example_input(tmp_path, padded=padded), files)
    assert found.atoms == len(found.topology) == EXAMPLE_ATOMS[padded]
    assert found.feats["atom_pad_mask"].shape == (1, 192)
    assert float(found.feats["atom_pad_mask"].sum()) == found.atoms


def test_names_kinds_and_elements(files, rich):
    """Elements are from atomic numbers: CA of a residue is carbon, of a nucleotide P is phosphorus."""
    topology = read_input(rich, files).topology
    kinds = {}
    for residue in topology.residues:
        kinds.setdefault(residue.id.chain, set()).add(residue.kind)
    expected = {"A": "protein", "B": "protein", "R": "nucleic", "D": "nucleic"}
    expected |= {"G": "ligand", "L": "ligand", "M": "ligand", "Z": "ion"}
    assert kinds == {chain: {kind} for chain, kind in expected.items()}
    assert [str(r.id) for r in topology.residues[:3]] == ["A:1", "A:2", "A:3"]
    assert [r.name for r in topology.residues[:10]] == (
        ["MET", "LYS", "THR", "ALA", "TYR", "SEP", "ILE", "ALA", "GLY", "LEU"]
    )
    assert [r.name for r in topology.residues[20:28]] == ["G", "A", "C", "U", "DG", "DA", "DT", "DC"]
    element = dict(
        zip(zip(topology.residue_names, topology.names, strict=True), topology.elements, strict=True)
    )
    assert element["ALA", "CA"] == "C"
    assert element["MET", "SD"] == "S"
    assert element["SEP", "P"] == "P"
    assert element["ZN", "ZN"] == "Zn"
    assert element["DT", "C7"] == "C"
    assert {len(gemmi.Element(e).name) for e in topology.elements} == {1, 2}


def test_message_of_single_sequences(files, tmp_path):
    assert any(
        "chain A, B: without alignment" in m for m in read_input(example_input(tmp_path), files).messages
    )


def test_features_on_a_device(files, tmp_path):
    found = read_input(example_input(tmp_path), files)
    moved = found.to("meta")
    assert {value.device.type for value in moved.feats.values()} == {"meta"}
    assert moved.key == found.key


def test_nothing_is_printed(files, tmp_path, capfd):
    """Boltz prints what it does and why it skips an input; users are told by messages and errors."""
    read_input(example_input(tmp_path), files)
    with pytest.raises(InputError):
        read_input(written(tmp_path, "ligand: {id: L, smiles: not-a-molecule}"), files)
    assert capfd.readouterr() == ("", "")


# What is wrong is said.


def written(folder, *entries, more=""):
    path = folder / "bad.yaml"
    path.write_text("sequences:\n" + "".join(f"  - {entry}\n" for entry in entries) + more)
    return path


@pytest.mark.parametrize(
    ("entry", "more", "said"),
    [
        ("ligand: {id: L, ccd: QQQ}", "", "chain L: the component QQQ is not in Boltz's chemical dictionary"),
        (
            "protein: {id: A, sequence: MST, msa: empty, modifications: [{position: 2, ccd: QQQ}]}",
            "",
            "chain A: the component QQQ is not in",
        ),
        (
            "ligand: {id: L, smiles: not-a-molecule}",
            "",
            "ligand L: 'not-a-molecule' cannot be read as SMILES",
        ),
        ("protein: {id: A, sequence: MST}", "", "chain A has no alignment (MSA); name one (msa: FILE.a3m"),
        (
            "protein: {id: A, sequence: MST, msa: empty}",
            "constraints:\n  - bond: {atom1: [A, 1, XX], atom2: [A, 2, N]}\n",
            "Boltz finds no ('A', 0, 'XX'), which a constraint or template names",
        ),
        (
            "protein: {id: A, sequence: MST, msa: empty}",
            "constraints:\n  - contact: {token1: [A, 1]}\n",
            "Contact constraint was not properly specified",
        ),
    ],
)
def test_what_boltz_does_not_know(files, tmp_path, entry, more, said):
    path = written(tmp_path, entry, more=more)
    with pytest.raises(InputError) as caught:
        read_input(path, files)
    assert said in str(caught.value)
    assert f"sequence file {path}: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.a3m", ">q\nMKTAYSIAG\n", "rows have 9 residues (lower case not counted), the chain has 10"),
        ("a.a3m", ">q\nMKTAYSIAGL\n>r\nMKTA\n", "rows have 4, 10 residues"),
        ("a.a3m", ">q\nMKTAYWWAGL\n", "80% of the residues of its first row are those of the chain"),
        ("a.a3m", ">q\nMKTAY1IAGL\n", "'1' is no amino acid"),
        ("a.a3m", "", "no sequences in it"),
        ("a.csv", "sequence\nMKT\n", "cannot be read"),
    ],
)
def test_alignments_that_do_not_fit(files, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    path = written(tmp_path, f"protein: {{id: A, sequence: MKTAYSIAGL, msa: {name}}}")
    with pytest.raises(InputError) as caught:
        read_input(path, files)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_a_dictionary_that_is_damaged(kind, tmp_path, boltz_cache):
    cache = tmp_path / "cache"
    (cache / "mols").mkdir(parents=True)
    (cache / "ccd.pkl").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"chemical dictionary .*(ccd\.pkl|mols): cannot be read"):
        read_input(example_input(tmp_path), boltz_files(kind, cache))


# Alignments from a server, which is played here.


class Colabfold(BaseHTTPRequestHandler):
    """Answers at once, with a homologue of whatever it is asked for."""

    asked: list[str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        type(self).asked.append(self.path)
        type(self).query = [line for line in body.replace("%0A", "\n").split("\n") if line.isalpha()]
        self._reply(b'{"id": "%s", "status": "COMPLETE"}' % self.path.split("/")[-1].encode())

    def do_GET(self):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for name in ("uniref.a3m", "bfd.mgnify30.metaeuk30.smag30.a3m", "pair.a3m"):
                blocks = [f">{101 + n}\n{s}\n>hit\n{s[:-1]}W\n" for n, s in enumerate(self.query)]
                content = "\x00".join(blocks).encode()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        self._reply(made.getvalue())

    def _reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def colabfold():
    handler = type("Handler", (Colabfold,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Boltz leaves what it unpacked open
def test_alignments_from_a_server(files, tmp_path, colabfold):
    url, asked = colabfold
    server = MsaServer(tmp_path / "msa", url=url)
    path = written(tmp_path, "protein: {id: A, sequence: MKTAYSIAGL}", "protein: {id: B, sequence: GSHWVNDP}")
    found = read_input(path, files, server=server)
    assert asked == ["/ticket/pair", "/ticket/msa"]
    msa = found.feats["msa"][0]
    rows = {tuple(row) for row in (msa.argmax(-1) if msa.ndim == 3 else msa).tolist()}
    query, homologue = sorted(rows)  # Boltz has them twice, once for pairing
    assert [i for i, (a, b) in enumerate(zip(query, homologue, strict=True)) if a != b] == [9, 17]
    again = read_input(path, files, server=server)
    assert again.key == found.key
    assert len(asked) == 2, "what the server made is kept"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_alignments_of_the_sequences_of_a_model(files, tmp_path, colabfold):
    url, asked = colabfold
    chain = Chain("A", protein("MKTAYSIAGL"), [str(n) for n in range(1, 11)])
    model = read_model(write_model(tmp_path / "m.cif", [chain]))
    alone = input_of_model(model, files)
    assert asked == []
    assert any("--use-msa-server" in message for message in alone.messages)
    found = input_of_model(model, files, server=MsaServer(tmp_path / "msa", url=url))
    assert asked == ["/ticket/msa"]
    assert found.messages == ()
    assert len(alone.feats["msa"][0]) == 1 < len(found.feats["msa"][0])


def test_a_server_that_fails(files, tmp_path, monkeypatch):
    def fails(**_):
        raise Exception("Too many failed attempts for the MSA generation request.")  # as Boltz does

    monkeypatch.setattr(main, "compute_msa", fails)
    path = written(tmp_path, "protein: {id: A, sequence: MKTAYSIAGL}")
    with pytest.raises(InputError, match=r"no alignments from http://nowhere \(Too many failed attempts"):
        read_input(path, files, server=MsaServer(tmp_path / "msa", url="http://nowhere"))
    assert list((tmp_path / "msa").iterdir()) == []


def test_positions_of_atoms_are_finite(files, rich):
    assert np.isfinite(read_input(rich, files).feats["ref_pos"].numpy()).all()
