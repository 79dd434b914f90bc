"""Shape annotations are checked while tests run: jaxtyping with beartype as its judge."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("densemble", "beartype.beartype")

torch.set_num_threads(1)  # the tests run side by side


def pytest_configure(config):
    """Hide GPUs, which commands would take where there are any, unless tests marked ``gpu`` are asked for.

    Expected numbers are those of a CPU. PyTorch looks for GPUs when it is first asked for one.
    """
    if "gpu" not in (config.getoption("markexpr") or "").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20240607)


@pytest.fixture(scope="session")
def boltz_cache(tmp_path_factory):
    """A folder laid out as Boltz's cache, without weights; for tests that are skipped without boltz."""
    from boltz_dictionary import write_cache

    return write_cache(tmp_path_factory.mktemp("boltz"))
