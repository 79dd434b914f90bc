"""Chroma's networks from files and by key; what is said where package, key or file are not as they should."""

import argparse
import sys
from functools import partial

import pytest
import torch

from densemble.errors import InputError
from densemble.io.output import InputFile
from densemble.priors.chroma import networks
from densemble.priors.chroma.networks import BACKBONE, DESIGN, load_backbone, load_design, load_network

NO_CHROMA = "generate-chroma is not installed; make chroma"


@pytest.fixture
def weights(tmp_path):
    pytest.importorskip("chroma", reason=NO_CHROMA)
    from small_chroma import write_weights

    return write_weights(tmp_path)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Chroma's download with a server of our own, a folder for its cache and a key of its own."""
    pytest.importorskip("chroma", reason=NO_CHROMA)
    import requests
    from chroma.utility import api

    monkeypatch.setenv("TMPDIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    defaults = dict(zip(("force", "exist_ok", "key_directory"), (False, False, str(tmp_path)), strict=True))
    monkeypatch.setattr(api.download_from_generate, "__defaults__", tuple(defaults.values()))
    monkeypatch.setattr(api.read_key, "__defaults__", (str(tmp_path),))

    class Server:
        def __init__(self):
            self.asked, self.status, self.content = [], 200, b""

        def register(self, key="a-key"):
            api.register_key(key, str(tmp_path))

        def get(self, url, params):
            self.asked.append((url, params))
            if isinstance(self.status, Exception):
                raise self.status
            response = requests.Response()
            response.status_code, response._content = self.status, self.content
            return response

    server = Server()
    monkeypatch.setattr(requests, "get", server.get)
    return server


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "chroma", None)
    for name in [m for m in sys.modules if m.startswith("chroma.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match="Chroma cannot be imported") as raised:
        load_network(BACKBONE, None)
    for part in ("make chroma", "pip install --no-deps generate-chroma==1.0.0", "Apache-2.0"):
        assert part in str(raised.value)


def test_another_package_of_that_name_is_not_it(monkeypatch):
    for name in ["chroma", *[m for m in sys.modules if m.startswith("chroma.")]]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "chroma", argparse)
    with pytest.raises(InputError, match="Chroma cannot be imported"):
        load_network(DESIGN, None)


def test_files_give_the_networks_that_were_saved(weights):
    from small_chroma import small_backbone, small_design

    for kind, saved in ((BACKBONE, small_backbone()), (DESIGN, small_design())):
        loaded = load_network(kind, weights[kind])
        found = loaded.network
        assert (loaded.file, loaded.messages) == (InputFile.of(weights[kind]), ())
        assert type(found) is type(saved)
        assert not found.training
        ours, theirs = found.state_dict(), saved.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not any(p.requires_grad for p in found.parameters())
    assert load_backbone(weights[BACKBONE]) is load_backbone(weights[BACKBONE])


def test_means_of_features_are_those_of_the_weights_and_nothing_is_fetched(weights, server):
    """The constructor of the package would fetch 2G3N to compute them."""
    saved = torch.load(weights[BACKBONE], weights_only=True)
    names = [name for name in saved["model_state_dict"] if "_means_" in name]
    assert len(names) == 4
    for i, name in enumerate(names):
        saved["model_state_dict"][name] += i + 1
    torch.save(saved, weights[BACKBONE])
    found = load_network(BACKBONE, weights[BACKBONE]).network.state_dict()
    assert all(torch.equal(found[name], saved["model_state_dict"][name]) for name in names)
    assert server.asked == []


def test_training_options_within_a_file_do_no_harm(weights):
    saved = torch.load(weights[BACKBONE], weights_only=True)
    torch.save(saved | {"args": argparse.Namespace(lr=0.1)}, weights[BACKBONE])
    load_network(BACKBONE, weights[BACKBONE])


def test_file_that_is_not_there(tmp_path, weights):
    with pytest.raises(
        InputError, match=r"--weights-backbone .*none\.pt: no such file; Chroma's weights have"
    ):
        load_network(BACKBONE, tmp_path / "none.pt")


def test_file_of_the_other_network(weights):
    with pytest.raises(InputError, match=r"design\.pt: not weights of Chroma's GraphBackbone") as raised:
        load_network(BACKBONE, weights[DESIGN])
    assert "--weights-backbone" in str(raised.value)
    with pytest.raises(InputError, match=r"backbone\.pt: not weights of Chroma's GraphDesign"):
        load_network(DESIGN, weights[BACKBONE])


def test_file_of_something_else(tmp_path, weights):
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt"):
        with pytest.raises(InputError, match=rf"{name}: not weights of Chroma's GraphDesign"):
            load_network(DESIGN, tmp_path / name)


def test_file_that_lacks_parameters_or_has_others(weights):
    whole = torch.load(weights[BACKBONE], weights_only=True)
    name = next(iter(whole["model_state_dict"]))
    less = {key: value for key, value in whole["model_state_dict"].items() if key != name}
    torch.save(whole | {"model_state_dict": less}, weights[BACKBONE])
    with pytest.raises(InputError, match=f"lacks {name}"):
        load_network(BACKBONE, weights[BACKBONE])


def test_parameters_that_the_network_has_not_are_treated_as_by_chroma_s_own_loaders(weights):
    """Backbones: left out, and said so. Design networks: refused."""
    from chroma.models import graph_backbone, graph_design

    for kind in (BACKBONE, DESIGN):
        whole = torch.load(weights[kind], weights_only=True)
        more = {"x": torch.zeros(1), "y": torch.zeros(2)}
        torch.save(whole | {"model_state_dict": whole["model_state_dict"] | more}, weights[kind])
    loaded = load_network(BACKBONE, weights[BACKBONE])
    (said,) = loaded.messages
    assert "backbone.pt: x and 1 more left out" in said
    with pytest.raises(InputError, match="has x, which the network has not"):
        load_network(DESIGN, weights[DESIGN])
    with networks._without_download():
        theirs = graph_backbone.load_model(str(weights[BACKBONE]))
        with pytest.raises(Exception, match="2 unexpected keys"):
            graph_design.load_model(str(weights[DESIGN]))
    ours = loaded.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


def test_no_code_in_a_file_is_run(tmp_path, weights):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code in a file of weights was run",))

    torch.save({"init_kwargs": Trap(), "model_state_dict": {}}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match=r"trap\.pt: not weights"):
        load_network(BACKBONE, tmp_path / "trap.pt")


def test_design_network_without_a_packer(tmp_path, weights):
    from chroma.utility.model import save_model
    from small_chroma import small_design

    save_model(small_design(separate_packing=False), str(tmp_path / "one.pt"))
    with pytest.raises(InputError, match=r"one\.pt: has no packer"):
        load_design(tmp_path / "one.pt")


def test_without_a_key_it_says_how_to_get_one(server):
    with pytest.raises(InputError, match="needs weights, and no access key is registered") as raised:
        load_network(DESIGN, None)
    said = str(raised.value)
    for part in (
        "non-commercial",
        "chroma-weights.generatebiomedicines.com",
        "api.register_key",
        "--weights-design",
    ):
        assert part in said
    assert server.asked == []


@pytest.mark.parametrize("status", [401, 403])
def test_key_that_is_not_accepted(server, status):
    server.register()
    server.status = status
    with pytest.raises(InputError, match=rf"access key was not accepted \(HTTP {status}\)") as raised:
        load_network(BACKBONE, None)
    assert "or give a file with --weights-backbone" in str(raised.value)
    assert server.asked[0][1] == {"token": "a-key", "weights": "chroma_backbone_v1.0.pt"}


def test_server_that_fails_or_is_not_there(server):
    import requests

    server.register()
    server.status = 503
    with pytest.raises(InputError, match="answered HTTP 503"):
        load_network(BACKBONE, None)
    server.status = requests.ConnectionError("no route")
    with pytest.raises(InputError, match=r"could not be reached \(ConnectionError\); or give a file"):
        load_network(BACKBONE, None)


def test_key_fetches_the_public_weights_once(server, weights, capsys):
    server.register()
    server.content = weights[BACKBONE].read_bytes()
    for _ in range(2):
        loaded = load_network(BACKBONE, None)
    assert len(server.asked) == 1
    assert loaded.file.name == "chroma_backbone_v1.0.pt"
    assert loaded.file.sha256 == InputFile.of(weights[BACKBONE]).sha256, "the run's record says which weights"
    assert capsys.readouterr().out == "", "what Chroma prints would be among our results"


def test_a_run_by_fetched_weights_says_which_they_were(server, weights, tmp_path, monkeypatch):
    """The key of a run is of the files' contents: other weights are another run."""
    from densemble.method import Method
    from densemble.recipes import load_recipe
    from densemble.run import run_key

    monkeypatch.setattr("densemble.method.load_backbone", partial(load_network, BACKBONE))
    monkeypatch.setattr("densemble.method.load_design", partial(load_network, DESIGN))
    server.register()
    server.content = weights[BACKBONE].read_bytes()
    recipe = load_recipe("chroma-2024")
    method = Method.of("chroma", recipe, weights_design=weights[DESIGN])
    given = Method.of("chroma", recipe, weights_backbone=weights[BACKBONE], weights_design=weights[DESIGN])
    assert [f.sha256 for f in method.files] == [f.sha256 for f in given.files]
    saved = torch.load(weights[BACKBONE], weights_only=True)
    torch.save(saved | {"args": argparse.Namespace(lr=0.1)}, weights[BACKBONE])
    other = Method.of("chroma", recipe, weights_backbone=weights[BACKBONE], weights_design=weights[DESIGN])
    assert run_key({}, method.files, recipe) != run_key({}, other.files, recipe)


def test_page_in_place_of_weights(server):
    server.register()
    server.content = b"<html>log in</html>"
    with pytest.raises(InputError, match=r"weights\.pt: not weights of .* remove the file"):
        load_network(BACKBONE, None)
