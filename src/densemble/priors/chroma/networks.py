"""Chroma's networks with their weights, from the user's files or fetched by Chroma itself.

The package is Apache-2.0 and holds no weights. These have a licence of their own (academic and other
non-commercial use) and an access key, which the user asks for, accepting that licence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densemble.errors import InputError
from densemble.io.output import InputFile

INSTALL = (
    "`make chroma` in a clone of densemble makes an environment that has it, or: pip install "
    "'densemble[chroma]' && pip install --no-deps generate-chroma==1.0.0 nglview==4.0.1 (Apache-2.0; the "
    "weights are separate)"
)
KEY = (
    "Chroma's weights have a licence of their own, for academic and other non-commercial use, and an access "
    "key: accept the licence at https://chroma-weights.generatebiomedicines.com, then register the key once "
    "with python -c \"from chroma import api; api.register_key('KEY')\""
)


@dataclass(frozen=True)
class Kind:
    """One of Chroma's networks.

    Attributes:
        name: of its class.
        module: where that is.
        option: for a file of its weights.
        purpose: what it is for.
        tolerant: weights may have parameters that the network has not. So the package's own loaders have
            it (their ``strict_unexpected``).
    """

    name: str
    module: str
    option: str
    purpose: str
    tolerant: bool


BACKBONE = Kind("GraphBackbone", "graph_backbone", "--weights-backbone", "backbone network", tolerant=True)
DESIGN = Kind("GraphDesign", "graph_design", "--weights-design", "design network", tolerant=False)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with its weights.

    Attributes:
        network: of the class of its kind, for inference, on a GPU where there is one.
        file: the weights, for records of a run; also those that Chroma fetched.
        messages: what the user should know of them.
    """

    network: Any
    file: InputFile
    messages: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.network)


@cache
def load_backbone(path: Path | None = None) -> Loaded:
    """The denoiser of backbones, a ``chroma.models.graph_backbone.GraphBackbone``; see ``load_network``."""
    return load_network(BACKBONE, path)


@cache
def load_design(path: Path | None = None) -> Loaded:
    """The packer of side chains, a ``chroma.models.graph_design.GraphDesign``; see ``load_network``.

    Raises:
        InputError: also if the network was made without a packer.
    """
    loaded = load_network(DESIGN, path)
    if not loaded.network.separate_packing:
        raise InputError(f"{path or 'the public design network'}: has no packer of its own; give another")
    return loaded


def load_network(kind: Kind, path: Path | None) -> Loaded:
    """A network of the released package with its weights.

    What the package's own loader takes is taken, with one exception: parameters that the file lacks would
    stay as they were drawn at random, and are an error here.

    Args:
        kind: which.
        path: a file in the format of ``chroma.utility.model.save_model``, that of Chroma's downloads; None:
            the public weights, which Chroma fetches with the registered key and keeps in a temporary folder.

    Raises:
        InputError: the package is not installed; there are no such weights; the key is missing or not
            accepted; or the file holds something else.
    """
    _class_of(kind)
    name, source = (None, path) if path is not None else _fetched(kind)
    if not source.is_file():
        raise InputError(f"{kind.option} {source}: no such file; {KEY}, or give the file where you keep it")
    saved = _read(kind, source)
    try:
        network = new_network(kind, **saved["init_kwargs"])
        missing, unexpected = network.load_state_dict(saved["model_state_dict"], strict=False)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(_not_weights(kind, source, str(error).split("\n")[0])) from error
    lacking = [name for name in missing if name in dict(network.named_parameters()) or "_means_" in name]
    if lacking or (unexpected and not kind.tolerant):
        odd = f"lacks {lacking[0]}" if lacking else f"has {unexpected[0]}, which the network has not"
        raise InputError(_not_weights(kind, source, odd))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = InputFile.of(source)
    messages = (_ignored(kind, source, unexpected),) if unexpected else ()
    return Loaded(
        network.eval().requires_grad_(False).to(device),
        file if name is None else file.model_copy(update={"name": name}),
        messages,
    )


