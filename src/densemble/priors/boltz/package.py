"""Which of the two models, and whether the package is there."""

from __future__ import annotations

import importlib.util
from typing import Literal

from densemble.errors import InputError

Kind = Literal["boltz1", "boltz2"]

TITLE: dict[Kind, str] = {"boltz1": "Boltz-1", "boltz2": "Boltz-2"}


def require_boltz() -> None:
    """See that the package boltz can be imported.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("boltz") is None:
        raise InputError(
            "the priors boltz1 and boltz2 need the package boltz (version 2.2.1, MIT licence), which is not "
            "installed: pip install 'densemble[boltz]'"
        )
