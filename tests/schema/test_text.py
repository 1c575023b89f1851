from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.text import storable


@given(st.text(st.characters(), max_size=40), st.none() | st.integers(0, 30))
def test_what_comes_out_is_taken_and_good_text_is_kept(text: str, length: int | None) -> None:
    kept = storable(text, length)
    kept.encode("utf-8")
    assert "\0" not in kept
    assert length is None or len(kept) <= length
    assert storable(kept, length) == kept
    if "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert kept == text[:length]


@pytest.mark.parametrize(
    ("text", "kept"), [("a\0b", "ab"), ("\udc80x", "?x"), ("Müller\0", "Müller"), ("\U0001fa7b", "\U0001fa7b")]
)
def test_examples(text: str, kept: str) -> None:
    assert storable(text) == kept
