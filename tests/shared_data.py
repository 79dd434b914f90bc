"""Data beside the repository that some tests need: in ``../shared``, or where DENSEMBLE_SHARED says."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DENSEMBLE_SHARED", Path(__file__).parents[2] / "shared"))


def needs(path: Path, what: str) -> pytest.MarkDecorator:
    """Skip where a file or folder is not there; ``what`` it holds, in words."""
    return pytest.mark.skipif(not path.exists(), reason=f"{what} are not on this machine")
