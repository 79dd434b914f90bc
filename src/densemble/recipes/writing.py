"""Recipes and suites out, as TOML."""

from __future__ import annotations

import json
import re
from typing import Any


def toml_text(values: dict[str, Any], place: str = "") -> str:
    """A table of plain values, tables, and lists of tables. Nothing else is in recipes and suites.

    Plain values are written as in JSON, which TOML shares for strings, finite numbers, booleans and lists.

    Args:
        values: by key.
        place: of the table among the tables around it, with a dot at its end.
    """

    def tables(value: object) -> bool:
        items = value if isinstance(value, list | tuple) else ()
        return bool(items) and all(isinstance(item, dict) for item in items)

    plain = {k: v for k, v in values.items() if not isinstance(v, dict) and not tables(v)}
    parts = [f"{_key(k)} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in plain.items()]
    for name, part in values.items():
        own = place + _key(name)
        if isinstance(part, dict):
            parts.append(f"[{own}]\n{toml_text(part, f'{own}.')}")
        elif tables(part):
            parts += [f"[[{own}]]\n{toml_text(item, f'{own}.')}" for item in part]
    return "".join(parts)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
