"""A resolved recipe as TOML: what a run folder keeps, and what can be trained again as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.recipe import Recipe, load_recipe

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_HEADING = "# Every setting of this training, defaults included. carina train FILE trains the same again.\n"


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write every setting to ``path``."""
    path.write_text(_HEADING + to_toml(recipe.to_dict()), "utf-8")


def read_recipe(path: Path) -> Recipe:
    """What :func:`write_recipe` wrote."""
    return load_recipe(path)


def to_toml(table: Mapping[str, Any], name: str = "") -> str:
    """A table of strings, numbers, truth values, lists and tables as TOML; tables in lists become inline ones."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"\n[{name}]"] if name and (plain or not table) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in table.items():
        if isinstance(value, Mapping):
            text += to_toml(value, f"{name}.{_key(key)}" if name else _key(key))
    return text


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)


def _text(text: str) -> str:
    # A TOML string is a JSON string, except that DEL must be escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], inside: str = "") -> list[str]:
    """``key: old → new`` for everything in which two plain tables differ."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{inside}{key}.")
        elif before != after:
            found.append(f"{inside}{key}: {before!r} → {after!r}")
    return found
