"""Weights and chemical dictionary in Boltz's own cache, and the network built from them.

The cache is Boltz's (``~/.boltz``, or ``$BOLTZ_CACHE``) and is filled by Boltz's own functions, so that what
either program has downloaded serves both.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from boltz import main
from boltz.model.models.boltz1 import Boltz1
from boltz.model.models.boltz2 import Boltz2

from densemble.errors import InputError
from densemble.priors.boltz.memory import must_hold
from densemble.priors.boltz.package import TITLE, Kind
from densemble.progress import Progress

Network: TypeAlias = Boltz1 | Boltz2

STEP_SCALE: dict[Kind, float] = {"boltz1": 1.638, "boltz2": 1.5}
"""What Boltz's command line sets. Larger steps give less varied samples (paper 2: 3.0 for antibodies)."""

_WEIGHTS: dict[Kind, str] = {"boltz1": "boltz1_conf.ckpt", "boltz2": "boltz2_conf.ckpt"}
_DICTIONARY: dict[Kind, str] = {"boltz1": "ccd.pkl", "boltz2": "mols"}
_ARCHIVE = "mols.tar"  # what the folder mols is unpacked from
_AFFINITY = "boltz2_aff.ckpt"  # Boltz fetches it with the others; it is not used here
_SIZES = {
    "boltz1_conf.ckpt": "3.6 GB",
    "ccd.pkl": "0.4 GB",
    "boltz2_conf.ckpt": "2.3 GB",
    "mols.tar": "1.9 GB",
}
_TRUNK_SIZES = ("num_blocks", "num_heads")
_MSA_SIZES = ("msa_s", "msa_blocks", "pairwise_head_width", "pairwise_num_heads")
_OWN_PART: dict[Kind, str] = {  # weights that only this model has
    "boltz1": "structure_module.score_model.pairwise_conditioner.",
    "boltz2": "diffusion_conditioning.",
}


@dataclass(frozen=True)
class BoltzFiles:
    """Where the weights are, and the dictionary: a file ``ccd.pkl`` (Boltz-1) or a folder (Boltz-2)."""

    kind: Kind
    weights: Path
    dictionary: Path


def find_files(
    kind: Kind,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> BoltzFiles:
    """Weights and dictionary, downloaded once if they are not in the cache.

    Args:
        kind: which model.
        weights: a checkpoint in place of the one in the cache.
        cache: Boltz's if None.
        progress: told, before anything is downloaded, what, how much, from where and under which licence.

    Raises:
        InputError: ``weights`` does not exist; or what is missing cannot be
            downloaded: says what to fetch from where, and where to put it.
    """
    if weights is not None:
        _check_there(kind, weights)
    cache = Path(main.get_cache_path()) if cache is None else cache
    needed = [_DICTIONARY[kind]] if weights is not None else [_DICTIONARY[kind], _WEIGHTS[kind]]
    missing = [name for name in needed if not (cache / name).exists()]
    if missing:
        _download(kind, cache, missing, progress or Progress(), weights_given=weights is not None)
    return BoltzFiles(kind, weights or cache / _WEIGHTS[kind], cache / _DICTIONARY[kind])


def check_weights(kind: Kind, file: Path) -> None:
    """See that a file holds the weights of a model.

    Raises:
        InputError: it does not exist, is no checkpoint, or of another model.
    """
    _check_there(kind, file)
    _hyperparameters(kind, file)


def _check_there(kind: Kind, file: Path) -> None:
    if not file.is_file():
        raise InputError(f"weights {file}: there is no such file; give a checkpoint of {TITLE[kind]}")


def _download(
    kind: Kind, cache: Path, missing: list[str], progress: Progress, *, weights_given: bool
) -> None:
    """Let Boltz fetch what is missing, next to its final place, and move it there when it is complete."""
    fetched = [_ARCHIVE if name == "mols" else name for name in missing]
    if "mols" in missing and (cache / _ARCHIVE).exists():
        fetched.remove(_ARCHIVE)
    urls = {
        "ccd.pkl": [main.CCD_URL],
        _ARCHIVE: [main.MOL_URL],
        _WEIGHTS["boltz1"]: main.BOLTZ1_URL_WITH_FALLBACK,
        _WEIGHTS["boltz2"]: main.BOLTZ2_URL_WITH_FALLBACK,
    }
    for name in fetched:
        progress.message(
            f"downloading {name} of {TITLE[kind]} (about {_SIZES[name]}, MIT licence) from "
            f"{urls[name][-1]} to {cache}, once"
        )
    fetch = main.download_boltz1 if kind == "boltz1" else main.download_boltz2
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            _staging(kind, cache, {*missing, *fetched}) as staging,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            fetch(staging)
            for name in {*missing, *fetched}:
                os.replace(staging / name, cache / name)
    except (OSError, RuntimeError, HTTPException, tarfile.TarError) as error:
        what = "; ".join(f"{' or '.join(urls[name])} as {cache / name}" for name in fetched)
        own = "" if weights_given else ", or give a checkpoint that you have with --weights FILE"
        remedy = f"fetch {what}{own}" if fetched else f"remove {cache / _ARCHIVE}, it is not complete"
        reason = " ".join(str(error).split())
        raise InputError(
            f"{TITLE[kind]}: {' and '.join(missing)} could not be prepared in {cache} ({reason}); {remedy}"
        ) from error


@contextlib.contextmanager
def _staging(kind: Kind, cache: Path, wanted: set[str]) -> Iterator[Path]:
    """A folder in which Boltz's function finds everything but what is wanted.

    Boltz skips what exists, whatever it is, and leaves a file cut short by a broken connection in place as
    if it were complete. So empty files stand for what is there or not needed, and only complete ones leave.
    """
    everything = [_DICTIONARY[kind], _WEIGHTS[kind], *([_ARCHIVE, _AFFINITY] if kind == "boltz2" else [])]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        for name in set(everything) - wanted:
            if name == _ARCHIVE and "mols" in wanted:
                (Path(folder) / name).symlink_to((cache / name).resolve())
            else:
                (Path(folder) / name).touch()
        yield Path(folder)


def load_network(
    kind: Kind, file: Path, *, device: torch.device | str = "cpu", step_scale: float | None = None
) -> Network:
    """The network as Boltz's command line builds it, for inference.

    Args:
        kind: which model.
        file: a checkpoint. Numbers and widths of blocks in its hyperparameters go before Boltz's.
        device: where to put it.
        step_scale: of the sampler; ``STEP_SCALE`` if None.

    Returns:
        Boltz's own class in eval mode, its weights without gradients.

    Raises:
        InputError: the file is no checkpoint, or of another model, or does not hold all weights; or the
            device has no room for it.
    """
    stored = _hyperparameters(kind, file)
    device = torch.device(device)
    model = Boltz2 if kind == "boltz2" else Boltz1
    try:
        network = model.load_from_checkpoint(
            file,
            strict=True,
            map_location="cpu",
            ema=False,
            use_kernels=_kernels(device),
            **_arguments(kind, stored, STEP_SCALE[kind] if step_scale is None else step_scale),
        )
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"weights {file}: not a checkpoint that boltz 2.2.1 reads as {TITLE[kind]} ({reason}); "
            "download the released one anew"
        ) from error
    with must_hold(f"the network {TITLE[kind]}", device):
        return network.eval().requires_grad_(False).to(device)


