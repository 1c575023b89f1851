from __future__ import annotations

import pytest

from worker.errors import CODES, FilmError, Kind, advice, sentence


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_a_sentence_with_an_advice(code: str) -> None:
    definition = CODES[code]
    assert definition.meaning.endswith(".")
    assert definition.advice.strip()
    assert len(code) <= 32


def test_detail_joins_the_sentence() -> None:
    error = FilmError("PICTURE_TOO_LARGE", "65535 × 65535")
    assert str(error) == "The header claims more pixels than a radiograph can have: 65535 × 65535."
    assert error.kind is Kind.PERMANENT
    assert advice(error.code)
    assert sentence("NO_PIXEL_DATA") == CODES["NO_PIXEL_DATA"].meaning


def test_unknown_code_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="unknown error code"):
        FilmError("WHATEVER")
