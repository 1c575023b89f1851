from __future__ import annotations

import re

import pytest

from worker.errors import CODES, CarinaError
from worker.peers.trouble import TROUBLES, PeerError, Whose, advice, http_trouble, sentence, storage_trouble


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_stored_with_or_without_a_remark_is_stored(status: int) -> None:
    assert storage_trouble(status) is None


@pytest.mark.parametrize(
    ("status", "code", "whose"),
    [
        (0xA700, "OUT_OF_RESOURCES", Whose.PEER),
        (0xA7FF, "OUT_OF_RESOURCES", Whose.PEER),
        (0xA900, "DATA_MISMATCH", Whose.LASTING),
        (0xC000, "CANNOT_UNDERSTAND", Whose.LASTING),
        (0xC123, "CANNOT_UNDERSTAND", Whose.LASTING),
        (0x0122, "SOP_CLASS_REFUSED", Whose.LASTING),
        (0x0124, "REFUSED", Whose.LASTING),
        (0x0110, "SERVER_ERROR", Whose.PASSING),
        (0x0211, "SERVER_ERROR", Whose.PASSING),
    ],
)
def test_what_a_status_says(status: int, code: str, whose: Whose) -> None:
    trouble = storage_trouble(status)
    assert trouble is not None
    assert (trouble.code, trouble.whose, trouble.detail) == (code, whose, f"status {status:04X}H")


@pytest.mark.parametrize(
    ("status", "whose"),
    [(301, Whose.PEER), (400, Whose.LASTING), (401, Whose.PEER), (404, Whose.PEER), (409, Whose.LASTING),
     (418, Whose.LASTING), (429, Whose.PEER), (500, Whose.PASSING), (503, Whose.PEER), (599, Whose.PASSING)],
)  # fmt: skip
def test_whose_trouble_an_http_status_is(status: int, whose: Whose) -> None:
    assert http_trouble(status).whose is whose


def test_every_code_is_told_in_words_with_what_to_do_next() -> None:
    for code, definition in TROUBLES.items():
        assert re.fullmatch(r"[A-Z].*\.", definition.meaning) and re.fullmatch(r"[A-Z].*[.a-z]", definition.advice), (
            code
        )
        assert sentence(code, "seen") == f"{definition.meaning[:-1]}: seen."
        assert str(PeerError(code)) == f"{definition.meaning} {definition.advice}"
    # One table of words for both kinds of codes, so none may mean two things.
    assert not TROUBLES.keys() & CODES.keys()
    assert (sentence("SOURCE_MISSING"), advice("SOURCE_MISSING")) == (
        CODES["SOURCE_MISSING"].meaning,
        CODES["SOURCE_MISSING"].advice,
    )
    assert isinstance(PeerError("REFUSED"), CarinaError)
