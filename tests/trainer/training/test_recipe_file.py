"""Resolved recipes as TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from hypothesis import given
from hypothesis import strategies as st

from trainer.recipe import load_recipe, recipe_names
from trainer.training.recipe_file import differences, read_recipe, to_toml, write_recipe

_SCALARS = (
    st.text(st.characters(exclude_categories=("Cs",)))
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_KEYS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_what_is_written_is_read(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_comes_back_whole(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_differences_are_named_by_their_keys() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    assert differences(old, {"a": {"b": 2, "c": [1, 2]}, "e": 0.5}) == ["a.b: 1 → 2", "d: 'x' → None", "e: None → 0.5"]
    assert differences(old, old) == []