def _ignored(kind: Kind, source: Path, names: list[str]) -> str:
    """What is said where the file has parameters that the network has not."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{source.name}: {names[0]}{more} left out, for Chroma's {kind.purpose} has no such parameters; "
        "Chroma's own loader leaves them out too"
    )


def new_network(kind: Kind, **sizes: Any) -> Any:  # noqa: ANN401
    """A network of the released package with random weights.

    Args:
        kind: which.
        sizes: of its constructor.

    Raises:
        InputError: the package is not installed.
    """
    made = _class_of(kind)
    with _without_download():
        return made(**sizes)


def package_version() -> dict[str, str]:
    """The package's name and version, for records of a run."""
    from importlib.metadata import version

    return {"generate-chroma": version("generate-chroma")}


def device_of(network: Any) -> torch.device:  # noqa: ANN401
    """Where a network is, and what it is given has to be."""
    return next(network.parameters()).device


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global random numbers, from which Chroma draws, begun anew; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        yield


def _class_of(kind: Kind) -> type[nn.Module]:
    try:
        from importlib import import_module

        return getattr(import_module(f"chroma.models.{kind.module}"), kind.name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"Chroma cannot be imported ({error}); {INSTALL}") from error


def _read(kind: Kind, source: Path) -> dict[str, Any]:
    """The contents of a file of weights; no code in it is run."""
    harmless: list[Any] = [argparse.Namespace, types.SimpleNamespace]  # in which training options may be kept
    try:
        with torch.serialization.safe_globals(harmless):
            saved = torch.load(source, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise InputError(_not_weights(kind, source, str(error).split("\n")[0])) from error
    if not isinstance(saved, dict) or not {"init_kwargs", "model_state_dict"} <= saved.keys():
        raise InputError(_not_weights(kind, source, "it has no init_kwargs and model_state_dict"))
    return saved


def _not_weights(kind: Kind, source: Path, why: str) -> str:
    return (
        f"{source}: not weights of Chroma's {kind.name} ({why}); give the file of the {kind.purpose} "
        f"to {kind.option}, or remove the file if Chroma fetched it, so that it is fetched again"
    )


def _fetched(kind: Kind) -> tuple[str, Path]:
    """Name of the public weights and where Chroma keeps them; it fetches them if they are not there."""
    import requests
    from chroma.constants.named_models import NAMED_MODELS
    from chroma.utility import api

    address, _, name = NAMED_MODELS[kind.name]["public"]["s3_uri"].partition("?weights=")
    need = f"Chroma's {kind.purpose} needs weights"
    files = f"or give a file with {kind.option}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it says what it does
            return name, Path(api.download_from_generate(address, name, exist_ok=True))
    except FileNotFoundError as error:
        raise InputError(f"{need}, and no access key is registered. {KEY}, {files}") from error
    except requests.HTTPError as error:
        status = error.response.status_code
        if status in (400, 401, 403):
            raise InputError(
                f"{need}, and the registered access key was not accepted (HTTP {status}). {KEY}, {files}"
            ) from error
        raise InputError(f"{need}, and the server answered HTTP {status}; try later, {files}") from error
    except requests.RequestException as error:
        raise InputError(
            f"{need}, and {address} could not be reached ({type(error).__name__}); {files}"
        ) from error


@contextlib.contextmanager
def _without_download() -> Iterator[None]:
    """Make a network without the PDB entry that its constructor would fetch.

    The constructor computes means of features from 2G3N and caches them within the package. They are buffers
    of the network and part of its weights, so what it computes is overwritten at once.
    """
    from chroma.layers.structure.protein_graph import ProteinFeatureGraph

    def placeholders(self: Any, reference_pdb: str) -> None:  # noqa: ANN401
        del reference_pdb
        for kind, layers in (("node", self.node_layers), ("edge", self.edge_layers)):
            for i, layer in enumerate(layers):
                self.register_buffer(f"{kind}_means_{i}", torch.zeros(1, 1, layer.dim_out))

    original = ProteinFeatureGraph._load_centering_params
    ProteinFeatureGraph._load_centering_params = placeholders
    try:
        yield
    finally:
        ProteinFeatureGraph._load_centering_params = original