def _hyperparameters(kind: Kind, file: Path) -> Mapping[str, Any]:
    """What a checkpoint was trained with, after a look at whose weights it holds."""
    try:
        # memory-mapped: the weights are not read here. Lightning unpickles it as well.
        checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        names, stored = list(checkpoint["state_dict"]), checkpoint["hyper_parameters"]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"weights {file}: not a checkpoint of {TITLE[kind]} ({reason}); if it was downloaded, "
            "the download was not complete: remove the file and fetch it anew"
        ) from error
    found = [other for other, part in _OWN_PART.items() if any(name.startswith(part) for name in names)]
    if found != [kind]:
        what = f"of {TITLE[found[0]]}" if found else "of neither Boltz-1 nor Boltz-2"
        other = f", or choose --prior {found[0]}" if found else ""
        raise InputError(
            f"weights {file}: these are weights {what}; give a checkpoint of {TITLE[kind]}{other}"
        )
    if stored.get("affinity_prediction"):
        raise InputError(f"weights {file}: these weights are for affinities; give {_WEIGHTS[kind]}")
    return stored


def _arguments(kind: Kind, stored: Mapping[str, Any], step_scale: float) -> dict[str, Any]:
    """What ``boltz.main.predict`` passes, with the sizes of this checkpoint."""
    second = kind == "boltz2"
    diffusion = main.Boltz2DiffusionParams() if second else main.BoltzDiffusionParams()
    diffusion.step_scale = step_scale
    trunk = asdict(main.PairformerArgsV2() if second else main.PairformerArgs())
    msa = asdict(main.MSAModuleArgs(use_paired_feature=second))
    return {
        "diffusion_process_args": asdict(diffusion),
        "pairformer_args": trunk | _sizes(stored, "pairformer_args", _TRUNK_SIZES),
        "msa_args": msa | _sizes(stored, "msa_args", _MSA_SIZES),
        "steering_args": asdict(main.BoltzSteeringParams()),
        "predict_args": None,  # read by predict_step alone, which is not used
    }


def _sizes(stored: Mapping[str, Any], part: str, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: stored[part][name] for name in names if name in stored.get(part, {})}


def _kernels(device: torch.device) -> bool:
    """Whether Boltz's fused kernels for the trunk can run: by its own rule, and if they are installed."""
    usable = device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8
    if usable and find_spec("cuequivariance_torch") is not None:
        for name in ("CUEQ_DEFAULT_CONFIG", "CUEQ_DISABLE_AOT_TUNING"):
            os.environ.setdefault(name, "1")  # as Boltz's command line does: no tuning of kernels
        return True
    return False
