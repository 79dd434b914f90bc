"""Weights and dictionary of Boltz: where they are, how they are fetched, and the network built from them."""

import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

pytest.importorskip("boltz", reason="needs densemble[boltz]: make boltz")

from boltz import main
from boltz.model.models.boltz1 import Boltz1
from boltz.model.models.boltz2 import Boltz2
from boltz_networks import example_input, reduced_model, save_checkpoint
from omegaconf import OmegaConf

from densemble.errors import InputError
from densemble.io.output import InputFile
from densemble.priors.boltz.package import require_boltz
from densemble.priors.boltz.weights import find_files, load_network
from densemble.progress import Progress

KINDS = ("boltz1", "boltz2")
PAIRFORMER = {"num_blocks": 3, "num_heads": 4, "dropout": 0.25}


class Said(Progress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One of each model, with numbers of blocks and heads that are not Boltz's."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for kind in KINDS:
        pairformer = PAIRFORMER | {"v2": kind == "boltz2"}
        made[kind] = save_checkpoint(reduced_model(kind, pairformer_args=pairformer), folder / f"{kind}.ckpt")
    return made


def rewritten(path, to, change):
    """A checkpoint with its content changed by a function."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, to)
    return to


def test_network_has_the_weights_of_the_file(kind, checkpoints):
    network = load_network(kind, checkpoints[kind])
    stored = torch.load(checkpoints[kind], weights_only=False)["state_dict"]
    assert network.state_dict().keys() == stored.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in stored.items())
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.use_kernels is False  # there is no GPU here


def test_step_scale(kind, checkpoints):
    assert (
        load_network(kind, checkpoints[kind]).structure_module.step_scale
        == {
            "boltz1": 1.638,
            "boltz2": 1.5,
        }[kind]
    )
    assert load_network(kind, checkpoints[kind], step_scale=3.0).structure_module.step_scale == 3.0


class Built(Exception):  # noqa: N818
    """Instead of a network, when it is to be built."""


RELEASED = {  # hyperparameters of the sizes of the released checkpoints
    "boltz1": {"pairformer_args": {"num_blocks": 48, "num_heads": 16, "dropout": 0.25}},
    "boltz2": {"pairformer_args": {"num_blocks": 64, "num_heads": 16, "dropout": 0.25}},
}
RELEASED_MSA = {"msa_s": 64, "msa_blocks": 4, "pairwise_head_width": 32, "pairwise_num_heads": 4}


def test_arguments_are_those_of_the_command_line(kind, checkpoints, boltz_cache, tmp_path, monkeypatch):
    """``boltz predict`` up to the point where it builds the network, against ours."""
    given = {}

    def capture(_file, **arguments):
        given.update(arguments)
        raise Built

    monkeypatch.setattr(Boltz2 if kind == "boltz2" else Boltz1, "load_from_checkpoint", capture)
    monkeypatch.setattr(main, f"download_{kind}", lambda _cache: None)
    monkeypatch.setattr(main, "Trainer", lambda **_: None)
    for name in ("CUEQ_DEFAULT_CONFIG", "CUEQ_DISABLE_AOT_TUNING"):
        monkeypatch.setenv(name, "1")  # the command line sets them
    options = ["--model", kind, "--cache", str(boltz_cache), "--out_dir", str(tmp_path)]
    options += ["--accelerator", "cpu", "--preprocessing-threads", "1", str(example_input(tmp_path))]
    with torch.enable_grad(), pytest.raises(Built):  # the command line turns gradients off for good
        main.predict.main(options, standalone_mode=False)
    theirs = dict(given)

    def released(content):
        content["hyper_parameters"].update(
            RELEASED[kind] | {"msa_args": RELEASED_MSA | {"msa_dropout": 0.15}}
        )

    with pytest.raises(Built):
        load_network(kind, rewritten(checkpoints[kind], tmp_path / "released.ckpt", released))
    for name in ("use_kernels", "predict_args"):  # kernels need a GPU; the other is not read
        theirs.pop(name), given.pop(name)
    assert given == theirs


def test_arguments_of_old_checkpoints_that_boltz_dropped_do_not_matter(kind, checkpoints, tmp_path):
    def old(content):
        stored = content["hyper_parameters"]
        stored["msa_args"] = OmegaConf.create(stored["msa_args"] | {"postpone_outer_product": True})
        stored["pairformer_args"] = OmegaConf.create(stored["pairformer_args"] | {"no_update_z": False})

    network = load_network(kind, rewritten(checkpoints[kind], tmp_path / "old.ckpt", old))
    assert len(network.pairformer_module.layers) == PAIRFORMER["num_blocks"]


def test_weights_of_the_other_model(kind, checkpoints):
    other = KINDS[1 - KINDS.index(kind)]
    with pytest.raises(InputError, match=rf"{other}\.ckpt: these are weights of .*--prior {other}"):
        load_network(kind, checkpoints[other])


def test_weights_for_affinities(checkpoints, tmp_path):
    path = rewritten(
        checkpoints["boltz2"],
        tmp_path / "affinity.ckpt",
        lambda c: c["hyper_parameters"].update(affinity_prediction=True),
    )
    with pytest.raises(InputError, match=r"affinity\.ckpt: these weights are for affinities"):
        load_network("boltz2", path)


def test_weights_that_lack_some(kind, checkpoints, tmp_path):
    path = rewritten(
        checkpoints[kind], tmp_path / "some.ckpt", lambda c: c["state_dict"].pop("z_norm.weight")
    )
    with pytest.raises(InputError, match=r"some\.ckpt.*z_norm\.weight"):
        load_network(kind, path)


def test_what_is_no_checkpoint(kind, checkpoints, tmp_path):
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoints[kind].read_bytes()[:-1000])
    text = tmp_path / "text.ckpt"
    text.write_text("<html>not found</html>")
    tensors = tmp_path / "tensors.ckpt"
    torch.save({"a": torch.zeros(2)}, tensors)
    for path in (cut, text, tensors):
        with pytest.raises(InputError, match=rf"{path.name}: not a checkpoint of"):
            load_network(kind, path)


def test_key_of_weights(checkpoints, tmp_path):
    """SHA-256 of the three letters abc, from FIPS 180-2."""
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert InputFile.of(path).sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert InputFile.of(checkpoints["boltz1"]).sha256 != InputFile.of(checkpoints["boltz2"]).sha256


# Downloads: from a folder that plays the server, or from a server that breaks off.


@pytest.fixture
def store(tmp_path, monkeypatch):
    """What would be downloaded, by file URLs in the place of Boltz's."""
    folder = tmp_path / "store"
    (folder / "mols").mkdir(parents=True)
    (folder / "mols" / "ALA.pkl").write_bytes(b"alanine")
    with tarfile.open(folder / "mols.tar", "w") as tar:
        tar.add(folder / "mols", "mols")
    for name in ("ccd.pkl", "boltz1_conf.ckpt", "boltz2_conf.ckpt"):
        (folder / name).write_bytes(name.encode())
    point_to(folder.as_uri(), monkeypatch)
    return folder


def point_to(base, monkeypatch):
    monkeypatch.setattr(main, "CCD_URL", f"{base}/ccd.pkl")
    monkeypatch.setattr(main, "MOL_URL", f"{base}/mols.tar")
    for kind in KINDS:
        urls = [f"{base}/{kind}_conf.ckpt"]
        monkeypatch.setattr(main, f"{kind.upper()}_URL_WITH_FALLBACK", urls)
    monkeypatch.setattr(main, "BOLTZ2_AFFINITY_URL_WITH_FALLBACK", [f"{base}/must-not-be-asked-for"])


def test_first_use_downloads_and_says_so(kind, store, tmp_path):
    cache, said = tmp_path / "cache", Said()
    found = find_files(kind, cache=cache, progress=said)
    assert found.weights.read_bytes() == f"{kind}_conf.ckpt".encode()
    expected = {"boltz1": {"ccd.pkl"}, "boltz2": {"mols", "mols.tar"}}[kind] | {f"{kind}_conf.ckpt"}
    assert {path.name for path in cache.iterdir()} == expected
    dictionary = found.dictionary / "ALA.pkl" if kind == "boltz2" else found.dictionary
    assert dictionary.read_bytes() in (b"alanine", b"ccd.pkl")
    assert len(said.messages) == 2
    for message in said.messages:
        assert re.search(r"about \d\.\d GB, MIT licence\) from file://.* to .*cache", message)


def test_what_is_there_is_not_downloaded_again(kind, store, tmp_path):
    cache, said = tmp_path / "cache", Said()
    first = find_files(kind, cache=cache)
    for file in store.iterdir():
        if file.is_file():
            file.unlink()
    assert find_files(kind, cache=cache, progress=said) == first
    assert said.messages == []


def test_weights_of_ones_own_need_the_dictionary_alone(kind, store, tmp_path):
    cache, own = tmp_path / "cache", tmp_path / "own.ckpt"
    own.write_bytes(b"mine")
    found = find_files(kind, weights=own, cache=cache)
    assert found.weights == own
    assert not (cache / f"{kind}_conf.ckpt").exists()
    assert found.dictionary.exists()
    with pytest.raises(InputError, match=r"weights .*none\.ckpt: there is no such file"):
        find_files(kind, weights=tmp_path / "none.ckpt", cache=cache)


def test_an_archive_that_is_there_is_unpacked(store, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (store / "mols.tar").rename(cache / "mols.tar")
    assert (find_files("boltz2", cache=cache).dictionary / "ALA.pkl").read_bytes() == b"alanine"
    assert (cache / "mols.tar").is_file()


def test_an_archive_cut_short(store, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "mols.tar").write_bytes((store / "mols.tar").read_bytes()[:600])
    (cache / "boltz2_conf.ckpt").touch()
    with pytest.raises(InputError, match=r"mols could not be prepared.*remove .*mols\.tar"):
        find_files("boltz2", cache=cache)
    assert not (cache / "mols").exists()


def test_without_network_it_says_what_to_fetch(kind, tmp_path, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    cache = tmp_path / "cache"
    dictionary = "mols.tar" if kind == "boltz2" else "ccd.pkl"
    with pytest.raises(InputError) as caught:
        find_files(kind, cache=cache)
    text = str(caught.value)
    for name in (dictionary, f"{kind}_conf.ckpt"):
        assert f"http://127.0.0.1:9/{name} as {cache / name}" in text
    assert "--weights FILE" in text
    assert list(cache.iterdir()) == []


class BreaksOff(BaseHTTPRequestHandler):
    """Announces a thousand bytes, sends ten."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, *_):
        pass


def test_a_download_that_breaks_off_leaves_nothing(kind, tmp_path, monkeypatch):
    """Boltz alone would take the ten bytes for the file ever after."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        cache = tmp_path / "cache"
        with pytest.raises(InputError, match=r"could not be prepared.*10 out of 1000 bytes"):
            find_files(kind, cache=cache)
        assert list(cache.iterdir()) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_cache_is_that_of_boltz(kind, store, tmp_path, monkeypatch):
    monkeypatch.setenv("BOLTZ_CACHE", str(tmp_path / "elsewhere"))
    assert find_files(kind).weights.parent == tmp_path / "elsewhere"


def test_the_package_is_there():
    require_boltz()
