"""One small crystal and one finished run of it, shared by the tests of the pipeline."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from small_crystal import GUIDES, STEPS, SmallCrystal, write_crystal

from densemble.io.results import Result
from densemble.pipeline import Settings, run_xray


@dataclass(frozen=True)
class Finished:
    settings: Settings
    folder: Path
    result: Result


@pytest.fixture(scope="session")
def crystal(tmp_path_factory) -> SmallCrystal:
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture(scope="session")
def finished(crystal, tmp_path_factory) -> Finished:
    """All ways of guidance, compared with the truth; tests must leave the folder as it is."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    settings = crystal.settings(guides=GUIDES, steps=STEPS)
    return Finished(settings, folder, run_xray(settings, folder, reference=crystal.reference))
