"""The record of a finished run back from its folder."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from densemble.errors import InputError
from densemble.io.output import RESULT_FILE
from densemble.io.results import SCHEMA, Result
from densemble.io.state_results import SCHEMA as STATE_SCHEMA
from densemble.io.state_results import StateResult


def read_run(folder: Path) -> Result | StateResult:
    """The record of a finished run of either kind.

    Raises:
        InputError: there is no such file, or it does not follow a schema of this version.
    """
    path = folder / RESULT_FILE
    try:
        text = path.read_bytes()
        schema = json.loads(text).get("schema")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the output folder of a finished run"
        ) from error
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not a record of a run ({error})") from error
    kinds: dict[str, type[Result] | type[StateResult]] = {SCHEMA: Result, STATE_SCHEMA: StateResult}
    if schema not in kinds:
        raise InputError(f"{path}: has schema {schema!r}, and what is known here is {' and '.join(kinds)}")
    try:
        return kinds[schema].model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: does not follow {schema}: {where}: {first['msg']}") from error
